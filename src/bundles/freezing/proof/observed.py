"""What is found on a model: parameters, masks, held modules and where tensors came from, gathered once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import nn

from bundles.freezing.behaviour.describe import describe
from bundles.freezing.behaviour.hold import held
from bundles.freezing.derive import layer_groups
from bundles.freezing.optimizer.masks import kept_of
from bundles.spec.groups import LayerGroup, LayerGroups
from bundles.spec.mode import PRESETS
from bundles.spec.plan import FreezePlan, PlannedGroup, PlannedTensor, State
from bundles.spec.provenance import provenance
from bundles.spec.resolve import home_of
from bundles.spec.table import Effect, ModuleRow, ModuleTable, lineage

_OFF = {"noise": "off", "stats": "hold", "structure": "off"}
_STATE: dict[bool, State] = {True: "trainable", False: "frozen"}


@dataclass(frozen=True)
class Observed:
    """A model, and what reports look up in it.

    Attributes:
        groups: the layer groups.
        table: modules and parameters as data.
        home: module name -> name of its layer group; ``None`` where it reaches over several.
        modules: by name.
        parameters: by name, tied ones under each.
        masked: parameter name -> number of its elements that are frozen, of masked ones.
        origins: parameter name -> ``"loaded"`` or ``"fresh"``, as far as known.
    """

    groups: LayerGroups
    table: ModuleTable
    home: Mapping[str, str | None]
    modules: Mapping[str, nn.Module]
    parameters: Mapping[str, nn.Parameter]
    masked: Mapping[str, int]
    origins: Mapping[str, str]

    def trained(self, name: str) -> int:
        """Return how many elements of a parameter train."""
        parameter = self.parameters[name]
        return parameter.numel() - self.masked.get(name, 0) if parameter.requires_grad else 0

    @cached_property
    def alias_of(self) -> Mapping[str, str]:
        """Name of a parameter -> its first name, where this is another one."""
        first: dict[int, str] = {}
        names = {name: first.setdefault(id(parameter), name) for name, parameter in self.parameters.items()}
        return {name: other for name, other in names.items() if name != other}

    def rows_of(self, group: LayerGroup) -> list[ModuleRow]:
        """Return the modules of a group."""
        return [row for row in self.table.modules if self.home[row.name] == group.name]

    def held_across(self) -> Iterator[str]:
        """Yield the held modules that reach over several groups."""
        for name, module in self.modules.items():
            if self.home[name] is None and held(module) is not None:
                yield name

    def axes_of(self, rows: Iterable[ModuleRow]) -> str:
        """Say how modules behave, as in ``"noise off, stats hold"``; axes that they lack are left out."""
        found: dict[str, set[str]] = {}
        for row in rows:
            for effect in row.effects:
                found.setdefault(effect, set()).add(_value(effect, row, self.modules[row.name]))
        return ", ".join(f"{axis} {'/'.join(sorted(found[axis]))}" for axis in _OFF if axis in found)

    def gradient_of(self, group: LayerGroup) -> Literal["flow", "cut", "mixed"]:
        """Say whether gradient passes through a group: whether its parameters lie below cut modules."""
        cut = self.below_cuts.intersection(group.parameters)
        return "flow" if not cut else "cut" if len(cut) == len(group.parameters) else "mixed"

    @cached_property
    def below_cuts(self) -> frozenset[str]:
        """The parameters of modules that record no graph, and of modules inside them."""
        cuts = {name for name, module in self.modules.items() if (what := held(module)) and what.cut}
        rows = self.table.parameters if cuts else ()
        return frozenset(row.name for row in rows if not cuts.isdisjoint(lineage(row.module)))

    def plan_as_found(self) -> FreezePlan:
        """Return a plan that freezes what is frozen now: what costs are predicted from."""
        group_of = {name: group.name for group in self.groups for name in group.parameters}
        return FreezePlan(
            policy="as found",
            mode=PRESETS["features" if self.below_cuts else "weights"],
            groups=tuple(PlannedGroup(group.name, group.kind) for group in self.groups),
            tensors=tuple(
                PlannedTensor(
                    name,
                    tuple(p.shape),
                    group_of[name],
                    "trainable" if p.requires_grad else "frozen",
                    alias_of=self.alias_of.get(name),
                )
                for name, p in self.parameters.items()
            ),
            holds=(),
        )


def observe(model: nn.Module) -> Observed:
    """Look at a model."""
    groups, table = layer_groups(model), describe(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    origins = {name: "loaded" if origin else "fresh" for name, origin in provenance(model).items()}
    return Observed(
        groups=groups,
        table=table,
        home={row.name: home_of(row.name, groups) for row in table.modules},
        modules=modules,
        parameters=dict(model.named_parameters(remove_duplicate=False)),
        masked=dict(_masked(modules)),
        origins=origins,
    )


def _masked(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, int]]:
    for prefix, module in modules.items():
        for local, mask in kept_of(module)[1].items():
            yield f"{prefix}.{local}".lstrip("."), mask.count


def _value(axis: Effect, row: ModuleRow, module: nn.Module) -> str:
    """Return the value of an axis as the module has it now."""
    what = held(module)
    if what is None:
        return "follow"
    own = {knob.name for knob in row.knobs if knob.effect == axis}
    if own and own <= {name for name, _ in what.knobs}:
        return _OFF[axis]
    if what.training is None:
        return "follow"
    return ("on" if axis == "noise" else "follow") if module.training else _OFF[axis]
