"""The model that every row asks about, and the two ways in which it is frozen."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

import bundles

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from toys import contents

WIDTH = 8
RATE = 0.5


class Block(nn.Module):
    """Linear, batch norm, dropout as a module and as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Dropout(RATE)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) -> (batch, width)."""
        return dropout(self.dropout(self.norm(self.linear(x))), 0.5, self.training)


class Encoder(nn.Module):
    """Three blocks, each of which layer drop may skip."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_drop = RATE
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) -> (batch, width)."""
        for block in self.blocks:
            if not self.training or bool(torch.rand(1) >= self.layer_drop):
                x = block(x)
        return x


class Model(nn.Module):
    """An encoder and a head with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Sequential(nn.Dropout(RATE), nn.Linear(WIDTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) -> (batch, 2)."""
        made: Tensor = self.head(self.encoder(x))
        return made


@dataclass(frozen=True)
class Mechanism:
    """Freezes the part of a model that has a dotted name, and gives it back; ``""`` is all of it."""

    freeze: Callable[[nn.Module, str], object]
    undo: Callable[[nn.Module, str], object]

    def frozen(self) -> Model:
        """Return the model with its encoder frozen, after ``train()``."""
        model = fresh()
        self.freeze(model, "encoder")
        return model.train()


def fresh() -> Model:
    """Return the model, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Model().train()


def batch() -> Tensor:
    """Return a batch, the same each time."""
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(2))


def call(module: Callable[[Tensor], Tensor], seed: int = 0) -> Tensor:
    """Call a module on the batch, random numbers starting from the seed."""
    torch.manual_seed(seed)
    return module(batch()).detach().clone()


def wanted() -> Tensor:
    """Return what the encoder makes in ``eval()``."""
    return call(fresh().encoder.eval().requires_grad_(False))


def stays(encoder: nn.Module) -> bool:
    """Whether calls give what ``eval()`` gives, bit for bit, and move no parameter and no buffer."""
    before = contents(encoder)
    equal = all(torch.equal(call(encoder, seed), wanted()) for seed in (1, 2))
    return equal and contents(encoder) == before


def _freeze(model: nn.Module, part: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bundles.BundlesWarning)
        bundles.freeze(model, f"match:{part}" if part else "all")


def _by_habit(model: nn.Module, part: str) -> None:
    model.get_submodule(part).requires_grad_(False).eval()


def _back(model: nn.Module, part: str) -> None:
    model.get_submodule(part).requires_grad_(True).train()


MECHANISMS = {
    "bundles.freeze": Mechanism(_freeze, lambda model, part: bundles.unfreeze(model)),
    "requires_grad_(False) + eval() once": Mechanism(_by_habit, _back),
}
