"""Put what a schedule says on a model, at any step, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer

from bundles.errors import FreezeArgumentError
from bundles.freezing.api import frozen_parameters, plan_for, put
from bundles.freezing.behaviour.describe import owned_parameters
from bundles.freezing.derive import inside, unwrap
from bundles.freezing.marks import own_plan
from bundles.freezing.optimizer import ddp, optimizers
from bundles.freezing.optimizer.optimizers import Optimizers, as_optimizers
from bundles.freezing.optimizer.warmup import scale
from bundles.spec.plan import FreezePlan
from bundles.spec.schedule import Schedule

Thaws = dict[int, tuple[int, ...]]  # milestone -> parameters that thawed there, by id

# What each optimizer was last made to fit, and what warms up in it since.
_fitted: WeakKeyDictionary[Optimizer, tuple[FreezePlan, Schedule, int, Thaws]] = WeakKeyDictionary()

_checked: WeakKeyDictionary[nn.Module, Schedule] = WeakKeyDictionary()  # wraps that can follow to the end


class UnfreezeSchedule(Schedule):
    """What is frozen from which step or epoch on: a value, and a function of the step alone.

    Nothing is counted and nothing is remembered, so that a run resumes by calling :meth:`apply` with the
    step at which it left off.

    Args:
        milestones: step -> policy or its string; from 0 on. Steps may be epochs: what ``apply`` is given.
        mode: preset or ``FreezeMode`` of the frozen part, as in :func:`bundles.freeze`.
        warmup: over so many steps the learning rate of what thaws at a milestone m grows:
            at step s by the factor ``min(1, (s - m + 1) / warmup)``. What trains from 0 on is not scaled.

    Raises:
        FreezeArgumentError: a step or policy is malformed, or there is none for step 0.

    >>> schedule = UnfreezeSchedule({0: "encoder", 10_000: "last:3", 20_000: "none"}, warmup=500)
    >>> schedule.policy_at(15_000)
    ExceptLast(3)
    >>> schedule
    UnfreezeSchedule({0: Encoder(), 10000: ExceptLast(3), 20000: Nothing()}, mode='eval', warmup=500)
    """

    def apply(self, model: nn.Module, step: int, *, optimizer: Optimizers | None = None) -> bool:
        """Freeze what is frozen at a step, and thaw what is not; call it before each step or epoch.

        Where nothing is to do it takes microseconds. What is frozen loses gradient and momentum. The
        layer groups are those that the model was first frozen by.

        Args:
            model: any module; ``torch.compile``, DDP and EMA wrappers are looked through.
            step: of the training, or epoch.
            optimizer: what trains the model, one or a list: afterwards it holds exactly what trains.
                Built over all parameters it may be left out, unless there is a warm-up: optimizers pass
                over what has no gradient.

        Returns:
            Whether another plan was put on the model.

        Raises:
            FreezeArgumentError: the step is no whole number from 0; a warm-up has no optimizer; or the
                model is wrapped in ``DistributedDataParallel`` in a way that cannot follow this or a
                later milestone.
            NothingSelectedError, InexpressibleModeError: as :func:`bundles.freeze`.

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> schedule = UnfreezeSchedule.lp_ft(at=100)
        >>> [schedule.apply(model, step, optimizer=optimizer) for step in (0, 1, 100, 101)]
        [True, False, True, False]
        """
        given, inner = as_optimizers(optimizer), inside(model)
        if self.warmup and not given:
            raise FreezeArgumentError(
                f"A schedule with warmup={self.warmup} needs what trains the model: type "
                f"schedule.apply(model, step, optimizer=optimizer)."
            )
        self._check_wrap(model)
        before = own_plan(inner)
        plan = before if before is not None and self._is_of(before, step) else self._put(model, step)
        self._fit(inner, plan, step, given)
        return plan is not before

    def _is_of(self, plan: FreezePlan, step: int) -> bool:
        """Whether a plan is the one of this step."""
        return plan.policy == self.text_at(step) and plan.mode == self.mode

    def _put(self, model: nn.Module, step: int) -> FreezePlan:
        plan = plan_for(model, self.policy_at(step), self.mode)
        put(model, plan)
        return plan

    def _check_wrap(self, model: nn.Module) -> None:
        """Refuse at the first step what DDP could not follow at the last."""
        wrap = ddp.find_wrap(model)
        if wrap is not None and _checked.get(wrap) != self:
            for _, policy in self.milestones:
                ddp.guard_plan(model, plan_for(model, policy, self.mode))
            _checked[wrap] = self

    def _fit(self, model: nn.Module, plan: FreezePlan, step: int, given: Sequence[Optimizer]) -> None:
        """Make the optimizers hold what trains, once per milestone, and warm it up, each step."""
        milestone = self.milestone_at(step)
        if not all(self._is_fitted(each, plan, milestone) for each in given):
            self._refit(model, plan, milestone, given)
        for each in given:
            scale(each, self._factors(_fitted[each][3], step))

    def _is_fitted(self, optimizer: Optimizer, plan: FreezePlan, milestone: int) -> bool:
        known = _fitted.get(optimizer)
        return known is not None and known[0] is plan and known[1:3] == (self, milestone)

    def _refit(self, model: nn.Module, plan: FreezePlan, milestone: int, given: Sequence[Optimizer]) -> None:
        parameters = {name: parameter for name, _, _, parameter in owned_parameters(unwrap(model))}
        trained = [parameters[name] for name in plan.trained if name in parameters]  # not what is gone since
        optimizers.update(given, trained, frozen_parameters(model).values())
        thaws = {
            at: tuple(id(parameters[name]) for name in names if name in parameters)
            for at, names in self._thawed(model, plan, milestone).items()
        }
        for each in given:
            _fitted[each] = (plan, self, milestone, thaws)

    def _thawed(self, model: nn.Module, plan: FreezePlan, milestone: int) -> dict[int, set[str]]:
        """What thawed at each milestone that may still warm up at this one, and trains ever since."""
        found: dict[int, set[str]] = {}
        frozen = set(plan.frozen)
        past = [step for step, _ in self.milestones if step <= milestone]
        for before, at in reversed(list(pairwise(past))):
            if self.rate_at(milestone, at) == 1:
                break
            earlier = self._frozen_at(model, before)
            found[at] = earlier - frozen
            frozen |= earlier
        return found

    def _frozen_at(self, model: nn.Module, step: int) -> set[str]:
        return set(plan_for(model, self.policy_at(step), self.mode).frozen)

    def _factors(self, thaws: Thaws, step: int) -> dict[int, float]:
        """The factor of each parameter that warms up."""
        rates = {milestone: self.rate_at(step, milestone) for milestone in thaws}
        return {key: rates[m] for m, keys in thaws.items() if rates[m] < 1 for key in keys}
