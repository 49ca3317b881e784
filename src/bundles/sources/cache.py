"""The cache folder: where files live, and how one gets there whole or not at all.

::

    files/<sha256>           what was downloaded, by content: two addresses of the same bytes share one
    files/.partial/<key>.*   downloads on their way (see ``partial``)
    records/<key>.json       what an address without a digest gave at first (see ``records``)
    listings/<key>.json      which files a commit of a Hub repository has (see ``repository``)
    locks/<key>.lock         held while a source is downloaded (see ``lock``)
    converted/, stamps/      what is made once from a file: its safetensors form, its digest
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from bundles.errors import BundlesError, CacheError


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


def find(place: str, accept: Callable[[Path], bool] = os.path.isfile) -> Path | None:
    """Return the file at a place in the first cache that has an acceptable one, or ``None``."""
    return next((path for folder in roots() if accept(path := folder / place)), None)


def key(text: str) -> str:
    """Return a file name that stands for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into a :class:`CacheError` that says what to do."""
    try:
        yield
    except BundlesError:
        raise
    except OSError as error:
        raise CacheError(
            f"The cache folder {folder} cannot be written ({error.strerror or error}): set "
            f"BUNDLES_CACHE to a folder that can."
        ) from error


def place(where: str, write: Callable[[BinaryIO], None], folder: Path | None = None) -> Path:
    """Put a file into the cache: temporary name, write, move, read-only.

    Whatever fails, nothing is left behind; readers see the whole file or none. Correctness hangs on
    the unique temporary name and the move, not on a lock.

    Args:
        where: place below the folder.
        write: writes the content.
        folder: another cache than :func:`root`.

    Raises:
        CacheError: the folder cannot be written.
    """
    target = (folder or root()) / where
    with _temporary(target, write) as temporary:
        publish(temporary, target)
    return target


def place_first(where: str, text: str) -> bool:
    """Put a small text file into the cache unless there is one; whether it was put there."""
    target = root() / where
    with _temporary(target, _writer(text)) as temporary:
        temporary.chmod(0o444)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if target.exists():
                return False
            publish(temporary, target)
        sync_folder(target.parent)
    return True


def place_text(where: str, text: str, folder: Path | None = None) -> Path:
    """Put a small text file into the cache, as :func:`place` does."""
    return place(where, _writer(text), folder)


def write_if_possible(path: Path, text: str) -> None:
    """Write a small file that only saves time; in a read-only cache there is simply none."""
    try:
        place_text(str(path.relative_to(root())), text)
    except CacheError:
        return


def publish(temporary: Path, target: Path) -> None:
    """Give a synced file its name: read-only, in one step, and so that it survives a power cut."""
    temporary.chmod(0o444)  # mapped into models: nobody writes to it again
    os.replace(temporary, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _writer(text: str) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    return write


@contextlib.contextmanager
def _temporary(target: Path, write: Callable[[BinaryIO], None]) -> Iterator[Path]:
    """Yield a written and synced file beside the target; it is removed unless it was moved."""
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".incomplete-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)
