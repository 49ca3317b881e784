"""Pad items of several lengths into one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bundles.errors import FeatureError


def pad(items: Sequence[Tensor | Mapping[str, Tensor]]) -> tuple[Any, Any]:
    """Return items padded with zeros to the longest, and their lengths.

    Args:
        items: tensors that differ in their first dimension alone, or mappings of such by layer.

    Returns:
        ``[batch, frames, *rest]`` and, as integers, ``[batch]``; of mappings a dict of each by layer.

    Raises:
        FeatureError: there are no items, or they do not fit together.

    >>> pad([torch.ones(2, 1), torch.ones(1, 1)])[1]
    tensor([2, 1])
    """
    if not items:
        raise FeatureError("A batch of no items was to be padded: pass one or more.")
    tensors = [item for item in items if isinstance(item, Tensor)]
    if len(tensors) == len(items):
        return _pad(tensors)
    layers = [item for item in items if isinstance(item, Mapping)]
    if len(layers) < len(items) or any(item.keys() != layers[0].keys() for item in layers):
        raise FeatureError(
            f"A batch holds a {type(items[0]).__name__} and others that are not like it: pad items of one "
            f"store."
        )
    pairs = {layer: _pad([item[layer] for item in layers]) for layer in layers[0]}
    padded, lengths = ({layer: pair[at] for layer, pair in pairs.items()} for at in (0, 1))
    return padded, lengths


def _pad(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    first = tensors[0]
    for tensor in tensors:
        if (tensor.ndim, tensor.shape[1:], tensor.dtype) != (first.ndim, first.shape[1:], first.dtype):
            raise FeatureError(
                f"Items of shapes {list(first.shape)} and {list(tensor.shape)} ({first.dtype} and "
                f"{tensor.dtype}) make no batch: they may differ in the first dimension alone."
            )
    lengths = torch.tensor([len(tensor) for tensor in tensors], device="cpu")
    return pad_sequence([*tensors], batch_first=True), lengths
