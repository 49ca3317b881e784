"""Keep an existing optimizer right while parameters are frozen and thawed."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer

# Where a dropped parameter was: beside the optimizer, since entries in a group would be checkpointed.
_dropped: WeakKeyDictionary[Optimizer, dict[int, int]] = WeakKeyDictionary()


def update(optimizer: Optimizer, before: Iterable[nn.Parameter], after: Iterable[nn.Parameter]) -> None:
    """Take out what is frozen now, and add what was frozen before and trains again."""
    after = list(after)
    still = {id(parameter) for parameter in after}
    _drop(optimizer, after)
    _restore(optimizer, [p for p in before if id(p) not in still and p.requires_grad])


def _drop(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters out of an optimizer, with their momentum; groups stay, also empty ones.

    Schedulers count groups, so none is removed.
    """
    wanted = {id(parameter) for parameter in parameters}
    places = _dropped.setdefault(optimizer, {})
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) in wanted:
                places[id(parameter)] = index
                optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in wanted]


def _restore(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Add parameters to an optimizer that lacks them, by identity.

    Each goes back to the group it was dropped from, else all go to one new group with the optimizer's
    defaults.
    """
    present = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    places = _dropped.get(optimizer, {})
    new = []
    for parameter in {id(p): p for p in parameters if id(p) not in present}.values():
        if (index := places.pop(id(parameter), None)) is None:
            new.append(parameter)
        else:
            optimizer.param_groups[index]["params"].append(parameter)
    if new:
        optimizer.add_param_group({"params": new})
