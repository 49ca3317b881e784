"""Read a weight file ahead: the disk works while torch is still being imported."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread

from bundles.errors import BundlesError
from bundles.sources import cache
from bundles.sources.records import known
from bundles.sources.schemes import SCHEMES, Local, Remote
from bundles.spec.formats import CONVERTER, is_pickle_name
from bundles.spec.source import WeightSource

_PROBES = 16
_PIECE, _PIECES = 1 << 20, 1 << 10  # as many as Linux takes at once


def read_ahead(source: WeightSource) -> Thread | None:
    """Begin to bring a source's file into memory, if it is on this machine and not there already.

    Nothing is downloaded, checked or waited for, and whatever is wrong is left to :func:`fetch` to say.
    Where the system is not Linux nothing is done.

    Returns:
        The thread that reads; ``None`` where there is nothing to read.
    """
    with suppress(BundlesError, OSError):
        path = _present(source)
        if path is not None and hasattr(os, "RWF_NOWAIT") and not _is_in_memory(path):
            thread = Thread(target=_read, args=(path,), name="bundles-read-ahead", daemon=True)
            thread.start()
            return thread
    return None


def _present(source: WeightSource) -> Path | None:
    """Return where the bytes that will be read lie, as far as that can be told without reading any."""
    digest = known(source).source.sha256
    if is_pickle_name(source.name):
        return cache.find(f"converted/{digest}.{CONVERTER}.safetensors")
    match SCHEMES.get(source.scheme):
        case Local(locate):
            return locate(source)
        case Remote() as remote:
            return cache.find(f"files/{digest}") or next(remote.places(source), None)
    return None


def _is_in_memory(path: Path) -> bool:
    """Whether a few pages of the file, spread over it, are in the page cache."""
    page = bytearray(1)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            for probe in range(_PROBES):
                os.preadv(file.fileno(), [page], size * probe // _PROBES, os.RWF_NOWAIT)
        except OSError:  # would have to wait for the disk, or a file system that does not know
            return False
    return True


def _read(path: Path) -> None:
    """Read a file over and over the same small buffer, in calls of a GiB that do not hold the interpreter.

    Not ``posix_fadvise``, which reads one window (128 KiB as Linux is shipped) however much is asked for; and
    not ``sendfile`` to nowhere, since a virtual machine is given memory by its host when somebody touches
    it, and the first forward would wait for that.
    """
    with suppress(OSError), path.open("rb", buffering=0) as file:
        offset, pieces = 0, [bytearray(_PIECE)] * _PIECES
        while count := os.preadv(file.fileno(), pieces, offset):
            offset += count
