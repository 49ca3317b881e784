"""Put a plan on a model, and take it off again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from bundles.errors import FreezeError
from bundles.freezing.describe import owned_parameters
from bundles.freezing.hold import (
    Hold,
    grads_and_before,
    held,
    hold,
    own_parameter,
    release,
    remember_requires_grad,
    restore_requires_grad,
    set_requires_grad,
)
from bundles.spec.plan import FreezePlan

_PLAN = "_bundles_plan"


def apply(model: nn.Module, plan: FreezePlan) -> nn.Module:
    """Freeze and hold exactly what the plan says, whatever was frozen before.

    Every parameter is set, frozen or not, so applying twice equals applying once.

    Raises:
        FreezeError: the plan was made for another model; nothing is changed.
    """
    owned = {name: (module, local, parameter) for name, module, local, parameter in owned_parameters(model)}
    modules = dict(model.named_modules(remove_duplicate=False))
    _check_fit(plan, set(owned), set(modules))
    undo(model)
    ours = [(tensor, *owned[tensor.name]) for tensor in plan.tensors if tensor.state != "fixed"]
    for _, module, local, parameter in ours:  # all before the first is set: tied ones are one parameter
        remember_requires_grad(module, local, parameter.requires_grad)
    for tensor, _, _, parameter in ours:
        set_requires_grad(parameter, tensor.state == "trainable")
    for module, what in _by_module(plan, modules):
        hold(module, what)
    model.__dict__[_PLAN] = plan
    return model


def undo(model: nn.Module) -> nn.Module:
    """Give back every ``requires_grad``, class and mode that plans changed on the model or in it."""
    for _, module in list(model.named_modules()):
        module.__dict__.pop(_PLAN, None)
        release(module)
        restore_requires_grad(module)
    return model


@dataclass(frozen=True)
class _Was:
    """What plans made of one module, so that it can be made so again."""

    module: nn.Module
    held: Hold | None
    requires_grad: dict[str, tuple[bool, bool]]
    plan: FreezePlan | None


def capture(model: nn.Module) -> tuple[_Was, ...]:
    """Remember what every plan, also one put on a parent, has made of the model."""
    return tuple(
        _Was(module, held(module), grads_and_before(module), module.__dict__.get(_PLAN))
        for module in model.modules()
    )


def reinstate(model: nn.Module, state: tuple[_Was, ...]) -> None:
    """Put the model back as it was at :func:`capture`, but for the mode requested since."""
    undo(model)
    for was in state:
        for local, (before, now) in was.requires_grad.items():
            if (parameter := own_parameter(was.module, local)) is not None:
                remember_requires_grad(was.module, local, before)
                set_requires_grad(parameter, now)
        if was.held is not None:
            hold(was.module, was.held)
        if was.plan is not None:
            was.module.__dict__[_PLAN] = was.plan


def own_plan(model: nn.Module) -> FreezePlan | None:
    """Return the plan that was put on this module itself."""
    plan: FreezePlan | None = model.__dict__.get(_PLAN)
    return plan


def applied_plans(model: nn.Module) -> Iterator[tuple[str, nn.Module, FreezePlan]]:
    """Yield (name, module, plan) of each module in the model on which a plan was put."""
    for name, module in model.named_modules(remove_duplicate=False):
        if _PLAN in module.__dict__:
            yield name, module, module.__dict__[_PLAN]


def _by_module(plan: FreezePlan, modules: dict[str, nn.Module]) -> Iterator[tuple[nn.Module, Hold]]:
    """One hold per module: where it is mounted twice, held under either name is held."""
    merged: dict[int, tuple[nn.Module, Hold]] = {}
    for planned in plan.holds:
        module = modules[planned.module]
        _, other = merged.get(id(module), (module, Hold(None, False)))
        flags = [flag for flag in (planned.training, other.training) if flag is not None]
        merged[id(module)] = (module, Hold(min(flags, default=None), planned.cut or other.cut))
    yield from merged.values()


def _check_fit(plan: FreezePlan, parameters: set[str], modules: set[str]) -> None:
    planned = {tensor.name for tensor in plan.tensors} | {f"{hold.module} (module)" for hold in plan.holds}
    absent = sorted(planned - parameters - {f"{name} (module)" for name in modules})
    extra = sorted(parameters - planned)
    if absent or extra:
        raise FreezeError(
            f"The plan was made for another model: it names {absent[:5]} that the model lacks, and does "
            f"not name {extra[:5]} that the model has; make a new one with bundles.freeze(model, ...)."
        )
