"""Put a file of a store into its place: whole or not at all, and what a kill leaves is removed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bundles.errors import CacheError


@contextlib.contextmanager
def placing(target: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write, which gets its name, read-only, once it is written.

    Two processes may write the same file. What a killed one left of it is removed by the next that writes
    it. This does not wait for the disk.

    Args:
        target: the name.
        replace: whether a file that has that name by then is replaced; else it stays.

    Raises:
        CacheError: the folder cannot be written.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".incomplete", dir=target.parent
        )
        with open(handle, "wb") as file:
            yield file
        _publish(Path(temporary), target, replace)
    except OSError as error:
        raise CacheError(
            f"{target} cannot be written ({error.strerror or error}): make room or name another folder; "
            f"asking again goes on with what is finished."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file that was written earlier is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(temporary: Path, target: Path, replace: bool) -> None:
    try:
        temporary.chmod(0o444)
        if replace or not _linked(temporary, target):
            os.replace(temporary, target)
    except FileNotFoundError:  # another process was first, and took this for something that a kill left
        if not target.exists():
            raise
    for left in target.parent.glob(f".{target.name}.*.incomplete"):
        with contextlib.suppress(OSError):
            left.unlink()


def _linked(temporary: Path, target: Path) -> bool:
    """Give a file a name that another may have; whether that name is taken now, by it or by another."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return True
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        return False
    return True
