"""SpeechBrain: a ``Brain`` whose frozen parts stay frozen, through every epoch and every checkpoint.

``Brain`` calls ``modules.train()`` at the start of each epoch, which ends every ``eval()`` that a script put
on a frozen part. What :func:`bundles.freeze` froze is held against that already. This adds what belongs to a
run: the schedule, the check after each epoch, and a place in the checkpoints of ``Checkpointer``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from bundles.adapters.session import Session, check_choices
from bundles.builders.require import require
from bundles.delta.load import load_delta
from bundles.errors import FreezeArgumentError, PinError
from bundles.freezing.marks import own_plan
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.mode import FreezeMode
from bundles.spec.policy import FreezePolicy
from bundles.spec.values import shown

if TYPE_CHECKING:
    from speechbrain.core import Brain
    from speechbrain.utils.distributed import main_process_only
else:
    Brain = require("speechbrain.core").Brain
    main_process_only = require("speechbrain.utils.distributed").main_process_only

_STATE = "freeze"  # of the recoverables, which are files of the same name in a checkpoint
_DELTA = "delta"


class FreezeBrain(Brain):  # type: ignore[misc]
    """A ``Brain`` that freezes, follows a schedule, verifies after each epoch, and resumes.

    Derive from it, first, in place of ``Brain`` or beside a ``Brain`` of one's own:
    ``class Recogniser(FreezeBrain)`` or ``class Recogniser(FreezeBrain, TheirBrain)``. Epochs count from 0,
    whatever the counter given to ``fit()`` says.

    With a ``checkpointer`` each checkpoint holds where the run is (JSON, no pickle). The optimizer is loaded
    after that, so that its groups are those of the epoch at which it was saved.

    Args:
        schedule: what is frozen from which epoch on, or optimizer step with ``unit="step"``.
        freeze: policy, in place of a schedule; without either the modules are taken as they come.
        freeze_mode: preset or ``FreezeMode`` that goes with ``freeze``.
        verify: ``"epoch"`` compares every byte of what is frozen after each epoch; ``"step"`` also looks at a
            sample after each batch; ``False`` never.
        delta: whether checkpoints hold a delta: what trained, over what the bundle gives again. Leave the
            model out of the recoverables of the ``checkpointer`` then.
        unit: of the schedule: ``"epoch"`` or ``"step"``, as ``Brain.optimizer_step`` counts.
        frozen_module: name among ``modules`` of what all this is about; the only one where there is one,
            else all of them together.
        others: arguments of ``Brain``: ``modules``, ``opt_class``, ``hparams``, ``run_opts``,
            ``checkpointer``.

    Raises:
        FreezeArgumentError: the unit or module is none of these, or as :class:`bundles.adapters.Session`.
        FrozenDriftError: from ``fit()``: something frozen moved.

    >>> import torch
    >>> class Probe(FreezeBrain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.model(batch[0])
    ...     def compute_objectives(self, predictions, batch, stage):
    ...         return torch.nn.functional.mse_loss(predictions, batch[1])
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    >>> brain = Probe({"model": model}, lambda p: torch.optim.SGD(p, lr=0.1), freeze="encoder")
    >>> data = torch.utils.data.TensorDataset(torch.ones(6, 4), torch.ones(6, 1))
    >>> brain.fit(range(2), data, progressbar=False, train_loader_kwargs={"batch_size": 3})
    >>> int(model[1].num_batches_tracked)
    0
    """

    def __init__(
        self,
        *others: Any,
        schedule: UnfreezeSchedule | None = None,
        freeze: str | FreezePolicy | None = None,
        freeze_mode: str | FreezeMode = "eval",
        verify: Literal["epoch", "step", False] = "epoch",
        delta: bool = False,
        unit: Literal["epoch", "step"] = "epoch",
        frozen_module: str | None = None,
        **named: Any,
    ) -> None:
        check_choices(verify=verify, unit=unit)
        self.freezing = Session(
            schedule=schedule, freeze=freeze, freeze_mode=freeze_mode, verify=bool(verify), delta=delta
        )
        super().__init__(*others, **named)
        if frozen_module is not None and frozen_module not in self.modules:
            raise FreezeArgumentError(
                f"frozen_module={shown(frozen_module)} is not one of modules: {', '.join(self.modules)}."
            )
        self.unit, self.quick = unit, verify == "step"
        self.frozen_module = frozen_module
        self._epochs = 0  # begun so far
        self._is_started = False
        if delta and self.checkpointer is not None:  # also where evaluate() alone is called
            self.checkpointer.add_recoverable(
                _DELTA, self, custom_save_hook=_save_delta, custom_load_hook=_load_delta
            )

    @property
    def frozen_part(self) -> nn.Module:
        """The module that is frozen, in part or as a whole, as it is wrapped now."""
        names = [self.frozen_module] if self.frozen_module is not None else [*self.modules]
        part: nn.Module = self.modules[names[0]] if len(names) == 1 else self.modules
        return part

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """As ``Brain.fit()``; freezes before the optimizer is made and the modules are wrapped."""
        self._is_started = False
        self.freezing.prepare(self.frozen_part)
        if self.checkpointer is not None and _STATE not in self.checkpointer.recoverables:
            # After the model, whose values the state is compared with; before the optimizers, added last.
            self.checkpointer.add_recoverable(
                _STATE, self, custom_save_hook=_save_state, custom_load_hook=_load_state
            )
        super().fit(*args, **kwargs)

    def fit_batch(self, batch: Any) -> Any:
        """As ``Brain.fit_batch()``; a schedule of steps needs it to be called."""
        if self.unit == "step":
            self.freezing.advance(self.frozen_part, self.optimizer_step, self._optimizers)
        loss = super().fit_batch(batch)
        if self.quick:
            self.freezing.check(self.frozen_part, quick=True)
        return loss

    def _fit_train(self, *args: Any, **kwargs: Any) -> None:
        # Not on_stage_start() and on_stage_end(), which most recipes override without calling super().
        if not self._is_started:  # nothing was there to resume from
            self._start(self._position)
        if self.unit == "epoch":
            self.freezing.advance(self.frozen_part, self._epochs, self._optimizers)
        self._epochs += 1
        before = self.optimizer_step
        super()._fit_train(*args, **kwargs)
        self._check_steps(before)
        self.freezing.check(self.frozen_part)

    def _wrap_distributed(self) -> None:
        """Refuse a policy that speaks of all modules, where each is wrapped by itself."""
        if own_plan(self.modules) is not None and (self.distributed_launch or self.data_parallel_backend):
            raise FreezeArgumentError(
                f"Each of the modules {', '.join(self.modules)} is wrapped by itself, so no policy speaks of "
                f"all together: give FreezeBrain(frozen_module=...) the name of one."
            )
        super()._wrap_distributed()

    def _check_steps(self, before: int) -> None:
        follows = self.unit == "step" and self.freezing.schedule is not None
        if follows and self.optimizer_step > before and self.freezing.step < self.optimizer_step - 1:
            raise FreezeArgumentError(
                f"The schedule is at step {self.freezing.step} and the run at {self.optimizer_step}: let "
                f"fit_batch() of {type(self).__name__} call super().fit_batch(batch), or give unit='epoch'."
            )

    @property
    def _position(self) -> int:
        """The step or epoch that was begun last, 0 before the first."""
        return max(self._epochs - 1, 0) if self.unit == "epoch" else self.optimizer_step

    @property
    def _optimizers(self) -> list[Any] | None:
        found = self.optimizers_dict or {}
        single = getattr(self, "optimizer", None)  # of an init_optimizers() of before optimizers_dict
        return [*found.values()] or (None if single is None else [single])

    def _start(self, step: int) -> None:
        self.freezing.check_optimizers(self.frozen_part, self._optimizers)
        self.freezing.start(self.frozen_part, self._optimizers, step)
        self._is_started = True


@main_process_only  # type: ignore[untyped-decorator]
def _save_state(brain: FreezeBrain, path: str) -> None:
    state = {"epochs": brain._epochs, **brain.freezing.state_dict()}
    Path(path).write_text(json.dumps(state), encoding="utf-8")


def _load_state(brain: FreezeBrain, path: str, end_of_epoch: bool) -> None:
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        begun = int(state["epochs"])
    except (ValueError, TypeError, KeyError) as error:
        raise PinError(
            f"{path} does not say where a run is, as FreezeBrain writes it: remove this checkpoint."
        ) from error
    brain.freezing.load_state_dict(state)
    brain._epochs = begun - (not end_of_epoch)  # which is begun again, as EpochCounter does
    brain._start(brain.freezing.step)


@main_process_only  # type: ignore[untyped-decorator]
def _save_delta(brain: FreezeBrain, path: str) -> None:
    brain.freezing.save(brain.frozen_part, path)


def _load_delta(brain: FreezeBrain, path: str, end_of_epoch: bool) -> None:
    load_delta(path, brain.frozen_part)
