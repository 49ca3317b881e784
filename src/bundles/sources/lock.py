"""A lock that saves bandwidth. Nothing is wrong without it: it may fail, or be honoured by nobody."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bundles.sources import cache
from bundles.sources.options import Options
from bundles.sources.web.partial import last_written

if TYPE_CHECKING:
    from filelock import BaseFileLock

_log = logging.getLogger("bundles")
_POLL = 1.0


@contextlib.contextmanager
def held(key: str, name: str, options: Options) -> Iterator[bool]:
    """Hold the lock of a source while it is downloaded, or go on without.

    Where another process holds it, this waits for as long as that one's partial file grows.

    Args:
        key: of the source.
        name: of the file, for people.
        options: says how long to wait for a process that shows no sign of progress.

    Yields:
        Whether the lock is held and means something. Some network file systems give every lock to
        everybody.
    """
    lock = _acquire(key, name, options)
    try:
        yield lock is not None and _is_honoured(lock)
    finally:
        if lock is not None:
            lock.release()


def _acquire(key: str, name: str, options: Options) -> BaseFileLock | None:
    from filelock import FileLock

    path = cache.root() / "locks" / f"{key}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        if _try(lock, 0):
            return lock
        _log.info("Waiting for another process that downloads %s and holds %s", name, path)
        sign, seen = _last_sign(key), time.monotonic()
        while time.monotonic() - seen < options.lock_patience:
            if _try(lock, min(_POLL, options.lock_patience)):
                return lock
            if (now := _last_sign(key)) != sign:
                sign, seen = now, time.monotonic()
    except (OSError, NotImplementedError):
        return None  # no locks here, or a cache that cannot be written; whoever writes next will say so
    _log.warning("Another process holds %s and shows no progress: downloading %s beside it", path, name)
    return None


def _try(lock: BaseFileLock, seconds: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _is_honoured(lock: BaseFileLock) -> bool:
    """Whether a lock that is held cannot be had a second time."""
    from filelock import FileLock

    second = FileLock(lock.lock_file)
    if _try(second, 0):
        second.release()
        return False
    return True


def _last_sign(key: str) -> float:
    """When a download of the source got on last."""
    folders = (cache.root() / "files" / ".partial").glob(f"{key}.*")
    return max(map(last_written, folders), default=0.0)
