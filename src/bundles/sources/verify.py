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
from bundles.sources.records import Known
from bundles.spec.sniff import describe_file

Verify = Literal["once", "always", "off"]
_SETTLED_NS = 2_000_000_000  # a file changed again within a timestamp's grain looks unchanged


def check_file(path: Path, known: Known, verify: Verify = "once") -> None:
    """Check a file against the size and digest that are known of its source.

    Raises:
        ChecksumError: they differ; the message says what the file looks like.
    """
    source, size = known.source, path.stat().st_size
    if source.size is not None and size != source.size:
        raise mismatch(path, known, f"{source.size} bytes", f"{size} bytes")
    if source.sha256 is None or verify == "off":
        return
    found = sha256_of(path) if verify == "always" else stamped_sha256(path)
    if found != source.sha256:
        raise mismatch(path, known, f"sha256 {source.sha256}", f"sha256 {found}")


def stamped_sha256(path: Path) -> str:
    """Return the sha256 of a file, hashed only if it changed since the last time.

    "Changed" is judged by device, inode, size and the times of the last write and of the last change.
    """
    facts = _facts(path)
    try:
        known = json.loads(_stamp_path(path).read_text())
        if known["facts"] == facts and isinstance(known["sha256"], str):
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        known = None  # no stamp, or not one of ours: hash
    digest = sha256_of(path)
    if facts == _facts(path) and time.time_ns() - path.stat().st_mtime_ns > _SETTLED_NS:
        stamp(path, digest)
    return digest


def stamp(path: Path, digest: str) -> None:
    """Note the sha256 of a file as it is now, so that it need not be hashed again."""
    cache.write_if_possible(_stamp_path(path), json.dumps({"facts": _facts(path), "sha256": digest}))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(
    path: Path | None, known: Known, expected: str, found: str, origin: str | None = None
) -> ChecksumError:
    """Return the error for a file that is not what is pinned or recorded.

    Args:
        path: the file, which is looked at for the message, if there is one.
        known: what was to be had.
        expected: size or digest.
        found: the same of the file.
        origin: where the file came from, if it is a download; it will not stay.
    """
    source = known.source
    what = f"What {origin} sends" if origin else f"The file {path}"
    looks = f"; the file is {describe_file(path)}" if path else ""
    return ChecksumError(
        f"{what} is not what {_authority(known)}: expected {expected}, found {found}{looks}. "
        f"{_advice(known, is_download=origin is not None)}",
        source=source.uri,
        path=str(path),
        expected=expected,
        found=found,
    )


def _authority(known: Known) -> str:
    if known.is_claimed:
        return f"the Hub calls {known.source.shown}"
    if known.record is None:
        return f"{known.source.shown} pins"
    return f"{known.source.shown} gave at first, as recorded in {known.record}"


def _advice(known: Known, is_download: bool) -> str:
    if known.record is not None:
        return "To accept the new bytes, delete that record and fetch again."
    again = "Try again" if is_download else "Get it again"
    if known.is_claimed:
        return f"{again}."
    return f"{again}, or change the pin if you trust the new bytes."


def _stamp_path(path: Path) -> Path:
    return cache.root() / "stamps" / cache.key(os.path.realpath(path))


def _facts(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
