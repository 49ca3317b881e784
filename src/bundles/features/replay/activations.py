"""The stored activations of one batch, put together as the model would have computed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bundles.features.inputs.item import identity_of
from bundles.features.replay.batch import Batch, NotStored
from bundles.features.replay.template import Sizes
from bundles.features.store.store import FeatureStore


@dataclass(frozen=True)
class Activations:
    """What a store has for a batch.

    Attributes:
        items: for each layer that of each row, ``[frames, *rest]``, or ``[*rest]`` of what has no frames.
        sizes: of the batch.
        is_one: whether one item is the whole batch, as all frames of a recording are for CREPE.
    """

    items: tuple[tuple[Tensor, ...], ...]
    sizes: Sizes
    is_one: bool

    def batched(self, like: Sequence[Tensor]) -> list[Tensor]:
        """Return a tensor for each layer in the dtype and on the device of ``like``; the padding is zeros."""
        return [
            self._batch([item.to(tensor.device, tensor.dtype) for item in layer])
            for layer, tensor in zip(self.items, like, strict=True)
        ]

    def valid(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
        """Return the part of computed batches that the items are about."""
        if self.is_one:
            return tuple((tensor,) for tensor in tensors)
        return tuple(
            tuple(row[: len(item)] for row, item in zip(tensor, layer, strict=True))
            for tensor, layer in zip(tensors, self.items, strict=True)
        )

    def row(self, index: int) -> Activations:
        """Return what is stored of one row."""
        sizes = Sizes(1, 0, int(self.sizes.lengths[index]), self.sizes.lengths[index : index + 1])
        return Activations(tuple((layer[index],) for layer in self.items), sizes, self.is_one)

    def _batch(self, layer: list[Tensor]) -> Tensor:
        if self.is_one:
            return layer[0]
        shape = (self.sizes.frames, *layer[0].shape[1:])
        if all(item.shape == layer[0].shape for item in layer) and layer[0].shape[0] == shape[0]:
            return torch.stack(layer)
        batch = layer[0].new_zeros(len(layer), *shape)
        for row, item in zip(batch, layer, strict=True):
            row[: len(item)] = item
        return batch


def look_up(stores: Sequence[FeatureStore], layers: Sequence[str], kind: str, batch: Batch) -> Activations:
    """Return what is stored of a batch.

    Raises:
        NotStored: some rows are in no store, or all of them are shorter than the batch, which
            tells nothing of how many frames the model would make of it.
    """
    if kind == "frames" and (whole := _find(stores, batch.inputs)) is not None:
        items = tuple((whole.read(layer),) for layer in layers)
        return Activations(items, _sizes(batch, items[0], 0), is_one=True)
    found = [_find(stores, row) for row in batch.rows]
    known = [place for place in found if place is not None]
    if len(known) < len(found):
        raise NotStored("an input is not in the store")
    if kind == "waveform" and all(len(row) < batch.samples for row in batch.rows):
        raise NotStored("the batch is padded beyond its longest input")
    rows = [tuple(place.read(layer) for place in known) for layer in layers]
    frames = batch.samples if kind == "tokens" and _is_per_token(batch, rows[0]) else 0
    return Activations(tuple(rows), _sizes(batch, rows[0], frames), is_one=False)


class _Place(NamedTuple):
    """Where an item is."""

    store: FeatureStore
    number: int

    def read(self, layer: str) -> Tensor:
        return self.store.read(self.number, layer)


def _find(stores: Sequence[FeatureStore], tensor: Tensor) -> _Place | None:
    identity = identity_of(tensor)
    for store in stores:
        if (index := store.find(identity)) is not None:
            return _Place(store, index)
    return None


def _is_per_token(batch: Batch, items: Sequence[Tensor]) -> bool:
    return all(len(row) == len(item) for row, item in zip(batch.rows, items, strict=True))


def _sizes(batch: Batch, items: Sequence[Tensor], frames: int) -> Sizes:
    lengths = torch.tensor([len(item) for item in items], device="cpu")
    return Sizes(len(batch.inputs), batch.samples, max(frames, int(lengths.max())), lengths)
