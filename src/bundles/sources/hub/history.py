"""The commits of a branch on the Hub."""

from __future__ import annotations

import re

from bundles.errors import DownloadError, OfflineError
from bundles.sources.fetch import is_offline
from bundles.sources.hub.attempts import Attempts
from bundles.sources.options import Options
from bundles.spec.hub import HubAddress
from bundles.spec.values import shown

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEFAULTS = Options()


def commits_of(address: HubAddress, *, options: Options = _DEFAULTS) -> list[str]:
    """Return the commits of a branch, the last first.

    Args:
        address: of the repository and branch.
        options: how long to wait, and how often to try.

    Raises:
        SourceError: the Hub cannot be asked, also after retries.
    """
    from bundles.sources.hub import client as hub

    if is_offline():
        raise OfflineError(
            f"The Hub cannot be asked for {address.uri}, since BUNDLES_OFFLINE is set: unset it."
        )
    found = Attempts(address.uri, options, options.small_deadline).run(lambda: hub.commits(address))
    for commit in found:
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise DownloadError(f"The Hub names {shown(commit)} as a commit of {address.uri}: try again.")
    return found
