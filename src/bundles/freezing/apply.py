"""Put a plan on a model, and take it off again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from torch import nn

from bundles.errors import FreezeError
from bundles.freezing.behaviour.describe import owned_parameters
from bundles.freezing.behaviour.hold import Hold, hold, remember_requires_grad, set_requires_grad
from bundles.freezing.behaviour.lowered import lift
from bundles.freezing.heirs import follow_moves, restore_requires_grad, seat
from bundles.freezing.marks import Marks, applied_plans, note_plan, take_off
from bundles.freezing.optimizer.masks import keep
from bundles.freezing.optimizer.steps import settle
from bundles.freezing.replaced import is_heir, pass_on, watch_replacements
from bundles.spec.masks import Mask
from bundles.spec.plan import FreezePlan, PlannedTensor


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
    _take_off(model.modules())
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
    note_plan(model, plan)
    lift(model)
    return model


def undo(model: nn.Module) -> nn.Module:
    """Give back every ``requires_grad``, class, mode and dtype that plans changed on the model or in it."""
    _take_off(model.modules())
    lift(model)
    return model


def _take_off(modules: Iterable[nn.Module]) -> None:
    """As :func:`undo`, but what is kept in lower precision stays so: it may be frozen again."""
    settle()
    for module in list(modules):
        restore_requires_grad(module)
        take_off(module)


State = tuple[tuple[str, nn.Module, Marks], ...]


def capture(model: nn.Module) -> State:
    """Remember what every plan, also one put on a parent, has made of the model."""
    entries = model.named_modules(remove_duplicate=False)
    return tuple((name, module, Marks.of(module)) for name, module in entries)


def reinstate(model: nn.Module, state: State) -> None:
    """Put the model back as it was at :func:`capture`, but for the mode requested since.

    What was put in a module's place since, and has its very tensors, becomes what that was.
    """
    _take_off(chain(model.modules(), (module for _, module, _ in state)))
    now = dict(model.named_modules(remove_duplicate=False))
    for name, module, marks in state:
        marks.put(module)
        if (heir := now.get(name, module)) is not module and is_heir(heir, module):
            pass_on(module, heir)
    refresh_plans(model)


def refresh_plans(model: nn.Module) -> None:
    """Keep frozen what took a frozen tensor's place since, and let the plans name it."""
    for _, module, plan in list(applied_plans(model)):
        note_plan(module, follow_moves(module, plan))


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
