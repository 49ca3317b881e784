"""What a model does against the plan that was put on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from bundles.errors import InexpressibleModeError
from bundles.freezing.behaviour.checkpointing import checkpointing_problems
from bundles.freezing.behaviour.hold import held
from bundles.freezing.marks import applied_plans
from bundles.freezing.proof.observed import Observed, observe
from bundles.spec.plan import FreezePlan, PlannedHold, PlannedTensor
from bundles.spec.resolve import plan_names


@dataclass(frozen=True)
class Irregularity:
    """One of them.

    Attributes:
        text: what is wrong, as a sentence without its stop.
        group: the layer group that it is in; ``None`` where it reaches over several.
    """

    text: str
    group: str | None = None


def irregularities(model: nn.Module, seen: Observed) -> Iterator[Irregularity]:
    """Yield what is not as planned, by plans put on the model or on parts of it."""
    for prefix, part, plan in applied_plans(model):
        for problem in _against(plan, seen if part is model else observe(part)):
            text = f"{prefix}: {problem.text}" if prefix else problem.text
            group = problem.group if part is model else seen.home[prefix]
            yield Irregularity(text, group)
    yield from (Irregularity(text) for text in checkpointing_problems(model))
    yield from _starved(seen)


def _starved(seen: Observed) -> Iterator[Irregularity]:
    for group in seen.groups:
        for name in sorted(seen.below_cuts.intersection(group.parameters)):
            if seen.parameters[name].requires_grad:
                text = f"{name} requires grad inside a part that records no graph: it gets no gradient"
                yield Irregularity(text, group.name)


def _against(plan: FreezePlan, seen: Observed) -> Iterator[Irregularity]:
    planned = {tensor.name: tensor for tensor in plan.tensors}
    for tensor in plan.tensors:
        yield from (Irregularity(text, tensor.group) for text in _tensor_problems(tensor, seen))
    for group in seen.groups:
        for name in group.parameters:
            if name not in planned:
                yield Irregularity(f"{name} was added after the freeze", group.name)
    try:
        for hold in _holds_now(plan, seen):
            module = seen.modules[hold.module]
            yield from (Irregularity(text, hold.group) for text in _hold_problems(hold, module))
    except InexpressibleModeError as error:
        yield Irregularity(str(error).rstrip("."))


def _tensor_problems(tensor: PlannedTensor, seen: Observed) -> Iterator[str]:
    parameter = seen.parameters.get(tensor.name)
    if parameter is None:
        yield f"{tensor.name} is in the plan and no longer in the model"
    elif tensor.state != "fixed" and parameter.requires_grad != tensor.trains:
        yield f"{tensor.name} is planned {tensor.state} and has requires_grad={parameter.requires_grad}"
    elif tensor.state == "frozen" and parameter.grad is not None:
        yield f"{tensor.name} is frozen and has a .grad, which the next optimizer step would apply"
    elif (elements := seen.masked.get(tensor.name, 0)) != (tensor.mask.count if tensor.mask else 0):
        yield f"{tensor.name} has {elements:,} masked elements, planned are {tensor.frozen_count:,}"


def _holds_now(plan: FreezePlan, seen: Observed) -> Iterable[PlannedHold]:
    """What would be held if the plan were made today: parts added since then are among them."""
    frozen = frozenset(plan.frozen).intersection(seen.parameters)
    return plan_names(frozen, plan.policy, plan.mode, seen.table, seen.groups).holds


def _hold_problems(planned: PlannedHold, module: nn.Module) -> Iterator[str]:
    name, what = planned.module or type(module).__name__, held(module)
    if what is None:
        yield f"{name} is not held: freeze again to cover it"
        return
    if planned.cut and not what.cut:
        yield f"{name} records a graph: freeze again to cut it"
    if planned.training is not None and module.training != planned.training:
        yield f"{name} has training={module.training}, held is {planned.training}: something wrote the flag"
    for knob, value in planned.knobs:
        if (now := getattr(module, knob, None)) != value:
            yield f"{name} has {knob}={now}, held is {value}: something wrote it"
