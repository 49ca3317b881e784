"""How fast features are extracted: one loop as people write it, the local engine, and Ray.

The model is a wav2vec 2.0 of base size with random weights. Beside whole runs, the start of
processes included, it says what a run takes once all of them work: the start is paid once, and a corpus takes
hours.

    python benchmarks/extraction.py [--utterances 96] [--seconds 4] [--rounds 3] [--ragged] [--ray]

``--ragged`` has lengths from a quarter of that on, which the loop pads to the longest of a batch. This model
lets padding into its features, so that the loop's are not those of an utterance alone, unless it goes one
by one.
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
from interleaved import measure, report
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import bundles
from bundles.features.extract import extract_features
from bundles.spec.bundle import Bundle
from bundles.spec.keys import KeyMap
from bundles.spec.source import WeightSource

BATCH = 8
WINDOW = 4  # items in a shard of ours; the more shards there are, the better their times tell the pace


def random_bundle(folder: Path) -> Bundle:
    """A bundle of base size whose weights are in a file, so that workers build it as they build any."""
    torch.manual_seed(0)
    model = bundles.WAV2VEC2_BASE.get_model(pretrained=False)
    path = folder / "random.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return replace(
        bundles.WAV2VEC2_BASE, name="RANDOM", weights=WeightSource(f"file:{path}"), keys=KeyMap(), prefix=""
    )


def padded(waves: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as people make it."""
    lengths = torch.tensor([len(wave) for wave in waves])
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths


def loop(
    bundle: Bundle, waves: list[torch.Tensor], folder: Path, workers: int, threads: int, size: int = BATCH
) -> tuple[float, float]:
    """The habit: a DataLoader, a loop, a file per utterance. Returns seconds with and without the start."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = bundle.get_model(freeze=True, freeze_mode="features")
    loader = DataLoader(waves, batch_size=size, num_workers=workers, collate_fn=padded)  # type: ignore[arg-type]
    built, done = time.perf_counter(), 0
    with torch.inference_mode():
        for batch, lengths in loader:
            features, frames = model(batch, lengths)
            for row, count in zip(features.half(), frames, strict=True):
                torch.save(row[:count].clone(), folder / f"{done}.pt")
                done += 1
    end = time.perf_counter()
    torch.set_num_threads(before)
    return end - start, end - built


def extract(
    bundle: Bundle, waves: list[torch.Tensor], folder: Path, name: str, workers: int
) -> tuple[float, float]:
    """Ours; without the start is reckoned from when a third of the shards is there to the last of them."""
    start = time.perf_counter()
    how = {"engine": name, "num_workers": workers, "shard_size": WINDOW, "batch_size": WINDOW}
    store = extract_features(bundle, waves, folder, progress=False, **how)
    whole = time.perf_counter() - start
    written = sorted((store.path / shard.name).stat().st_mtime for shard in store.manifest.shards)
    first = len(written) // 3  # by then every process has started, and has compared a batch with its items
    share = (len(written) - 1 - first) / len(written)
    return whole, (written[-1] - written[first]) / share


def in_a_new_folder(
    run: Callable[..., tuple[float, float]], *arguments: Any
) -> Callable[[], tuple[float, float]]:
    """Return a run that leaves nothing."""

    def timed() -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            return run(*arguments[:2], Path(folder), *arguments[2:])

    return timed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--utterances", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ragged", action="store_true")
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    if options.utterances < 3 * BATCH * len(os.sched_getaffinity(0)):
        parser.error("--utterances are too few for every core to have three windows")
    cores = len(os.sched_getaffinity(0))
    shares = (
        torch.empty(options.utterances).uniform_(0.25, 1) if options.ragged else [1.0] * options.utterances
    )
    waves = [torch.randn(int(16_000 * options.seconds * share)) for share in shares]
    if options.ray:
        os.environ["RAY_AUTH_MODE"] = "disabled"  # or it leaves a token in the user's home
        import ray

        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        common = (random_bundle(Path(folder)), waves)
        rivals = {
            "one loop": in_a_new_folder(loop, *common, 0, cores),
            "one loop, one thread": in_a_new_folder(loop, *common, 0, 1),
            "one loop, one by one": in_a_new_folder(loop, *common, 0, cores, 1),
            "DataLoader workers": in_a_new_folder(loop, *common, cores, cores),
            f"local, {cores} workers": in_a_new_folder(extract, *common, "local", cores),
            "local, 1 worker": in_a_new_folder(extract, *common, "local", 1),
        }
        if options.ray:
            rivals[f"Ray, {cores} actors"] = in_a_new_folder(extract, *common, "ray", cores)
            rivals["Ray, 1 actor"] = in_a_new_folder(extract, *common, "ray", 1)
        figures = measure(rivals, options.rounds)
    for part, title in enumerate(("with the start", "once all work")):
        chosen = {name: [times[part] for times in runs] for name, runs in figures.items()}
        report(f"{options.utterances} x {options.seconds:g} s, {title}", chosen, "s", "one loop")


if __name__ == "__main__":
    main()
