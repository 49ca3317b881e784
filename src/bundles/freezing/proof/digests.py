"""Digests of tensors' values, worked out on several threads."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_PIECE = 4 << 20  # bytes; part of what a digest means, so it never changes


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the sha256 of each tensor's dtype and shape and of the sha256 of every 4 MiB of its bytes.

    The pieces are hashed on ``torch.get_num_threads()`` threads, since hashing runs outside Python's
    lock, so one large tensor is as parallel as many small ones. A contiguous tensor on the CPU is read
    where it lies; any other device hands over a piece at a time; tied tensors are read once.

    >>> digests({"a": torch.zeros(2)}) == digests({"a": torch.zeros(2)})
    True
    """
    distinct = {_place(tensor): tensor for tensor in tensors.values()}
    _wait_for(distinct.values())
    tasks = [(place, part) for place, tensor in distinct.items() for part in _parts(tensor)]
    found = {place: hashlib.sha256(_header(tensor)) for place, tensor in distinct.items()}
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for (place, _), digest in zip(tasks, threads.map(_hash, (p for _, p in tasks)), strict=True):
            found[place].update(digest)
    return {name: found[_place(tensor)].hexdigest() for name, tensor in tensors.items()}


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What two tensors share if they are one: where they lie and how they are read."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _header(tensor: torch.Tensor) -> bytes:
    return f"{tensor.dtype} {tuple(tensor.shape)} ".encode()


def _wait_for(tensors: Iterable[torch.Tensor]) -> None:
    """Let accelerators finish: the threads do not read on the stream that wrote."""
    for device in {tensor.device for tensor in tensors} - {torch.device("cpu")}:
        torch.accelerator.synchronize(device)


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Split a tensor into what one thread hashes at a time; what has to be copied first is not split."""
    return _pieces(tensor.view(-1)) if tensor.is_contiguous() else iter((tensor,))


def _pieces(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    step = _PIECE // flat.element_size()
    return (flat[start : start + step] for start in range(0, flat.numel(), step))


def _hash(part: torch.Tensor) -> bytes:
    values = part.cpu().contiguous().view(-1)
    return b"".join(hashlib.sha256(_memory(piece)).digest() for piece in _pieces(values))


def _memory(piece: torch.Tensor) -> ctypes.Array[ctypes.c_char]:
    size = piece.numel() * piece.element_size()
    return (ctypes.c_char * size).from_address(piece.data_ptr())
