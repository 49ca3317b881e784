"""Which block to tune, by kind of shift: Lee et al. 2022, https://arxiv.org/abs/2210.11466."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from digits import Set, Split, blurred, changed, noisy, split
from torch import nn
from torch.optim import Optimizer
from training import accuracy, batches, fit, pretrained, train, tuned

import bundles

GROUPS = ("stem", "block.0", "block.1", "block.2", "block.3", "head")
Task = tuple[nn.Module, Split]  # a network that was trained before the shift, and images after it


def tasks(seed: int, epochs: int = 25) -> dict[str, Task]:
    """Return a task per kind of shift.

    Of the input: noise, blur. Of the features: five classes of two digits each (0 and 1, 2 and 3, ...),
    trained on the even ones, tuned and judged on the odd ones. Of the output: label y becomes 9 - y.
    """
    data = split(seed)
    plain = pretrained(seed, data.source, 10, epochs)
    halves = pretrained(seed, _pairs(data.source, 0), 5, epochs)
    return {
        "noise": (plain, Split(*(changed(part, noisy) for part in _sets(data)))),
        "blur": (plain, Split(*(changed(part, blurred) for part in _sets(data)))),
        "features": (halves, Split(*(_pairs(part, 1) for part in _sets(data)))),
        "labels": (plain, Split(*((images, 9 - labels) for images, labels in _sets(data)))),
    }


def run(seeds: range, epochs: int = 25) -> dict[str, dict[str, list[float]]]:
    """Shift -> method -> accuracy per seed, per cent."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        for shift, (model, data) in tasks(seed, epochs).items():
            row = found.setdefault(shift, {"none": [], **{method: [] for method in METHODS}})
            row["none"].append(accuracy(model, data.judge))
            for method, tune in METHODS.items():
                best = tuned(model, partial(_call, tune, data.tune, epochs), data.choose, seed)
                row[method].append(accuracy(best, data.judge))
    return found


def only(group: str, model: nn.Module, data: Set, rate: float, epochs: int) -> None:
    """Train one layer group."""
    bundles.freeze(model, ~bundles.Group(group))
    train(model, data, rate, epochs)


def auto_rgn(model: nn.Module, data: Set, rate: float, epochs: int) -> None:
    """Train everything, each tensor at the rate times its relative gradient norm over the highest one."""

    def groups() -> list[dict[str, Any]]:
        scores = bundles.importance(model, batches(data), method="rgn")
        return bundles.param_groups(model, lr=rate, scores=scores)

    def scale(optimizer: Optimizer, epoch: int) -> None:
        rates = {group["name"]: group["lr"] for group in groups()}
        for group in optimizer.param_groups:
            group["lr"] = rates[group["name"]]

    fit(model, data, groups(), epochs, scale)


METHODS: Mapping[str, Callable[..., None]] = {
    "all": train,
    **{group: partial(only, group) for group in GROUPS},
    "Auto-RGN": auto_rgn,
}


def _call(tune: Callable[..., None], data: Set, epochs: int, model: nn.Module, rate: float) -> None:
    tune(model, data, rate, epochs)


def _pairs(data: Set, remainder: int) -> Set:
    kept = data[1] % 2 == remainder
    return data[0][kept], data[1][kept] // 2


def _sets(data: Split) -> tuple[Set, Set, Set, Set]:
    return data.source, data.tune, data.choose, data.judge
