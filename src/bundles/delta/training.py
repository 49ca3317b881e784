"""The state of optimizers as data and tensors, by the names of parameters; and back, without a pickle."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bundles.delta.format import malformed
from bundles.errors import BundlesError, FreezeArgumentError
from bundles.freezing.api import frozen_parameters
from bundles.freezing.behaviour.describe import owned_parameters
from bundles.freezing.optimizer import optimizers as fitting
from bundles.freezing.optimizer.optimizers import Optimizers, as_optimizers
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.values import shown

_MOST_NESTED = 16


def record(
    model: nn.Module, optimizer: Optimizers | None
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Return the state of optimizers: what each says as JSON types, and its tensors.

    Raises:
        FreezeArgumentError: one steps something that is no parameter of the model, or holds what neither
            JSON nor a tensor can.
    """
    tensors: dict[str, torch.Tensor] = {}
    names = _names(model)
    found = []
    for number, each in enumerate(as_optimizers(optimizer)):
        groups, order = _groups(each, names)
        saved = each.state_dict()
        own: dict[str, torch.Tensor] = {}
        prefix = f"optimizer:{number}"
        state = {order[index]: _encode(entry, own, prefix) for index, entry in saved["state"].items()}
        options = [{k: v for k, v in group.items() if k != "params"} for group in saved["param_groups"]]
        found.append(
            {
                "class": type(each).__qualname__,
                "groups": groups,
                "options": _encode(options, own, prefix),
                "state": state,
            }
        )
        tensors |= own
    return found, tensors


def fit(
    model: nn.Module,
    optimizer: Optimizers,
    saved: list[Any],
    schedule: UnfreezeSchedule | None,
    step: int | None,
) -> None:
    """Make optimizers hold what those did whose state was saved: without what is frozen, if so they were."""
    given = as_optimizers(optimizer)
    frozen = frozen_parameters(model)
    held = {name for entry in saved for group in entry["groups"] for name in group}
    if held & frozen.keys():
        return
    if schedule is not None and step is not None:
        schedule.apply(model, step, optimizer=list(given))
    else:
        fitting.update(given, (), frozen.values())


def check(
    model: nn.Module,
    optimizer: Optimizers,
    saved: list[Any],
    tensors: Mapping[str, torch.Tensor],
    frozen: Collection[str],
) -> None:
    """Check optimizers and their saved state before anything is changed.

    Args:
        model: over whose parameters they are.
        optimizer: one or a list.
        saved: what :func:`record` said of those whose state is to be restored.
        tensors: of the file.
        frozen: names that will be frozen, which :func:`fit` takes out.

    Raises:
        FreezeArgumentError: they are others than those whose state was saved.
        PinError: the state is none that :func:`record` gave.
    """
    given, names = as_optimizers(optimizer), _names(model)
    if len(given) != len(saved):
        raise FreezeArgumentError(
            f"The delta holds the state of {len(saved)} optimizers and {len(given)} were given: give "
            f"load_delta(path, model, optimizer=...) as many, or none."
        )
    try:
        for each, entry in zip(given, saved, strict=True):
            _check_kind(each, entry)
            _check_groups(each, _later(each, names, entry, frozen), entry["groups"])
            _decode(entry["options"], tensors)
            _decode(entry["state"], tensors)
    except BundlesError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise malformed(None, f"the state of an optimizer cannot be read ({str(error)[:80]})") from error


def _later(
    optimizer: Optimizer, names: Mapping[int, str], entry: Mapping[str, Any], frozen: Collection[str]
) -> list[list[str]]:
    """The names that will be in each group once :func:`fit` took out what is frozen, and put back others."""
    groups, _ = _groups(optimizer, names)
    had = [[names.get(id(p), "") for p in group] for group in fitting.all_groups(optimizer)]
    if any(name in frozen for group in entry["groups"] for name in group):
        return groups
    return [
        [
            *(name for name in now if name not in frozen),
            *(n for n in before if n and n not in {*now, *frozen}),
        ]
        for now, before in zip(groups, had, strict=True)
    ]


def restore(
    model: nn.Module, optimizer: Optimizers, saved: list[Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Give optimizers their saved state back, parameter by parameter, whatever their order.

    Raises:
        FreezeArgumentError: one holds other parameters than when its state was saved.
    """
    names = _names(model)
    for each, entry in zip(as_optimizers(optimizer), saved, strict=True):
        groups, order = _groups(each, names)
        _check_groups(each, groups, entry["groups"])
        states = _decode(entry["state"], tensors)
        state = {index: states[name] for index, name in enumerate(order) if name in states}
        options = _decode(entry["options"], tensors)
        each.load_state_dict({"state": state, "param_groups": list(_numbered(groups, options))})


def _check_kind(optimizer: Optimizer, entry: Mapping[str, Any]) -> None:
    if (kind := type(optimizer).__qualname__) != entry["class"]:
        raise FreezeArgumentError(
            f"The delta holds the state of a {entry['class']} and a {kind} was given: make it as it was made "
            f"for the training."
        )
    if len(optimizer.param_groups) != len(entry["groups"]):
        raise FreezeArgumentError(
            f"The saved {kind} has {len(entry['groups'])} groups of parameters and the one that was given "
            f"{len(optimizer.param_groups)}: make it as it was made for the training."
        )


def _check_groups(optimizer: Optimizer, groups: list[list[str]], saved: list[list[str]]) -> None:
    for number, (ours, theirs) in enumerate(zip(groups, saved, strict=True)):
        if differing := sorted(set(ours) ^ set(theirs)):
            raise FreezeArgumentError(
                f"Group {number} of the {type(optimizer).__qualname__} holds other parameters than when its "
                f"state was saved, it differs in {', '.join(differing[:6])}: make it over all parameters, or "
                f"as it was made for the training."
            )


def _numbered(groups: list[list[str]], options: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    start = 0
    for names, own in zip(groups, options, strict=True):
        yield {**own, "params": list(range(start, start + len(names)))}
        start += len(names)


def _names(model: nn.Module) -> dict[int, str]:
    """The first name of each parameter, by its identity."""
    found: dict[int, str] = {}
    for name, _, _, parameter in owned_parameters(model):
        found.setdefault(id(parameter), name)
    return found


def _groups(optimizer: Optimizer, names: Mapping[int, str]) -> tuple[list[list[str]], list[str]]:
    """The names in each group, and all of them in the order in which a state dict counts them."""
    groups = []
    for group in optimizer.param_groups:
        if any(id(parameter) not in names for parameter in group["params"]):
            raise FreezeArgumentError(
                f"The {type(optimizer).__qualname__} steps a parameter that the model does not have: give "
                f"save_delta and load_delta the optimizers of this model alone."
            )
        groups.append([names[id(parameter)] for parameter in group["params"]])
    return groups, [name for group in groups for name in group]


# --- trees ----------------------------------------------------------------------------------------


def _encode(value: Any, tensors: dict[str, torch.Tensor], prefix: str, depth: int = 0) -> Any:
    """Return a value as JSON types; tensors go beside it, and whatever JSON lacks into a table of one key."""
    if depth > _MOST_NESTED:
        raise _unstorable(value)
    if isinstance(value, torch.Tensor):
        name = f"{prefix}:{len(tensors)}"
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, Mapping):
        pairs = [[_encode(k, tensors, prefix, depth + 1), v] for k, v in value.items()]
        return {"dict": [[key, _encode(v, tensors, prefix, depth + 1)] for key, v in pairs]}
    if isinstance(value, list | tuple):
        entries = [_encode(entry, tensors, prefix, depth + 1) for entry in value]
        return entries if isinstance(value, list) else {"tuple": entries}
    if type(value) is float and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise _unstorable(value)


def _decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what :func:`_encode` was given."""
    if isinstance(value, list):
        return [_decode(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"tensor"}:
        return tensors[value["tensor"]]
    if value.keys() == {"tuple"}:
        return tuple(_decode(entry, tensors) for entry in value["tuple"])
    if value.keys() == {"float"}:
        return float(value["float"])
    if value.keys() == {"dict"}:
        return {_decode(key, tensors): _decode(entry, tensors) for key, entry in value["dict"]}
    return {name: _decode(entry, tensors) for name, entry in value.items()}


def _unstorable(value: Any) -> FreezeArgumentError:
    return FreezeArgumentError(
        f"The optimizer's state holds {shown(value)}, a {type(value).__name__}, which a delta cannot store: "
        f"save it beside the delta yourself."
    )
