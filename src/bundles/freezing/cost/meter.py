"""Watch a training step of a ghost: its operations, the memory it touches, and what is alive when."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bundles.freezing.cost.flops import extra_work, operations

# How many operations take the time of moving a byte and of drawing a random number: one core of a
# server CPU, which multiplies matrices at 100 to 150 GFLOP/s.
PER_BYTE = 16
PER_RANDOM = 500


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator that torch runs, those of backward included.

    Attributes:
        operations: floating-point operations.
        work: the same, with the time of everything else as operations.
        live: bytes of the tensors made and not yet freed.
        peak: the most that it has been, a convolution's copies of its operands in the CPU kernels' own
            layout included.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Start; ``known`` are there before and are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.work = 0.0
        self.live = self.peak = 0
        self._seen = {_address(tensor) for tensor in known}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(out)
        counted = operations(function, args, kwargs, out)
        self.operations += counted
        self.work += counted + extra_work(function, args)
        is_new = self.take(made)
        if not counted and (is_new or function._schema.is_mutable):
            self.work += _time_of_memory(function, given, made)
        self.peak = max(self.peak, self.live + _scratch(function, given, made))
        return out

    def take(self, made: list[Tensor]) -> bool:
        """Note new memory until it is freed, and say whether there is any."""
        fresh = {_address(tensor): tensor for tensor in made if _address(tensor) not in self._seen}
        for address, tensor in fresh.items():
            storage = tensor.untyped_storage()
            self._seen.add(address)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._free, address, storage.nbytes())
        return bool(fresh)

    def _free(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.live -= size


def _time_of_memory(function: Any, given: list[Tensor], made: list[Tensor]) -> float:
    """What a call that is bound by memory takes, as operations."""
    is_random = torch.Tag.nondeterministic_seeded in function.tags
    drawn = sum(tensor.numel() for tensor in made) if is_random else 0
    return PER_BYTE * sum(map(_size, (*given, *made))) + PER_RANDOM * drawn


def _scratch(function: Any, given: list[Tensor], made: list[Tensor]) -> int:
    """Bytes that the CPU's convolutions take while they run: operands in a layout of their own."""
    if function.overloadpacket is torch.ops.aten.convolution:
        return max(_size(given[0]), _size(made[0]))
    return sum(map(_size, given)) if function.overloadpacket is torch.ops.aten.convolution_backward else 0


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    """Tell storages apart; those of ghosts all lie at 0."""
    address: int = tensor.untyped_storage()._cdata
    return address


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
