"""Keep frozen tensors in lower precision: those that autocast would cast at each call anyway."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bundles.errors import FreezeArgumentError
from bundles.freezing.behaviour.describe import owned_parameters
from bundles.freezing.behaviour.hold import base_class
from bundles.spec.plan import FreezePlan

_LOWERED = "_bundles_lowered"
DTYPES = (torch.bfloat16, torch.float16)
# Exactly these: a subclass or a parametrized module may do arithmetic of its own with its weight.
_CAST = {
    *(nn.Linear, NonDynamicallyQuantizableLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}
# These hand their children's weights to a fused kernel that takes one dtype only.
_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def check_dtype(dtype: object) -> None:
    """Raise where frozen tensors cannot be kept in a dtype.

    Raises:
        FreezeArgumentError: it is neither ``torch.bfloat16`` nor ``torch.float16``.
    """
    if dtype not in DTYPES:
        raise FreezeArgumentError(
            f"frozen_dtype={dtype!r} is not one that autocast computes in: give torch.bfloat16 or "
            f"torch.float16."
        )


def castable(model: nn.Module, plan: FreezePlan) -> frozenset[str]:
    """Return the names of frozen float32 tensors that autocast casts per call, and nothing else reads."""
    fused = [name for name, module in model.named_modules() if isinstance(module, _FUSED)]
    names: dict[int, list[str]] = {}
    for name, module, _, parameter in owned_parameters(model):
        cast = base_class(module) in _CAST and not _is_below(name, fused)
        is_ours = cast and parameter.dtype == torch.float32
        names.setdefault(id(parameter), []).append(name if is_ours else "")
    frozen = set(plan.frozen)
    return frozenset(name for tied in names.values() if frozen.issuperset(tied) for name in tied)


def lower(model: nn.Module, names: Collection[str], dtype: torch.dtype) -> None:
    """Make these parameters be of a dtype, those that are not yet, until they are to train again.

    Their modules refuse float32 outside autocast in a sentence that says what to type.
    """
    for name, module, local, parameter in list(owned_parameters(model)):
        if name in names:
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
            if _LOWERED not in module.__dict__:
                module.register_forward_pre_hook(_refuse_float32)
            module.__dict__[_LOWERED] = {**module.__dict__.get(_LOWERED, {}), local: torch.float32}


def lift(model: nn.Module) -> None:
    """Give every lowered parameter that trains now its own dtype back; what was rounded stays rounded."""
    for module, local, dtype in list(_lowered(model)):
        parameter = module._parameters[local]
        if parameter is not None and parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
            _forget(module, local)


def lowered_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that are kept in lower precision."""
    return tuple(
        name
        for name, module, local, _ in owned_parameters(model)
        if local in module.__dict__.get(_LOWERED, {})
    )


def _lowered(model: nn.Module) -> Iterator[tuple[nn.Module, str, torch.dtype]]:
    for module in model.modules():
        for local, dtype in module.__dict__.get(_LOWERED, {}).items():
            if local in module._parameters:
                yield module, local, dtype


def _forget(module: nn.Module, local: str) -> None:
    left = {name: dtype for name, dtype in module.__dict__.pop(_LOWERED).items() if name != local}
    if left:
        module.__dict__[_LOWERED] = left
        return
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _refuse_float32:
            del module._forward_pre_hooks[key]


def _refuse_float32(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Say what to type where torch would say that dtypes differ; a function, so that it pickles."""
    weight = module._parameters["weight"]
    x = inputs[0] if inputs else None
    if weight is None or not isinstance(x, torch.Tensor) or x.dtype == weight.dtype:
        return
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        raise FreezeArgumentError(
            f"A frozen {type(module).__name__} is kept in {weight.dtype} (frozen_dtype=) and was given "
            f"{x.dtype}: call the model within `with torch.autocast({kind!r}, {weight.dtype}):`."
        )


def _is_below(name: str, parents: Collection[str]) -> bool:
    return any(name.startswith(f"{parent}.") if parent else True for parent in parents)
