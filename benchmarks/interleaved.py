"""Run rivals in turn, so that a machine whose speed drifts treats them alike; report medians and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TypeVar

from bundles.display import text_table

T = TypeVar("T")


def measure(rivals: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every rival once per round, after one round that does not count."""
    figures: dict[str, list[T]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name, run in rivals.items():
            figure = run()
            if number:
                figures[name].append(figure)
    return figures


def report(title: str, figures: Mapping[str, list[float]], unit: str, reference: str) -> None:
    """Print minimum, median and maximum, and the median of the ratios taken round by round."""
    rows = []
    for name, values in figures.items():
        ratios = [theirs / ours for theirs, ours in zip(figures[reference], values, strict=True)]
        spread = (min(values), statistics.median(values), max(values))
        rows.append((name, *(f"{value:.1f}" for value in spread), f"{statistics.median(ratios):.2f}"))
    columns = (title, f"#min {unit}", f"#median {unit}", f"#max {unit}", f"#{reference} / this")
    print(text_table(columns, rows), end="\n\n")
