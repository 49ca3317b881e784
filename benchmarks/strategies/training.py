"""The network of the experiments, and how it is trained, tuned and judged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - what everybody calls it
from digits import Set
from torch import Tensor, nn
from torch.optim import Optimizer

RATES = (1e-2, 3e-3, 1e-3)  # of which each method takes the one that does best on images set aside for that
WIDTH = 16


class Block(nn.Module):
    """A convolution with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, 16, 4, 4)`` in and out."""
        return x + F.relu(self.conv(x))


class Net(nn.Module):
    """A stem, four equal blocks, a head: six layer groups, 12,000 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(WIDTH * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, 1, 8, 8)`` -> logits ``(batch, classes)``."""
        x = F.max_pool2d(F.relu(self.stem(images)), 2)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.flatten(1))
        return logits


def batches(data: Set, size: int = 32) -> Iterator[Set]:
    """Yield batches in random order."""
    for index in torch.randperm(len(data[1])).split(size):
        yield data[0][index], data[1][index]


def fit(
    model: nn.Module,
    data: Set,
    groups: Iterable[Any],
    epochs: int,
    on_epoch: Callable[[Optimizer, int], object],
) -> None:
    """Train with Adam; ``on_epoch`` is called before each epoch with the optimizer and the number."""
    optimizer = torch.optim.Adam(groups)
    model.train()
    for epoch in range(epochs):
        on_epoch(optimizer, epoch)
        for images, labels in batches(data):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()


def train(model: nn.Module, data: Set, rate: float, epochs: int) -> None:
    """Train what is not frozen."""
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": rate}]
    fit(model, data, groups, epochs, lambda optimizer, epoch: None)


def pretrained(seed: int, data: Set, classes: int, epochs: int = 25) -> Net:
    """Return a network trained from scratch."""
    torch.manual_seed(seed)
    model = Net(classes)
    train(model, data, 3e-3, epochs)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, data: Set) -> float:
    """Return the per cent that is right."""
    model.eval()
    return 100 * (model(data[0]).argmax(1) == data[1]).double().mean().item()


def tuned(model: nn.Module, tune: Callable[[nn.Module, float], object], choose: Set, seed: int) -> nn.Module:
    """Return the copy that does best on ``choose`` among those tuned at each of the rates."""
    made = []
    for rate in RATES:
        copied = copy.deepcopy(model)
        torch.manual_seed(seed)
        tune(copied, rate)
        made.append(copied)
    return max(made, key=lambda each: accuracy(each, choose))
