"""Put a plan on a model, and take it off again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from bundles.errors import FreezeError
from bundles.freezing.behaviour.describe import owned_parameters
from bundles.freezing.behaviour.hold import (
    Hold,
    all_noted,
    grads_and_before,
    held,
    hold,
    is_held,
    own_parameter,
    release,
    remember_requires_grad,
    requested,
    set_requires_grad,
)
from bundles.freezing.behaviour.lowered import lift
from bundles.freezing.heirs import follow_moves, restore_requires_grad, seat
from bundles.freezing.optimizer.masks import forget, keep, kept_of
from bundles.freezing.optimizer.steps import settle
from bundles.spec.masks import Mask
from bundles.spec.plan import FreezePlan, PlannedTensor

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
    watch_replacements()
    _take_off(model)
    ours = [(tensor, *owned[tensor.name]) for tensor in plan.tensors if tensor.state != "fixed"]
    for tensor, module, local, parameter in ours:  # all before the first is set: tied ones are one parameter
        remember_requires_grad(module, local, parameter.requires_grad)
        owner, plain = seat(tensor.name)
        if modules[owner] is not module:  # so that it is known once a parametrization is removed
            remember_requires_grad(modules[owner], plain, parameter.requires_grad)
    for tensor, _, _, parameter in ours:
        set_requires_grad(parameter, tensor.trains)
    _keep((tensor, module, local) for tensor, module, local, _ in ours)
    for module, what in _by_module(plan, modules):
        hold(module, what)
    model.__dict__[_PLAN] = plan
    lift(model)
    return model


def undo(model: nn.Module) -> nn.Module:
    """Give back every ``requires_grad``, class, mode and dtype that plans changed on the model or in it."""
    _take_off(model)
    lift(model)
    return model


def _take_off(model: nn.Module) -> None:
    """As :func:`undo`, but what is kept in lower precision stays so: it may be frozen again."""
    settle()
    for _, module in list(model.named_modules()):
        module.__dict__.pop(_PLAN, None)
        forget(module)
        release(module)
        restore_requires_grad(module)


@dataclass(frozen=True)
class _Was:
    """What plans made of one module, so that it can be made so again."""

    module: nn.Module
    held: Hold | None
    noted: dict[str, bool]
    requires_grad: dict[str, tuple[bool, bool]]
    kept: tuple[frozenset[str], dict[str, Mask]]
    plan: FreezePlan | None


def capture(model: nn.Module) -> tuple[_Was, ...]:
    """Remember what every plan, also one put on a parent, has made of the model."""
    return tuple(map(_look_at, model.modules()))


def reinstate(model: nn.Module, state: tuple[_Was, ...]) -> None:
    """Put the model back as it was at :func:`capture`, but for the mode requested since."""
    _take_off(model)
    for was in state:
        _make_again(was)


def _look_at(module: nn.Module) -> _Was:
    noted, plan = all_noted(module), own_plan(module)
    return _Was(module, held(module), noted, grads_and_before(module), kept_of(module), plan)


def _make_again(was: _Was) -> None:
    for local, before in was.noted.items():
        remember_requires_grad(was.module, local, before)
    for local, (_, now) in was.requires_grad.items():
        if (parameter := own_parameter(was.module, local)) is not None:
            set_requires_grad(parameter, now)
    if any(was.kept):
        keep(was.module, *was.kept)
    if was.held is not None:
        hold(was.module, was.held)
    if was.plan is not None:
        was.module.__dict__[_PLAN] = was.plan


@cache
def watch_replacements() -> None:
    """Keep frozen, from now on, what is put in the place of a frozen module and has its very tensors.

    ``convert_sync_batchnorm`` does so, also when a trainer calls it after the freeze, and Lightning when it
    reverts that. Only torch's hook for modules that get a name sees it, which is one for all modules.
    """
    register_module_module_registration_hook(_hand_on)


def _hand_on(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    siblings = vars(parent).get("_modules")
    old = siblings.get(name) if isinstance(siblings, dict) else None  # scripted modules have no such
    if old is None or module is None or old is module:
        return
    if _is_touched(old) and not _is_touched(module) and _is_heir(module, old):
        if is_held(old):
            module.training = requested(old)  # what a thaw goes back to
        _make_again(replace(_look_at(old), module=module))


def _is_touched(module: nn.Module) -> bool:
    return is_held(module) or bool(all_noted(module)) or own_plan(module) is not None


def _is_heir(module: nn.Module, old: nn.Module) -> bool:
    """Whether a module has tensors of its own, and all of them are the other's."""
    its, those = (
        {id(tensor) for tensor in (*each._parameters.values(), *each._buffers.values()) if tensor is not None}
        for each in (module, old)
    )
    return bool(its) and its <= those


def own_plan(model: nn.Module) -> FreezePlan | None:
    """Return the plan that was put on this module itself."""
    plan: FreezePlan | None = model.__dict__.get(_PLAN)
    return plan


def refresh_plans(model: nn.Module) -> None:
    """Keep frozen what took a frozen tensor's place since, and let the plans name it."""
    for _, module, plan in list(applied_plans(model)):
        module.__dict__[_PLAN] = follow_moves(module, plan)


def applied_plans(model: nn.Module) -> Iterator[tuple[str, nn.Module, FreezePlan]]:
    """Yield (name, module, plan) of each module in the model on which a plan was put."""
    for name, module in model.named_modules(remove_duplicate=False):
        if _PLAN in module.__dict__:
            yield name, module, module.__dict__[_PLAN]


def _keep(frozen: Iterable[tuple[PlannedTensor, nn.Module, str]]) -> None:
    """Guard what is frozen from optimizers: one record for each module."""
    found: dict[int, tuple[nn.Module, set[str], dict[str, Mask]]] = {}
    for tensor, module, local in frozen:
        _, whole, masks = found.setdefault(id(module), (module, set(), {}))
        if tensor.mask is not None:
            masks[local] = tensor.mask
        elif not tensor.trains:
            whole.add(local)
    for module, whole, masks in found.values():
        if whole or masks:
            keep(module, whole, masks)


def _by_module(plan: FreezePlan, modules: dict[str, nn.Module]) -> Iterator[tuple[nn.Module, Hold]]:
    """One hold per module: where it is mounted twice, held under either name is held."""
    merged: dict[int, tuple[nn.Module, Hold]] = {}
    for planned in plan.holds:
        module = modules[planned.module]
        _, other = merged.get(id(module), (module, Hold(None, False)))
        flags = [flag for flag in (planned.training, other.training) if flag is not None]
        knobs = tuple(dict((*other.knobs, *planned.knobs)).items())
        merged[id(module)] = (module, Hold(min(flags, default=None), planned.cut or other.cut, knobs))
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
