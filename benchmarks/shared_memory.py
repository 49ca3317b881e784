"""What processes on one machine hold together: the same frozen model in each, bundles against torchaudio.

    python benchmarks/shared_memory.py [--processes N] [NAME]

Proportional memory (PSS) counts a page that N processes share as 1/N in each, so that the sum over all is
what they really take. Each process loads the model and runs it once; ``imports`` only imports.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from upstream import LOAD_ONCE, checkpoint

from bundles.display import text_table

NAME = "WAV2VEC2_LARGE"
RIVALS = ("imports", "upstream", "bundles-frozen")


def held(who: str, name: str, processes: int) -> float:
    """Return the proportional memory, in MiB, of some processes with one model each."""
    command = [sys.executable, LOAD_ONCE, who, name, "wait"]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):  # one after the other: loading takes more than what is loaded
            running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert running[-1].stdout is not None
            running[-1].stdout.readline()
        return sum(proportional(process.pid) for process in running)
    finally:
        for process in running:
            process.communicate()


def proportional(pid: int) -> float:
    """Return the proportional memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("\nPss:")[1].split()[0]) / 1024


def cells(mib: float, most: float, base: float) -> tuple[str, ...]:
    """Return a row's figures: all of it, what is the model's, and both as ratios to the most."""
    own = f"{(most - base) / (mib - base):.2f}" if mib > base else ""
    return f"{mib:.0f}", f"{mib - base:.0f}", f"{most / mib:.2f}", own


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", default=NAME)
    parser.add_argument("--processes", type=int, default=4)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder, checkpoint(arguments.name, folder):
        found = {who: held(who, arguments.name, arguments.processes) for who in RIVALS}
    base, most = found["imports"], found["upstream"]
    rows = [(who, *cells(mib, most, base)) for who, mib in found.items()]
    title = f"{arguments.name} in {arguments.processes} processes"
    columns = (title, "#MiB together", "#above imports", "#upstream / this", "#the same, above imports")
    print(text_table(columns, rows))


if __name__ == "__main__":
    main()
