"""The cache folder: where files live, and how one gets there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from bundles.errors import CacheError


def root() -> Path:
    """Return the folder that is written to: ``BUNDLES_CACHE``, else ``bundles`` in the user's cache."""
    if given := os.environ.get("BUNDLES_CACHE"):
        return Path(given).expanduser()
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / "bundles"


def roots() -> list[Path]:
    """Return the folders that are read, in order: those of ``BUNDLES_SHARED_CACHE``, then :func:`root`."""
    shared = os.environ.get("BUNDLES_SHARED_CACHE", "")
    return [Path(entry).expanduser() for entry in shared.split(os.pathsep) if entry] + [root()]


def find(place: str, accept: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """Return the file at a place in the first cache that has an acceptable one, or ``None``."""
    return next((path for folder in roots() if accept(path := folder / place)), None)


def key(text: str) -> str:
    """Return a file name that stands for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def place(
    where: str, write: Callable[[BinaryIO], None], check: Callable[[Path], object] | None = None
) -> Path:
    """Put a file into the cache: temporary name, write, check, move, read-only.

    Whatever fails, nothing is left behind; readers see the whole file or none. Correctness hangs on
    the unique temporary name and the move, not on a lock.

    Args:
        where: place below :func:`root`.
        write: writes the content.
        check: called with the temporary path before the file gets its name; raises to refuse it.

    Raises:
        CacheError: the folder cannot be written.
    """
    target = root() / where
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".incomplete-", dir=target.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        temporary.chmod(0o444)  # mapped into models: nobody writes to it again
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        if type(error).__module__.startswith("bundles."):
            raise
        raise CacheError(
            f"The cache folder {target.parent} cannot be written ({error.strerror or error}): set "
            f"BUNDLES_CACHE to a folder that can."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return target


def place_text(where: str, text: str) -> Path:
    """Put a small text file into the cache, as :func:`place` does."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    return place(where, write)


def write_if_possible(path: Path, text: str) -> None:
    """Write a small file that only saves time; in a read-only cache there is simply none."""
    try:
        place_text(str(path.relative_to(root())), text)
    except CacheError:
        return
