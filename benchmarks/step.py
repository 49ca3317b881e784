"""A training step under each freeze: time, saved activations and peak memory, predicted and measured.

    python benchmarks/step.py [--rounds N] [--batch N] [--seconds N] [--bundle NAME]
    python benchmarks/step.py --frozen-dtype [--rounds N]

The first prints the table of ``docs/cost.md``: each case in a process of its own, one thread, random weights,
AdamW, layer drop off. The processes stay alive and step in turn, so a machine whose speed drifts treats them
alike; times are medians, speed-ups medians of the ratios round by round. Peak memory is that of the process
above what it had with everything imported, while malloc gives back what is freed. ``--frozen-dtype`` compares
frozen tensors in bfloat16 with the same in float32 under autocast.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

from interleaved import measure, report
from step_once import CASES

from bundles.display import text_table

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
MIB = 2**20


class Case:
    """A process that makes one step each time it is asked, and knows what was predicted."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        script = os.path.join(os.path.dirname(__file__), "step_once.py")
        size = (arguments.bundle, str(arguments.batch), str(arguments.seconds))
        self.process = subprocess.Popen(
            [sys.executable, script, name, *size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **MALLOC},
        )
        self.facts: dict[str, float] = self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        answer: dict[str, float] = json.loads(self.process.stdout.readline())
        return answer

    def step(self) -> float:
        """Make a step and return milliseconds."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._read()["ms"]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def run(names: list[str], arguments: argparse.Namespace) -> tuple[dict[str, Case], dict[str, list[float]]]:
    """Step every case in turn."""
    cases = {name: Case(name, arguments) for name in names}
    stepper: dict[str, Callable[[], float]] = {name: case.step for name, case in cases.items()}
    figures = measure(stepper, arguments.rounds)
    for case in cases.values():
        case.close()
    return cases, figures


def table(arguments: argparse.Namespace) -> None:
    """Print prediction beside measurement."""
    cases, figures = run(list(CASES), arguments)
    full = cases["full"].facts["work"]
    rows = []
    for name, case in cases.items():
        ratios = [whole / part for whole, part in zip(figures["full"], figures[name], strict=True)]
        facts = case.facts
        rows.append(
            (
                name,
                f"{statistics.median(figures[name]):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{full / facts['work']:.2f}",
                f"{facts['saved'] / MIB:.1f}",
                f"{facts['saved predicted'] / MIB:.1f}",
                f"{facts['peak'] / MIB:.0f}",
                f"{facts['peak predicted'] / MIB:.0f}",
            )
        )
    columns = (
        "case",
        "#ms",
        "#speed-up",
        "#predicted",
        "#saved MiB",
        "#predicted",
        "#peak MiB",
        "#predicted",
    )
    print(text_table(columns, rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default="WAV2VEC2_BASE")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frozen-dtype", action="store_true")
    arguments = parser.parse_args()
    if arguments.frozen_dtype:
        names = ["head only, autocast", "head only, autocast, frozen in bfloat16"]
        cases, figures = run(names, arguments)
        report("frozen weights in float32 and in bfloat16", figures, "ms", names[0])
        for name, case in cases.items():
            print(name, {key: round(value / MIB, 1) for key, value in case.facts.items() if "peak" in key})
        print("deviation from float32 without autocast:", cases[names[1]].facts["deviation"])
    else:
        table(arguments)


if __name__ == "__main__":
    main()
