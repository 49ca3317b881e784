"""The digest of a long run of bytes, worked out on several threads: hashing runs outside Python's lock."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

_PIECE = 4 << 20  # bytes; part of what a digest means, so it never changes
_THREADS = min(os.cpu_count() or 1, 8)  # more wait for memory


def write_hashing(file: BinaryIO, parts: Iterable[memoryview]) -> bytes:
    """Write bytes, and return the sha256 of every 4 MiB of them, one after another.

    Args:
        file: open for writing.
        parts: one after another, of any lengths.
    """
    pieces = list(in_pieces(parts))
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = threads.map(_hash, pieces)
        file.writelines(chain.from_iterable(pieces))
        return b"".join(digests)


def read_hashing(path: Path, start: int) -> bytes:
    """Return what :func:`write_hashing` returned of the bytes of a file from ``start`` on."""
    starts = range(start, path.stat().st_size, _PIECE)
    with ThreadPoolExecutor(_THREADS) as threads:
        return b"".join(threads.map(partial(_hash_at, path), starts))


def in_pieces(parts: Iterable[memoryview], size: int = _PIECE) -> Iterator[list[memoryview]]:
    """Cut what lies one after another into pieces of a size, but for the last, without a copy.

    >>> [[bytes(view) for view in piece] for piece in in_pieces([memoryview(b"abc"), memoryview(b"def")], 4)]
    [[b'abc', b'd'], [b'ef']]
    """
    piece: list[memoryview] = []
    room = size
    for part in parts:
        while part:
            piece.append(part[:room])
            part = part[room:]
            room -= len(piece[-1])
            if not room:
                yield piece
                piece, room = [], size
    if piece:
        yield piece


def _hash(piece: Iterable[memoryview | bytes]) -> bytes:
    digest = hashlib.sha256()
    for view in piece:
        digest.update(view)
    return digest.digest()


def _hash_at(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return _hash([file.read(_PIECE)])
