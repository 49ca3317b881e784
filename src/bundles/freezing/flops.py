"""Count the floating-point operations of a forward, module by module."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def module_flops(model: nn.Module, shape: Iterable[int]) -> dict[str, float]:
    """Return the operations that each module does itself in one forward on an input of this shape.

    Runs on the meta device: no arithmetic is done. Matrix products and convolutions are counted,
    which is what costs; grouped convolutions are overcounted by ``torch``'s counter.

    >>> module_flops(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (1, 4))
    {'0': 64.0, '2': 32.0}
    """
    ghost = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.empty(tuple(shape), device="meta"))
    totals = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    root = type(ghost).__name__
    flops = {}
    for name, module in ghost.named_modules():
        path = f"{root}.{name}" if name else root
        inside = sum(totals.get(f"{path}.{child}", 0) for child, _ in module.named_children())
        if (own := totals.get(path, 0) - inside) > 0:
            flops[name] = float(own)
    return flops
