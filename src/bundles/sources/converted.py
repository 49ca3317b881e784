"""Files made once from a source's bytes, kept in the cache beside a record of their digest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from bundles.sources import cache
from bundles.sources.verify import stamped_sha256


def converted(path: Path, version: int, convert: Callable[[Path, BinaryIO], None]) -> Path:
    """Return the safetensors form of a file, converting it if the cache has no sound one.

    Args:
        path: a verified file.
        version: of the converter; another one makes another file.
        convert: writes the new form of the file at the path.

    Raises:
        CacheError: the cache folder cannot be written.
    """
    place = f"converted/{stamped_sha256(path)}.{version}.safetensors"
    if (found := cache.find(place, accept=_is_sound)) is not None:
        return found
    made = cache.place(place, lambda file: convert(path, file))
    record = json.dumps({"sha256": stamped_sha256(made), "size": made.stat().st_size})
    cache.place_text(f"{place}.json", record)
    return made


def _is_sound(path: Path) -> bool:
    """Whether a converted file still is what was once written."""
    try:
        record = json.loads(Path(f"{path}.json").read_text())
        return bool(record["size"] == path.stat().st_size and record["sha256"] == stamped_sha256(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False
