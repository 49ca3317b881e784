"""A delta of a head over a frozen encoder beside whole checkpoints: size, time to save, time to load.

    python benchmarks/delta.py [--threads N] [--rounds N] [NAME]

Weights are random and of upstream's format and size, in a file that the bundle names. Saving is from the
model in memory to a synced file, loading from the file to a model that is ready to train: for a delta the
bundle built anew from its own file and the head put on it; for a whole checkpoint the same, then
``load_state_dict``, or the upstream class without pretrained weights, then ``load_state_dict``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchaudio
from interleaved import measure, report
from safetensors.torch import load_file, save_file

import bundles
from bundles.heads import MeanPoolClassifier

CLASSES = 10


def head(size: int) -> torch.nn.Module:
    """Return the head that is trained."""
    return MeanPoolClassifier(size, CLASSES)


def registered(name: str, folder: Path) -> bundles.Bundle:
    """Return the bundle, its weights random and in a file."""
    bundle, path = bundles.get_bundle(name), folder / "base.safetensors"
    torch.manual_seed(0)
    state = bundle.get_model(pretrained=False).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    path.chmod(0o444)
    time.sleep(2.5)  # a file that was changed a moment ago is hashed each time
    made = replace(bundle, name="BENCHMARK", weights=bundles.WeightSource(f"file:{path}"), origin="Python")
    bundles.register(made)
    return made


def synced(path: Path) -> Path:
    """Write a file to disk, as a delta is."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that says how many milliseconds another takes."""

    def measured() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", default="WAV2VEC2_BASE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["BUNDLES_CACHE"] = f"{folder}/cache"
        compare(registered(arguments.name, folder), folder, arguments.rounds)


def compare(bundle: bundles.Bundle, folder: Path, rounds: int) -> None:
    """Save and load each way, in turn."""
    model = bundle.get_model(head=head, freeze=True)
    files = {kind: folder / f"run.{kind}" for kind in ("torch.save", "safetensors", "delta")}
    saves: dict[str, Callable[[], Any]] = {
        "torch.save": lambda: (
            torch.save(model.state_dict(), files["torch.save"]),
            synced(files["torch.save"]),
        ),
        "safetensors": lambda: (
            save_file(model.state_dict(), files["safetensors"]),
            synced(files["safetensors"]),
        ),
        "delta": lambda: bundles.save_delta(model, files["delta"]),
    }
    saved = measure({kind: timed(run) for kind, run in saves.items()}, rounds)
    size = {kind: [path.stat().st_size / 2**20] for kind, path in files.items()}
    report(f"{bundle.name}: size", size, "MiB", "torch.save")
    report(f"{bundle.name}: save", saved, "ms", "torch.save")

    def whole(read: Callable[[Path], Any], kind: str) -> Callable[[], Any]:
        return lambda: bundle.get_model(head=head, freeze=True).load_state_dict(read(files[kind]))

    def upstream() -> Any:
        encoder = torchaudio.models.wav2vec2_base()
        made = bundles.EncoderWithHead(encoder, head(768))
        return made.load_state_dict(torch.load(files["torch.save"], weights_only=True))

    loads: dict[str, Callable[[], Any]] = {
        "torch.save": whole(lambda path: torch.load(path, weights_only=True), "torch.save"),
        "safetensors": whole(load_file, "safetensors"),
        "upstream class": upstream,
        "delta": lambda: bundles.load_delta(files["delta"]),
        "delta onto a model": lambda: bundles.load_delta(files["delta"], model),
    }
    loaded = measure({kind: timed(run) for kind, run in loads.items()}, rounds)
    report(f"{bundle.name}: load", loaded, "ms", "torch.save")


if __name__ == "__main__":
    main()
