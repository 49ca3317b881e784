"""Run every experiment of docs/strategies.md; about nine minutes on one core.

python benchmarks/strategies/run.py --write            results.json, the plots, the tables of the page
python benchmarks/strategies/run.py --write --stored   the same from the results.json that is there
python benchmarks/strategies/run.py --seeds 2          fewer seeds, to look at
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import budget
import lp_ft
import sklearn
import surgical
import tables
import torch

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
STORED = HERE / "results.json"


def measure(seeds: int, epochs: int) -> dict[str, Any]:
    """Return all results, and what they were made with."""
    torch.set_num_threads(1)
    start, each = time.process_time(), range(seeds)
    results = {
        "digits": lp_ft.on_digits(each, epochs),
        "theory": lp_ft.on_two_linear_layers(each, steps=100 * epochs),
        "surgical": surgical.run(each, epochs),
        "budget": budget.run(each, epochs),
    }
    made_with = {
        "seeds": seeds,
        "epochs": epochs,
        "torch": torch.__version__.partition("+")[0],
        "scikit-learn": sklearn.__version__,
        "CPU seconds": round(time.process_time() - start),
    }
    return {"made with": made_with, **_rounded(results)}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [round(each, 5) for each in value]


def write(results: dict[str, Any]) -> None:
    """Write results, plots and tables."""
    import plots

    STORED.write_text(json.dumps(results, indent=1) + "\n")
    plots.draw(results, DOCS / "images")
    page = DOCS / "strategies.md"
    page.write_text(tables.replaced(page.read_text(), results))


def main() -> None:
    """Measure or read; write or print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--stored", action="store_true", help="take results.json instead of measuring")
    parser.add_argument("--write", action="store_true", help="write results.json, plots and tables")
    given = parser.parse_args()
    results = json.loads(STORED.read_text()) if given.stored else measure(given.seeds, given.epochs)
    if given.write:
        write(results)
    print(json.dumps(results["made with"]), *tables.tables(results).values(), sep="\n\n")


if __name__ == "__main__":
    main()
