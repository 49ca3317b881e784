"""Load one model, once, in a process of its own, and print what it took; ``load.py`` runs this.

    python benchmarks/load_once.py bundles|bundles-frozen|upstream|imports NAME warm|cold|wait [START]

``warm`` begins when everything is imported, ``cold`` at START, when the process was started. ``wait`` goes
on until its input is closed, for ``shared_memory.py``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libraries

MODULES = (
    *("torch", "torchaudio", "torchaudio.pipelines", "bundles.assemble.model", "bundles.builders.load"),
    *(
        "bundles.builders.keys",
        "bundles.builders.tensors",
        "bundles.builders.pickles",
        "bundles.builders.head",
    ),
    *("bundles.builders.torchaudio.speech", "bundles.builders.torchaudio.wrapper", "bundles.builders.table"),
    *(
        "bundles.freezing.api",
        "bundles.sources.fetch",
        "bundles.sources.converted",
        "bundles.sources.web.download",
    ),
)


def loader(who: str, name: str) -> Callable[[], Any]:
    """Return the function that is measured: from a name to a model."""
    if name in libraries.SUBJECTS and who != "imports":
        return libraries.loader(who, name)
    if who.startswith("bundles"):
        import bundles

        how = {"freeze": "all", "freeze_mode": "features"} if who == "bundles-frozen" else {}
        bundle = bundles.get_bundle(name)  # as the constants that torchaudio makes when it is imported
        return lambda: bundle.get_model(**how)
    if who == "imports":
        return lambda: [importlib.import_module(module) for module in modules(name)]
    if name.startswith("CREPE"):
        return lambda: torchcrepe_model(name.removeprefix("CREPE_").lower())
    return lambda: importlib.import_module("torchaudio.pipelines").__dict__[name].get_model()


def torchcrepe_model(size: str) -> Any:
    """Load a CREPE model as torchcrepe does."""
    import torchcrepe

    torchcrepe.load.model("cpu", size)
    return torchcrepe.infer.model


def forward(model: Any, name: str) -> None:
    """Run the model once: on a second of speech, on 16 frames, or on what its library takes."""
    import torch

    if name in libraries.SUBJECTS:
        libraries.forward(model, name)
        return

    with torch.inference_mode():
        model(torch.zeros(16, 1024) if name.startswith("CREPE") else torch.zeros(1, 16_000))


def memory(figure: str) -> float:
    """Return a figure of this process's memory in MiB. ``ru_maxrss`` would survive exec."""
    return int(Path("/proc/self/status").read_text().split(f"{figure}:")[1].split()[0]) / 1024


def modules(name: str) -> tuple[str, ...]:
    """Return what either side imports for a model."""
    if name in libraries.SUBJECTS:
        own = "timm" if libraries.SUBJECTS[name].config is None else "transformers"
        return (*(module for module in MODULES if "torchaudio" not in module), own)
    return (*MODULES, *(["torchcrepe"] if name.startswith("CREPE") else []))


def settle(who: str, name: str) -> None:
    """Import everything, start torch's threads, and forget the peak so far.

    transformers imports at its first use, and so does timm: a small model is loaded the same way.
    """
    import torch

    for module in modules(name):
        importlib.import_module(module)
    if name in libraries.SUBJECTS:
        libraries.loader(who, name, "small")()
    torch.nn.Linear(512, 512)(torch.nn.Conv1d(1, 512, 10)(torch.zeros(1, 1, 16_000)).mT)
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Measure and print."""
    who, name, when, *rest = sys.argv[1:]
    warnings.simplefilter("ignore")
    run = loader(who, name)
    if when != "cold":
        settle(who, name)
    before, start = memory("VmRSS"), float(rest[0]) if rest else time.monotonic()
    model = run()
    loaded, peak = time.monotonic(), memory("VmHWM")
    if who != "imports":
        forward(model, name)
    done = time.monotonic()
    figures = {"load": (loaded - start) * 1e3, "forward": (done - start) * 1e3}
    print(json.dumps({**figures, "peak": peak, "above": peak - before}), flush=True)
    if when == "wait":
        sys.stdin.read()
    os._exit(0)  # unmapping is nobody's load time


if __name__ == "__main__":
    main()
