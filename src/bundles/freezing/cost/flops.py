"""Count floating-point operations: of one call, and of a forward module by module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from bundles.freezing.cost.ghosts import ghost_of

_aten = torch.ops.aten
_INPUT_GRADIENT = 1.5  # a convolution's gradient by its input costs this many forwards, measured on CPU


def operations(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> float:
    """Return the operations of one call of a torch operator: matrix products, convolutions, attention.

    Anything else is 0: its time goes by the memory that it touches.
    """
    packet = function.overloadpacket
    if packet in _FORMULAS:
        return float(_FORMULAS[packet](args, out))
    formula: Any = flop_registry.get(packet)
    return float(formula(*args, **kwargs, out_val=out)) if formula else 0.0


def extra_work(function: Any, args: tuple[Any, ...]) -> float:
    """Return what a call costs beyond its operations, in operations."""
    if function.overloadpacket is not _aten.convolution_backward or not args[10][0]:
        return 0.0
    return (_INPUT_GRADIENT - 1) * _one_way(args[1], args[2], args[0], args[7])


def module_flops(model: nn.Module, inputs: tuple[int, ...] | Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the operations that each module does itself in one forward on such an input, or on a shape.

    No arithmetic is done and no memory is taken. Matrix products, convolutions and attention are counted,
    which is what costs.

    >>> module_flops(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (1, 4))
    {'0': 64.0, '2': 32.0}
    """
    mode, ghost = ghost_of(model)
    ghost.eval()
    with mode, ModuleTracker() as tracker, _Tally(tracker) as tally, torch.no_grad():
        if isinstance(inputs, Mapping):
            ghost(**{name: mode.from_tensor(tensor) for name, tensor in inputs.items()})
        else:
            ghost(torch.empty(inputs))
    start = f"{type(ghost).__name__}."
    found = {f"{name}.".removeprefix(start)[:-1]: count for name, count in tally.found.items()}
    return {name: found[name] for name, _ in ghost.named_modules() if name in found}


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds operations up for the innermost module that runs."""

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, float] = {}
        self._tracker = tracker

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if counted := operations(function, args, kwargs or {}, out):
            module = max(self._tracker.parents, key=lambda name: (name != "Global", len(name)))
            self.found[module] = self.found.get(module, 0.0) + counted
        return out


def _one_way(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, transposed: bool) -> int:
    """A convolution; its weight has the channels of one group, so groups are counted right."""
    places = (x if transposed else out).shape[2:]
    return 2 * x.shape[0] * prod(places) * prod(weight.shape)


def _convolution(args: tuple[Any, ...], out: Any) -> float:
    return _one_way(args[0], args[1], out, args[6])


def _convolution_backward(args: tuple[Any, ...], _: Any) -> float:
    """Each gradient is a convolution of the same size; torch's own formula takes groups for one."""
    grad, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    return _one_way(x, weight, grad, transposed) * float(sum(wanted[:2]))


def _attention(args: tuple[Any, ...], _: Any) -> float:
    query, key, value = (tensor.shape for tensor in args[:3])
    return float(2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _attention_backward(args: tuple[Any, ...], _: Any) -> float:
    query, key, value = (tensor.shape for tensor in args[1:4])
    return float(2 * prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1]))


def _recurrent(args: tuple[Any, ...], _: Any) -> float:
    x, *weights = (tensor.shape for tensor in args[:3])
    return float(2 * prod(x[:-1]) * sum(map(prod, weights)))


_FORMULAS: dict[Any, Callable[[tuple[Any, ...], Any], float]] = {
    _aten.convolution: _convolution,
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten.mkldnn_rnn_layer: _recurrent,
    _aten.mkldnn_rnn_layer_backward: lambda args, out: 2 * _recurrent(args, out),
}
