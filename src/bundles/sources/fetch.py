"""Fetch: decide what a source needs, do only that, and return a path with the pinned bytes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bundles.errors import ChecksumError, OfflineError, SourceNotFoundError, UnpinnedSourceWarning, warn
from bundles.sources import cache
from bundles.sources.options import Options, Order
from bundles.sources.records import Known, known
from bundles.sources.schemes import SCHEMES, Local, Remote
from bundles.sources.torch_hub import hub_files
from bundles.sources.verify import Verify, check_file
from bundles.spec.source import WeightSource
from bundles.spec.suggest import accepted

Action = Literal["use", "download", "refuse"]

_log = logging.getLogger("bundles")
_DEFAULTS = Options()


def fetch(
    source: WeightSource, *, verify: Verify = "once", progress: bool = True, options: Options = _DEFAULTS
) -> Path:
    """Return a local file that holds a source's weights.

    With a digest and the file present this uses no network, takes no lock and writes nothing but, the
    first time, a stamp that saves hashing it again. A remote source without a digest is recorded when it
    is downloaded, and behaves as if pinned from then on.

    Args:
        source: address, digest and size.
        verify: ``"once"`` hashes a file again only after it changed, ``"always"`` at each call,
            ``"off"`` never and warns (the size is still checked, and so is what comes off the network).
        progress: whether a download shows a bar on a terminal, or else a line in the log.
        options: what a download allows itself.

    Raises:
        SourceNotFoundError: nothing is there, or the scheme is unknown.
        SourceAccessError: it may not be read.
        ChecksumError: size or digest differ from the pinned or recorded ones.
        OfflineError: a download is needed and ``BUNDLES_OFFLINE`` is set.
        DownloadError: the transfer failed, also after retries.
        CacheError: the cache folder cannot be written, or has no room.

    >>> import bundles
    >>> fetch(bundles.CREPE_TINY.weights).name
    'tiny.pth'
    """
    if verify == "off":
        warn(f"With verify='off' nobody knows what {source.shown} gives.", UnpinnedSourceWarning)
    match _scheme(source):
        case Local(locate):
            path = locate(source)
            check_file(path, Known(source), verify)
            return path
        case Remote() as remote:
            return _fetch_remote(source, remote, verify, progress, options)


def decide(cached: Path | None, *, offline: bool) -> Action:
    """Say what a remote source needs: a pure decision, ordered by how little each takes."""
    if cached is not None:
        return "use"
    return "refuse" if offline else "download"


def is_offline() -> bool:
    """Whether downloads are switched off, by ``BUNDLES_OFFLINE`` or ``HF_HUB_OFFLINE``."""
    names = ("BUNDLES_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _scheme(source: WeightSource) -> Local | Remote:
    if source.scheme not in SCHEMES:
        raise SourceNotFoundError(
            f"The weight source {source.uri!r} has the unknown scheme {source.scheme!r}: there is "
            f"{accepted(source.scheme, SCHEMES)}."
        )
    return SCHEMES[source.scheme]


def _fetch_remote(
    source: WeightSource, remote: Remote, verify: Verify, progress: bool, options: Options
) -> Path:
    cached, damage = _look(known(source), verify)
    match decide(cached, offline=is_offline()):
        case "use":
            assert cached is not None  # noqa: S101 - what "use" means
            return cached
        case "refuse":
            raise damage or OfflineError(
                f"{source.shown} is not in the cache {cache.root()} and BUNDLES_OFFLINE is set: fetch it "
                f"once with a network, or point BUNDLES_SHARED_CACHE at a cache that has it."
            )
        case "download":
            return _download(source, remote, verify, progress, options)


def _download(source: WeightSource, remote: Remote, verify: Verify, progress: bool, options: Options) -> Path:
    from bundles.sources.lock import held  # here: what is on this machine needs no lock

    with held(cache.key(source.uri), source.name, options) as is_locked:
        now = known(source)
        cached, damage = _look(now, verify)  # somebody may have been faster
        if damage is not None:
            _log.warning("Fetching %s again: %s", source.shown, damage)
        order = Order(known=now, is_locked=is_locked, progress=progress, options=options)
        return cached or remote.download(order)


def _look(wanted: Known, verify: Verify) -> tuple[Path | None, ChecksumError | None]:
    """Return the first file on this machine that is the right one, else what is wrong with a cached one."""
    damage = None
    for path in _cached(wanted.source):
        problem = _problem(path, wanted, verify)
        if problem is None:
            return path, None
        if isinstance(problem, ChecksumError):
            damage = damage or problem
    for path in hub_files(wanted.source):  # may be anybody's: another digest is no damage, and none no excuse
        if _problem(path, wanted, "once" if verify == "off" else verify) is None:
            return path, None
    return None, damage


def _problem(path: Path, wanted: Known, verify: Verify) -> OSError | None:
    try:
        check_file(path, wanted, verify)
    except OSError as error:  # other bytes; or gone in the meantime, or not readable for this user
        return error
    return None


def _cached(source: WeightSource) -> Iterator[Path]:
    for folder in cache.roots() if source.sha256 else []:
        if os.path.isfile(path := folder / "files" / str(source.sha256)):  # False where nobody may look
            yield path
