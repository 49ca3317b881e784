"""The Keras callback: a schedule at each epoch's begin, a check at its end."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from bundles.adapters.keras.proof import snapshot, verify_frozen
from bundles.adapters.keras.table import import_keras
from bundles.errors import FreezeArgumentError
from bundles.freezing.proof.snapshot import Snapshot
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.groups import LayerGroups
from bundles.spec.values import shown


@functools.cache
def callback_class() -> type[Any]:
    """Return the class ``FreezeCallback``, made where Keras is used first."""
    base = import_keras().callbacks.Callback
    named = {
        "__module__": "bundles.adapters.keras",
        "__qualname__": "FreezeCallback",
        "__doc__": _Events.__doc__,
    }
    return type("FreezeCallback", (_Events, base), named)


class _Events:
    """Follow an ``UnfreezeSchedule`` by epochs, and check each epoch that nothing frozen moved.

    Args:
        schedule: what is frozen from which epoch on; ``None`` leaves the model as it comes. The model is
            frozen by the callback, so hand it in thawed: ``compile()`` builds an optimizer over what
            trains at that time, and Keras cannot add to it.
        verify: whether frozen weights and held statistics are compared at the end of each epoch.
        groups: the layer groups, if not those that ``layer_groups`` finds.

    Raises:
        FreezeArgumentError: ``schedule`` is none, has a warm-up, or thaws what the optimizer does not know.
        FrozenDriftError: at the end of an epoch, naming what moved.
    """

    model: Any  # which Keras sets

    def __init__(
        self,
        schedule: UnfreezeSchedule | None = None,
        *,
        verify: bool = True,
        groups: LayerGroups | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.schedule = _checked(schedule)
        self.verify = verify
        self.groups = groups
        self._taken: Snapshot | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        if self.schedule is not None:
            _check_optimizer(self.model, self.schedule, self.groups)
        self._taken = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        changed = self.schedule is not None and _advance(self.model, self.schedule, epoch, self.groups)
        if self.verify and (changed or self._taken is None):
            self._taken = snapshot(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._taken is not None:
            verify_frozen(self.model, self._taken)


def _checked(schedule: Any) -> UnfreezeSchedule | None:
    if schedule is not None and not isinstance(schedule, UnfreezeSchedule):
        raise FreezeArgumentError(
            f"schedule={shown(schedule)} is not a bundles.UnfreezeSchedule, such as "
            f"bundles.UnfreezeSchedule({{0: 'encoder', 3: 'last:2'}})."
        )
    if schedule is not None and schedule.warmup:
        raise FreezeArgumentError(
            f"The schedule has warmup={schedule.warmup}, and Keras' optimizers have one learning rate for "
            f"all weights: leave warmup out, and give the optimizer a learning-rate schedule."
        )
    return schedule


def _advance(model: Any, schedule: UnfreezeSchedule, epoch: int, groups: Any) -> bool:
    """Freeze what is frozen in an epoch; return whether that is another plan."""
    from bundles.adapters.keras import freeze, freeze_plan

    plan = freeze_plan(model)
    if plan is not None and plan.policy == schedule.text_at(epoch) and plan.mode == schedule.mode:
        return False
    freeze(model, schedule.policy_at(epoch), schedule.mode, groups=groups)
    if model.jit_compile:
        model.make_train_function(force=True)  # what was compiled holds the old ``trainable``
    return True


def _check_optimizer(model: Any, schedule: UnfreezeSchedule, groups: Any) -> None:
    """Refuse at the first epoch what the optimizer could not train at a later one."""
    from bundles.adapters.keras import plan_for
    from bundles.adapters.keras.table import layers_of, variables_of

    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if optimizer is None:
        return
    known = {id(variable) for variable in optimizer._trainable_variables} if optimizer.built else None
    named = {name: variable for name, _, variable in variables_of(layers_of(model))}
    for epoch, policy in schedule.milestones:
        trained = plan_for(model, policy, schedule.mode, groups=groups)[1].trained
        absent = [name for name in trained if known is not None and id(named[name]) not in known]
        if absent:
            raise FreezeArgumentError(
                f"At epoch {epoch} {absent[0]} and {len(absent) - 1} other weights train that the optimizer "
                f"was not built with: type bundles.adapters.keras.unfreeze(model) and model.compile(...) "
                f"before fit(), and let FreezeCallback freeze."
            )
