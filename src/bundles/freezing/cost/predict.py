"""Predict what a training step takes, by a step of the model's ghost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map

from bundles.errors import FreezeArgumentError
from bundles.freezing.apply import apply, undo
from bundles.freezing.behaviour.describe import describe
from bundles.freezing.behaviour.lowered import castable, lower
from bundles.freezing.cost.ghosts import ghost_of
from bundles.freezing.cost.meter import PER_BYTE, Meter
from bundles.spec.cost import StepCost
from bundles.spec.plan import FreezePlan

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
_MOMENTS = 2  # of AdamW
_PASSES = 7  # AdamW reads the parameter, its gradient and both moments, and writes three of them


@dataclass(frozen=True)
class _Step:
    """What one step of a ghost took."""

    operations: float
    work: float
    weights: int
    gradients: int
    saved: int
    peak: int

    @property
    def memory(self) -> int:
        """Bytes at the peak: what is there all the time, and the most of what comes and goes."""
        return self.weights + _MOMENTS * self.gradients + self.peak


def predict_step(
    model: nn.Module,
    inputs: Inputs,
    *,
    plan: FreezePlan | None = None,
    dtype: torch.dtype | None = None,
    frozen_dtype: torch.dtype | None = None,
) -> StepCost:
    """Return what a step with AdamW takes of a model as it is frozen now, or as a plan would freeze it.

    Layer drop is left out, since nobody knows what it will skip.

    Args:
        model: any module, on the meta device if need be; it is not changed.
        inputs: the shape of a floating-point input, or tensors as forward takes them; a mapping gives
            them by name.
        plan: another freeze than that on the model.
        dtype: of the whole model, if another.
        frozen_dtype: of frozen tensors, as ``get_model`` takes it; the step is one under autocast.

    Raises:
        FreezeArgumentError: forward does not take the inputs, or goes by values, which a ghost has not.
    """
    step = _run(model, inputs, plan, dtype, frozen_dtype)
    full = _run(model, inputs, None, dtype, None, frozen=False)
    return StepCost(
        shape=tuple(inputs) if isinstance(inputs, Sequence) and _is_shape(inputs) else (),
        relative=step.work / full.work if full.work else 1.0,
        operations=step.operations,
        work=step.work,
        weights=step.weights,
        gradients=step.gradients,
        optimizer=_MOMENTS * step.gradients,
        saved_activations=step.saved,
        peak_memory=step.memory,
    )


def peak_memory(
    model: nn.Module,
    inputs: Inputs,
    *,
    plan: FreezePlan | None = None,
    dtype: torch.dtype | None = None,
    frozen_dtype: torch.dtype | None = None,
) -> int:
    """Return the peak memory of :func:`predict_step` alone, in half the time."""
    return _run(model, inputs, plan, dtype, frozen_dtype).memory


def _run(
    model: nn.Module,
    inputs: Inputs,
    plan: FreezePlan | None,
    dtype: torch.dtype | None,
    frozen_dtype: torch.dtype | None,
    *,
    frozen: bool = True,
) -> _Step:
    """Make a ghost, freeze it, and take a step with it."""
    mode, ghost = ghost_of(model, dtype)
    with mode:
        if not frozen:
            undo(ghost)
        if plan is not None:
            apply(ghost, _unmasked(plan))
        if plan is not None and frozen_dtype is not None:
            lower(ghost, castable(ghost, plan), frozen_dtype)
        _train(ghost)
        try:
            return _step(ghost, *_inputs(inputs, mode, dtype), mode, frozen_dtype)
        except FreezeArgumentError:
            raise
        except Exception as error:  # whatever somebody's forward raises
            raise FreezeArgumentError(
                f"A step of {type(model).__name__} cannot be followed on {_shown(inputs)} without computing "
                f"it ({type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}): "
                f"give inputs that its forward takes; what goes by values cannot be predicted."
            ) from error


def _unmasked(plan: FreezePlan) -> FreezePlan:
    """The plan with masked tensors trainable: they cost the same, and a ghost has no elements."""
    return replace(
        plan,
        tensors=tuple(
            replace(tensor, state="trainable", mask=None) if tensor.state == "masked" else tensor
            for tensor in plan.tensors
        ),
    )


def _train(ghost: nn.Module) -> None:
    """Put the ghost into training, but for the flags that decide on layers."""
    ghost.train()
    for row in describe(ghost).modules:
        if "structure" in row.effects:
            ghost.get_submodule(row.name).training = False


def _is_shape(inputs: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in inputs)


def _inputs(
    inputs: Inputs, mode: FakeTensorMode, dtype: torch.dtype | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what forward is called with, by place and by name."""
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, Sequence | Mapping) or isinstance(inputs, str):
        raise FreezeArgumentError(
            f"inputs= is a {type(inputs).__name__}: give a shape as (8, 160000), a tensor, a tuple of "
            f"tensors, or a dict of them by name."
        )
    if isinstance(inputs, Sequence) and _is_shape(inputs):
        return (torch.empty(tuple(inputs), dtype=dtype),), {}
    given = dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs)
    ghosts = tree_map(lambda leaf: mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, given)
    return ((), ghosts) if isinstance(ghosts, dict) else (ghosts, {})


def _step(
    ghost: nn.Module,
    inputs: tuple[Any, ...],
    named: dict[str, Any],
    mode: FakeTensorMode,
    autocast: torch.dtype | None,
) -> _Step:
    own = {id(tensor): tensor for tensor in (*ghost.parameters(), *ghost.buffers())}.values()
    given = [leaf for leaf in tree_leaves((inputs, named)) if isinstance(leaf, Tensor)]
    saved: dict[int, int] = {}
    with Meter(own) as meter:
        meter.take(given)
        with _autocast(autocast), _noting(saved, [*own, *given]):
            loss = _loss(ghost(*inputs, **named))
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
    gradients = _bytes(tensor for tensor in own if tensor.requires_grad)
    largest = max((_bytes([tensor]) for tensor in own if tensor.requires_grad), default=0)
    return _Step(
        operations=meter.operations,
        work=meter.work + PER_BYTE * _PASSES * gradients,
        weights=_bytes(own),
        gradients=gradients,
        saved=sum(saved.values()),
        peak=max(meter.peak, gradients + largest),  # AdamW makes a tensor of a parameter's size
    )


def _loss(outputs: Any) -> Tensor | None:
    """A number that depends on all that trains: the sum of every output that has a graph."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return torch.stack([leaf.float().sum() for leaf in leaves]).sum() if leaves else None


@contextlib.contextmanager
def _noting(saved: dict[int, int], own: Iterable[Tensor]) -> Iterator[None]:
    """Note the storages that forward keeps for backward, but for those that are there anyway."""
    known = {tensor.untyped_storage()._cdata for tensor in own}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield


def _autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _shown(inputs: Inputs) -> str:
    if isinstance(inputs, Tensor):
        return f"a tensor of shape {tuple(inputs.shape)}"
    return f"the inputs {tuple(inputs)!r}"[:100]  # of a mapping the names
