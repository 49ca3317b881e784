"""From a name to a model: bundles against upstream's own loader, time and peak memory.

    python benchmarks/load.py [--threads N] [--rounds N] [--cold] [NAME ...]

Every load runs in a process of its own, in turn with its rivals. Warm: the files are in the page cache and
everything is imported before the clock starts. With ``--cold`` the files are dropped from the page cache
before each process, and the clock starts with the process; ``imports`` is what importing alone takes.
Weights are random and of upstream's format and size; the one-time download and conversion come before.
Upstream of the names in ``libraries.py`` is ``Class.from_pretrained(folder)`` of transformers, or
``timm.create_model(name, checkpoint_path=file)``; the aim is 8 x transformers' load, 1.4 x with the forward.
Beside torchaudio's wav2vec 2.0 base runs transformers' of the same size, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from interleaved import measure, report
from libraries import SUBJECTS, saved
from upstream import LOAD_ONCE, checkpoint

SPEECH = ("CREPE_TINY", "CREPE_FULL", "WAV2VEC2_BASE", "WAV2VEC2_LARGE", "WAV2VEC2_XLSR_1B")
NAMES = (*SPEECH, *SUBJECTS)
SAME_SIZE = {"WAV2VEC2_BASE": "HF_WAV2VEC2_BASE"}  # a bundle -> the same model as transformers has it
FIGURES = {
    "load": ("load", "ms"),
    "forward": ("load + first forward", "ms"),
    "peak": ("peak memory of the process at load", "MiB"),
    "above": ("peak memory at load above the imports", "MiB"),
}


def loader(who: str, name: str, files: tuple[Path, ...], *, cold: bool) -> Callable[[], dict[str, float]]:
    """Return a function that loads once in a new process and returns its figures."""

    def run() -> dict[str, float]:
        command = [sys.executable, LOAD_ONCE, who, name, "cold" if cold else "warm"]
        for file in files if cold else ():
            drop(file)
        figures: dict[str, float] = json.loads(
            subprocess.check_output([*command, str(time.monotonic())] if cold else command)
        )
        return figures

    return run


def drop(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(name: str, rounds: int, *, cold: bool) -> None:
    """Run the loaders in turn and print each figure of them."""
    rivals = ["upstream", "bundles", "bundles-frozen", *(["imports"] if cold else [])]
    rivals += ["bundles-folder"] if name in SUBJECTS else []
    made = saved if name in SUBJECTS else checkpoint
    with ExitStack() as stack:
        files = stack.enter_context(made(name, stack.enter_context(tempfile.TemporaryDirectory())))
        loaders = {who: loader(who, name, files, cold=cold) for who in rivals}
        if (other := SAME_SIZE.get(name)) and not cold:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            found = {"BUNDLES_CACHE": os.environ["BUNDLES_CACHE"]}
            theirs = stack.enter_context(saved(other, folder))
            loaders["transformers"] = loader("upstream", other, theirs, cold=False)
            os.environ |= found
        runs = measure(loaders, rounds)
    for figure, (title, unit) in FIGURES.items():
        if not cold or figure in ("load", "forward"):
            figures = {who: [run[figure] for run in found] for who, found in runs.items()}
            report(f"{name}{', cold' if cold else ''}: {title}", figures, unit, "upstream")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    for name in arguments.names:
        compare(name, arguments.rounds, cold=arguments.cold)


if __name__ == "__main__":
    main()
