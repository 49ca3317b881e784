"""The plots of docs/strategies.md: means with standard errors, as small SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from tables import spread

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "bundles", "svg.fonttype": "none", "font.size": 9})
Results = Mapping[str, Mapping[str, Sequence[float]]]


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Write one file per experiment."""
    _bars(results["digits"], "accuracy, %", folder / "strategies-lp-ft.svg", floor=40)
    _bars(results["surgical"], "accuracy after the shift, %", folder / "strategies-surgical.svg")
    _bars(results["budget"], "accuracy after the shift, %", folder / "strategies-budget.svg", floor=60)


def _bars(results: Results, label: str, path: Path, floor: float = 0) -> None:
    """Draw a cluster of bars per key, with a bar per value of it."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    names = list(next(iter(results.values())))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        points = [spread(row[name]) for row in results.values()]
        places = [place - 0.4 + width * (index + 0.5) for place in range(len(points))]
        means, errors = zip(*points, strict=True)
        axes.bar(places, means, width * 0.9, yerr=errors, label=name, error_kw={"linewidth": 0.7})
    axes.set_xticks(range(len(results)), list(results))
    axes.set_ylabel(label)
    axes.set_ylim(floor, 100)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
