"""What every trainer's adapter is asked, on one tiny model.

A recipe is a function that trains a model with one trainer. It is called for a whole run, for half of
one, and for the rest of it with another model; :func:`trial` says what became of the frozen part. The
tests call it, and ``benchmarks/trainers.py``.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import bundles
from toys import as_bytes, contents

WIDTH = 8
CLASSES = 3
ITEMS = 24
BATCH = 4
EPOCHS = 4
FROZEN = "frozen bytes equal"
BUFFERS = "buffers equal"
MOVED = "head moved"
NOISE = "noise held"
RESUME = "resume exact"
GOOD = {FROZEN: True, BUFFERS: True, MOVED: True, NOISE: True, RESUME: True}


class Block(nn.Module):
    """Statistics, a dropout module, and a dropout by the block's own flag."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.dropout(self.norm(self.linear(x)).tanh())
        return F.dropout(made, 0.2, self.training)


class Encoder(nn.Module):
    """Blocks in a row."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Model(nn.Module):
    """``[items, 8]`` to ``[items, 3]``: an encoder that is frozen, and a head that trains."""

    def __init__(self, blocks: int = 3, head_dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = Encoder(blocks)
        self.head = nn.Sequential(nn.Dropout(head_dropout), nn.Linear(WIDTH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits


def make_model(*, blocks: int = 3, head_dropout: float = 0.0) -> Model:
    """Return the model, the same each time. ``head_dropout`` is for trainers that keep random states."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Model(blocks, head_dropout)


def make_data() -> TensorDataset:
    """Return (x ``[8]``, class) of 24 items, the same each time."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(ITEMS, WIDTH, generator=generator)
    return TensorDataset(x, x[:, :CLASSES].argmax(1))


def seed(value: int) -> None:
    """Set every random state, as a fresh process has another."""
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


class Watch:
    """A model's bytes before a training, beside those after it.

    ``frozen`` is the start of the names of what is frozen: parameters, and the buffers among them.
    """

    def __init__(self, model: nn.Module, frozen: str = "encoder.") -> None:
        self.model, self.start = model, frozen
        self.before = contents(model)
        self.names = {name for name, _ in model.named_parameters()}

    def moved(self) -> set[str]:
        """The names of what differs in a bit now, or is gone."""
        now = contents(self.model)
        return {name for name, value in self.before.items() if now.get(name) != value}

    def frozen_equal(self) -> bool:
        """No frozen parameter moved."""
        return not any(name in self.names and name.startswith(self.start) for name in self.moved())

    def buffers_equal(self) -> bool:
        """No buffer of the frozen part moved."""
        return not any(name not in self.names and name.startswith(self.start) for name in self.moved())

    def head_moved(self) -> bool:
        """Every parameter that is not frozen moved."""
        return {name for name in self.names if not name.startswith(self.start)} <= self.moved()


def noise_held(encoder: nn.Module, x: Tensor) -> bool:
    """After ``train()`` the encoder gives, twice, the bits that it gives in ``eval()``.

    Its mode is left alone, and buffers that a forward writes are put back.
    """
    modes = {module: module.training for module in encoder.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in encoder.buffers()]
    with torch.no_grad(), torch.random.fork_rng():
        encoder.train()
        trained = [as_bytes(encoder(x)) for _ in range(2)]
        for buffer, value in buffers:
            buffer.copy_(value)
        for module in encoder.modules():
            module.training = False
        settled = as_bytes(encoder(x))
    for module, mode in modes.items():
        module.training = mode
    return trained == [settled, settled]


def same_contents(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same parameters and buffers, bit for bit."""
    return contents(one) == contents(other)


class Recipe(Protocol):
    """Trains a model with a trainer up to a number of epochs, and saves in the folder what goes on later.

    ``resume`` says that the folder holds what an earlier call saved, with which this one begins. The data
    are those of :func:`make_data` in batches of 4, the optimizer is over all parameters, with weight decay.
    """

    def __call__(self, model: Any, epochs: int, folder: Path, *, resume: bool) -> object: ...


def trial(recipe: Recipe, folder: Path, **options: Any) -> dict[str, bool]:
    """Return what a recipe does to the frozen part, and whether a resume changes a bit.

    Args:
        recipe: of one trainer.
        folder: an empty one.
        options: of :func:`make_model`.
    """
    data = make_data().tensors[0]
    model = make_model(**options)
    watch = Watch(model)
    seed(0)
    recipe(model, EPOCHS, folder / "whole", resume=False)
    found = {FROZEN: watch.frozen_equal(), BUFFERS: watch.buffers_equal(), MOVED: watch.head_moved()}
    found[NOISE] = noise_held(model.encoder, data)
    seed(0)
    recipe(make_model(**options), EPOCHS // 2, folder / "half", resume=False)
    seed(99)
    again = make_model(**options)
    recipe(again, EPOCHS, folder / "half", resume=True)
    found[RESUME] = same_contents(again, model)
    return found


def frozen_by_hand(model: Model) -> None:
    """What most scripts do: ``requires_grad`` is set once, and nothing else."""
    model.encoder.requires_grad_(False)


def schedule() -> bundles.UnfreezeSchedule:
    """Thaws in the second and in the last of four epochs: before a resume from the middle, and after it."""
    return bundles.UnfreezeSchedule({0: "encoder", 1: "last:1", 3: "none"}, warmup=2)
