"""Keep an existing optimizer right while parameters are frozen and thawed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

# Where each parameter was when it was first seen, as (group, rank): checkpoints of the optimizer count
# parameters in order. Kept beside the optimizer, since an entry in a group would be checkpointed, too.
_places: WeakKeyDictionary[Optimizer, WeakTensorKeyDictionary] = WeakKeyDictionary()


def update(optimizer: Optimizer, before: Iterable[nn.Parameter], after: Iterable[nn.Parameter]) -> None:
    """Take out what is frozen now, and add what was frozen before and trains again, by identity."""
    frozen = {id(parameter) for parameter in after}
    _note_places(optimizer)
    if isinstance(optimizer, LBFGS):  # one direction over all parameters, of the size it had
        optimizer.state.clear()
        optimizer._numel_cache = None
    _drop(optimizer, frozen)
    _restore(optimizer, [p for p in before if id(p) not in frozen and p.requires_grad])


def _note_places(optimizer: Optimizer) -> None:
    places = _places.setdefault(optimizer, WeakTensorKeyDictionary())
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter not in places:
                places[parameter] = (index, len(places))


def _drop(optimizer: Optimizer, frozen: set[int]) -> None:
    """Take parameters out with their momentum; a group stays when empty, since schedulers count groups."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in frozen:
                optimizer.state.pop(parameter, None)
        group["params"][:] = [parameter for parameter in group["params"] if id(parameter) not in frozen]


def _restore(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Put parameters back in their places; those never seen go to a new group with the defaults."""
    places = _places[optimizer]
    present = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    absent = {id(p): p for p in parameters if id(p) not in present}.values()
    for parameter in absent:
        if parameter in places:
            optimizer.param_groups[places[parameter][0]]["params"].append(parameter)
    for group in optimizer.param_groups:
        group["params"].sort(key=lambda p: places[p][1] if p in places else math.inf)
    if new := [parameter for parameter in absent if parameter not in places]:
        optimizer.add_param_group({"params": new})
