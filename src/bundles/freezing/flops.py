"""Count the floating-point operations of a forward, per layer group."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bundles.spec.groups import LayerGroup, LayerGroups


def group_flops(model: nn.Module, groups: LayerGroups, shape: Iterable[int]) -> dict[str, float]:
    """Return the operations of each group for one forward on an input of this shape.

    Runs on the meta device: no arithmetic is done. Matrix products and convolutions are counted,
    which is what costs; grouped convolutions are overcounted by ``torch``'s counter.
    """
    ghost = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.empty(tuple(shape), device="meta"))
    totals = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    root = type(ghost).__name__
    flops = dict.fromkeys(groups.names, 0.0)
    for name, module in ghost.named_modules():
        path = f"{root}.{name}" if name else root
        inside = sum(totals.get(f"{path}.{child}", 0) for child, _ in module.named_children())
        if (own := totals.get(path, 0) - inside) > 0 and (group := _group_of(name, groups)):
            flops[group.name] += own
    return flops


def _group_of(module: str, groups: LayerGroups) -> LayerGroup | None:
    """The one group that has all parameters below a module, or ``None``."""
    start = f"{module}." if module else ""
    found = [group for group in groups if any(name.startswith(start) for name in group.parameters)]
    return found[0] if len(found) == 1 else None
