"""The Keras callback: a schedule at each epoch's begin, a check at its end."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from bundles.adapters.keras import hold
from bundles.adapters.keras.optimizer import check_run
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

    What a schedule freezes is not in the files that Keras writes meanwhile, so that their optimizers are
    read whole: ``load_model()`` and ``fit(initial_epoch=...)`` with this callback go on.

    Raises:
        FreezeArgumentError: ``schedule`` is none, has a warm-up, or thaws nothing or what the optimizer does
            not know; the optimizer averages what is frozen (``use_ema``), or wants its gradients
            (``MultiOptimizer``).
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
        check_run(self.model, self.schedule, self.groups)
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
    from bundles.adapters.keras import plan_for, put

    state = hold.state_of(model)
    told = schedule.text_at(epoch), schedule.mode
    if state is not None and not state.lasting and (state.plan.policy, state.plan.mode) == told:
        return False
    layers, plan = plan_for(model, schedule.policy_at(epoch), schedule.mode, groups=groups)
    put(model, layers, plan, lasting=False)
    if model.jit_compile:
        model.make_train_function(force=True)  # what was compiled holds the old ``trainable``
    return True
