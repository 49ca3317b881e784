"""skorch: a callback that freezes, follows a schedule and verifies, also in clones and grid searches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.optim import Optimizer

from bundles.adapters import whole_groups
from bundles.adapters.session import Session, check_choices
from bundles.builders.require import require
from bundles.errors import FreezeArgumentError
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.mode import FreezeMode
from bundles.spec.policy import FreezePolicy
from bundles.spec.values import shown

if TYPE_CHECKING:
    from skorch.callbacks import Callback
else:
    Callback = require("skorch.callbacks").Callback


class FreezeCallback(Callback):  # type: ignore[misc]
    """Keeps the frozen part of a ``NeuralNet`` frozen, and says at the end of an epoch if it moved.

    Epochs and steps count from 0, over all calls of ``partial_fit()``, as ``net.history`` has them: a run
    goes on after ``net.initialize()`` and ``net.load_params(checkpoint=...)`` (with its ``f_history``), or
    after ``LoadInitState``. Give this callback before ``Checkpoint``, so that what it refuses is not saved,
    and after ``LoadInitState``.

    skorch's own ``Freezer`` sets ``requires_grad`` and nothing else, at epoch 1 of the first call.

    Args:
        schedule: what is frozen from which epoch on, or batch with ``unit="step"``.
        freeze: policy, in place of a schedule; without either the module is taken as it comes.
        freeze_mode: preset or ``FreezeMode`` that goes with ``freeze``.
        verify: ``"epoch"`` compares every byte of what is frozen after each epoch; ``"step"`` also looks at a
            sample after each batch; ``False`` never.
        delta: file in which each epoch leaves a delta with the optimizer's state, or ``None``.
        unit: of the schedule: ``"epoch"`` or ``"step"``.
        module: which of the net's modules, by its name without the underscore.

    Raises:
        FreezeArgumentError: from ``fit()``: an argument is not one of those, or as
            :class:`bundles.adapters.Session`.
        FrozenDriftError: from ``fit()``: something frozen moved.

    >>> import numpy as np, skorch, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    >>> net = skorch.NeuralNetRegressor(model, callbacks=[FreezeCallback(freeze="encoder")], verbose=0)
    >>> x = np.ones((20, 4), "float32")
    >>> int(net.fit(x, x[:, :1]).module_[1].num_batches_tracked)
    0
    """

    # Attributes are as they were given until initialize(), as clone() and set_params() of scikit-learn want.
    def __init__(
        self,
        schedule: UnfreezeSchedule | None = None,
        *,
        freeze: str | FreezePolicy | None = None,
        freeze_mode: str | FreezeMode = "eval",
        verify: Literal["epoch", "step", False] = "epoch",
        delta: str | os.PathLike[str] | None = None,
        unit: Literal["epoch", "step"] = "epoch",
        module: str = "module",
    ) -> None:
        self.schedule = schedule
        self.freeze = freeze
        self.freeze_mode = freeze_mode
        self.verify = verify
        self.delta = delta
        self.unit = unit
        self.module = module

    def initialize(self) -> FreezeCallback:
        """Begin anew, as ``net.initialize()`` does."""
        check_choices(verify=self.verify, unit=self.unit)
        self.session_ = Session(
            schedule=self.schedule,
            freeze=self.freeze,
            freeze_mode=self.freeze_mode,
            verify=bool(self.verify),
            delta=self.delta is not None,
        )
        self.step_ = 0
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803 - as skorch calls it
        """Freeze what is frozen where the history ends."""
        self.step_ = sum(row.get("train_batch_count", 0) for row in net.history)
        done = len(net.history) if self.unit == "epoch" else self.step_
        self.session_.check_optimizers(self._model(net), _optimizers(net))
        # load_params() comes before this.
        whole_groups.start(self.session_, self._model(net), _optimizers(net), max(done - 1, 0))

    def on_epoch_begin(
        self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any
    ) -> None:
        """Put on the module what the schedule says of the epoch."""
        if self.unit == "epoch":
            whole_groups.advance(self.session_, self._model(net), len(net.history) - 1, _optimizers(net))

    def on_batch_begin(self, net: Any, batch: Any = None, training: Any = None, **kwargs: Any) -> None:
        """Put on the module what the schedule says of the step."""
        if training and self.unit == "step":
            whole_groups.advance(self.session_, self._model(net), self.step_, _optimizers(net))
        self.step_ += bool(training)

    def on_batch_end(self, net: Any, batch: Any = None, training: Any = None, **kwargs: Any) -> None:
        """Verify by a sample."""
        if training and self.verify == "step":
            self.session_.check(self._model(net), quick=True)

    def on_epoch_end(
        self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any
    ) -> None:
        """Verify, and leave a delta."""
        self.session_.check(self._model(net))
        if self.delta is not None:
            self.session_.save(self._model(net), self.delta, optimizer=_optimizers(net))

    def _model(self, net: Any) -> nn.Module:
        model = getattr(net, f"{self.module}_", None)
        if not isinstance(model, nn.Module):
            raise FreezeArgumentError(
                f"module={shown(self.module)} names no module of the {type(net).__name__}: it has "
                f"{', '.join(net._modules)}."
            )
        return model


def _optimizers(net: Any) -> list[Optimizer]:
    return [getattr(net, f"{name}_") for name in net._optimizers]
