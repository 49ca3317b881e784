"""Downloads on their way: a folder each, which a killed process leaves behind and the next one takes up.

::

    files/.partial/<key>.<machine>.<token>/
        data            the bytes, each at its place
        done            one line "start stop" per block, appended after the block was written
        version.json    which version of the file this is

The invariant, on which all that ``sources`` promises rests: *a published file was written, from its first
byte to its last, by the one process that publishes it, to a file that no other process ever opened for
writing; and the digest that was compared is that of the bytes read back from it.* The token is unique,
so no two processes share a folder, whatever locks do. What somebody else left is taken up by copying,
not by renaming: its owner may be alive after all, on another machine or behind a lock that does not
lock, and would write on into the published file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from bundles.errors import CacheError
from bundles.sources import cache
from bundles.sources.options import Options
from bundles.sources.progress import Tell, readable
from bundles.sources.web.ranges import Ranges


@dataclass(frozen=True)
class Version:
    """Which version of a file it is that a server sends.

    Args:
        total: size in bytes, or ``None`` if the server does not say.
        tag: a strong ETag or a Last-Modified, or ``None``.
        ranged: whether parts of this very version can be asked for.
    """

    total: int | None = None
    tag: str | None = None
    ranged: bool = False


class Partial:
    """A file that is being downloaded; a context manager that removes it, unless it can be resumed.

    It stays after an error, an interrupt or a kill, if the server gives parts and a block of the file
    came. After a wrong digest, a page in place of the file or a full disk nothing stays.

    Args:
        key: of the source.
        options: of the download.
        tell: is told what is there.

    Raises:
        CacheError: the cache cannot be written.
    """

    def __init__(self, key: str, options: Options, tell: Tell) -> None:
        self.key, self.options, self._tell = key, options, tell
        self.version = Version()
        self.ranges = Ranges()
        self.changed = threading.Condition()
        self.generation = 0
        self._is_spoiled = False
        self.count()
        place = cache.root() / "files" / ".partial"
        with cache.writing(place.parent):
            place.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f"{key}.{machine()}.", dir=place))
        self.data = self.folder / "data"
        try:
            with cache.writing(place.parent):
                self.data.touch()
                self._done = (self.folder / "done").open("ab", buffering=0)
        except CacheError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.close()
        can_be_resumed = self.version.ranged and len(self.ranges) >= self.options.block
        if error is None or self._is_spoiled or not can_be_resumed:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def is_complete(self) -> bool:
        """Whether every byte is there."""
        return self.version.total is not None and self.ranges.prefix >= self.version.total

    def begin(self, version: Version) -> None:
        """Say which version is going to be written, from its first byte if it comes in one piece.

        Raises:
            CacheError: the disk has no room for it.
        """
        if not version.ranged and len(self.ranges):
            self.reset()
        self.version = version
        needed = (version.total or 0) - len(self.ranges)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise CacheError(
                f"The download needs {readable(needed)} and the disk of {self.folder.parent.parent} has "
                f"{readable(free)} free: free some, or set BUNDLES_CACHE to a folder on another disk.",
                needed=needed,
                free=free,
            )
        with cache.writing(self.folder):
            (self.folder / "version.json").write_text(json.dumps(asdict(version)))
        self._tell(len(self.ranges), version.total)

    def count(self) -> None:
        """Begin to count progress, which is more than was ever there at once, from what is there now."""
        self.best, self.best_at = len(self.ranges), time.monotonic()

    def reset(self) -> None:
        """Start over; nobody may be writing."""
        with cache.writing(self.folder), self.changed:
            self.data.write_bytes(b"")
            self._done.truncate(0)
            self.ranges, self.version = Ranges(), Version()
            self.generation += 1
            self.changed.notify_all()

    def end(self, total: int) -> None:
        """Say how large the file is, where only its end told."""
        with self.changed:
            self.version = replace(self.version, total=total)
            self.changed.notify_all()

    def add(self, start: int, stop: int) -> None:
        """Note that these bytes are written."""
        with self.changed:
            self.ranges.add(start, stop)
            self._done.write(f"{start} {stop}\n".encode())
            if (there := len(self.ranges)) >= self.best + self.options.block:
                self.best, self.best_at = there, time.monotonic()
            self.changed.notify_all()
        self._tell(there, self.version.total)

    @contextlib.contextmanager
    def writer(self, at: int) -> Iterator[Callable[[bytes | memoryview], None]]:
        """Yield a function that writes what comes next, from a position on.

        What was written is noted block by block, and at the end whatever the reason for it is.
        """
        noted = at

        def write(chunk: bytes | memoryview) -> None:
            nonlocal at, noted
            view = memoryview(chunk)
            while view:
                written = file.write(view)
                view, at = view[written:], at + written
            if at - noted >= self.options.block:
                self.add(noted, at)
                noted = at

        with self._noticing(), self.data.open("r+b", buffering=0) as file:
            file.seek(at)
            try:
                yield write
            finally:
                if at > noted:
                    self.add(noted, at)

    def sync(self) -> None:
        """Write the bytes to disk, so that a name given to them stands for them after a power cut."""
        with self._noticing(), self.data.open("r+b") as file:
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        """Give up what a full disk makes of this: half a file on a full disk helps nobody."""
        try:
            with cache.writing(self.folder.parent.parent):
                yield
        except CacheError:
            self._is_spoiled = True
            raise


def last_written(folder: Path) -> float:
    """Return when a partial download got on last, in seconds since the epoch."""
    times = [0.0]
    for path in (folder, folder / "data", folder / "done"):
        with contextlib.suppress(OSError):  # gone in the meantime
            times.append(path.stat().st_mtime)
    return max(times)


@functools.cache
def machine() -> str:
    """Return what stands for this machine since its start; ``host-...`` where only its name is known."""
    try:
        return cache.key(Path("/proc/sys/kernel/random/boot_id").read_text())[:12]
    except OSError:
        import platform

        return f"host-{cache.key(platform.node())[:12]}"
