"""Scale the learning rate of some parameters of an optimizer, within its step only.

Between steps the optimizer is as it was: schedulers, which read and write learning rates there, count
the same groups, and checkpoints are those of an optimizer without any of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from bundles.errors import FreezeArgumentError


@dataclass
class _Scaling:
    """What is scaled in one optimizer, and while it steps, what its groups were."""

    factors: Mapping[int, float]
    handles: tuple[RemovableHandle, ...] = ()
    saved: list[tuple[dict[str, Any], list[nn.Parameter], Any]] = field(default_factory=list)


_scalings: WeakKeyDictionary[Optimizer, _Scaling] = WeakKeyDictionary()


def scale(optimizer: Optimizer, factors: Mapping[int, float]) -> None:
    """Multiply the learning rates of these parameters, by ``id``, at each step from now on.

    Args:
        optimizer: any that steps parameter by parameter.
        factors: those that are missing have 1; an empty mapping ends the scaling.

    Raises:
        FreezeArgumentError: the optimizer has one step length for all parameters, as ``LBFGS`` has.
    """
    scaling = _scalings.get(optimizer)
    if scaling is None and not factors:
        return
    if isinstance(optimizer, LBFGS):
        raise FreezeArgumentError(
            "LBFGS goes one length along one direction of all parameters, so some of them cannot warm up: "
            "give UnfreezeSchedule(..., warmup=0)."
        )
    if scaling is None:
        scaling = _scalings[optimizer] = _Scaling(factors, _hook(optimizer))
    _restore(optimizer)
    scaling.factors = factors
    if not factors:
        for handle in scaling.handles:
            handle.remove()
        del _scalings[optimizer]


def _hook(optimizer: Optimizer) -> tuple[RemovableHandle, ...]:
    return (
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: _split(optimizer)),
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: _restore(optimizer)),
        optimizer.register_state_dict_pre_hook(_restore),  # where a step was interrupted
    )


def _split(optimizer: Optimizer) -> None:
    """Give the parameters that warm up groups of their own; the rest keep theirs."""
    _restore(optimizer)  # a step may be interrupted, or call another: the class it inherits from
    scaling = _scalings[optimizer]
    extra = []
    for group in optimizer.param_groups:
        scaling.saved.append((group, group["params"], group["lr"]))
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(scaling.factors.get(id(parameter), 1.0), []).append(parameter)
        first, *others = sorted(by_factor, reverse=True) or [1.0]
        extra += [{**group, "params": by_factor[f], "lr": group["lr"] * f} for f in others]
        if first != 1.0 or others:
            group.update(params=by_factor[first], lr=group["lr"] * first)
    optimizer.param_groups.extend(extra)


def _restore(optimizer: Optimizer) -> None:
    """Give each group back its parameters and its learning rate."""
    scaling = _scalings.get(optimizer)
    if scaling is None or not scaling.saved:
        return
    del optimizer.param_groups[len(scaling.saved) :]
    for group, parameters, rate in scaling.saved:
        group.update(params=parameters, lr=rate)
    scaling.saved.clear()
