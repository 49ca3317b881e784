"""What a shard's file is made of: the table of its tensors, and their bytes, which nothing copies."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bundles.builders.headers import is_name
from bundles.builders.layout import is_storable
from bundles.builders.mapped import TYPES
from bundles.errors import FeatureError
from bundles.spec.values import shown

IDENTITIES = "items:identities"
NAMES = "items:names"
NAME_OFFSETS = "items:name_offsets"
OFFSETS = "offsets:"  # and the layer
IDENTITY_BYTES = 32
_BOUNDARY = 64  # the header ends on it
_NAMES = {dtype: name for name, dtype in TYPES.items()}


class Part(NamedTuple):
    """One tensor of the file, given as pieces that lie one after another."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Sequence[Tensor]


@dataclass(frozen=True)
class Packed:
    """A shard before it is written: its tensors in the order of the file."""

    tensors: Sequence[Part]

    def header(self, sha256: str) -> bytes:
        """Return what the file begins with, see :func:`header_of`."""
        return header_of({part.name: (part.dtype, part.shape) for part in self.tensors}, sha256)

    def parts(self) -> Iterator[memoryview]:
        """Yield the bytes of every piece, where they lie."""
        for piece in (piece.detach().contiguous() for part in self.tensors for piece in part.pieces):
            if piece.nbytes:
                memory: Any = (ctypes.c_char * piece.nbytes).from_address(piece.data_ptr())
                memory.tensor = piece  # lives as long as somebody has a view
                yield memoryview(memory).cast("B")


def header_of(kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], sha256: str) -> bytes:
    """Return a shard's header, which is as long for any digest.

    Args:
        kinds: dtype and shape of each tensor, which lie in the file as :func:`in_order` has them.
        sha256: the digest that it says; of none the digest is over the header, too.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt", "sha256": sha256.rjust(64, "0")}}
    start = 0
    for name, (dtype, shape) in sorted(kinds.items(), key=lambda kind: in_order(kind[0], kind[1][0])):
        stop = start + prod(shape) * dtype.itemsize
        table[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _BOUNDARY)
    return len(text).to_bytes(8, "little") + text


def in_order(name: str, dtype: torch.dtype) -> tuple[int, str]:
    """What tensors are sorted by: long numbers first, so that all lie where such numbers may lie."""
    return -dtype.itemsize, name


def encode_name(name: str) -> bytes:
    """Return a name as UTF-8; one that a file system gave and that is no text comes back, too."""
    return name.encode("utf-8", "surrogatepass")


def decode_name(text: bytes) -> str:
    """Return the name that :func:`encode_name` wrote."""
    return text.decode("utf-8", "surrogatepass")


def pack(
    names: Sequence[str], identities: Sequence[bytes], features: Sequence[Mapping[str, Tensor]]
) -> Packed:
    """Return what a shard of these items is made of; see :func:`~bundles.features.store.shard.write_shard`.

    Raises:
        FeatureError: the items do not fit together.
    """
    if not len(names) == len(identities) == len(features):
        raise FeatureError(
            f"A shard was given {len(names)} names, {len(identities)} identities and {len(features)} items: "
            f"pass one of each per item."
        )
    if wrong := [identity for identity in identities if len(identity) != IDENTITY_BYTES]:
        raise FeatureError(f"An identity of an input has {len(wrong[0])} bytes: pass {IDENTITY_BYTES}.")
    parts = [*_describing(names, identities)]
    for layer in features[0] if features else ():
        parts += _layer(layer, names, _of_layer(layer, names, features))
    return Packed(sorted(parts, key=lambda part: in_order(part.name, part.dtype)))


def _describing(names: Sequence[str], identities: Sequence[bytes]) -> Iterator[Part]:
    texts = [encode_name(name) for name in names]
    joined, rows = b"".join(texts), b"".join(identities)
    yield Part(NAMES, torch.uint8, (len(joined),), [_bytes(joined)])
    yield _offsets(NAME_OFFSETS, [len(text) for text in texts])
    yield Part(IDENTITIES, torch.uint8, (len(names), IDENTITY_BYTES), [_bytes(rows)])


def _of_layer(layer: str, names: Sequence[str], features: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Return every item's features of a layer, which fit together."""
    first, found = features[0][layer], []
    for name, item in zip(names, features, strict=True):
        if item.keys() != features[0].keys():
            raise FeatureError(
                f"The item {shown(name)} has the layers {sorted(item)}, and the first of its shard has "
                f"{sorted(features[0])}: give every item the same."
            )
        tensor = item[layer]
        _check_kind(layer, tensor)
        if (tensor.dtype, tensor.ndim, tensor.shape[1:]) != (first.dtype, first.ndim, first.shape[1:]):
            raise FeatureError(
                f"The features of {shown(name)} are {_kind(tensor)} in the layer {layer!r}, and those of "
                f"{shown(names[0])} are {_kind(first)}: items may differ in the first dimension alone."
            )
        found.append(tensor)
    return found


def _check_kind(layer: str, tensor: Tensor) -> None:
    if not is_name(layer) or ":" in layer:
        raise FeatureError(f"A layer is named {shown(layer)}: use its name in the model, as 'block.6'.")
    if tensor.device.type != "cpu" or tensor.ndim < 1 or not is_storable(tensor):
        raise FeatureError(
            f"The features of the layer {layer!r} are {_kind(tensor)} on {tensor.device}: store dense "
            f"tensors of one dimension or more that are on the CPU."
        )


def _layer(layer: str, names: Sequence[str], tensors: Sequence[Tensor]) -> Iterator[Part]:
    first = tensors[0]
    if first.ndim == 1 and all(tensor.shape == first.shape for tensor in tensors):
        yield Part(layer, first.dtype, (len(names), *first.shape), tensors)
        return
    frames = [len(tensor) for tensor in tensors]
    yield Part(layer, first.dtype, (sum(frames), *first.shape[1:]), tensors)
    yield _offsets(OFFSETS + layer, frames)


def _offsets(name: str, lengths: Sequence[int]) -> Part:
    values = torch.tensor([0, *accumulate(lengths)], dtype=torch.int64, device="cpu")
    return Part(name, torch.int64, (len(lengths) + 1,), [values])


def _bytes(text: bytes) -> Tensor:
    empty = torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else empty


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
