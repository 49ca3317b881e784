"""Lightning: a callback that freezes, follows a schedule, verifies, and keeps checkpoints small.

Lightning comes under two names, ``pytorch_lightning`` and ``lightning.pytorch``, whose classes are not
the same; the callback is one of the name that was imported first, else of the one that is installed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from bundles.adapters import partial
from bundles.adapters.session import Session, check_choices
from bundles.builders.require import require
from bundles.freezing.marks import own_plan
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.mode import FreezeMode
from bundles.spec.policy import FreezePolicy

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:
    _NAMES = ("pytorch_lightning", "lightning.pytorch")
    _IMPORTED = [name for name in sys.modules if name in _NAMES]
    _INSTALLED = [name for name in _NAMES if find_spec(name.partition(".")[0]) is not None]
    Callback = require((*_IMPORTED, *_INSTALLED, *_NAMES)[0]).Callback


class FreezeCallback(Callback):
    """Keeps what is frozen so, whatever the trainer does.

    Before ``configure_optimizers`` it freezes what never trains in the run, so that an optimizer over
    ``filter(lambda p: p.requires_grad, self.parameters())`` gets the rest. Optimizers over all parameters
    lose the frozen ones, until they thaw. When fitting starts, and when something thaws, it calls
    ``train()``: ``get_model()`` returns a model in ``eval()``, and Lightning leaves it so since 2.2. What
    is frozen is held.

    A module with one child that has parameters is frozen as that child is: by the groups of its bundle.

    Args:
        schedule: what is frozen from which epoch or step on.
        freeze: policy or its string, in place of a schedule; without either, the module is taken as it
            comes, frozen by ``get_model(freeze=...)``.
        freeze_mode: goes with ``freeze``.
        verify: ``"epoch"`` compares every byte of what is frozen at the end of each epoch, before a
            checkpoint is written; ``"step"`` also looks at a sample after each batch; ``False`` never.
        unit: what the schedule counts: ``"epoch"``, or ``"step"`` of the optimizer.
        delta: leave out of checkpoints what is frozen and as the model had it when the trainer began. Such
            a checkpoint is loaded into a model from the same weights; digests are compared.

    Raises:
        FreezeArgumentError: an argument is not one of those.

    >>> import bundles
    >>> callback = FreezeCallback(bundles.UnfreezeSchedule({0: "encoder", 5: "last:2"}), delta=True)
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
        self._base: partial.Base | None = None
        self._filled: set[str] = set()
        self._handle: Any = None
        self._loading: tuple[Trainer, LightningModule] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze before the optimizers are made, and before a checkpoint is loaded."""
        if self.session.delta:
            self._base = partial.Base.of(pl_module)
        self._end_loading()  # of a fit that an exception ended
        self._filled = set()
        register: Any = pl_module.register_load_state_dict_pre_hook
        self._handle = register(self._fill)
        if stage == "fit" and any(True for _ in pl_module.parameters()):  # not before configure_model()
            self.session.prepare(_part(pl_module)[1])

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compare what the checkpoint leaves out with what the model had."""
        partial.check(checkpoint.get(partial.KEY, {}), self._filled, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the optimizers hold what trains, before their state is loaded."""
        self._start(trainer, pl_module)
        self._loading = trainer, pl_module

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module's loading alone, and follow the schedule: a checkpoint has been loaded by now.

        The epoch that a run goes on with may have no start: Lightning takes that of a checkpoint which was
        written after an epoch's last batch for begun.
        """
        self._end_loading()
        self._advance(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the schedule."""
        if self.unit == "epoch":
            self._advance(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Follow the schedule."""
        if self.unit == "step":
            self._advance(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Verify by a sample."""
        if self.quick:
            self.session.check(_part(pl_module)[1], quick=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Verify every byte."""
        self.session.check(_part(pl_module)[1])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Verify once more: averages of weights are put into the module after the last epoch."""
        self.session.check(_part(pl_module)[1])

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out what is frozen and as it was."""
        if self.session.delta and self._base is not None:
            prefix, part = _part(pl_module)
            checkpoint[partial.KEY] = self._base.leave_out(checkpoint["state_dict"], part, prefix)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as another trainer expects it."""
        self._end_loading()

    def state_dict(self) -> dict[str, Any]:
        """Return the session's state for the checkpoint."""
        return self.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned."""
        self.session.load_state_dict(state_dict)
        if self._loading is not None:  # after on_fit_start(): strategies that shard load so late
            self._start(*self._loading)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        part = _part(pl_module)[1]
        step = self.session.step if trainer.ckpt_path else self._position(trainer)
        self.session.check_optimizers(part, trainer.optimizers)
        self.session.start(part, trainer.optimizers, step)
        part.train()

    def _advance(self, trainer: Trainer, pl_module: LightningModule) -> None:
        part = _part(pl_module)[1]
        if self.session.advance(part, self._position(trainer), trainer.optimizers):
            part.train()  # after a validation Lightning writes flags back, past train(): what thaws missed it

    def _position(self, trainer: Trainer) -> int:
        return int(trainer.current_epoch if self.unit == "epoch" else trainer.global_step)

    def _fill(
        self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *_: Any
    ) -> None:
        if strict:
            self._filled = partial.fill(state, module)

    def _end_loading(self) -> None:
        self._loading = None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _part(module: nn.Module) -> tuple[str, nn.Module]:
    """What is frozen of a LightningModule, and what its names begin with: its model, where it has but one."""
    children = [(n, child) for n, child in module.named_children() if any(True for _ in child.parameters())]
    if len(children) != 1 or module._parameters or own_plan(module) is not None:
        return "", module
    name, child = children[0]
    return f"{name}.", child
