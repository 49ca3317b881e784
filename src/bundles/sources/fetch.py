"""Fetch: decide what a source needs, do only that, and return a path with the pinned bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from bundles.errors import BundlesError, DownloadError, OfflineError, SourceNotFoundError
from bundles.sources import cache
from bundles.sources.schemes import SCHEMES, Local, Remote
from bundles.sources.verify import Verify, check_file
from bundles.spec.source import WeightSource
from bundles.spec.suggest import accepted

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

Action = Literal["use", "download", "refuse"]


def fetch(source: WeightSource, *, verify: Verify = "once") -> Path:
    """Return a local file that holds a source's weights.

    With a digest and the file present this uses no network, takes no lock and writes nothing but, the
    first time, a stamp that saves hashing it again.

    Args:
        source: address, digest and size.
        verify: ``"once"`` hashes a file again only after it changed, ``"always"`` at each call,
            ``"off"`` never (the size is still checked).

    Raises:
        SourceNotFoundError: nothing is there, or the scheme is unknown.
        SourceAccessError: it may not be read.
        ChecksumError: size or digest differ from the pinned ones.
        OfflineError: a download is needed and ``BUNDLES_OFFLINE`` is set.
        DownloadError: the transfer failed.
        CacheError: the cache folder cannot be written.

    >>> import bundles
    >>> fetch(bundles.CREPE_TINY.weights).name
    'tiny.pth'
    """
    match _scheme(source):
        case Local(locate):
            path = locate(source)
            check_file(path, source, verify)
            return path
        case Remote(download):
            return _fetch_remote(source, download, verify)


def decide(cached: Path | None, *, offline: bool) -> Action:
    """Say what a remote source needs: a pure decision, ordered by how little each takes."""
    if cached is not None:
        return "use"
    return "refuse" if offline else "download"


def is_offline() -> bool:
    """Whether downloads are switched off, by ``BUNDLES_OFFLINE`` or ``HF_HUB_OFFLINE``."""
    names = ("BUNDLES_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _scheme(source: WeightSource) -> Local | Remote:
    if source.scheme not in SCHEMES:
        raise SourceNotFoundError(
            f"The weight source {source.uri!r} has the unknown scheme {source.scheme!r}: there is "
            f"{accepted(source.scheme, SCHEMES)}."
        )
    return SCHEMES[source.scheme]


def _fetch_remote(
    source: WeightSource, download: Callable[[WeightSource, BinaryIO], None], verify: Verify
) -> Path:
    where = f"files/{source.sha256}" if source.sha256 else f"unpinned/{cache.key(source.uri)}"
    cached = cache.find(where) if source.sha256 else None  # what is unpinned may have changed
    match decide(cached, offline=is_offline()):
        case "download":
            write = partial(_download, download, source)
            return cache.place(where, write, lambda path: check_file(path, source, "always"))
        case "refuse":
            raise OfflineError(
                f"{source.uri} is not in the cache {cache.root()} and BUNDLES_OFFLINE is set: fetch it "
                f"once with a network, or point BUNDLES_SHARED_CACHE at a cache that has it."
            )
        case "use":
            assert cached is not None  # noqa: S101 - what "use" means
            check_file(cached, source, verify)
            return cached


def _download(
    download: Callable[[WeightSource, BinaryIO], None], source: WeightSource, file: BinaryIO
) -> None:
    try:
        download(source, file)
    except BundlesError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise  # the cache's trouble, not the server's
        raise DownloadError(
            f"{source.uri} cannot be downloaded ({type(error).__name__}: {error}): try again."
        ) from error
