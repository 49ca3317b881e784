"""What an address without a digest gave at first: recorded once, enforced ever after.

Where upstream publishes no digest, nobody can say what the first download should have been. What can be
said is that every later one is the same. The record of an address is a small JSON file in the cache,
named by the whole address: ``{"uri", "sha256", "size", "etag"}``. From then on its source behaves as if
pinned, warm, offline and in shared caches too. To accept other bytes, delete the record.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from bundles.sources import cache
from bundles.spec.source import WeightSource, sha256_problem, size_problem


@dataclass(frozen=True)
class Known:
    """A source with all that is known of its bytes, by its pin or by a record.

    Args:
        source: as asked for; digest and size filled in from the record where it has none.
        record: the file that says so, where it was not the source itself.
        is_claimed: whether it was the server, which has no say where there is a pin.
    """

    source: WeightSource
    record: Path | None = None
    is_claimed: bool = False


def known(source: WeightSource) -> Known:
    """Return a source with the digest that was recorded for it, if it has none of its own."""
    if source.sha256 is not None:
        return Known(source)
    for folder in cache.roots():
        path = folder / _place(source)
        if (found := _read(path)) is not None:
            digest, size = found
            return Known(replace(source, sha256=digest, size=source.size or size), path)
    return Known(source)


def record(source: WeightSource, sha256: str, size: int, etag: str | None) -> Known:
    """Record what a first download gave; whoever comes first has said it.

    Returns:
        What is recorded now, which is something else if another process was faster and got other bytes.

    Raises:
        CacheError: the cache folder cannot be written.
    """
    entry = {"uri": source.shown, "sha256": sha256, "size": size, "etag": etag}
    text = json.dumps(entry, indent=1) + "\n"
    if not cache.place_first(_place(source), text) and known(source).record is None:
        cache.place_text(_place(source), text)  # there was one, and it was damaged
    return known(source)


def _place(source: WeightSource) -> str:
    return f"records/{cache.key(source.uri)}.json"


def _read(path: Path) -> tuple[str, int] | None:
    """Return digest and size of a record, or ``None`` if there is none that makes sense."""
    try:
        entry = json.loads(path.read_text())
        digest, size = entry["sha256"], entry["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = digest is not None and not sha256_problem(digest) and not size_problem(size) and size is not None
    return (digest, size) if sound else None
