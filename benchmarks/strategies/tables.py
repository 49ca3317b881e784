"""The tables of docs/strategies.md, made of the stored results and of nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any

Results = Mapping[str, Mapping[str, Sequence[float]]]  # column or row -> method -> a number per seed
Best = Callable[[Iterable[float]], float]


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> Markdown table, of means ± standard errors."""
    return {
        "digits": _methods_down("accuracy, %", results["digits"]),
        "theory": _methods_down("squared error", results["theory"], digits=3, best=min),
        "surgical": _methods_down("trained", results["surgical"]),
        "budget": _methods_across("shift, blocks", results["budget"]),
    }


def replaced(page: str, results: Mapping[str, Any]) -> str:
    """Return the page with each table between its two comments replaced."""
    for name, table in tables(results).items():
        start, end = f"<!-- table: {name} -->", "<!-- end -->"
        pattern = re.compile(f"{re.escape(start)}\n.*?{re.escape(end)}", re.DOTALL)
        page, count = pattern.subn(f"{start}\n\n{table}\n\n{end}", page)
        if count != 1:
            raise ValueError(f"The page has {count} places for the table {name!r}, expected is 1.")
    return page


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error."""
    return mean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


def _methods_down(corner: str, results: Results, digits: int = 1, best: Best = max) -> str:
    """A row per method, and the best of each column in bold."""
    columns = [_cells(methods, digits, best) for methods in results.values()]
    return _table((corner, *results), zip(_first(results), *columns, strict=True))


def _methods_across(corner: str, results: Results, digits: int = 1, best: Best = max) -> str:
    """A column per method, and the best of each row in bold."""
    rows = ((name, *_cells(methods, digits, best)) for name, methods in results.items())
    return _table((corner, *_first(results)), rows)


def _cells(methods: Mapping[str, Sequence[float]], digits: int, best: Best) -> list[str]:
    top = best(map(mean, methods.values()))
    cells = []
    for values in methods.values():
        cell = "{:.{d}f} ± {:.{d}f}".format(*spread(values), d=digits)
        cells.append(f"**{cell}**" if mean(values) == top else cell)
    return cells


def _first(results: Results) -> list[str]:
    return list(next(iter(results.values())))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
