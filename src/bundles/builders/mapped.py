"""Map a safetensors file: every tensor is its own storage, and no page is read before it is used.

The header check here only refuses: of whatever is not plainly well-formed the official reader has to
say what it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bundles.builders.headers import LONGEST_HEADER, MOST_DIMENSIONS, is_crowded, is_name

TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class Entry(NamedTuple):
    """One tensor of a file: its type and shape, and where its bytes are, counted from the file's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def map_tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """Return every tensor of a file that nobody writes to, or ``None`` if it is not plainly well-formed.

    The map is private: a page is shared with every process that maps the file until somebody writes to it,
    and then it is copied, so neither the file nor another model ever changes.
    """
    size = path.stat().st_size
    entries = read_header(path, size)
    if entries is None:
        return None
    try:
        storage: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    except (RuntimeError, UnicodeError):  # a file system without maps, a name that torch cannot take
        return None
    return {name: _tensor(storage, entry) for name, entry in entries.items()}


def read_header(path: Path, size: int) -> dict[str, Entry] | None:
    """Return what a file of this size holds, in order of names; ``None`` if anything in it is unusual."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            return None
        text = file.read(length)
    if is_crowded(text):
        return None
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_repetition)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(header[name], 8 + length) for name in sorted(header)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    is_plain = text.startswith(b"{") and _is_metadata(metadata) and all(map(is_name, entries))
    return entries if is_plain and _fills(entries, 8 + length, size) else None


def _tensor(storage: Any, entry: Entry) -> torch.Tensor:
    if entry.start == entry.stop:
        return torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    # A slice is a storage of its own size, so that torch.save of one tensor does not write the whole file.
    piece: Any = storage[entry.start : entry.stop]
    empty: Any = torch.empty(0, dtype=entry.dtype)
    tensor: torch.Tensor = empty.set_(piece, 0, entry.shape)
    return tensor


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key that is there twice")
    return entries


def _entry(fields: Mapping[str, Any], base: int) -> Entry:
    """Return a header's entry; raises whatever it raises where the entry is not as it should be."""
    dtype, shape, (start, stop) = TYPES[fields["dtype"]], fields["shape"], fields["data_offsets"]
    counts = (*shape, start, stop)
    is_count = all(type(count) is int and 0 <= count < 2**63 for count in counts)
    if len(fields) != 3 or len(shape) > MOST_DIMENSIONS or not is_count:
        raise ValueError("not an entry")
    if prod(shape) * dtype.itemsize != stop - start or (base + start) % dtype.itemsize:
        raise ValueError("not the bytes of that shape, or not where such numbers may lie")
    return Entry(dtype, tuple(shape), base + start, base + stop)


def _is_metadata(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())


def _fills(entries: Mapping[str, Entry], base: int, size: int) -> bool:
    """Whether the tensors lie one after another, without a hole, from the header to the file's end."""
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != base:
            return False
        base = entry.stop
    return base == size
