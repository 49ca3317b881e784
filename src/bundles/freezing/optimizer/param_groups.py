"""Optimizer groups with layer-wise learning rates, from the same layer groups as freezing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from bundles.errors import FreezeArgumentError
from bundles.freezing.derive import layer_groups, unwrap
from bundles.spec.groups import LayerGroup, LayerGroups
from bundles.spec.policy import Candidates, Match
from bundles.spec.scores import Scores
from bundles.spec.values import shown

NORMS_AND_BIASES = "norms_and_biases"


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0,
    no_decay: str | tuple[str, ...] = (),
    scores: Scores | None = None,
) -> list[dict[str, Any]]:
    """Return one optimizer group per layer group; frozen parameters are absent, tied ones there once.

    The head gets ``lr``, and each block towards the input ``layer_decay`` times the one after it.
    A final norm goes with the last block, a stem comes before the first. (Discriminative rates:
    Howard and Ruder 2018, https://arxiv.org/abs/1801.06146.)

    Each group has a ``name`` of its own. What takes no weight decay is a group beside that of its
    layers, named ``block.0/no_decay``; with scores per tensor, each tensor is a group under its own name.

    Args:
        model: any module.
        lr: learning rate of the head.
        layer_decay: factor per layer, above 0 and up to 1.
        weight_decay: the same for every group, but for what ``no_decay`` names.
        no_decay: ``"norms_and_biases"`` (what has one dimension or none, and every ``bias``), or globs
            on the parameter's name or on any dotted prefix of it, as ``("*.norm", "embedding")``.
        scores: multiply the rates by score / highest score, as :func:`bundles.importance` measures them
            per group or per tensor. With relative gradient norms that is Auto-RGN of surgical
            fine-tuning (Lee et al. 2022, https://arxiv.org/abs/2210.11466), which measures again each
            epoch and takes the rates per tensor.

    Raises:
        FreezeArgumentError: nothing trains, ``layer_decay`` is out of range, a glob matches nothing, or
            the scores are per unit, negative, all zero, or lack something that trains.

    >>> import torch
    >>> net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    >>> [(group["name"], group["lr"]) for group in param_groups(net, lr=1.0, layer_decay=0.5)]
    [('block.0', 0.25), ('block.1', 0.5), ('head', 1.0)]
    >>> decayed = param_groups(net[:2], lr=1.0, weight_decay=0.1, no_decay="norms_and_biases")
    >>> [(group["name"], group["weight_decay"]) for group in decayed]
    [('block.0', 0.1), ('block.0/no_decay', 0.0), ('head', 0.1), ('head/no_decay', 0.0)]
    """
    if not 0 < layer_decay <= 1:
        raise FreezeArgumentError(f"layer_decay={layer_decay!r} is not above 0 and up to 1, as 0.75 is.")
    inner = unwrap(model)
    groups = layer_groups(inner)
    top = _depth(groups, None)
    entries = list(_trained(inner, groups))
    if not entries:
        raise FreezeArgumentError(
            "No parameter of the model trains: thaw something first, as in bundles.unfreeze(model, 'head')."
        )
    spared = _spared(inner, groups, no_decay)
    scale = _scale(scores, entries)
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        rate = lr * layer_decay ** (top - _depth(groups, entry.group)) * scale[entry.name]
        name = entry.name if scores is not None and scores.per == "tensor" else entry.group.name
        name, decay = (f"{name}/no_decay", 0.0) if entry.name in spared else (name, weight_decay)
        new = {"params": [], "lr": rate, "weight_decay": decay, "name": name}
        found.setdefault(name, new)["params"].append(entry.parameter)
    return list(found.values())


@dataclass(frozen=True)
class _Entry:
    """A parameter that trains, under the first of its names."""

    name: str
    group: LayerGroup
    parameter: nn.Parameter


def _trained(model: nn.Module, groups: LayerGroups) -> Iterator[_Entry]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    seen = set[int]()
    for group in groups:
        for name in group.parameters:
            parameter = parameters[name]
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield _Entry(name, group, parameter)


def _spared(model: nn.Module, groups: LayerGroups, no_decay: str | tuple[str, ...]) -> frozenset[str]:
    """Names of the parameters without weight decay."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if no_decay == NORMS_AND_BIASES:
        return frozenset(n for n, p in parameters.items() if p.ndim <= 1 or n.endswith("bias"))
    if not isinstance(no_decay, list | tuple):
        raise FreezeArgumentError(
            f"no_decay={shown(no_decay)} is neither {NORMS_AND_BIASES!r} nor a tuple of globs, "
            f"as ('*.bias', 'embedding')."
        )
    candidates = Candidates(tuple(parameters), groups)
    hits = {glob: Match(glob).select(candidates) for glob in no_decay}
    if idle := [glob for glob, names in hits.items() if not names]:
        raise FreezeArgumentError(
            f"no_decay: {', '.join(idle)} matches no parameter; the first are {', '.join([*parameters][:3])}."
        )
    return frozenset().union(*hits.values())


def _scale(scores: Scores | None, entries: list[_Entry]) -> dict[str, float]:
    """The factor of each parameter's rate: its score by the highest of those that train."""
    if scores is None:
        return {entry.name: 1.0 for entry in entries}
    if not isinstance(scores, Scores) or scores.per == "unit":
        raise FreezeArgumentError(
            f"scores={shown(scores)} are not Scores per group or tensor: make them with "
            f"bundles.importance(model, data, method='rgn')."
        )
    keys = {entry.name: entry.name if scores.per == "tensor" else entry.group.name for entry in entries}
    if missing := [key for key in dict.fromkeys(keys.values()) if key not in scores.values]:
        raise FreezeArgumentError(
            f"The scores lack {', '.join(missing[:3])}, which trains: measure them on this model."
        )
    found = {name: float(scores.values[key]) for name, key in keys.items()}  # type: ignore[arg-type]
    low, high = min(found.values()), max(found.values())
    if low < 0 or high == 0:
        raise FreezeArgumentError(f"The scores go from {low} to {high}: rates need 0 and above, not all 0.")
    return {name: value / high for name, value in found.items()}


def _depth(groups: LayerGroups, group: LayerGroup | None) -> int:
    """Number of steps from the input; ``None`` asks for the last."""
    if group is None:
        return max(_depth(groups, each) for each in groups)
    if group.kind == "block":
        return groups.blocks.index(group) + 1
    return {"stem": 0, "norm": len(groups.blocks), "head": len(groups.blocks) + 1}[group.kind]
