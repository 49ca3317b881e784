"""Write a delta: what may have moved, and what is not as it was in the base."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundles.assemble.built import built_of
from bundles.builders.layout import is_storable
from bundles.builders.shards import is_sharded
from bundles.builders.walk import state_of
from bundles.delta import frozen, training
from bundles.delta.base import (
    Tensors,
    describe_bundle,
    differing,
    digests_of,
    head_of,
    reference,
    same_bits,
    unsaved_buffers,
)
from bundles.delta.format import DTYPES, Header, write_delta
from bundles.errors import (
    BuildError,
    BundlesError,
    BundlesWarning,
    FreezeArgumentError,
    WeightsFileError,
    warn,
)
from bundles.freezing.api import plan_for
from bundles.freezing.behaviour.lowered import lowered_names
from bundles.freezing.derive import unwrap
from bundles.freezing.optimizer.masks import mask_like
from bundles.freezing.optimizer.optimizers import Optimizers
from bundles.freezing.proof.coverage import frozen_names, held_buffers, masks_of
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.masks import Mask
from bundles.spec.values import shown


def save_delta(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: Optimizers | None = None,
    schedule: UnfreezeSchedule | None = None,
    step: int | None = None,
    base: nn.Module | Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write what a training changed of a model, as safetensors; :func:`load_delta` puts it together again.

    Stored are the parameters that train, of masked ones the elements that may move, the buffers that are not
    held, and whatever else is not, bit for bit, as it was in the base: a part that trained earlier, a head
    that is frozen. The base of a model that a bundle built is read again for that; if it cannot be had any
    more, everything is stored, with a warning.

    Args:
        model: any module; of one that :func:`get_model` built the whole can be rebuilt.
        path: of the file; it appears whole or not at all, and what was there stays until then.
        optimizer: one or a list, whose state is stored, too.
        schedule: of the training, with ``step``; its policies need to have strings.
        step: the last step (or epoch) that was done.
        base: for a module that no bundle built: the model, or its ``state_dict()``, as it was before the
            training. It is needed where something that is frozen now has trained before; without it, what is
            frozen is taken to be as it was, but for what the schedule thawed.

    Returns:
        The file.

    Raises:
        FreezeArgumentError: the schedule has a policy without a string, or comes without a step; the state
            of an optimizer holds something that is neither a tensor nor plain data.
        BuildError: the model is sharded, on the meta device, or has tensors that a file cannot hold.
        CacheError: the file cannot be written.

    >>> import bundles, tempfile
    >>> model = bundles.CREPE_TINY.get_model(freeze="last:1")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_delta(model, f"{folder}/run.safetensors")
    ...     sorted(bundles.load_into(model, path).loaded)[:3]
    ['classifier.bias', 'classifier.weight', 'conv6.bias']
    """
    inner = unwrap(model)
    position = _position(schedule, step)
    freeze, masks = frozen.record(inner)
    state = _state(inner)
    known, told = _known(inner, base, _dtype(inner, state))
    earlier = _trained_earlier(inner, schedule, step) if known is None else None
    held = set(held_buffers(inner, frozen_names(inner)))
    parts = _split(inner, state, known, earlier, held)
    unsaved = _unsaved(inner, known, earlier, held)
    own, tensors = training.record(inner, optimizer)
    if told is None:
        names = parts.left(state)
        told = {"class": type(inner).__qualname__, "digests": digests_of(state, names, masks_of(inner))}
    built = built_of(inner) if "bundle" in told else None
    header = Header(
        base=told,
        names=_shapes(state),
        unsaved=_shapes(unsaved),
        freeze=freeze,
        head=None if built is None else head_of(inner, built),
        dtype=_dtype(inner, state),
        versions=_versions(),
        optimizers=own,
        **position,
    )
    return write_delta(path, header, _stored({**state, **unsaved}, parts, {*unsaved}, {**masks, **tensors}))


@dataclass(frozen=True)
class _Parts:
    """What is stored: names of whole tensors, and of those of which the elements outside a mask are."""

    whole: frozenset[str]
    packed: Mapping[str, Mask]

    def left(self, state: Mapping[str, torch.Tensor]) -> list[str]:
        """Names of what is not stored, or not wholly."""
        return [name for name in state if name not in self.whole]


def _position(schedule: UnfreezeSchedule | None, step: int | None) -> dict[str, Any]:
    try:
        step = None if step is None else operator.index(step)
    except TypeError as error:
        raise FreezeArgumentError(f"The step {shown(step)} is not a whole number from 0.") from error
    if schedule is None:
        return {"step": step}
    if step is None:
        raise FreezeArgumentError(
            "A schedule without a step says nothing of what is frozen: type save_delta(..., step=step)."
        )
    schedule.policy_at(step)
    return {"schedule": schedule.to_dict(), "step": step}


def _state(model: nn.Module) -> Tensors:
    """Every parameter and persistent buffer, tied ones once."""
    state = state_of(model)
    extra = [name for name in model.state_dict(keep_vars=True) if name not in state]
    if any(map(is_sharded, state.values())):
        raise BuildError("The model is spread over several devices: gather it into one before saving it.")
    if odd := [*extra, *(name for name, value in state.items() if not is_storable(value))]:
        raise BuildError(f"A file cannot hold {', '.join(odd[:6])}: dense tensors with values are needed.")
    seen: set[int] = set()
    return {n: t for n, t in state.items() if not (id(t) in seen or seen.add(id(t)))}  # type: ignore[func-returns-value]


def _known(
    model: nn.Module, base: nn.Module | Mapping[str, torch.Tensor] | None, dtype: str | None
) -> tuple[Tensors | None, dict[str, Any] | None]:
    """Return the tensors of the base, ``None`` where nobody knows them, and what says which base it is."""
    if base is not None:
        return _tensors_of(base), None
    built = built_of(model)
    if built is None:
        return None, None
    if not built.pretrained:
        return {}, describe_bundle(built)
    try:
        found = reference(model, built, None if dtype is None else DTYPES[dtype])
        return (found, describe_bundle(built)) if _fits(model, built.head, found) else (None, None)
    except (BundlesError, OSError) as error:
        warn(
            f"The base of the delta, {built.bundle.name}, cannot be had any more, so the whole model is "
            f"stored ({error}).",
            BundlesWarning,
        )
        return {}, describe_bundle(replace(built, pretrained=False))


def _tensors_of(base: nn.Module | Mapping[str, torch.Tensor]) -> Tensors:
    if not isinstance(base, nn.Module):
        return dict(base)
    inner = unwrap(base)
    return {**state_of(inner), **unsaved_buffers(inner)}


def _fits(model: nn.Module, head: str | None, found: Mapping[str, torch.Tensor]) -> bool:
    """Whether the model still has the structure that its bundle builds."""
    state, apart = state_of(model), unsaved_buffers(model)
    inside = {n: t.shape for n, t in state.items() if head is None or not n.startswith(f"{head}.")}
    return inside == {name: tensor.shape for name, tensor in found.items() if name not in apart}


def _dtype(model: nn.Module, state: Mapping[str, torch.Tensor]) -> str | None:
    """The one dtype of the floating-point tensors, those aside that ``frozen_dtype=`` made smaller."""
    aside = set(lowered_names(model))
    found = {t.dtype for n, t in state.items() if t.is_floating_point() and n not in aside}
    names = [name for name, dtype in DTYPES.items() if found == {dtype}]
    return names[0] if names else None


def _split(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    known: Mapping[str, torch.Tensor] | None,
    earlier: frozenset[str] | None,
    held: set[str],
) -> _Parts:
    """Say what is stored: what may move, and what differs from what is known or trained earlier."""
    masks = {name: mask for name, mask in masks_of(model).items() if name in state}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    moving = {n for n, p in parameters.items() if p.requires_grad and n not in masks}
    moving |= {name for name in state if name not in parameters and (earlier or name not in held)}
    moving |= earlier or frozenset()
    if known is not None:
        rest = [name for name in state if name not in moving]
        lowered = {n: known[n].to(state[n].dtype) for n in lowered_names(model) if n in known and n in state}
        moving |= set(differing(state, {**known, **lowered}, rest, masks))
    whole = frozenset(name for name in moving if name in state)
    return _Parts(whole, {name: mask for name, mask in masks.items() if name not in whole})


def _unsaved(
    model: nn.Module,
    known: Mapping[str, torch.Tensor] | None,
    earlier: frozenset[str] | None,
    held: set[str],
) -> Tensors:
    """The buffers that no ``state_dict()`` has and that forwards wrote to, or may have."""
    return {
        name: buffer
        for name, buffer in unsaved_buffers(model).items()
        if is_storable(buffer)
        and (
            not same_bits(buffer, known[name])
            if known is not None and name in known
            else bool(earlier) or name not in held
        )
    }


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _trained_earlier(model: nn.Module, schedule: UnfreezeSchedule | None, step: int | None) -> frozenset[str]:
    """What trained at an earlier milestone, in part or as a whole."""
    if schedule is None or step is None:
        return frozenset()
    now = schedule.milestone_at(step)
    plans = (plan_for(model, policy, schedule.mode) for at, policy in schedule.milestones if at < now)
    return frozenset(name for plan in plans for name in plan.trained)


def _stored(
    state: Mapping[str, torch.Tensor], parts: _Parts, unsaved: set[str], others: Mapping[str, torch.Tensor]
) -> Tensors:
    """Every tensor of the file, by its name in it."""
    found = {name: state[name].detach() for name in state if name in parts.whole or name in unsaved}
    packed = {f"packed:{name}": _outside(state[name].detach(), mask) for name, mask in parts.packed.items()}
    if twice := sorted({*packed, *others} & {*state}):
        raise WeightsFileError(f"The model has a tensor named {twice[0]}, which a delta gives to another.")
    return {name: tensor.cpu() for name, tensor in {**found, **packed, **others}.items()}


def _outside(tensor: torch.Tensor, mask: Mask) -> torch.Tensor:
    return tensor.flatten()[~mask_like(tensor, mask).flatten()]


def _versions() -> dict[str, str]:
    import platform

    from bundles import __version__

    return {"bundles": __version__, "python": platform.python_version(), "torch": torch.__version__}
