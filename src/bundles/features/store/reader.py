"""Read a shard: its tables once, its features at any place, by reads that can fail but not kill.

A map is somewhat faster, see ``benchmarks/feature_reads.py``. But where a file is cut short, or its disk
fails, touching a map ends the process without a word, and what a user writes into one comes back with the
next read of the same item.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from bundles.builders.mapped import Entry, read_header
from bundles.errors import FeatureStoreError
from bundles.features.store.packing import (
    IDENTITIES,
    IDENTITY_BYTES,
    NAME_OFFSETS,
    NAMES,
    OFFSETS,
    decode_name,
)
from bundles.features.store.shard import Shard
from bundles.spec.features import FeatureFacts


class OpenFile:
    """A file that stays open for as long as somebody reads from it, also after a cache forgot it."""

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "handle"):
            close(self.handle)


class ShardReader:
    """A shard of a store.

    Args:
        path: of the file; its size and its header are looked at.
        shard: what the manifest says of it.
        facts: of the store.
        open_file: gives the file to read from; it may keep some open.

    Raises:
        FeatureStoreError: the file is not what the manifest says.
    """

    def __init__(
        self, path: Path, shard: Shard, facts: FeatureFacts, open_file: Callable[[Path], OpenFile] = OpenFile
    ) -> None:
        self.path = path
        self._shard = shard
        self._open = open_file
        self._index: dict[str, list[int]] = {}
        try:
            size = path.stat().st_size
            entries = read_header(path, size) if size == shard.size else None
        except FileNotFoundError as error:
            raise self._damaged("is missing") from error
        except OSError as error:
            raise self._damaged(f"cannot be read ({error.strerror or error})") from error
        if entries is None:
            raise self._damaged(
                f"has {size} bytes, and {shard.size} were written"
                if size != shard.size
                else "has a header that none was written with"
            )
        self._entries = entries
        self._check(facts)

    def read(self, item: int, layer: str) -> Tensor:
        """Return the features of an item in memory of their own.

        Raises:
            FeatureStoreError: the file cannot be read, or has become shorter.
        """
        entry = self._entries[layer]
        start, stop = self._rows(layer)[item : item + 2]
        shape = (stop - start, *entry.shape[1:]) if OFFSETS + layer in self._entries else entry.shape[1:]
        row = prod(entry.shape[1:]) * entry.dtype.itemsize
        found = torch.empty(shape, dtype=entry.dtype, device="cpu")
        if found.nbytes:
            self._read_into(found, entry.start + start * row)
        return found

    @cached_property
    def names(self) -> list[str]:
        """The names of the items."""
        offsets, text = self._offsets(NAME_OFFSETS, self._entries[NAMES].shape[0]), self._bytes(NAMES)
        try:
            return [decode_name(text[start:stop]) for start, stop in pairwise(offsets)]
        except UnicodeDecodeError as error:
            raise self._damaged("holds a name that is no text") from error

    @cached_property
    def identities(self) -> list[bytes]:
        """The digests of the inputs."""
        text = self._bytes(IDENTITIES)
        return [text[at : at + IDENTITY_BYTES] for at in range(0, len(text), IDENTITY_BYTES)]

    def _rows(self, layer: str) -> list[int]:
        """Where in a layer's tensor each item begins, and where the last ends."""
        if layer not in self._index:
            packed = OFFSETS + layer
            rows = self._entries[layer].shape[0]
            known = self._offsets(packed, rows) if packed in self._entries else [*range(rows + 1)]
            self._index[layer] = known
        return self._index[layer]

    def _offsets(self, name: str, stop: int) -> list[int]:
        values: list[int] = torch.frombuffer(bytearray(self._bytes(name)), dtype=torch.int64).tolist()
        if values[0] != 0 or values[-1] != stop or values != sorted(values):
            raise self._damaged(f"has {name} that do not rise from 0 to {stop}")
        return values

    def _bytes(self, name: str) -> bytes:
        entry = self._entries[name]
        found = torch.empty(entry.stop - entry.start, dtype=torch.uint8, device="cpu")
        if found.nbytes:
            self._read_into(found, entry.start)
        return bytes(_memory(found)) if found.nbytes else b""

    def _read_into(self, tensor: Tensor, start: int) -> None:
        view = _memory(tensor)
        try:
            file = self._open(self.path)
            while view:  # the system reads 2 GiB at most
                count = os.preadv(file.handle, [view], start)
                if not count:
                    raise self._damaged("has become shorter")
                view, start = view[count:], start + count
        except OSError as error:
            raise self._damaged(f"cannot be read ({error.strerror or error})") from error

    def _check(self, facts: FeatureFacts) -> None:
        layers = {name for name in self._entries if ":" not in name}
        if missing := sorted({IDENTITIES, NAMES, NAME_OFFSETS} - self._entries.keys()):
            raise self._damaged(f"lacks {missing[0]}")
        if self._shard.items and layers != {*facts.layers}:
            raise self._damaged(f"holds the layers {sorted(layers)}, and not {sorted(facts.layers)}")
        for name, entry in self._entries.items():
            if (entry.dtype, entry.shape) != self._kind(name, entry, facts.dtype):
                raise self._damaged(f"holds {name} as {entry.dtype} {list(entry.shape)}")

    def _kind(self, name: str, entry: Entry, dtype: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """What dtype and shape a tensor of this name has; of an entry without a dimension, another."""
        items, rows = self._shard.items, entry.shape[0] if entry.shape else 0
        if name == IDENTITIES:
            return torch.uint8, (items, IDENTITY_BYTES)
        if name == NAMES:
            return torch.uint8, (rows,)
        if ":" in name:
            return torch.int64, (items + 1,)  # offsets, of names or of a layer
        return getattr(torch, dtype), (rows if OFFSETS + name in self._entries else items, *entry.shape[1:])

    def _damaged(self, what: str) -> FeatureStoreError:
        return damaged(self.path.parent, {self._shard.name: what})


def damaged(folder: Path, reasons: dict[str, str]) -> FeatureStoreError:
    """Return the error for shards that are not as they were written."""
    listed = "; ".join(f"{name} {why}" for name, why in [*reasons.items()][:5])
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return FeatureStoreError(
        f"The store {folder} is damaged: {listed}{more}; extract again (bundles.extract_features, or "
        f"`bundles features`) into the same folder, which makes what is damaged anew and keeps the rest.",
        shards=tuple(reasons),
    )


def _memory(tensor: Tensor) -> memoryview:
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
