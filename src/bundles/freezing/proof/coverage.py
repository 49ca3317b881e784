"""What a proof that nothing moved has to look at: the frozen tensors and the held buffers of a model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from bundles.errors import FreezeArgumentError
from bundles.freezing.behaviour.describe import describe
from bundles.freezing.behaviour.hold import held
from bundles.freezing.derive import layer_groups
from bundles.freezing.marks import applied_plans
from bundles.freezing.optimizer.masks import mask_like
from bundles.spec.masks import Mask
from bundles.spec.resolve import parts_of

_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)


def frozen_names(model: nn.Module) -> frozenset[str]:
    """Return the parameters that plans freeze whole; without a plan, those that do not train."""
    plans = list(applied_plans(model))
    if plans:
        return frozenset(f"{prefix}.{name}".lstrip(".") for prefix, _, plan in plans for name in plan.frozen)
    parameters = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in parameters if not parameter.requires_grad)


def masks_of(model: nn.Module) -> dict[str, Mask]:
    """Return the masks of the parameters that plans freeze in part."""
    return {
        f"{prefix}.{name}".lstrip("."): mask
        for prefix, _, plan in applied_plans(model)
        for name, mask in plan.masks.items()
    }


def held_buffers(model: nn.Module, frozen: frozenset[str]) -> Iterator[str]:
    """Yield the names of the buffers that belong to the frozen part, or to what is held beside it."""
    follows = any(plan.mode.stats == "follow" for _, _, plan in applied_plans(model))
    table = describe(model)
    parts = parts_of(table, frozen, layer_groups(model))
    modules = dict(model.named_modules(remove_duplicate=False))
    for row in table.modules:
        module = modules[row.name]
        covered = parts[row.name] in ("frozen", "presumed") or _is_held_still(module)
        if covered and not (follows and "stats" in row.effects):
            buffers = module._buffers.items()
            yield from (f"{row.name}.{name}".lstrip(".") for name, buffer in buffers if buffer is not None)


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter and buffer, under each of its names."""
    found: dict[str, torch.Tensor] = {}
    _collect(model, "", found)
    return found


def _collect(module: nn.Module, prefix: str, found: dict[str, torch.Tensor]) -> None:
    for own in (module._parameters, module._buffers):
        for name, tensor in own.items():
            if tensor is not None:
                found[prefix + name] = tensor
    for name, child in module._modules.items():
        if child is not None:
            _collect(child, f"{prefix}{name}.", found)


def local_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's own values: this rank's part of a sharded one, a lazy conjugate worked out.

    Raises:
        FreezeArgumentError: it has no values yet.
    """
    if tensor.is_meta:
        raise FreezeArgumentError(
            "A tensor of the model is on the meta device and has no values yet: load the weights first."
        )
    if _is_sharded(tensor):
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    return tensor.resolve_conj().resolve_neg() if tensor.is_conj() or tensor.is_neg() else tensor


def frozen_values(tensor: torch.Tensor, mask: Mask | None) -> torch.Tensor:
    """Return what of a tensor is frozen: all of its own values, or the masked ones in a row."""
    values = local_values(tensor)
    return values if mask is None else values.flatten()[frozen_positions(tensor, mask)]


def frozen_positions(tensor: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Return where the masked elements are among a tensor's own values, laid out in a row.

    >>> frozen_positions(torch.zeros(2, 2), Mask.of([[True, False], [False, True]])).tolist()
    [0, 3]
    """
    return mask_like(tensor, mask).flatten().nonzero().flatten()


def _is_sharded(tensor: torch.Tensor) -> bool:
    return type(tensor) not in _PLAIN and hasattr(tensor, "to_local")


def _is_held_still(module: nn.Module) -> bool:
    what = held(module)
    return what is not None and what.training is False
