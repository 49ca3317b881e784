"""Copies of models without values: forward and backward run on them and compute nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def ghost_of(model: nn.Module, dtype: torch.dtype | None = None) -> tuple[FakeTensorMode, nn.Module]:
    """Return a mode, and a copy of the model whose tensors have no memory; call the copy within the mode.

    The tensors pretend to be on the CPU, so that the same kernels are chosen as for real ones there: on
    the meta device attention takes another path, which saves other things for backward.

    Args:
        model: any module, on any device, the meta device as well; it is not changed.
        dtype: of the copy's floating-point tensors, if another.

    >>> mode, ghost = ghost_of(nn.Linear(10_000, 10_000))
    >>> with mode:
    ...     ghost(torch.empty(8, 10_000)).shape
    torch.Size([8, 10000])
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        tensors = [*model.parameters(), *model.buffers()]
        ghosts: dict[int, Any] = {id(tensor): _ghost(tensor, dtype) for tensor in tensors}
    return mode, copy.deepcopy(model, ghosts)  # what deepcopy finds in its memo it does not copy


def example(shape: Iterable[int], tokens: Iterable[str] = ()) -> tuple[int, ...] | dict[str, Tensor]:
    """Return an input of a shape as :func:`bundles.predict` takes it: the shape, or token ids by name.

    >>> example((2, 3)), example((1, 2), ["input_ids"])
    ((2, 3), {'input_ids': tensor([[0, 0]])})
    """
    names, shape = tuple(tokens), tuple(shape)
    return {name: torch.zeros(shape, dtype=torch.long) for name in names} if names else shape


def without_drawing() -> AbstractContextManager[None]:
    """Return a context whose random numbers are given back at its end."""
    return torch.random.fork_rng(devices=[])


def _ghost(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    changed = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    ghost = torch.empty(tensor.shape, dtype=changed, device="cpu")
    return nn.Parameter(ghost, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else ghost
