"""What an optimizer of Keras cannot follow, refused before the first epoch instead of met at a later one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from bundles.adapters.keras.table import layers_of, variables_of
from bundles.errors import FreezeArgumentError
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.plan import FreezePlan


def check_run(model: Any, schedule: UnfreezeSchedule | None, groups: Any) -> None:
    """Compare a compiled model's optimizer with what is frozen, now or by a schedule.

    Raises:
        FreezeArgumentError: it cannot train what thaws, or would move what is frozen; or nothing thaws.
    """
    from bundles.adapters.keras import plan_for

    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if optimizer is None:
        return
    named = {name: variable for name, _, variable in variables_of(layers_of(model))}
    if schedule is None:
        _check_frozen(optimizer, named, (name for name, v in named.items() if not v.trainable))
        return
    plans = [
        (epoch, plan_for(model, policy, schedule.mode, groups=groups)[1])
        for epoch, policy in schedule.milestones
    ]
    for epoch, plan in plans:
        _check_trained(optimizer, named, plan.trained, epoch)
        _check_frozen(optimizer, named, plan.frozen)
    _check_thaws(plans)


def _known(optimizer: Any) -> set[int]:
    return {id(variable) for variable in optimizer._trainable_variables}


def _check_trained(optimizer: Any, named: Mapping[str, Any], trained: Iterable[str], epoch: int) -> None:
    known = _known(optimizer)
    absent = [name for name in trained if id(named[name]) not in known]
    if absent and optimizer.built:
        raise FreezeArgumentError(
            f"At epoch {epoch} {absent[0]} and {len(absent) - 1} other weights train that the optimizer "
            f"was not built with: type bundles.adapters.keras.unfreeze(model) and model.compile(...) "
            f"before fit(), and let FreezeCallback freeze."
        )


def _check_frozen(optimizer: Any, named: Mapping[str, Any], frozen: Iterable[str]) -> None:
    """Refuse optimizers that do something with frozen weights that they were built with.

    Keras averages all weights that an optimizer was built with, and writes the averages, rounded, over all.
    """
    if hasattr(optimizer, "optimizers"):
        does = "being a MultiOptimizer it wants gradients for them"
    elif optimizer.use_ema:
        does = "by use_ema=True it writes averages over them"
    else:
        return
    known = _known(optimizer)
    if names := [name for name in frozen if id(named[name]) in known]:
        raise FreezeArgumentError(
            f"The optimizer was built with {names[0]} and {len(names) - 1} other weights that are frozen, "
            f"and {does}: take another, or no schedule, and call bundles.adapters.keras.freeze(model, ...) "
            f"and model.compile(...) before each fit()."
        )


def _check_thaws(plans: Sequence[tuple[int, FreezePlan]]) -> None:
    """Refuse a model that came with the flags of a frozen one: what never trained stays as it is."""
    for (_, before), (epoch, plan) in pairwise(plans):
        fixed = [tensor.name for tensor in plan.tensors if tensor.state == "fixed"]
        if fixed and plan.trained == before.trained and plan.policy != before.policy:
            raise FreezeArgumentError(
                f"The schedule changes nothing at epoch {epoch}, since {fixed[0]} and {len(fixed) - 1} other "
                f"weights came with trainable=False: set model.trainable = True before compile(); if they "
                f"came so from a file, with a torch module inside, go on from save_weights() instead."
            )
