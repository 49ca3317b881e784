"""Check that a file has the pinned size and digest; a stamp keeps the second check cheap."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Literal

from bundles.errors import ChecksumError
from bundles.sources import cache
from bundles.spec.sniff import describe_file
from bundles.spec.source import WeightSource

Verify = Literal["once", "always", "off"]
_SETTLED_NS = 2_000_000_000  # a file changed again within a timestamp's grain looks unchanged


def check_file(path: Path, source: WeightSource, verify: Verify = "once") -> None:
    """Check a file against its source's size and digest.

    Raises:
        ChecksumError: they differ; the message says what the file looks like.
    """
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        raise _mismatch(path, source, f"{source.size} bytes", f"{size} bytes")
    if source.sha256 is None or verify == "off":
        return
    found = sha256_of(path) if verify == "always" else stamped_sha256(path)
    if found != source.sha256:
        raise _mismatch(path, source, f"sha256 {source.sha256}", f"sha256 {found}")


def stamped_sha256(path: Path) -> str:
    """Return the sha256 of a file, hashed only if it changed since the last time.

    "Changed" is judged by device, inode, size and the times of the last write and of the last change.
    """
    stamp = _stamp_path(path)
    facts = _facts(path)
    try:
        known = json.loads(stamp.read_text())
        if known["facts"] == facts and isinstance(known["sha256"], str):
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        known = None  # no stamp, or not one of ours: hash
    digest = sha256_of(path)
    if facts == _facts(path) and time.time_ns() - path.stat().st_mtime_ns > _SETTLED_NS:
        cache.write_if_possible(stamp, json.dumps({"facts": facts, "sha256": digest}))
    return digest


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp_path(path: Path) -> Path:
    return cache.root() / "stamps" / cache.key(os.path.realpath(path))


def _facts(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _mismatch(path: Path, source: WeightSource, expected: str, found: str) -> ChecksumError:
    return ChecksumError(
        f"The file {path} is not what {source.uri} pins: expected {expected}, found {found}; the file is "
        f"{describe_file(path)}. Get it again, or change the pin if you trust the new bytes.",
        source=source.uri,
        path=str(path),
        expected=expected,
        found=found,
    )
