"""What stands in the place of a frozen tensor: parametrizing, pruning and taking either off move it.

``remove_parametrizations`` makes a buffer of the weight of a frozen module under weight norm, and
``remove_weight_norm`` and ``remove_spectral_norm`` make a new parameter, which trains. Under pruning and
parametrizations the frozen parameter itself moves to another name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.utils import parametrize

from bundles.freezing.behaviour.hold import (
    forget_requires_grad,
    grads_and_before,
    noted_requires_grad,
    own_parameter,
    remember_requires_grad,
    set_requires_grad,
)
from bundles.freezing.optimizer.masks import keep, kept_of
from bundles.spec.plan import FreezePlan, PlannedTensor

_SUFFIXES = ("_orig", "_g", "_v")  # torch's pruning and spectral norm; its weight norm
_PARAMETRIZED = re.compile(r"(?:(?P<owner>.+)\.)?parametrizations\.(?P<local>[^.]+)\.original\d*")


def seat(name: str) -> tuple[str, str]:
    """Return the module and the local name that a parameter's name comes down to.

    >>> seat("encoder.conv.parametrizations.weight.original0"), seat("encoder.conv.weight_g")
    (('encoder.conv', 'weight'), ('encoder.conv', 'weight'))
    """
    if found := _PARAMETRIZED.fullmatch(name):
        return found["owner"] or "", found["local"]
    owner, _, local = name.rpartition(".")
    return owner, _stem(local)


def heirs(module: nn.Module, local: str) -> list[tuple[nn.Module, str]]:
    """Return the owners and local names of the parameters that a module has for one it had.

    That is the parameter itself where it is still there. A buffer in its place is made a frozen parameter
    again, and so is a bare tensor in the place of what weight norm had split.
    """
    if own_parameter(module, local) is not None:
        return [(module, local)]
    stem = _stem(local)
    found = [(module, name) for name in (stem, *(stem + suffix for suffix in _SUFFIXES))]
    found = [place for place in found if own_parameter(*place) is not None]
    if parametrize.is_parametrized(module, stem):
        originals = module.get_submodule(f"parametrizations.{stem}")
        found += [(originals, name) for name, _ in originals.named_parameters(recurse=False)]
    return found or _registered(module, stem, bare=local != stem)


def follow_moves(module: nn.Module, plan: FreezePlan) -> FreezePlan:
    """Freeze what took the place of frozen tensors, and return the plan that names it.

    A frozen tensor that nothing is noted of is in a module that nobody saw come, as ``prepare_qat`` puts them
    there: the plan says that it trained, so a thaw must thaw it.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    planned = tuple(tensor.name for tensor in plan.tensors)
    tensors: dict[str, PlannedTensor] = {}
    for tensor in plan.tensors:
        moved = _follow(tensor, modules, planned) if tensor.state == "frozen" else {}
        tensors |= moved or {tensor.name: tensor}
    same = tuple(tensors) == planned
    return plan if same else replace(plan, tensors=tuple(tensors.values()))


def restore_requires_grad(module: nn.Module) -> None:
    """Undo every freeze of a module's own parameters, wherever they are by now."""
    for local, value in forget_requires_grad(module).items():
        for owner, name in heirs(module, local):
            owner.get_parameter(name).requires_grad_(value)


def _follow(
    tensor: PlannedTensor, modules: Mapping[str, nn.Module], planned: Collection[str]
) -> dict[str, PlannedTensor]:
    owner, _, local = tensor.name.rpartition(".")
    parameter = own_parameter(modules[owner], local) if owner in modules else None
    if parameter is None:
        return _moved(tensor, modules) or _renamed(tensor, modules, planned)
    if noted_requires_grad(modules[owner], local) is None and not parameter.requires_grad:
        _freeze(modules[owner], local, before=True)
    return {tensor.name: tensor}


def _renamed(
    tensor: PlannedTensor, modules: Mapping[str, nn.Module], planned: Collection[str]
) -> dict[str, PlannedTensor]:
    """Return as planned what a module in the tensor's place was handed on frozen, under names of its own."""
    owner = tensor.name.rpartition(".")[0]
    handed = grads_and_before(modules[owner]) if owner in modules else {}
    names = {".".join(filter(None, (owner, local))): local for local, (_, now) in handed.items() if not now}
    return {
        full: replace(tensor, name=full, shape=tuple(modules[owner].get_parameter(local).shape))
        for full, local in names.items()
        if full not in planned
    }


def _freeze(module: nn.Module, local: str, *, before: bool) -> nn.Parameter:
    """Freeze one parameter, beside what is frozen of its module."""
    parameter = module.get_parameter(local)
    remember_requires_grad(module, local, before)
    set_requires_grad(parameter, False)
    whole, masks = kept_of(module)
    keep(module, whole | {local}, masks)
    return parameter


def _moved(tensor: PlannedTensor, modules: Mapping[str, nn.Module]) -> dict[str, PlannedTensor]:
    """Freeze the heirs of a tensor that is gone, and return them as planned."""
    name, local = seat(tensor.name)
    if name not in modules:
        return {}
    owner, _, old = tensor.name.rpartition(".")
    known = [(modules[at], key) for at, key in ((owner, old), (name, local)) if at in modules]
    notes = (noted_requires_grad(*place) for place in known)
    before = next((note for note in notes if note is not None), True)
    planned = {}
    for heir, key in heirs(modules[name], old if name == owner else local):
        parameter = _freeze(heir, key, before=before)
        path = (name, key) if heir is modules[name] else (name, "parametrizations", local, key)
        full = ".".join(filter(None, path))
        planned[full] = replace(tensor, name=full, shape=tuple(parameter.shape))
    return planned


def _stem(local: str) -> str:
    return next((local.removesuffix(end) for end in _SUFFIXES if local.endswith(end)), local)


def _registered(module: nn.Module, local: str, *, bare: bool) -> list[tuple[nn.Module, str]]:
    """Make a parameter of the buffer, or the bare tensor, of that name, if there is one."""
    place = vars(module) if bare and isinstance(vars(module).get(local), Tensor) else module._buffers
    if local not in place or (tensor := place.pop(local)) is None:
        return []
    module._non_persistent_buffers_set.discard(local)
    module.register_parameter(local, nn.Parameter(tensor.detach(), requires_grad=False))
    return [(module, local)]
