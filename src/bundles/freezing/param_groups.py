"""Optimizer groups with layer-wise learning rates, from the same layer groups as freezing."""

from __future__ import annotations

from typing import Any

from torch import nn

from bundles.errors import FreezeArgumentError
from bundles.freezing.derive import layer_groups, unwrap
from bundles.spec.groups import LayerGroup, LayerGroups


def param_groups(
    model: nn.Module, *, lr: float, layer_decay: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return one optimizer group per layer group; frozen parameters are absent, tied ones there once.

    The head gets ``lr``, and each block towards the input ``layer_decay`` times the one after it.
    A final norm goes with the last block, a stem comes before the first. (Discriminative rates:
    Howard and Ruder 2018, https://arxiv.org/abs/1801.06146.)

    Args:
        model: any module.
        lr: learning rate of the head.
        layer_decay: factor per layer, above 0 and up to 1.
        weight_decay: the same for every group.

    Raises:
        FreezeArgumentError: nothing trains, or ``layer_decay`` is out of range.

    >>> import torch
    >>> net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    >>> [(group["name"], group["lr"]) for group in param_groups(net, lr=1.0, layer_decay=0.5)]
    [('block.0', 0.25), ('block.1', 0.5), ('head', 1.0)]
    """
    if not 0 < layer_decay <= 1:
        raise FreezeArgumentError(f"layer_decay={layer_decay!r} is not above 0 and up to 1, as 0.75 is.")
    inner = unwrap(model)
    groups = layer_groups(inner)
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    found, seen = [], set[int]()
    for group in groups:
        members = [p for name in group.parameters if (p := parameters[name]).requires_grad]
        fresh = [p for p in members if id(p) not in seen]
        seen.update(id(p) for p in fresh)
        if fresh:
            rate = lr * layer_decay ** (_depth(groups, None) - _depth(groups, group))
            found.append({"params": fresh, "lr": rate, "weight_decay": weight_decay, "name": group.name})
    if not found:
        raise FreezeArgumentError(
            "No parameter of the model trains: thaw something first, as in bundles.unfreeze(model, 'head')."
        )
    return found


def _depth(groups: LayerGroups, group: LayerGroup | None) -> int:
    """Number of steps from the input; ``None`` asks for the last."""
    if group is None:
        return max(_depth(groups, each) for each in groups)
    if group.kind == "block":
        return groups.blocks.index(group) + 1
    return {"stem": 0, "norm": len(groups.blocks), "head": len(groups.blocks) + 1}[group.kind]
