"""Blocks chosen by Fisher information or relative gradient norm, against the last ones: as many parameters.

The four blocks are of equal size. Each method trains the head and n blocks; the stem stays frozen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce

import torch
from digits import Set
from surgical import tasks
from torch import nn
from training import accuracy, batches, train, tuned

import bundles

BLOCKS = ("block.0", "block.1", "block.2", "block.3")
COUNTS = (1, 2)


def run(seeds: range, epochs: int = 25) -> dict[str, dict[str, list[float]]]:
    """``"shift, n of 4"`` -> method -> accuracy per seed, per cent."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        for shift, (model, data) in tasks(seed, epochs).items():
            for n in COUNTS:
                row = found.setdefault(f"{shift}, {n} of 4", {method: [] for method in CHOICES})
                for method, choose in CHOICES.items():
                    torch.manual_seed(seed)
                    trained = bundles.Head() | choose(model, data.tune, n)
                    best = tuned(model, partial(_tune, trained, data.tune, epochs), data.choose, seed)
                    row[method].append(accuracy(best, data.judge))
    return found


def last(model: nn.Module, data: Set, n: int) -> bundles.FreezePolicy:
    """The blocks next to the head."""
    return _either(BLOCKS[-n:])


def by_score(method: str, model: nn.Module, data: Set, n: int) -> bundles.FreezePolicy:
    """The blocks with the highest scores on the data that they will be tuned on."""
    scores = bundles.importance(model, batches(data), method=method, per="group").ranked()
    return _either([score.name for score in scores if score.name in BLOCKS][:n])


def filters(model: nn.Module, data: Set, n: int) -> bundles.FreezePolicy:
    """The filters with the highest Fisher information, out of all blocks: as many as n blocks have."""
    scores = bundles.importance(model, batches(data), method="fisher", per="unit").values
    weights = {
        name: scores[name] for name in scores if name.startswith("blocks.") and name.endswith("weight")
    }
    return bundles.TopScores(bundles.Scores("fisher", "unit", weights), n / len(BLOCKS))


def at_random(model: nn.Module, data: Set, n: int) -> bundles.FreezePolicy:
    """Any blocks."""
    return _either([BLOCKS[index] for index in torch.randperm(len(BLOCKS))[:n]])


CHOICES: Mapping[str, Callable[[nn.Module, Set, int], bundles.FreezePolicy]] = {
    "last": last,
    "Fisher": partial(by_score, "fisher"),
    "RGN": partial(by_score, "rgn"),
    "Fisher, by filter": filters,
    "random": at_random,
}


def _either(groups: Iterable[str]) -> bundles.FreezePolicy:
    return reduce(operator.or_, map(bundles.Group, groups))


def _tune(trained: bundles.FreezePolicy, data: Set, epochs: int, model: nn.Module, rate: float) -> None:
    bundles.freeze(model, ~trained)
    train(model, data, rate, epochs)
