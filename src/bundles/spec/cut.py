"""What a cut gradient cannot serve: something that trains inside a part that records no graph."""

from __future__ import annotations

from collections.abc import Iterator

from bundles.errors import InexpressibleModeError
from bundles.spec.groups import LayerGroups
from bundles.spec.mode import FreezeMode
from bundles.spec.table import ModuleTable, ParameterRow, lineage


def check_cut(mode: FreezeMode, table: ModuleTable, frozen: frozenset[str], groups: LayerGroups) -> None:
    """Refuse to cut a module of one layer group that holds frozen and trainable parameters.

    Adapters inside a frozen block and policies that leave biases to train are such. A part that trains
    *beside* the frozen one is none: modules that reach over several groups are never cut as a whole.

    Raises:
        InexpressibleModeError: there is one; ``modules`` and ``groups`` name it.
    """
    if mode.grad != "cut" or not (mixed := _mixed(table, frozen, groups)):
        return
    inside = [
        row.name
        for row in table.parameters
        if _trains(row, frozen) and not mixed.keys().isdisjoint(lineage(row.module))
    ]
    outermost = [name for name in mixed if not mixed.keys() & (set(lineage(name)) - {name})]
    more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
    raise InexpressibleModeError(
        f"The mode {mode} records no graph in what is frozen, so {', '.join(inside[:3])}{more} inside "
        f"{', '.join(outermost[:3])} would get no gradient: take freeze_mode='eval', which lets it flow, "
        f"freeze whole groups, or give groups= that tell the two apart.",
        modules=tuple(outermost),
        groups=tuple(dict.fromkeys(mixed.values())),
    )


def _mixed(table: ModuleTable, frozen: frozenset[str], groups: LayerGroups) -> dict[str, str]:
    """Return each called module of one group in which something is frozen and something trains."""
    with_frozen = set(_around(row for row in table.parameters if row.name in frozen))
    with_trained = set(_around(row for row in table.parameters if _trains(row, frozen)))
    both = with_frozen & with_trained
    called = (row.name for row in table.modules if row.called and row.name in both)
    return {name: groups.below[name][0] for name in called if len(groups.below[name]) == 1}


def _around(rows: Iterator[ParameterRow]) -> Iterator[str]:
    """Every module around the parameters; a tied one counts where it is named first."""
    for row in rows:
        if row.name == row.tied[0]:
            yield from lineage(row.module)


def _trains(row: ParameterRow, frozen: frozenset[str]) -> bool:
    return row.trainable and row.name not in frozen
