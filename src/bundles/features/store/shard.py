"""A shard: the features of one window of a dataset in one safetensors file, which says its own digest.

The file holds, of ``n`` items::

    output                [sum of frames, *rest]  a layer's features, item after item; one tensor per layer
    offsets:output        int64 [n + 1]           where in it each item begins and ends
    items:identities      uint8 [n, 32]           sha256 of each input, as the model was given it
    items:names           uint8 [...]             the names as UTF-8, one after another
    items:name_offsets    int64 [n + 1]           where in it each name begins and ends

A layer whose items are single rows (pooled features, ``[dim]``) has no offsets: item ``i`` is row ``i``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bundles.builders.mapped import Entry, read_header
from bundles.features.store.files import placing
from bundles.features.store.packing import IDENTITIES, header_of, pack
from bundles.features.store.pieces import read_hashing, write_hashing

_NONE = Entry(torch.uint8, (), 0, 0)


@dataclass(frozen=True)
class Shard:
    """One file of a store.

    Attributes:
        name: of the file, see :func:`shard_name`.
        items: how many it holds.
        size: of the file in bytes.
        sha256: over the sha256 of every 4 MiB after the header, and then over the header as it is before it
            says this digest. The file says it, too, so that it can be checked without a manifest.
    """

    name: str
    items: int
    size: int
    sha256: str


def shard_name(window: int, key: str, identities: Sequence[bytes]) -> str:
    """Return the file name of a window: other features or other inputs have another.

    Args:
        window: number of the window in the dataset.
        key: of the :class:`~bundles.spec.features.FeatureFacts`.
        identities: of the inputs, in dataset order.

    >>> shard_name(3, "05e5", [bytes(32)])
    '00003-25f432eee9b0d913.safetensors'
    """
    digest = hashlib.sha256(key.encode() + b"".join(identities)).hexdigest()
    return f"{window:05d}-{digest[:16]}.safetensors"


def write_shard(
    folder: Path,
    name: str,
    names: Sequence[str],
    identities: Sequence[bytes],
    features: Sequence[Mapping[str, Tensor]],
    *,
    replace: bool = True,
) -> Shard:
    """Write a shard, whole or not at all; equal contents give equal bytes.

    This does not wait for the disk: after a power cut a shard may be torn. It says its own digest, so that
    is found; those of a store that is finished are on the disk, since its manifest waits for them.

    Args:
        folder: is made if it is not there.
        name: of the file, see :func:`shard_name`.
        names: of the items, in dataset order.
        identities: of their inputs, 32 bytes each.
        features: of each item by layer, ``[frames, *rest]`` or ``[dim]``; within a layer items may differ in
            the first dimension alone.
        replace: whether a file that is there is replaced; else it is kept, and what it holds is returned.

    Raises:
        FeatureError: an item lacks a layer, or has another shape or dtype than the others.
        CacheError: the folder cannot be written.
    """
    packed = pack(names, identities, features)
    blank = packed.header("")
    path = Path(folder) / name
    with placing(path, replace=replace) as file:
        file.write(blank)
        digest = hashlib.sha256(write_hashing(file, packed.parts()) + blank).hexdigest()
        size = file.tell()
        file.seek(0)
        file.write(packed.header(digest))
        ours = os.fstat(file.fileno())
    shard = Shard(name, len(names), size, digest)
    is_ours = os.path.samestat(path.stat(), ours)
    return shard if is_ours else find_shard(folder, name) or shard


def find_shard(folder: Path, name: str) -> Shard | None:
    """Return a shard that is there and whole, by the digest that it says of itself; else ``None``."""
    try:
        return _examine(Path(folder) / name)
    except (OSError, ValueError):
        return None


def check_shard(folder: Path, shard: Shard) -> str | None:
    """Say why a shard is not what the manifest says, or return ``None``. The whole file is read."""
    try:
        found = _examine(Path(folder) / shard.name)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        return str(error)
    return None if found == shard else f"is whole, and the manifest speaks of another ({shard.size} bytes)"


def _examine(path: Path) -> Shard:
    """Return what a file holds; raises ``ValueError`` where it is not whole."""
    entries = _entries(path)
    kinds = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
    blank = header_of(kinds, "")
    digest = hashlib.sha256(read_hashing(path, len(blank)) + blank).hexdigest()
    with path.open("rb") as file:
        header = file.read(len(blank))
    if header != header_of(kinds, digest):
        raise ValueError("is damaged: it does not hold what it says")
    return Shard(path.name, entries[IDENTITIES].shape[0], path.stat().st_size, digest)


def _entries(path: Path) -> dict[str, Entry]:
    entries = read_header(path, path.stat().st_size)
    if entries is None or len(entries.get(IDENTITIES, _NONE).shape) != 2:
        raise ValueError("is damaged, or is no file of features")
    return entries
