"""Say what is frozen and held in a model: looked up on the modules, not remembered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from bundles.display import html_table, text_table
from bundles.freezing.apply import own_plan
from bundles.freezing.derive import layer_groups, unwrap
from bundles.freezing.describe import describe
from bundles.freezing.hold import held
from bundles.spec.groups import LayerGroup, LayerGroups
from bundles.spec.plan import FreezePlan, PlannedHold
from bundles.spec.provenance import provenance
from bundles.spec.resolve import home_of, plan_names
from bundles.spec.table import ModuleTable

_COLUMNS = ("group", "role", "#tensors", "#parameters", "#trainable", "state", "held", "weights")


@dataclass(frozen=True)
class GroupStatus:
    """One layer group as it is.

    Attributes:
        name: of the group.
        role: ``"encoder"`` or ``"head"``.
        tensors: number of parameter tensors.
        parameters: number of their elements.
        trainable: number of elements that require grad.
        state: ``"frozen"``, ``"trainable"`` or ``"mixed"``.
        held: what the training flags of its modules do: ``"2 off"``, ``"1 on"``, ``"3 follow"``.
        weights: ``"loaded"``, ``"fresh"``, ``"unknown"`` or ``"mixed"``.
    """

    name: str
    role: str
    tensors: int
    parameters: int
    trainable: int
    state: str
    held: str
    weights: str


@dataclass(frozen=True)
class FreezeReport:
    """The state of a model; prints as a table.

    Attributes:
        groups: one row per layer group, in order.
        across: modules that reach over several groups and are held (a parent with layer drop, say).
        assumed: held modules of unknown make: what their flag does was guessed.
        problems: where the model is not as its plan says. Empty is good.
        plan: the plan that was put on it, or ``None``.
    """

    groups: tuple[GroupStatus, ...]
    across: tuple[str, ...]
    assumed: tuple[str, ...]
    problems: tuple[str, ...]
    plan: FreezePlan | None

    def __str__(self) -> str:
        lines = [text_table(_COLUMNS, self._rows())]
        lines += [f"plan: {self.plan}"] if self.plan else ["plan: none"]
        lines += [f"held across groups: {name}" for name in self.across]
        lines += [f"assumed: {', '.join(self.assumed)}"] if self.assumed else []
        lines += [f"irregular: {problem}" for problem in self.problems]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                g.name,
                g.role,
                str(g.tensors),
                f"{g.parameters:,}",
                f"{g.trainable:,}",
                g.state,
                g.held,
                g.weights,
            )
            for g in self.groups
        ]


def freeze_report(model: nn.Module) -> FreezeReport:
    """Look at a model and say what is frozen, trainable and held, and whether that is what was planned.

    >>> import torch, bundles
    >>> model = bundles.freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)), "encoder")
    >>> [(group.name, group.state) for group in freeze_report(model).groups]
    [('block.0', 'frozen'), ('head', 'trainable')]
    """
    inner = unwrap(model)
    groups, table = layer_groups(inner), describe(inner)
    plan = own_plan(inner)
    home = {row.name: home_of(row.name, groups) for row in table.modules}
    modules = dict(inner.named_modules(remove_duplicate=False))
    held_names = [name for name, module in modules.items() if held(module) is not None]
    return FreezeReport(
        groups=tuple(_status(inner, group, home, table) for group in groups),
        across=tuple(name or type(inner).__name__ for name in held_names if home[name] is None),
        assumed=tuple(h.module for h in plan.holds if h.assumed) if plan else (),
        problems=tuple(_problems(inner, plan, groups, table)) if plan else (),
        plan=plan,
    )


def _status(
    model: nn.Module, group: LayerGroup, home: dict[str, str | None], table: ModuleTable
) -> GroupStatus:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    mine = [parameters[name] for name in group.parameters]
    trainable = sum(p.numel() for p in mine if p.requires_grad)
    total = sum(p.numel() for p in mine)
    modules = [(row, model.get_submodule(row.name)) for row in table.modules if home[row.name] == group.name]
    flags = [_flag(module) for row, module in modules if row.effects or held(module) is not None]
    origins = provenance(model)
    words = {"unknown" if n not in origins else "loaded" if origins[n] else "fresh" for n in group.parameters}
    return GroupStatus(
        name=group.name,
        role=group.role,
        tensors=len(mine),
        parameters=total,
        trainable=trainable,
        state="frozen" if not trainable else "trainable" if trainable == total else "mixed",
        held=", ".join(f"{flags.count(word)} {word}" for word in ("off", "on", "follow") if word in flags),
        weights=words.pop() if len(words) == 1 else "mixed",
    )


def _flag(module: nn.Module) -> str:
    what = held(module)
    if what is None or what.training is None:
        return "follow"
    return "on" if module.training else "off"


def _problems(model: nn.Module, plan: FreezePlan, groups: LayerGroups, table: ModuleTable) -> Iterator[str]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for tensor in plan.tensors:
        parameter = parameters.pop(tensor.name, None)
        if parameter is None:
            yield f"{tensor.name} is in the plan and no longer in the model"
        elif tensor.state != "fixed" and parameter.requires_grad != (tensor.state == "trainable"):
            yield f"{tensor.name} is planned {tensor.state} and has requires_grad={parameter.requires_grad}"
    yield from (f"{name} was added after the freeze" for name in parameters)
    modules = dict(model.named_modules(remove_duplicate=False))
    for planned in _holds_now(plan, groups, table):
        yield from _hold_problem(planned, modules[planned.module])


def _holds_now(plan: FreezePlan, groups: LayerGroups, table: ModuleTable) -> Iterable[PlannedHold]:
    """What would be held if the plan were made today: parts added since then are among them."""
    present = {row.name for row in table.parameters}
    return plan_names(present.intersection(plan.frozen), plan.policy, plan.mode, table, groups).holds


def _hold_problem(planned: PlannedHold, module: nn.Module) -> Iterator[str]:
    name, what = planned.module or type(module).__name__, held(module)
    if what is None:
        yield f"{name} is not held: freeze again to cover it"
    elif planned.cut and not what.cut:
        yield f"{name} records a graph: freeze again to cut it"
    elif planned.training is not None and module.training != planned.training:
        yield f"{name} has training={module.training}, held is {planned.training}: something wrote the flag"
