"""Turn a policy and a mode into a plan: pure, without a model and without weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_

from bundles.errors import InexpressibleModeError, NothingSelectedError
from bundles.spec.behaviour import Part, behaviour_of
from bundles.spec.cut import check_cut
from bundles.spec.groups import LayerGroups
from bundles.spec.masks import Mask
from bundles.spec.mode import FreezeMode
from bundles.spec.plan import FreezePlan, PlannedGroup, PlannedHold, PlannedTensor, State
from bundles.spec.policy import Candidates, FreezePolicy, Nothing
from bundles.spec.selection import Selection
from bundles.spec.table import ModuleRow, ModuleTable, ParameterRow, lineage


def resolve(
    policy: FreezePolicy,
    mode: FreezeMode,
    table: ModuleTable,
    groups: LayerGroups,
    loaded: Iterable[str] = (),
) -> FreezePlan:
    """Work out what a policy and a mode mean for one model.

    Args:
        policy: which parameters are frozen.
        mode: how the frozen part behaves.
        table: the model's modules and parameters.
        groups: the partition that the policy speaks of.
        loaded: the parameters that come from pretrained weights.

    Raises:
        NothingSelectedError: the policy selects no parameter and is not ``Nothing()``.
        InexpressibleModeError: one flag of a known module would need two values, or the gradient is to
            be cut where something inside trains.
    """
    chosen = choose(policy, table, groups, loaded)
    plan = plan_names(chosen.whole, repr(policy), mode, table, groups, chosen.parts)
    check_cut(mode, table, chosen.whole, groups)
    return plan


def choose(
    policy: FreezePolicy, table: ModuleTable, groups: LayerGroups, loaded: Iterable[str] = ()
) -> Selection:
    """Return what a policy selects, under every name of the same parameters.

    Raises:
        NothingSelectedError: that is nothing, and the policy is not ``Nothing()``.
    """
    names = tuple(row.name for row in table.parameters)
    shapes = {row.name: row.shape for row in table.parameters}
    chosen = policy.choose(Candidates(names, groups, frozenset(loaded), shapes))
    if not names and policy != Nothing():
        raise NothingSelectedError("The model has no parameters, so there is nothing to freeze.")
    if not chosen and policy != Nothing():
        raise NothingSelectedError(
            f"The policy {policy!r} selects no parameter; the groups are {', '.join(groups.names)}, "
            f"and the first parameters are {', '.join(names[:3])}.",
            groups=groups.names,
        )
    return _tied(chosen, table)


def plan_names(
    names: Iterable[str],
    policy: str,
    mode: FreezeMode,
    table: ModuleTable,
    groups: LayerGroups,
    masks: Mapping[str, Mask] | None = None,
) -> FreezePlan:
    """Return the plan that freezes exactly these parameters and elements, under all their names."""
    chosen = _tied(Selection.of(names, masks or {}), table)
    frozen = chosen.whole
    _check_noise(mode, groups, frozen)
    group_of = {name: group.name for group in groups for name in group.parameters}
    return FreezePlan(
        policy=policy,
        mode=mode,
        groups=tuple(PlannedGroup(group.name, group.kind, group.match, group.always) for group in groups),
        tensors=tuple(_planned(row, chosen, group_of) for row in table.parameters),
        holds=tuple(_holds(table, parts_of(table, frozen, groups), mode, groups)),
    )


def _check_noise(mode: FreezeMode, groups: LayerGroups, frozen: frozenset[str]) -> None:
    noisy = [g.name for g in groups if g.always == "noise" and not frozen.isdisjoint(g.parameters)]
    if noisy and mode.noise == "off":
        raise InexpressibleModeError(
            f"The group {', '.join(noisy)} draws dropout at every call, in eval(), too, so the mode {mode} "
            f"cannot make it deterministic: leave it trainable, or take freeze_mode='regularized' or "
            f"'weights', which do not promise that.",
            groups=tuple(noisy),
        )


def with_ties(names: Iterable[str], table: ModuleTable) -> frozenset[str]:
    """Return the names and every other name of the same parameters."""
    chosen = frozenset(names)
    return frozenset(row.name for row in table.parameters if not chosen.isdisjoint(row.tied))


def _tied(chosen: Selection, table: ModuleTable) -> Selection:
    """The same under every name of the same parameters; what is frozen under one name is frozen."""
    masks: dict[str, Mask] = {}
    for row in table.parameters if chosen.parts else ():
        if found := [chosen.parts[name] for name in row.tied if name in chosen.parts]:
            masks[row.name] = reduce(or_, found)
    return Selection.of(with_ties(chosen.whole, table), masks)


def _planned(row: ParameterRow, chosen: Selection, group_of: dict[str, str]) -> PlannedTensor:
    group, mask = group_of.get(row.name, ""), chosen.parts.get(row.name)
    alias = None if row.tied[0] == row.name else row.tied[0]
    if row.name in chosen.whole:
        return PlannedTensor(row.name, row.shape, group, "frozen", alias_of=alias)
    if not row.trainable:
        return PlannedTensor(row.name, row.shape, group, "fixed", alias_of=alias)
    state: State = "trainable" if mask is None else "masked"
    return PlannedTensor(row.name, row.shape, group, state, mask, alias)


def home_of(module: str, groups: LayerGroups) -> str | None:
    """Return the name of the one group that a module belongs to; ``None`` where it reaches over several."""
    if inside := groups.below.get(module):
        return inside[0] if len(inside) == 1 else None
    if group := groups.of_module(module):
        return group.name
    return home_of(module.rpartition(".")[0], groups) if module else None


# --- which modules belong to the frozen part ------------------------------------------------------


@dataclass
class _Census:
    """What is known of the parameters below a module."""

    total: int = 0
    frozen: int = 0
    last_frozen: int = -1  # position of the last module below that owns a frozen parameter


def parts_of(table: ModuleTable, frozen: frozenset[str], groups: LayerGroups) -> dict[str, Part]:
    """Say of each module whether it belongs to the frozen part, to the rest, or reaches over both.

    ``"presumed"`` is ``"frozen"`` as far as can be told.
    """
    position = {row.name: index for index, row in enumerate(table.modules)}
    census = {row.name: _Census() for row in table.modules}
    for parameter in table.parameters:
        for name in lineage(parameter.module):
            below = census[name]
            below.total += 1
            if parameter.name in frozen:
                below.frozen += 1
                below.last_frozen = max(below.last_frozen, position[parameter.module])
    whole = {group.name: frozen.issuperset(group.parameters) for group in groups}
    training = {parameter.module for parameter in table.parameters if parameter.name not in frozen}
    rows = {row.name: row for row in table.modules}
    parts: dict[str, Part] = {}
    for row in table.modules:
        owner = next((name for name in lineage(row.name) if census[name].total), None)
        if owner is None or not census[owner].frozen:
            parts[row.name] = "free"
        elif census[owner].frozen == census[owner].total:
            parts[row.name] = "frozen"
        elif owner == row.name:
            parts[row.name] = "mixed"
        elif group := groups.of_module(row.name):
            adapted = owner not in training and _is_adapted(owner, census)
            parts[row.name] = "frozen" if whole[group.name] else "presumed" if adapted else "free"
        elif position[row.name] < census[owner].last_frozen:
            parts[row.name] = "frozen"  # something frozen comes after it, and may read its output
        else:
            parts[row.name] = _between(row, rows[owner], table, frozen)
    return parts


def _is_adapted(owner: str, census: Mapping[str, _Census]) -> bool:
    """Whether no child trains as a whole: something does further in, as adapters in frozen layers do."""
    children = (below for name, below in census.items() if name and name.rpartition(".")[0] == owner)
    return all(below.frozen for below in children if below.total)


def _between(row: ModuleRow, owner: ModuleRow, table: ModuleTable, frozen: frozenset[str]) -> Part:
    """Place a module without parameters that no group names and nothing frozen is registered after.

    Statistics after a frozen layer are that layer's. A dropout may be used anywhere in its owner's
    forward, unless the owner runs its children in order; beside bare frozen layers it is presumed to
    be used between them, after a frozen model to belong to what follows.
    """
    owners = {parameter.module: parameter.name in frozen for parameter in table.parameters}
    names = [entry.name for entry in table.modules]
    start = f"{owner.name}." if owner.name else ""
    earlier = [name for name in names[: names.index(row.name)] if name.startswith(start) and name in owners]
    if not earlier or not owners[earlier[-1]]:
        return "free"
    if "stats" in row.effects:
        return "frozen"
    is_bare = earlier[-1].rpartition(".")[0] == owner.name
    return "presumed" if is_bare and not owner.ordered else "free"


# --- how they are held ----------------------------------------------------------------------------


def _holds(
    table: ModuleTable, parts: dict[str, Part], mode: FreezeMode, groups: LayerGroups
) -> Iterable[PlannedHold]:
    impossible = []
    entries = {row.name for row in table.modules if row.called and parts[row.name] == "frozen"}
    for row in table.modules:
        behaviour = behaviour_of(row, parts[row.name], mode)
        if not behaviour.expressible:
            impossible.append(row.name)
        cut = mode.grad == "cut" and row.name in entries and not entries.intersection(_above(row.name))
        flag, knobs = behaviour.training, behaviour.knobs
        if flag is not None or cut or knobs:
            assumed = flag is not None and (row.assumed or parts[row.name] == "presumed")
            yield PlannedHold(row.name, flag, cut, assumed, home_of(row.name, groups), knobs)
    if impossible:
        raise InexpressibleModeError(
            f"The mode {mode} asks for two behaviours that hang on one flag in "
            f"{', '.join(name or 'the model itself' for name in impossible)}: choose noise, stats and "
            f"structure that go together there, as 'eval' or 'weights' do.",
            modules=tuple(impossible),
        )


def _above(module: str) -> Iterable[str]:
    return (name for name in lineage(module) if name != module)
