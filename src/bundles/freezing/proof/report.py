"""Say what is frozen and held in a model: looked up on the modules, not remembered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from bundles.display import html_table, text_table
from bundles.freezing.apply import refresh_plans
from bundles.freezing.derive import unwrap
from bundles.freezing.marks import own_plan
from bundles.freezing.proof.irregular import Irregularity, irregularities
from bundles.freezing.proof.observed import Observed, observe
from bundles.spec.cost import parameter_counts, step_cost
from bundles.spec.groups import LayerGroup
from bundles.spec.plan import FreezePlan

_WIDTH = 120


@dataclass(frozen=True)
class GroupStatus:
    """One layer group as it is.

    Attributes:
        name: of the group.
        role: ``"encoder"`` or ``"head"``.
        tensors: number of parameter tensors.
        parameters: number of their elements; of a tensor in several groups the first counts them.
        trainable: number of elements that train.
        frozen: number of elements that do not, masked ones included.
        masked: number of frozen elements in tensors whose other elements train.
        state: ``"frozen"``, ``"trainable"`` or ``"mixed"``.
        held: how its modules behave, by axis, as in ``"noise off, stats hold"``; ``"noise follow/off"``
            where they differ; empty where none depends on its ``training`` flag.
        gradient: ``"flow"``, ``"cut"`` or ``"mixed"``.
        weights: ``"loaded"``, ``"fresh"``, ``"unknown"`` or ``"mixed"``.
        irregular: what is not as planned.
    """

    name: str
    role: str
    tensors: int
    parameters: int
    trainable: int
    frozen: int
    masked: int
    state: str
    held: str
    gradient: str
    weights: str
    irregular: tuple[str, ...]


@dataclass(frozen=True)
class FreezeReport:
    """The state of a model; prints as a table.

    Attributes:
        groups: one row per layer group, in order.
        across: modules that reach over several groups and are held (a parent with layer drop, say).
        assumed: held modules of unknown make: what their flag does was guessed.
        problems: where the model is not as its plan says, those of the groups included. Empty is good.
        plan: the plan that was put on it, or ``None``.
        step_cost: predicted cost of a training step, as a share of one that trains everything.
        costs: what that is predicted from: ``"given"``, or ``"parameters"`` standing in for operations.
    """

    groups: tuple[GroupStatus, ...]
    across: tuple[str, ...]
    assumed: tuple[str, ...]
    problems: tuple[str, ...]
    plan: FreezePlan | None
    step_cost: float
    costs: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as data that JSON can hold, the plan as its line.

        >>> report = freeze_report(nn.Linear(2, 1))
        >>> report.to_dict()["groups"][0]["trainable"]
        3
        """
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        groups = [asdict(group) for group in self.groups]
        return {**own, "groups": groups, "plan": str(self.plan) if self.plan else None}

    def __str__(self) -> str:
        return "\n".join([text_table(*self._table(), width=_WIDTH), *self._notes()])

    def _repr_html_(self) -> str:
        from html import escape

        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        return html_table(*self._table()) + notes

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        columns = {
            "group": [group.name for group in self.groups],
            "#parameters": [f"{group.parameters:,}" for group in self.groups],
            "#trainable": [f"{group.trainable:,}" for group in self.groups],
            "#frozen": [f"{group.frozen:,}" for group in self.groups],
            "#masked": [f"{group.masked:,}" for group in self.groups],
            "held": [group.held for group in self.groups],
            "gradient": [group.gradient for group in self.groups],
            "weights": [group.weights for group in self.groups],
            "#irregular": [str(len(group.irregular)) for group in self.groups],
        }
        if not any(group.masked for group in self.groups):
            del columns["#masked"]
        return tuple(columns), list(zip(*columns.values(), strict=True))

    def _notes(self) -> list[str]:
        stand_in = ", parameters standing in for operations" if self.costs == "parameters" else ""
        return [
            f"plan: {self.plan or 'none'}",
            f"predicted step cost: {self.step_cost:.2f} of training everything{stand_in}",
            *(f"held across groups: {name}" for name in self.across),
            *([f"assumed: {', '.join(self.assumed)}"] if self.assumed else []),
            *(f"irregular: {problem}" for problem in self.problems),
        ]


def freeze_report(model: nn.Module, *, costs: Mapping[str, float] | None = None) -> FreezeReport:
    """Look at a model and say what is frozen, trainable and held, and whether that is what was planned.

    Args:
        model: any module.
        costs: module name -> operations of its forward, in the order in which modules run, to predict
            the cost of a step from. Without it the number of their parameters stands in.

    >>> import torch, bundles
    >>> model = bundles.freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)), "encoder")
    >>> [(group.name, group.state) for group in freeze_report(model).groups]
    [('block.0', 'frozen'), ('head', 'trainable')]
    """
    inner = unwrap(model)
    refresh_plans(inner)
    seen, plan = observe(inner), own_plan(inner)
    problems = list(irregularities(inner, seen))
    found = seen.plan_as_found()
    return FreezeReport(
        groups=tuple(_status(group, seen, problems) for group in seen.groups),
        across=tuple(name or type(inner).__name__ for name in seen.held_across()),
        assumed=tuple(hold.module for hold in plan.holds if hold.assumed) if plan else (),
        problems=tuple(problem.text for problem in problems),
        plan=plan,
        step_cost=step_cost(found, parameter_counts(found) if costs is None else costs),
        costs="parameters" if costs is None else "given",
    )


def _status(group: LayerGroup, seen: Observed, problems: Iterable[Irregularity]) -> GroupStatus:
    counted = [name for name in group.parameters if name not in seen.alias_of]
    parameters = sum(seen.parameters[name].numel() for name in counted)
    trainable = sum(seen.trained(name) for name in counted)
    trains = [seen.trained(name) == seen.parameters[name].numel() for name in group.parameters]
    is_frozen = not any(map(seen.trained, group.parameters))
    origins = {seen.origins.get(name, "unknown") for name in group.parameters}
    return GroupStatus(
        name=group.name,
        role=group.role,
        tensors=len(group.parameters),
        parameters=parameters,
        trainable=trainable,
        frozen=parameters - trainable,
        masked=sum(seen.masked.get(name, 0) for name in counted),
        state="frozen" if is_frozen else "trainable" if all(trains) else "mixed",
        held=seen.axes_of(seen.rows_of(group)),
        gradient=seen.gradient_of(group),
        weights=origins.pop() if len(origins) == 1 else "mixed",
        irregular=tuple(problem.text for problem in problems if problem.group == group.name),
    )
