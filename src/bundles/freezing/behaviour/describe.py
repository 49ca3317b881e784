"""Describe a module as the plain table that planning works on."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from bundles.errors import FreezeArgumentError
from bundles.freezing.behaviour.hold import base_class, requires_grad_before
from bundles.freezing.behaviour.knobs import drops_layers, knobs_of
from bundles.freezing.behaviour.reads import mentions_dropout, reads_training
from bundles.spec.table import Effect, ModuleRow, ModuleTable, ParameterRow


def describe(model: nn.Module) -> ModuleTable:
    """Return the model's modules and parameters as data.

    What is mounted or tied more than once is listed under each of its names.
    """
    return ModuleTable(
        modules=tuple(_module_row(*entry) for entry in model.named_modules(remove_duplicate=False)),
        parameters=tuple(_parameter_rows(model)),
    )


def owned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Yield (full name, owner, local name, parameter) of each parameter, tied ones under every name."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{prefix}.{local}" if prefix else local, module, local, parameter


def _parameter_rows(model: nn.Module) -> Iterator[ParameterRow]:
    owned = list(owned_parameters(model))
    if lazy := [name for name, _, _, parameter in owned if is_lazy(parameter)]:
        raise FreezeArgumentError(
            f"The parameters {', '.join(lazy)} have no shape yet: run one batch through the model first."
        )
    names: dict[int, list[str]] = {}
    before: dict[int, bool] = {}
    for name, module, local, parameter in owned:
        names.setdefault(id(parameter), []).append(name)
        # A tied parameter that another owner recorded as trained is trained.
        was = requires_grad_before(module, local, parameter)
        before[id(parameter)] = before.get(id(parameter), False) or was
    for name, _, _, parameter in owned:
        yield ParameterRow(
            name=name,
            shape=tuple(parameter.shape),
            module=name.rpartition(".")[0],
            trainable=before[id(parameter)],
            tied=tuple(names[id(parameter)]),
        )


def _module_row(name: str, module: nn.Module) -> ModuleRow:
    reads = reads_training(module)
    effects, assumed = _effects(module, reads)
    cls = base_class(module)
    return ModuleRow(
        name=name,
        called=getattr(cls, "forward", None) is not nn.Module.forward,
        ordered=cls is nn.Sequential,
        reads=reads or "stats" in effects,
        builtin=_is_builtin(module),
        effects=effects,
        assumed=assumed,
        knobs=knobs_of(module),
        flows_in_training=isinstance(module, nn.RNNBase),
    )


def _effects(module: nn.Module, reads: bool) -> tuple[tuple[Effect, ...], bool]:
    """Return what hangs on the module's flag, and whether that is a guess."""
    known: list[Effect] = []
    if _has_power_iteration(module):
        known.append("stats")
    if isinstance(module, _NormBase):
        tracks = module.running_mean is not None
        return (*known, "stats") if tracks and not known else tuple(known), False
    if isinstance(module, _SpectralNorm) or not reads:
        return tuple(known), False
    if _is_builtin(module):
        return (*known, "noise"), False
    if drops_layers(module):
        effects: tuple[Effect, ...] = ("noise", "structure") if mentions_dropout(module) else ("structure",)
        return (*known, *effects), True
    if any(True for _ in module.buffers(recurse=False)):
        return ("noise", "stats"), True
    return (*known, "noise"), True


def _is_builtin(module: nn.Module) -> bool:
    return base_class(module).__module__.startswith("torch.nn.")


def _has_power_iteration(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)
