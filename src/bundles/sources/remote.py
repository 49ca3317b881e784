"""Remote caches: a bucket or folder that many machines share, asked before the origin.

``BUNDLES_REMOTE_CACHE`` names one or several, by any address that fsspec_ knows: ``s3://bucket/prefix``,
``file:///mnt/cache``. A file lies there at ``files/<sha256>``. What comes from there is checked as what
comes from anywhere, so whoever may write to it can make a download slower and nothing worse. No fault of a
remote cache breaks what the origin could serve.

.. _fsspec: https://filesystem-spec.readthedocs.io
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bundles.errors import CacheError
from bundles.sources import cache
from bundles.sources.options import Order
from bundles.sources.progress import Tell, telling
from bundles.sources.verify import sha256_of, stamp
from bundles.sources.web.leftovers import sweep
from bundles.sources.web.partial import Partial, Version
from bundles.spec.source import hidden

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

_log = logging.getLogger("bundles")
_POLL = 0.1
_SLEEP = 60.0  # seconds for which a cache that fails is not asked again, by this process
_SLOWEST_UPLOAD = 1e6  # bytes per second
# Where a file appears whole or not at all; elsewhere it is moved into place.
_OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"))

_asleep: dict[str, float] = {}
_told: set[tuple[str, str]] = set()


def read_through(order: Order, download: Callable[[Order], Path]) -> Path:
    """Bring a file into the cache from the first remote cache that has it, else from its origin.

    What came from the origin is stored in the remote caches, unless ``BUNDLES_REMOTE_CACHE_READONLY``.
    Sources without a digest pass by: what their address gives is not known beforehand.

    Args:
        order: what is wanted.
        download: asks the origin.

    Raises:
        CacheError: the cache on this machine cannot be written, or has no room.
        SourceError: the origin fails, and no remote cache has the file.
    """
    source = order.known.source
    if source.sha256 is None:
        return download(order)
    for url in _awake():
        with _harmless(url, "cannot be read"):
            if (found := _bring(url, order)) is not None:
                return found
    path = download(order)
    if os.environ.get("BUNDLES_REMOTE_CACHE_READONLY", "") in ("", "0"):
        for url in _awake():
            with _harmless(url, "cannot be written"):
                _store(url, source.sha256, path, order)
    return path


def _awake() -> list[str]:
    urls = re.split(r"[\s,]+", os.environ.get("BUNDLES_REMOTE_CACHE", ""))
    now = time.monotonic()
    return [url for url in urls if url and _asleep.get(url, now) <= now]


@contextlib.contextmanager
def _harmless(url: str, what: str) -> Iterator[None]:
    """Turn what a remote cache raises into one line in the log; who fails is left alone for a while.

    A refusal is an answer: S3 gives it for files that are not there, too, where nobody may list them.
    """
    try:
        yield
    except CacheError:
        return  # of this machine: the origin's download meets it, too, and says so
    except Exception as error:  # noqa: BLE001 - of whatever library serves that address
        if not isinstance(error, PermissionError | NotImplementedError):
            _asleep[url] = time.monotonic() + _SLEEP
        if (url, what) not in _told:
            _told.add((url, what))
            _log.warning("The remote cache %s %s (%s)", hidden(url), what, _reason(url, error))


def _reason(url: str, error: Exception) -> str:
    if isinstance(error, ImportError) and url.startswith("s3"):
        return "s3fs is not installed: type `pip install 'pretrained-bundles[s3]'`"
    told = hidden(str(error)).splitlines()
    return f"{type(error).__name__}: {told[0][:200]}" if told else type(error).__name__


# --- reading --------------------------------------------------------------------------------------


def _bring(url: str, order: Order) -> Path | None:
    """Return the file from a remote cache, or ``None`` where it has none or a wrong one."""
    source, options = order.known.source, order.options
    place = _Place(url, str(source.sha256))
    try:
        size = _watched(place.size, lambda: 0, options.read_timeout)
    except FileNotFoundError:
        return None
    if source.size is not None and size not in (None, source.size):
        _ignore(place, f"has {size} bytes instead of {source.size}")
        return None
    with (
        telling(source.name, hidden(url), show=order.progress) as tell,
        Partial(cache.key(source.uri), options, tell) as partial,
    ):
        partial.begin(Version(total=size))
        _watched(lambda: place.get(partial.data), _growth(partial.data, size, tell), options.deadline)
        if (digest := sha256_of(partial.data)) != source.sha256:
            _ignore(place, f"has the sha256 {digest}")
            return None
        partial.sync()
        target = cache.root() / "files" / digest
        with cache.writing(target.parent):
            cache.publish(partial.data, target)
        stamp(target, digest)
        sweep(partial)
    return target


def _ignore(place: _Place, found: str) -> None:
    _log.warning("The file %s of a remote cache %s and is not used", place, found)


def _growth(path: Path, total: int | None, tell: Tell) -> Callable[[], int]:
    """Return what says how much of a file is there, whether it is written in order or in pieces."""

    def there() -> int:
        stat = path.stat()
        tell(min(stat.st_size, getattr(stat, "st_blocks", stat.st_size) * 512), total)
        return stat.st_size + getattr(stat, "st_blocks", 0) * 512

    return there


# --- writing --------------------------------------------------------------------------------------


def _store(url: str, digest: str, path: Path, order: Order) -> None:
    patience = order.options.deadline + path.stat().st_size / _SLOWEST_UPLOAD
    place = _Place(url, digest)
    _watched(lambda: place.put(path), lambda: 0, patience)  # over a wrong one, too, if there was one


class _Place:
    """Where a file lies in a remote cache. The filesystem is made, and used, in a thread of its own."""

    def __init__(self, url: str, digest: str) -> None:
        self._url, self._digest = url, digest

    def __str__(self) -> str:
        return f"{hidden(self._url).rstrip('/')}/files/{self._digest}"

    def _open(self) -> tuple[AbstractFileSystem, str]:
        if not re.fullmatch(r"[A-Za-z][\w+.:-]*://[^/].*|file:///.+", self._url):
            raise ValueError(
                "it does not read 's3://bucket/prefix' or 'file:///folder'"
            )  # else a relative path
        from fsspec.core import url_to_fs

        system, root = url_to_fs(self._url)
        return system, f"{root.rstrip('/')}/files/{self._digest}"

    def size(self) -> int | None:
        system, path = self._open()
        size = system.info(path).get("size")
        return None if size is None else int(size)

    def get(self, local: Path) -> None:
        system, path = self._open()
        system.get_file(path, str(local))

    def put(self, local: Path) -> None:
        system, path = self._open()
        kinds = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
        if kinds & _OBJECT_STORES:
            system.put_file(str(local), path)
            return
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.incomplete"
        try:
            system.put_file(str(local), temporary)
            system.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(Exception):
                system.rm_file(temporary)
            raise


def _watched(work: Callable[[], T], there: Callable[[], int], patience: float) -> T:
    """Return what ``work`` returns, or leave it alone when nothing has moved for too long.

    It runs in a thread that nobody waits for at the end: libraries differ in what they time out, and
    how often they try again.

    Raises:
        TimeoutError: for so many seconds ``there`` has not grown.
    """
    result: list[Any] = []
    failure: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that asked
            failure.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="bundles-remote-cache", daemon=True).start()
    most, since = there(), time.monotonic()
    while not ended.wait(_POLL):
        if (now := there()) > most:
            most, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            raise TimeoutError(f"nothing came for {patience:g} s")
    if failure:
        raise failure[0]
    found: T = result[0]
    return found
