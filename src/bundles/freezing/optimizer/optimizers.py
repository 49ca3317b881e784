"""Keep existing optimizers right while parameters are frozen and thawed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import compress
from operator import not_
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from bundles.errors import FreezeArgumentError, NothingTrainableWarning, warn
from bundles.spec.values import shown

Optimizers = Optimizer | Sequence[Optimizer]

# Where each parameter was when it was first seen, as (group, rank): checkpoints of the optimizer count
# parameters in order. Kept beside the optimizer, since an entry in a group would be checkpointed, too.
_places: WeakKeyDictionary[Optimizer, WeakTensorKeyDictionary] = WeakKeyDictionary()


def as_optimizers(given: Optimizers | None) -> tuple[Optimizer, ...]:
    """Return what ``optimizer=`` was given as a tuple, without the wrappers of trainers around them.

    Raises:
        FreezeArgumentError: it is neither an optimizer nor a list or tuple of them.
    """
    found = tuple(given) if isinstance(given, list | tuple) else () if given is None else (given,)
    if others := [each for each in found if not isinstance(each, Optimizer)]:
        raise FreezeArgumentError(
            f"optimizer={shown(others[0])} is not a torch.optim.Optimizer: give one, or a list of them."
        )
    return tuple(map(_inside, found))


def _inside(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that steps: those of accelerate and Lightning pass on to their ``optimizer``."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def update(
    optimizers: Sequence[Optimizer], before: Iterable[nn.Parameter], after: Iterable[nn.Parameter]
) -> None:
    """Take out what is frozen now, and add what was frozen before and trains again, by identity.

    What one of the optimizers has had returns to its place there. What none has had goes to a new group
    of the first; or, where a scheduler has counted the groups already, to its first group.
    """
    frozen = {id(parameter) for parameter in after}
    held = [_members(optimizer) for optimizer in optimizers]
    for optimizer in optimizers:
        _note_places(optimizer)
        _drop(optimizer, frozen)
    _restore(optimizers, [p for p in before if id(p) not in frozen and p.requires_grad])
    for optimizer, earlier in zip(optimizers, held, strict=True):
        _settle(optimizer, earlier)


def all_groups(optimizer: Optimizer) -> list[list[nn.Parameter]]:
    """The groups with what was taken out of them, too; as they are where nothing ever was."""
    if optimizer in _places:
        return _whole_groups(optimizer)
    return [list(group["params"]) for group in optimizer.param_groups]


def _members(optimizer: Optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def _settle(optimizer: Optimizer, earlier: list[int]) -> None:
    now = _members(optimizer)
    if isinstance(optimizer, LBFGS) and now != earlier:  # one direction over all, of the size it had
        optimizer.state.clear()
        optimizer._numel_cache = None
    if earlier and not now:
        _warn_of_empty(optimizer)


def _warn_of_empty(optimizer: Optimizer) -> None:
    warn(
        f"The freeze leaves the {type(optimizer).__name__} given as optimizer= without a parameter: its "
        f"step() does nothing now and a GradScaler's step() with it fails, so call them only "
        f"if any(group['params'] for group in optimizer.param_groups).",
        NothingTrainableWarning,
    )


def _note_places(optimizer: Optimizer) -> None:
    if optimizer not in _places:
        _places[optimizer] = WeakTensorKeyDictionary()
        optimizer.register_load_state_dict_pre_hook(_without_frozen)
    places = _places[optimizer]
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


def _restore(optimizers: Sequence[Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Put parameters back in their places; those never seen go to the first optimizer."""
    present = {key for optimizer in optimizers for key in _members(optimizer)}
    absent = {id(p): p for p in parameters if id(p) not in present}
    for optimizer in optimizers:
        places = _places[optimizer]
        for parameter in [p for p in absent.values() if p in places]:
            index, _ = places[parameter]
            optimizer.param_groups[index]["params"].append(absent.pop(id(parameter)))
        for group in optimizer.param_groups:
            group["params"].sort(key=partial(_rank, places))
    if absent and optimizers:
        _add(optimizers[0], list(absent.values()))


def _rank(places: WeakTensorKeyDictionary, parameter: nn.Parameter) -> float:
    return places[parameter][1] if parameter in places else math.inf


def _add(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    """Add parameters that the optimizer never had."""
    first = optimizer.param_groups[0]
    if "initial_lr" in first or isinstance(optimizer, LBFGS):  # a scheduler refuses groups it did not count
        first["params"].extend(parameters)
    else:
        optimizer.add_param_group({"params": parameters})
    _note_places(optimizer)


def _without_frozen(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any] | None:
    """Leave out of a state that was saved when more trained what is frozen now, so that it loads."""
    _note_places(optimizer)
    whole, now = _whole_groups(optimizer), [len(group["params"]) for group in optimizer.param_groups]
    sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes == now or len(sizes) != len(now):
        return None
    if sizes != [len(group) for group in whole]:
        raise FreezeArgumentError(
            f"The optimizer state has {sizes} parameters in its groups, the optimizer has {now}: freeze what "
            f"was frozen when it was saved, with optimizer=, then load, and then freeze or thaw as you go on."
        )
    present = set(_members(optimizer))
    dropped: set[int] = set()
    groups = []
    for old, parameters in zip(saved["param_groups"], whole, strict=True):
        keep = [id(parameter) in present for parameter in parameters]
        groups.append({**old, "params": list(compress(old["params"], keep))})
        dropped.update(compress(old["params"], map(not_, keep)))
    state = {key: value for key, value in saved["state"].items() if key not in dropped}
    return {**saved, "state": state, "param_groups": groups}


def _whole_groups(optimizer: Optimizer) -> list[list[nn.Parameter]]:
    """The groups with everything that they ever had, in order."""
    groups: list[list[nn.Parameter]] = [[] for _ in optimizer.param_groups]
    places = dict(_places[optimizer].items())  # type: ignore[no-untyped-call]
    for parameter, (index, _) in sorted(places.items(), key=lambda entry: entry[1][1]):
        groups[index].append(parameter)
    return groups
