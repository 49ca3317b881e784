"""What every adapter does at a trainer's events: freeze, follow a schedule, verify, save, resume.

An adapter knows its trainer: which event means that training starts, which number counts epochs or
steps, where the optimizer is. All that is done then is here, once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import chain
from operator import and_
from pathlib import Path
from typing import Any

from torch import nn

from bundles.builders.shards import is_sharded
from bundles.delta.save import save_delta
from bundles.errors import FreezeArgumentError, NothingSelectedError, PinError
from bundles.freezing.api import freeze, freeze_plan, frozen_parameters, plan_for
from bundles.freezing.apply import apply
from bundles.freezing.derive import unwrap
from bundles.freezing.optimizer import optimizers
from bundles.freezing.optimizer.optimizers import Optimizers, as_optimizers
from bundles.freezing.proof.snapshot import Snapshot, snapshot, verify_frozen
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.policy import FreezePolicy, Nothing, parse_policy
from bundles.spec.values import shown


class Session:
    """The freeze of one training run: what an adapter tells of its trainer's events.

    Without ``schedule`` and ``freeze`` a model is taken as it comes, frozen by ``get_model(freeze=...)`` or
    :func:`bundles.freeze`, and only verified and saved.

    Args:
        schedule: what is frozen from which step or epoch on.
        verify: whether :meth:`check` compares what is frozen with what it was.
        freeze: policy or its string, put on the model at the start.
        freeze_mode: preset or ``FreezeMode`` that goes with ``freeze``; a schedule has its own.
        delta: whether :meth:`save` writes deltas.

    Attributes:
        step: the step or epoch that the freeze is for, as last told; that of a loaded state until then.

    Raises:
        FreezeArgumentError: ``schedule`` is none, or both ``schedule`` and ``freeze`` are given.

    >>> import bundles, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> session = Session(schedule=bundles.UnfreezeSchedule.lp_ft(at=1))
    >>> session.start(model, optimizer)
    >>> [session.advance(model, epoch, optimizer) for epoch in range(3)]
    [False, True, False]
    >>> session.check(model)
    """

    def __init__(
        self,
        *,
        schedule: UnfreezeSchedule | None = None,
        verify: bool = True,
        freeze: str | FreezePolicy | None = None,
        freeze_mode: str | FreezeMode = "eval",
        delta: bool = False,
    ) -> None:
        if schedule is not None and not isinstance(schedule, UnfreezeSchedule):
            raise FreezeArgumentError(
                f"schedule={shown(schedule)} is not a bundles.UnfreezeSchedule, such as "
                f"bundles.UnfreezeSchedule({{0: 'encoder', 3: 'last:2'}})."
            )
        if schedule is not None and freeze is not None:
            raise FreezeArgumentError(
                f"Both schedule= and freeze={shown(freeze)} say what is frozen at first: give one of them."
            )
        if schedule is not None and parse_mode(freeze_mode) not in (parse_mode("eval"), schedule.mode):
            raise FreezeArgumentError(
                f"freeze_mode={shown(freeze_mode)} is not that of the schedule, which has one of its own: "
                f"type bundles.UnfreezeSchedule(..., mode={shown(freeze_mode)})."
            )
        self.schedule = schedule
        self.verify = verify
        self.policy = None if freeze is None else parse_policy(freeze)
        self.mode = parse_mode(freeze_mode)
        self.delta = delta
        self.step = 0
        self._taken: Snapshot | None = None
        self._digests: str | None = None
        self._resumed: dict[str, Any] | None = None

    def prepare(self, model: nn.Module) -> None:
        """Freeze what never trains in the whole run, before there is an optimizer.

        What a schedule thaws later is then in the optimizer from the beginning, in the group where the one
        who makes it puts it; :meth:`start` takes it out until it trains. So the groups of the optimizer, as
        it is made, do not depend on where a run is resumed.

        Args:
            model: any module; wrappers are looked through.
        """
        if self.schedule is None:
            if self.policy is not None and not self._is_frozen(model):
                freeze(model, self.policy, self.mode)
            return
        always = reduce(and_, (policy for _, policy in self.schedule.milestones))
        try:
            plan = plan_for(model, always, self.schedule.mode)
        except NothingSelectedError:  # all of it trains at some time
            plan = plan_for(model, Nothing(), self.schedule.mode)
        apply(unwrap(model), plan)

    def check_optimizers(self, model: nn.Module, optimizer: Optimizers | None) -> None:
        """As :meth:`check_trains`, with all optimizers of a trainer. One that has none is not refused."""
        # The stand-in of Lightning, for a module without an optimizer, has no group.
        groups = [group["params"] for each in as_optimizers(optimizer) for group in each.param_groups]
        if groups:
            self.check_trains(model, chain.from_iterable(groups))

    def check_trains(self, model: nn.Module, others: Iterable[nn.Parameter]) -> None:
        """Refuse a run in which nothing trains, whose first ``backward()`` would fail.

        For trainers, which know all that is optimized. :meth:`start` does not ask: in a loop of your own
        something else may train through the model, as a generator does through its discriminator.

        Args:
            model: as for :meth:`prepare`, before or after that.
            others: what the optimizers have; parameters of the model may be among them.

        Raises:
            FreezeArgumentError: everything is frozen, at first or from a milestone of the schedule on.
        """
        own = {id(parameter) for parameter in model.parameters()}
        if any(p.requires_grad and id(p) not in own for p in others):
            return
        if (idle := self._idle(model)) is not None:
            raise FreezeArgumentError(
                f"Nothing trains {idle}: freeze less, as with 'last:1', give the model a head that trains "
                f"(get_model(head=...)), or compute features with bundles.extract_features(model, ...)."
            )

    def start(
        self,
        model: nn.Module,
        optimizer: Optimizers | None = None,
        step: int = 0,
        *,
        loaded: bool = False,
    ) -> None:
        """Freeze what is frozen at a step, and remember it; best before the optimizer's state is loaded.

        The milestones up to the step are gone through one by one, so that an optimizer over what trains at
        first gets the groups of a run that was not interrupted.

        Args:
            model: as for :meth:`prepare`, which need not have been called.
            optimizer: what trains it, one or a list. Frozen parameters are taken out of it.
            step: the last one that was done, of a run that goes on; else 0.
            loaded: whether the optimizer has its state already, which the earlier milestones would take.

        Raises:
            FreezeArgumentError: the state that was loaded is that of another freeze, or a warm-up has no
                optimizer.
            FrozenDriftError: what is frozen has not the values that it had when the state was saved.
        """
        self._put(model, optimizer, step, loaded=loaded)
        self.step = step
        self._remember(model)
        self._check_resumed(model)

    def fit(self, model: nn.Module, optimizer: Optimizers | None, state: Mapping[str, Any]) -> None:
        """Take a saved state, and make model and optimizer fit what is about to be loaded into them.

        For trainers that load weights and optimizers in one go: :meth:`start` comes after it, ``loaded``.

        Raises:
            PinError: as :meth:`load_state_dict`.
            FreezeArgumentError: the state is that of another freeze.
        """
        self.load_state_dict(state)
        self._check_freeze(state)
        self._put(model, optimizer, self.step)

    def advance(self, model: nn.Module, step: int, optimizer: Optimizers | None = None) -> bool:
        """Put on the model what the schedule says, before a step or epoch.

        Returns:
            Whether another plan was put on it.

        Raises:
            FrozenDriftError: something moved that thaws or freezes now.
        """
        self.step = step
        if self.schedule is None:
            return False
        plan = freeze_plan(model)
        if plan is None or plan.policy != self.schedule.text_at(step):
            self.check(model)
        changed = self.schedule.apply(model, step, optimizer=optimizer)
        if changed:
            self._remember(model)
        return changed

    def check(self, model: nn.Module, *, quick: bool = False) -> None:
        """Verify that nothing frozen moved since the last change of plan.

        Args:
            model: the one that was started.
            quick: as that of :func:`bundles.verify_frozen`.

        Raises:
            FrozenDriftError: names every parameter and buffer that moved.
        """
        if self.verify and self._taken is not None:
            verify_frozen(model, self._taken, quick=quick)

    def save(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        step: int | None = None,
        optimizer: Optimizers | None = None,
    ) -> Path | None:
        """Write a delta, if this session writes them; :func:`bundles.load_delta` reads it.

        Returns:
            The file, or ``None``.

        Raises:
            FreezeArgumentError, BuildError, CacheError: as :func:`bundles.save_delta`.
        """
        if not self.delta:
            return None
        at = self.step if step is None else step
        return save_delta(model, path, optimizer=optimizer, schedule=self.schedule, step=at)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON types: the step, the freeze and its values' digests."""
        return {"step": self.step, "freeze": self._described(), "frozen": self._digests}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` returned; :meth:`start` compares the model with it.

        Raises:
            PinError: the state is none that :meth:`state_dict` returned.
        """
        if not isinstance(state.get("step"), int) or not {"freeze", "frozen"} <= state.keys():
            raise PinError(f"{shown(dict(state))} is not the state of a freeze, as state_dict() returns it.")
        self._resumed = dict(state)
        self.step = state["step"]

    def _put(
        self, model: nn.Module, optimizer: Optimizers | None, step: int, *, loaded: bool = False
    ) -> None:
        if self.schedule is None:
            self.prepare(model)
            optimizers.update(as_optimizers(optimizer), (), frozen_parameters(unwrap(model)).values())
            return
        past = [milestone for milestone, _ in self.schedule.milestones if milestone <= step]
        for at in [step] if loaded else [*past, step]:
            self.schedule.apply(model, at, optimizer=optimizer)

    def _idle(self, model: nn.Module) -> str | None:
        """Say when nothing trains, if that is so at some time."""
        if self.schedule is not None:
            for at, policy in self.schedule.milestones:
                if not plan_for(model, policy, self.schedule.mode).trained:
                    return f"from {at} on, where the schedule has {policy!r}"
        elif self.policy is not None:
            return None if plan_for(model, self.policy, self.mode).trained else f"with {self.policy!r}"
        elif not any(parameter.requires_grad for parameter in model.parameters()):
            return "in the model, which comes with all of it frozen"
        return None

    def _remember(self, model: nn.Module) -> None:
        if self.verify:
            self._taken = snapshot(model)
            self._digests = self._taken.to_json()

    def _is_frozen(self, model: nn.Module) -> bool:
        plan = freeze_plan(model)
        return plan is not None and (plan.policy, plan.mode) == (repr(self.policy), self.mode)

    def _described(self) -> str | None:
        """What is frozen when, as text; ``None`` where the model comes as it is."""
        if self.schedule is not None:
            return repr(self.schedule)
        return None if self.policy is None else f"{self.policy!r}, mode={str(self.mode)!r}"

    def _check_resumed(self, model: nn.Module) -> None:
        """Compare a model with the state that was loaded, until it fits."""
        if (state := self._resumed) is None:
            return
        self._check_freeze(state)
        saved = state["frozen"]
        sharded = any(map(is_sharded, model.parameters()))  # each rank has the digests of its own shards
        if self.verify and saved is not None and saved != self._digests and not sharded:
            verify_frozen(model, Snapshot.from_json(saved))
        self._resumed = None

    def _check_freeze(self, state: Mapping[str, Any]) -> None:
        if state["freeze"] != self._described():
            raise FreezeArgumentError(
                f"The run was saved with {state['freeze'] or 'no freeze= and no schedule='} and goes on with "
                f"{self._described() or 'neither'}: give the same, or begin a new run from the weights."
            )


def check_choices(*, verify: object, unit: object) -> None:
    """Refuse what an adapter takes neither for how often to verify nor for what a schedule counts.

    Raises:
        FreezeArgumentError: ``verify`` is none of ``"epoch"``, ``"step"`` and ``False``, or ``unit`` is
            neither of the first two.

    >>> check_choices(verify="epoch", unit="step")
    """
    if verify is not False and verify not in ("epoch", "step"):
        raise FreezeArgumentError(f"verify={shown(verify)} is none of 'epoch', 'step' and False.")
    if unit not in ("epoch", "step"):
        raise FreezeArgumentError(f"unit={shown(unit)} is neither 'epoch' nor 'step'.")
