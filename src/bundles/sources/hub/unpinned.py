"""Say that a source names no commit, and what to write instead: once per source and process."""

from __future__ import annotations

from pathlib import Path

from bundles.errors import UnpinnedSourceWarning, warn
from bundles.spec.hub import HubAddress, parse_hub
from bundles.spec.source import WeightSource

_told: set[str] = set()


def warn_unpinned(source: WeightSource, path: Path) -> None:
    """Warn that an ``hf:`` source may give other bytes tomorrow, unless that was said before.

    Args:
        source: without commit and digest.
        path: of its file in the client's cache, which says at which commit it is now.
    """
    if source.uri in _told:
        return
    _told.add(source.uri)
    address = parse_hub(source.address)
    parts = path.parts
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else "<commit>"
    pinned = HubAddress(address.repo, commit, address.path).uri
    warn(
        f"{source.shown} names no commit, so it may give other bytes tomorrow: write {pinned}, which is what "
        f"it is now.",
        UnpinnedSourceWarning,
    )
