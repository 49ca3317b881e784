"""accelerate: an object for your own loop that freezes, follows a schedule, verifies, and is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bundles.adapters.session import Session
from bundles.builders.require import require
from bundles.errors import PinError
from bundles.freezing.optimizer.optimizers import Optimizers
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.mode import FreezeMode
from bundles.spec.policy import FreezePolicy

if TYPE_CHECKING:
    from accelerate import Accelerator
else:
    Accelerator = require("accelerate").Accelerator

DELTA = "delta.safetensors"
STATE = "bundles_freeze.json"


class FrozenState:
    """The freeze of a run under ``accelerate``, made after ``prepare()``.

    ``accelerator.save_state()`` saves it with the rest; ``load_state()`` first puts the freeze of the saved
    step on the model and takes what is frozen out of the optimizer, so that the optimizer's state fits, and
    at last compares what is frozen with what was saved. Then go on with :attr:`step` plus one.

    Under DDP freeze with :func:`bundles.freeze` before ``prepare()`` and leave ``freeze`` out here; what
    changes later, with a schedule, needs ``DistributedDataParallelKwargs(find_unused_parameters=True)``.

    Args:
        accelerator: of the run.
        model: as ``prepare()`` returned it.
        optimizer: as ``prepare()`` returned it; one or a list. It loses what is frozen.
        schedule: what is frozen from which epoch or step on.
        freeze: policy or its string, in place of a schedule; without either, the model is taken as it
            comes, frozen by ``get_model(freeze=...)``.
        freeze_mode: goes with ``freeze``.
        verify: whether :meth:`check` compares what is frozen with what it was.
        delta: also write ``delta.safetensors`` into each saved state, for :func:`bundles.load_delta`.

    Raises:
        FreezeArgumentError: an argument is not one of those, or DDP cannot follow.

    >>> import torch
    >>> from accelerate import Accelerator
    >>> accelerator = Accelerator(cpu=True)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> state = FrozenState(accelerator, model, optimizer, freeze="encoder")
    >>> for epoch in range(state.step, 2):
    ...     _ = state.advance(epoch)
    ...     accelerator.backward(model(torch.ones(1, 2)).sum())
    ...     optimizer.step()
    ...     state.check()
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizers | None = None,
        *,
        schedule: UnfreezeSchedule | None = None,
        freeze: str | FreezePolicy | None = None,
        freeze_mode: str | FreezeMode = "eval",
        verify: bool = True,
        delta: bool = False,
    ) -> None:
        self.session = Session(
            schedule=schedule, freeze=freeze, freeze_mode=freeze_mode, verify=verify, delta=delta
        )
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.session.start(model, optimizer)
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._before_load)
        accelerator.register_for_checkpointing(self)

    @property
    def step(self) -> int:
        """The epoch or step that was told last; after ``load_state()`` the one that was saved."""
        return self.session.step

    def advance(self, step: int) -> bool:
        """Follow the schedule; call it before each epoch or step.

        Returns:
            Whether another plan was put on the model.
        """
        return self.session.advance(self.model, step, self.optimizer)

    def check(self, *, quick: bool = False) -> None:
        """Verify that nothing frozen moved, as :func:`bundles.verify_frozen`.

        Raises:
            FrozenDriftError: names every parameter and buffer that moved.
        """
        self.session.check(self.model, quick=quick)

    def state_dict(self) -> dict[str, Any]:
        """Return the step; the rest is in ``bundles_freeze.json``, which is read before the optimizer."""
        return {"step": self.session.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare what is frozen with what was saved: ``load_state()`` calls this last."""
        self.session.start(self.model, self.optimizer, state["step"], loaded=True)

    def _save(self, models: list[nn.Module], weights: list[dict[str, Any]], output_dir: str) -> None:
        if self.accelerator.is_main_process:
            folder = Path(output_dir)
            (folder / STATE).write_text(json.dumps(self.session.state_dict(), indent=1))
            self.session.save(self.accelerator.unwrap_model(self.model), folder / DELTA)

    def _before_load(self, models: list[nn.Module], input_dir: str) -> None:
        path = Path(input_dir) / STATE
        try:
            state = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise PinError(
                f"{path} cannot be read ({error}): load a state that was saved with a FrozenState."
            ) from error
        self.session.fit(self.model, self.optimizer, state)
