"""fastai: parameter groups from our layer groups, and a callback that keeps frozen things frozen.

fastai has a freeze of its own, ``learn.freeze_to(n)``: ``requires_grad`` of whole parameter groups, but for
norm layers, which train on (``train_bn=True``), and running statistics and dropout, which it leaves alone.
Both may be used in one run: a parameter trains where neither freezes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from bundles.adapters import whole_groups
from bundles.adapters.session import Session, check_choices
from bundles.builders.require import require
from bundles.errors import FreezeArgumentError
from bundles.freezing.api import freeze_plan
from bundles.freezing.apply import refresh_plans
from bundles.freezing.behaviour.hold import set_requires_grad
from bundles.freezing.derive import layer_groups, unwrap
from bundles.freezing.marks import applied_plans
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.spec.mode import FreezeMode
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import FreezePolicy

if TYPE_CHECKING:
    from fastai.callback.core import Callback
else:
    Callback = require("fastai.callback.core").Callback

_WRAPPER = "Learner(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))"


def splitter(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return a model's parameters as fastai splits them: one list per layer group, from input to output.

    For ``Learner(splitter=...)``. A final norm goes with the last block before it, so that
    ``learn.freeze_to(-1 - n)`` leaves to train what the policy ``"last:n"`` does, and ``slice`` gives each
    block a learning rate. Tied parameters are there once; frozen ones are there, since they may thaw.

    >>> import torch
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    >>> [len(parameters) for parameters in splitter(model)]
    [2, 2, 2]
    """
    inner = unwrap(model)
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    seen: set[int] = set()
    found: list[list[nn.Parameter]] = []
    before = None
    for group in layer_groups(inner):
        own = [parameters[name] for name in dict.fromkeys(group.parameters)]
        new = [p for p in own if not (id(p) in seen or seen.add(id(p)))]  # type: ignore[func-returns-value]
        if group.kind == "norm" and before == "block" and found:
            found[-1] += new
        elif new:
            found.append(new)
        before = group.kind
    return found


class FreezeCallback(Callback):  # type: ignore[misc]
    """Keeps the frozen part of a ``Learner``'s model frozen, and says after an epoch if it moved.

    Give it to ``Learner(cbs=...)``, and :func:`splitter` with it. Epochs count from 0 in each ``fit``, as
    fastai counts them: ``learn.load(name)`` and ``learn.fit(n, start_epoch=k)`` go on in the schedule, too.

    What this freezes stays frozen, norm layers included, whatever ``learn.freeze()`` and ``learn.unfreeze()``
    do, and what ``learn.freeze_to()`` freezes beyond that does not train either. Where it freezes something
    that has trained, gradients are cleared: fastai itself leaves zeros, by which weight decay goes on.

    Args:
        schedule: what is frozen from which epoch on, or batch with ``unit="step"``. A warm-up needs one of
            torch's optimizers, in an ``OptimWrapper``.
        freeze: policy, in place of a schedule; without either the model is taken as it comes.
        freeze_mode: preset or ``FreezeMode`` that goes with ``freeze``.
        verify: ``"epoch"`` compares every byte of what is frozen after each epoch; ``"step"`` also looks at a
            sample after each batch; ``False`` never.
        delta: file in which each epoch leaves a delta, without the optimizer's state; or ``None``.
        unit: of the schedule: ``"epoch"`` or ``"step"``.

    Raises:
        FreezeArgumentError: an argument is not one of those; or, from ``fit()``, the optimizer cannot follow.
        FrozenDriftError: from ``fit()``: something frozen moved.

    >>> import torch
    >>> import fastai.callback.progress
    >>> from fastai.learner import Learner
    >>> from fastai.data.core import DataLoaders
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    >>> pairs = [(torch.ones(4), torch.ones(1))] * 6
    >>> dls = DataLoaders.from_dsets(pairs, pairs, bs=3, device="cpu")
    >>> learn = Learner(
    ...     dls, model, torch.nn.MSELoss(), splitter=splitter, cbs=FreezeCallback(freeze="encoder"))
    >>> with learn.no_bar(), learn.no_logging():
    ...     learn.unfreeze()
    ...     learn.fit(1)
    >>> int(model[1].num_batches_tracked), model[1].weight.requires_grad
    (0, False)
    """

    order = -5  # after the callback that puts the model on its device
    name = "freezing"  # the attribute of the Learner; by its class it would replace learn.freeze()

    def __init__(
        self,
        schedule: UnfreezeSchedule | None = None,
        *,
        freeze: str | FreezePolicy | None = None,
        freeze_mode: str | FreezeMode = "eval",
        verify: Literal["epoch", "step", False] = "epoch",
        delta: str | os.PathLike[str] | None = None,
        unit: Literal["epoch", "step"] = "epoch",
    ) -> None:
        check_choices(verify=verify, unit=unit)
        self.session = Session(
            schedule=schedule,
            freeze=freeze,
            freeze_mode=freeze_mode,
            verify=bool(verify),
            delta=delta is not None,
        )
        self.delta_path = delta
        self.unit, self.quick = unit, verify == "step"
        self.is_started = False

    def after_create(self) -> None:
        """Freeze before the optimizer is made, and before ``learn.freeze()``."""
        self.session.prepare(self.learn.model)

    def before_fit(self) -> None:
        """Begin anew with the next epoch that trains: predictions are told of here, too."""
        self.is_started = False

    def before_train(self) -> None:
        """Freeze what is frozen in this epoch."""
        at = self.learn.epoch if self.unit == "epoch" else self.learn.epoch * len(self.learn.dls.train)
        if not self.is_started:
            self._start(at)
        self._advance(at)

    def before_batch(self) -> None:
        """Put on the model what the schedule says of the step."""
        if self.unit == "step" and self.learn.training:
            self._advance(self.learn.epoch * self.learn.n_iter + self.learn.iter)

    def after_batch(self) -> None:
        """Verify by a sample."""
        if self.quick and self.learn.training:
            self.session.check(self.learn.model, quick=True)

    def after_train(self) -> None:
        """Verify, and leave a delta."""
        self.session.check(self.learn.model)
        if self.delta_path is not None:
            self.session.save(self.learn.model, self.delta_path)

    def _start(self, step: int) -> None:
        model, schedule = self.learn.model, self.session.schedule
        if schedule is not None and schedule.warmup and not self._optimizers:
            raise FreezeArgumentError(
                f"A schedule with warmup={schedule.warmup} needs an optimizer of torch: give {_WRAPPER}, or "
                f"warmup=0."
            )
        if freeze_plan(model) is None:
            self._lift()
        self._settle()
        self.session.check_trains(model, (parameter for parameter, *_ in self.learn.opt.all_params()))
        # learn.load() comes before this.
        whole_groups.start(self.session, model, self._optimizers, max(step - 1, 0))
        self._settle()
        self.is_started = True

    def _advance(self, step: int) -> None:
        if whole_groups.advance(self.session, self.learn.model, step, self._optimizers):
            self._settle()
            self._check_thawed()

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizer of torch inside an ``OptimWrapper``; fastai's own are none of torch's."""
        inner = getattr(self.learn.opt, "opt", None)
        return [inner] if isinstance(inner, torch.optim.Optimizer) else []

    def _theirs(self) -> Iterator[nn.Parameter]:
        """What ``learn.freeze_to()`` froze, and what it left out of that to train."""
        opt = self.learn.opt
        yield from (p for p, *_ in opt.all_params(slice(None, opt.frozen_idx))) if opt.frozen_idx else ()

    def _lift(self) -> None:
        """Let what ``learn.freeze()`` froze train, so that it is not taken for what never trains."""
        for parameter in self._theirs():
            parameter.requires_grad_(True)

    def _settle(self) -> None:
        """Freeze what either of the two freezes."""
        for parameter in self._theirs():
            if not self.learn.opt.state[parameter].get("force_train", False):
                set_requires_grad(parameter, False)
        inner = unwrap(self.learn.model)
        refresh_plans(inner)
        for _, module, plan in applied_plans(inner):
            self._check_masks(plan)
            parameters = dict(module.named_parameters(remove_duplicate=False))
            for name in plan.frozen:
                set_requires_grad(parameters[name], False)

    def _check_masks(self, plan: FreezePlan) -> None:
        if plan.masked and not self._optimizers:
            raise FreezeArgumentError(
                f"Single elements of {plan.masked[0]} are frozen, and fastai's own optimizers tell nobody of "
                f"their steps, after which these are put back: give {_WRAPPER}."
            )

    def _check_thawed(self) -> None:
        """Refuse to go on where something thaws that the optimizer has never had."""
        had = {id(parameter) for parameters in self.learn.opt.param_lists for parameter in parameters}
        named = self.learn.model.named_parameters()
        if absent := [name for name, p in named if p.requires_grad and id(p) not in had]:
            raise FreezeArgumentError(
                f"{len(absent)} parameters thaw that the optimizer does not have, the first is {absent[0]}: "
                f"give Learner(splitter=bundles.adapters.fastai.splitter), and call learn.create_opt()."
            )
