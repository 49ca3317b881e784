"""transformers' ``Trainer``: a callback that freezes, follows a schedule, verifies and writes deltas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import Optimizer

from bundles.adapters.session import Session, check_choices
from bundles.builders.require import require
from bundles.errors import FreezeArgumentError
from bundles.freezing.optimizer.optimizers import all_groups, as_optimizers
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.mode import FreezeMode
from bundles.spec.policy import FreezePolicy

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
else:
    TrainerCallback = require("transformers").TrainerCallback

DELTA = "delta.safetensors"
_STATE = "bundles.FreezeCallback"


class FreezeCallback(TrainerCallback):
    """Keeps what is frozen so in ``Trainer.train()``, which calls ``model.train()`` at each step.

    Give it to ``Trainer(callbacks=[...])``, so that it freezes what never trains before the optimizer is
    made; ``add_callback()`` is too late for a schedule. Its state is in ``trainer_state.json``, so
    ``train(resume_from_checkpoint=...)`` goes on where the schedule was, and compares what is frozen.

    Args:
        schedule: what is frozen from which epoch or step on.
        freeze: policy or its string, in place of a schedule; without either, the model is taken as it
            comes, frozen by ``get_model(freeze=...)``.
        freeze_mode: goes with ``freeze``.
        verify: ``"epoch"`` compares every byte of what is frozen at the end of each epoch; ``"step"`` also
            looks at a sample after each step; ``False`` never.
        unit: what the schedule counts: ``"epoch"``, or ``"step"`` of the optimizer.
        delta: write ``delta.safetensors`` into each checkpoint folder, for :func:`bundles.load_delta`.

    Raises:
        FreezeArgumentError: an argument is not one of those.

    >>> import bundles
    >>> callback = FreezeCallback(bundles.UnfreezeSchedule({0: "encoder", 1000: "last:2"}), unit="step")
    """

    def __init__(
        self,
        schedule: UnfreezeSchedule | None = None,
        *,
        freeze: str | FreezePolicy | None = None,
        freeze_mode: str | FreezeMode = "eval",
        verify: Literal["epoch", "step", False] = "epoch",
        unit: Literal["epoch", "step"] = "epoch",
        delta: bool = False,
    ) -> None:
        check_choices(verify=verify, unit=unit)
        self.session = Session(
            schedule=schedule, freeze=freeze, freeze_mode=freeze_mode, verify=bool(verify), delta=delta
        )
        self.quick, self.unit = verify == "step", unit

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze before the optimizer is made."""
        self.session.prepare(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take what is frozen out of the optimizer; a checkpoint has been loaded by now."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if vars(state).setdefault("_bundles_callback", self) is not self:  # no field, so not written down
            raise FreezeArgumentError(
                "The Trainer has two FreezeCallbacks, each of which undoes what the other freezes: give it "
                "one with both policies, as in freeze=bundles.First(6) | bundles.Match('head.*')."
            )
        saved = _notes(state).get(_STATE)
        if isinstance(saved, Mapping):
            self.session.load_state_dict(saved)
        for each in as_optimizers(optimizer):
            _keep_layout(each)
        step = self.session.step if isinstance(saved, Mapping) else self._position(state)
        self.session.check_optimizers(model, optimizer)
        self.session.start(model, optimizer, step, loaded=bool(state.global_step))
        self._note(state)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Follow the schedule."""
        if self.unit == "epoch":
            self._advance(state, kwargs)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Follow the schedule."""
        if self.unit == "step":
            self._advance(state, kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Verify by a sample, before a checkpoint is written."""
        if self.quick:
            self.session.check(kwargs["model"], quick=True)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Verify every byte."""
        self.session.check(kwargs["model"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write a delta into the checkpoint."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            self.session.save(kwargs["model"], folder / DELTA)

    def _advance(self, state: TrainerState, kwargs: Mapping[str, Any]) -> None:
        self.session.advance(kwargs["model"], self._position(state), kwargs["optimizer"])
        self._note(state)

    def _note(self, state: TrainerState) -> None:
        """Put what a resumed run needs where the Trainer writes it down."""
        _notes(state)[_STATE] = self.session.state_dict()

    def _position(self, state: TrainerState) -> int:
        return int(state.epoch or 0) if self.unit == "epoch" else state.global_step


def _notes(state: TrainerState) -> dict[str, Any]:
    """What the Trainer writes down of callbacks, a mapping by name whatever its annotation says."""
    notes: Any = state.stateful_callbacks
    made: dict[str, Any] = notes
    return made


def _keep_layout(optimizer: Optimizer) -> None:
    """Let an optimizer's saved state count the parameters that are taken out of it, too.

    The Trainer loads that state into an optimizer that it has just made, over all that trains at some time,
    before any callback can take out what is frozen.
    """
    if not getattr(optimizer, "_bundles_layout", False):
        optimizer._bundles_layout = True  # type: ignore[attr-defined]
        optimizer.register_state_dict_post_hook(_whole_layout)


def _whole_layout(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    now = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {id(parameter): index for index, parameter in enumerate(now)}
    groups: list[dict[str, Any]] = []
    moved: dict[int, int] = {}
    count = 0
    for group, whole in zip(saved["param_groups"], all_groups(optimizer), strict=True):
        moved |= {numbers[id(p)]: count + at for at, p in enumerate(whole) if id(p) in numbers}
        groups.append({**group, "params": list(range(count, count + len(whole)))})
        count += len(whole)
    state = {moved.get(key, key): value for key, value in saved["state"].items()}
    return {**saved, "state": state, "param_groups": groups}
