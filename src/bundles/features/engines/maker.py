"""From one window of a dataset to one shard: what every engine does, wherever it does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from bundles.errors import InputError
from bundles.features.encode.encoder import Encoder
from bundles.features.engines.tasks import Task
from bundles.features.engines.window import Made, Recipe, Window, read_window
from bundles.features.inputs.item import Item
from bundles.features.inputs.open import Inputs
from bundles.features.store.reader import ShardReader
from bundles.features.store.shard import find_shard, shard_name, write_shard


@dataclass(frozen=True, eq=False)
class Computed:
    """What the model made of a window, before it is written.

    Attributes:
        window: what was read.
        items: those that the model takes.
        features: of each of them, by layer.
        refused: name of each other, and why.
        bound: how far results may be from those of items alone, if that was measured.
    """

    window: Window
    items: Sequence[Item]
    features: Sequence[Mapping[str, Tensor]] = field(repr=False)
    refused: Sequence[tuple[str, str]] = ()
    bound: float | None = None


class ShardMaker:
    """Makes the shards of a recipe; the model is built when the first of them is not there yet.

    Args:
        recipe: what to make.
        encoder: of the recipe's model, where it is built already.
    """

    def __init__(self, recipe: Recipe, encoder: Encoder | None = None) -> None:
        self.recipe = recipe
        if encoder is not None:
            self.encoder = encoder

    @cached_property
    def encoder(self) -> Encoder:
        """What computes the features."""
        return encoder_of(self.recipe)

    def make(self, task: Task, inputs: Inputs | None = None) -> Made:
        """Return what a window comes to; its shard is written unless it is there and whole.

        Args:
            task: the window.
            inputs: the dataset, where the task does not bring its items.

        Raises:
            InputError: an item cannot be read, or the model does not take it, and the recipe skips none.
            NotDeterministicError: the model gives other features for the same input.
            FeatureError, CacheError: the shard cannot be made or written.
        """
        window = self.read(task, inputs)
        return self.find(window) or self.store(self.compute(window))

    def read(self, task: Task, inputs: Inputs | None = None) -> Window:
        """Return the items of a window, see :func:`~bundles.features.engines.window.read_window`."""
        return read_window(task, inputs, skips=self.recipe.skips)

    def find_by(self, number: int, identities: Sequence[bytes], names: Sequence[str]) -> Made | None:
        """Return what :meth:`find` would for a window whose inputs are known."""
        shard = find_shard(self.recipe.folder, self.name(number, identities, names))
        is_whole = shard is not None and shard.items == len(identities)
        return Made(number, len(identities), shard) if is_whole else None

    def name(self, number: int, identities: Sequence[bytes], names: Sequence[str]) -> str:
        """Return the name of the shard of a window, which tells all that is in it: the items' names, too."""
        told = [name.encode(errors="surrogateescape") + b"\0" for name in names]
        return shard_name(number, self.recipe.facts.key, [*identities, *told])

    def find(self, window: Window) -> Made | None:
        """Return what :meth:`make` would, if nothing need be computed for it; else ``None``."""
        if not window.items:
            return window.made(None)
        shard = find_shard(self.recipe.folder, self.name(window.number, window.identities, window.names))
        if shard is None or shard.items == len(window.items):
            return window.made(shard) if shard else None
        if not self.recipe.skips:
            return None  # the model is asked again, and says what it does not take
        stored = set(ShardReader(self.recipe.folder / shard.name, shard, self.recipe.facts).identities)
        refused = [item.name for item in window.items if item.identity not in stored]
        return window.made(shard, [(name, refused_before(name)) for name in refused])

    def compute(self, window: Window) -> Computed:
        """Return what the model makes of a window.

        Raises:
            InputError, NotDeterministicError, FeatureError: as :meth:`make`.
        """
        items, features, refused = self.encode(window.items)
        return Computed(window, items, features, refused, self.encoder.bound)

    def store(self, computed: Computed) -> Made:
        """Write a shard under the name of all of the window, items that the model refused included.

        Raises:
            FeatureError, CacheError: as :meth:`make`.
        """
        folder, window, items = self.recipe.folder, computed.window, computed.items
        name = self.name(window.number, window.identities, window.names)
        names, identities = [item.name for item in items], [item.identity for item in items]
        shard = find_shard(folder, name)  # another process may have made it meanwhile
        damaged = shard is None and (folder / name).exists()
        if shard is None and items:
            shard = write_shard(folder, name, names, identities, computed.features, replace=damaged)
        made = window.made(shard, computed.refused)
        return replace(made, bound=computed.bound, damaged=damaged, computed=True)

    def encode(
        self, items: Sequence[Item]
    ) -> tuple[Sequence[Item], list[dict[str, Tensor]], list[tuple[str, str]]]:
        """Return the items that the model takes, their features, and why it does not take the others."""
        try:
            return items, self.encoder.encode([item.tensor for item in items]), []
        except InputError:
            reasons = [self._refusal(item) for item in items]
        refused = [(item.name, why) for item, why in zip(items, reasons, strict=True) if why]
        if not refused:
            raise
        if not self.recipe.skips:
            raise InputError(refused[0][1], inputs=(refused[0][0],))
        kept = [item for item, why in zip(items, reasons, strict=True) if not why]
        return kept, self.encoder.encode([item.tensor for item in kept]) if kept else [], refused

    def _refusal(self, item: Item) -> str | None:
        """Why the model does not take an item, asked of the model with that alone."""
        try:
            self.encoder.encode([item.tensor])
        except InputError as error:
            return f"{item.name}: {error}"
        return None


def refused_before(name: str) -> str:
    """Why an item is left out of a shard that is there; the manifest that names the shard may say more."""
    return f"{name}: the model did not take it."


def encoder_of(recipe: Recipe, model: nn.Module | None = None) -> Encoder:
    """Return what computes the features of a recipe, with its model if that is built already."""
    return Encoder(
        recipe.source.build() if model is None else model,
        layers=recipe.facts.layers,
        batch_size=recipe.batch_size,
        dtype=getattr(torch, recipe.facts.dtype),
        device=recipe.source.device,
    )
