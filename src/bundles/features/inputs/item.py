"""One item of a dataset, as a model is given it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Item:
    """An input without a batch dimension.

    Args:
        name: what people call it: a path, a key, a number.
        tensor: float32 ``[samples]`` of audio, int64 ``[tokens]`` of text, float32 ``[channels, height,
            width]`` of images, anything of frames.
        identity: 32 bytes, :func:`identity_of` the tensor.
    """

    name: str
    tensor: Tensor
    identity: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the bytes alone: a tensor's own way is far slower, and takes all of its storage along."""
        values = self.tensor.cpu().contiguous()
        flat = values.view(-1).view(torch.uint8).numpy()
        return _item, (self.name, flat, values.dtype, values.shape, self.identity)


def _item(name: str, values: Any, dtype: torch.dtype, shape: torch.Size, identity: bytes) -> Item:
    return Item(name, torch.from_numpy(values).view(dtype).view(shape), identity)


def identity_of(tensor: Tensor) -> bytes:
    """Return 32 bytes that two tensors share if and only if type, shape and every bit of them are equal.

    It is the sha256 of ``"float32[3]"``, of a zero byte, and of the values as they lie in memory.

    >>> identity_of(torch.zeros(3)).hex()[:8], identity_of(torch.zeros(1, 3)).hex()[:8]
    ('134d0a40', 'b8e55a75')
    """
    head = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(head.encode() + b"\0")
    digest.update(values.numpy().data)
    return digest.digest()
