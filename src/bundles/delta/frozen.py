"""The freeze of a model as data, and a model frozen by it: plans, and what was done beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from bundles.delta.format import DTYPES, malformed
from bundles.errors import BundlesError, DeltaBaseError
from bundles.freezing.apply import apply, refresh_plans, undo
from bundles.freezing.behaviour.describe import describe, owned_parameters
from bundles.freezing.behaviour.hold import requires_grad_before
from bundles.freezing.behaviour.lowered import lower, lowered_names
from bundles.freezing.marks import applied_plans
from bundles.spec.groups import LayerGroup, LayerGroups
from bundles.spec.masks import Mask
from bundles.spec.mode import FreezeMode
from bundles.spec.plan import FreezePlan
from bundles.spec.resolve import plan_names

_MOST_WILDCARDS = 8  # in a pattern; no group of ours has more, and a file must not make a match endless


@dataclass(frozen=True)
class Frozen:
    """How a model is to be frozen.

    Attributes:
        plans: name of a module -> what is put on it; a module before those in it.
        untrained: names of parameters that did not train before any freeze.
        changed: names of parameters whose ``requires_grad`` is another than the plans say.
        lowered: names of parameters that are kept in lower precision, with their dtype.
    """

    plans: Mapping[str, FreezePlan]
    untrained: frozenset[str]
    changed: Mapping[str, bool]
    lowered: Mapping[str, torch.dtype]

    @property
    def names(self) -> frozenset[str]:
        """The parameters that plans freeze whole."""
        return frozenset(
            f"{module}.{name}".lstrip(".") for module, plan in self.plans.items() for name in plan.frozen
        )


def record(model: nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return how a model is frozen, as JSON types and, of masks, tensors of packed bits."""
    refresh_plans(model)
    plans = [(name, plan) for name, _, plan in applied_plans(model)]
    owned = list(owned_parameters(model))
    before = _before(owned)
    expected = before | _trains(plans)
    parameters = {name: parameter for name, _, _, parameter in owned}
    data = {
        "plans": [{"module": name, **_plan_data(plan)} for name, plan in plans],
        "untrained": sorted(name for name in before if not before[name]),
        "changed": {n: p.requires_grad for n, p in parameters.items() if p.requires_grad != expected[n]},
        "lowered": {name: _dtype_name(parameters[name]) for name in lowered_names(model)},
    }
    masks = {
        f"mask:{number}:{name}": _bits(mask)
        for number, (_, plan) in enumerate(plans)
        for name, mask in plan.masks.items()
    }
    return data, masks


def read(model: nn.Module, data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Frozen:
    """Return what :func:`record` noted, worked out for this model; the model is not changed.

    How modules are held is not taken from the file: it is worked out anew, and must come to the same.

    Raises:
        PinError: the data is none of ours.
        DeltaBaseError: the same freeze comes to another plan for this model.
    """
    names = {name for name, *_ in owned_parameters(model)}
    try:
        untrained = frozenset(data["untrained"])
        plans = {
            entry["module"]: _read_plan(model, entry, number, untrained, tensors)
            for number, entry in enumerate(data["plans"])
        }
        lowered = {name: DTYPES[dtype] for name, dtype in data["lowered"].items()}
        changed = {name: value for name, value in data["changed"].items() if type(value) is bool}
        known = names.issuperset((*untrained, *lowered, *changed))
    except BundlesError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise malformed(None, f"its freeze cannot be read ({str(error)[:80]})") from error
    if not known:
        raise malformed(None, "its freeze names parameters that the model lacks")
    return Frozen(plans, untrained, changed, lowered)


def put_back(model: nn.Module, frozen: Frozen) -> None:
    """Freeze a model as it was, whatever was frozen of it before."""
    undo(model)
    parameters = {name: parameter for name, _, _, parameter in owned_parameters(model)}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in frozen.untrained)
    for name, plan in frozen.plans.items():
        apply(model.get_submodule(name), plan)
    for name, value in frozen.changed.items():
        parameters[name].requires_grad_(value)
    for dtype in set(frozen.lowered.values()):
        lower(model, [name for name, wanted in frozen.lowered.items() if wanted == dtype], dtype)


def _before(owned: list[tuple[str, nn.Module, str, nn.Parameter]]) -> dict[str, bool]:
    """Whether each parameter trained before any freeze; a tied one did if it did under one of its names."""
    found: dict[int, bool] = {}
    for _, module, local, parameter in owned:
        was = requires_grad_before(module, local, parameter)
        found[id(parameter)] = found.get(id(parameter), False) or was
    return {name: found[id(parameter)] for name, _, _, parameter in owned}


def _trains(plans: list[tuple[str, FreezePlan]]) -> dict[str, bool]:
    """What ``requires_grad`` is by the plans; what is fixed is left as it was."""
    return {
        f"{name}.{tensor.name}".lstrip("."): tensor.trains
        for name, plan in plans
        for tensor in plan.tensors
        if tensor.state != "fixed"
    }


def _plan_data(plan: FreezePlan) -> dict[str, Any]:
    return {
        "policy": plan.policy,
        "mode": asdict(plan.mode),
        "digest": plan.digest,
        "frozen": list(plan.frozen),
        "masked": {name: list(mask.shape) for name, mask in plan.masks.items()},
        "groups": [asdict(group) for group in plan.layer_groups()],
    }


def _read_plan(
    model: nn.Module,
    data: Mapping[str, Any],
    number: int,
    untrained: frozenset[str],
    tensors: Mapping[str, torch.Tensor],
) -> FreezePlan:
    prefix = f"{data['module']}." if data["module"] else ""
    table = describe(model.get_submodule(data["module"]))
    rows = tuple(replace(row, trainable=prefix + row.name not in untrained) for row in table.parameters)
    masks = {
        name: Mask(tuple(shape), tensors[f"mask:{number}:{name}"].numpy().tobytes())
        for name, shape in data["masked"].items()
    }
    groups = LayerGroups(tuple(map(_group, data["groups"])))
    mode, policy = FreezeMode(**data["mode"]), data["policy"]
    plan = plan_names(data["frozen"], policy, mode, replace(table, parameters=rows), groups, masks)
    if plan.digest != data["digest"]:
        raise DeltaBaseError(
            f"What the delta freezes comes to another plan for this model: it has {plan.digest}, recorded is "
            f"{data['digest']}{_moved(plan, data)}; use the versions of the libraries that the delta was "
            f"written with.",
            expected=data["digest"],
            found=plan.digest,
        )
    return plan


def _moved(plan: FreezePlan, data: Mapping[str, Any]) -> str:
    """What is frozen in one and not in the other; holds may be all that differs."""
    names = sorted(set(plan.frozen) ^ set(data["frozen"]))
    return f" (they differ in {', '.join(names[:6])})" if names else " (modules are held otherwise)"


def _group(data: Mapping[str, Any]) -> LayerGroup:
    match = tuple(data["match"])
    if any(pattern.count("*") + pattern.count("?") > _MOST_WILDCARDS for pattern in match):
        raise ValueError(f"the patterns {match} of a layer group")
    return LayerGroup(data["name"], data["kind"], match, tuple(data["parameters"]), data["always"])


def _bits(mask: Mask) -> torch.Tensor:
    return torch.frombuffer(bytearray(mask.bits), dtype=torch.uint8)


def masks_of_plans(
    data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, Mask]]:
    """Yield the full name and the mask of each parameter that a recorded plan masks."""
    for number, entry in enumerate(data["plans"]):
        for name, shape in entry["masked"].items():
            bits = tensors[f"mask:{number}:{name}"].numpy().tobytes()
            yield f"{entry['module']}.{name}".lstrip("."), Mask(tuple(shape), bits)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
