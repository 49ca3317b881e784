"""Keyword spotting: a head over a frozen wav2vec 2.0, trained on features that are computed once.

    python scripts/recipes/keyword_spotting.py
    python scripts/recipes/keyword_spotting.py --bundle WAV2VEC2_BASE --data commands --features features

Without ``--data`` it tells five German numerals apart, over noise and in voices that it was not trained on,
with an encoder that knows English digits. Yours is a folder of one subfolder per keyword, of WAV, FLAC or MP3
of any rate.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from recipe_data import SOUNDS, at_least_one, batches, chunks, class_folders, start, waveforms, write_numerals
from torch import nn

import bundles
from bundles.heads import AttentiveStatisticsClassifier


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="WAV2VEC2_NANO_DIGITS")
    parser.add_argument("--data", type=Path, help="a folder of one subfolder per keyword")
    parser.add_argument("--test", type=Path, help="another one to test on; a fifth of the first without it")
    parser.add_argument("--features", type=Path, help="where features are kept for the next time")
    parser.add_argument("--layer", type=int, help="a block, from 0; the last one's output without it")
    parser.add_argument("--epochs", type=at_least_one, default=20)
    parser.add_argument("--batch-size", type=at_least_one, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=at_least_one, default=1, help="processes that compute features")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Store features, train a head on them, and print the accuracy before and after."""
    options = parse(arguments)
    torch.manual_seed(0)
    bundle = bundles.get_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        if options.data is None:
            options.data = write_numerals(Path(scratch) / "train", 280)
            options.test = write_numerals(Path(scratch) / "test", 120, "test")
        paths, labels, names, train, test = class_folders(options.data, options.test, SOUNDS)
        print(f"{len(train)} recordings to train on, {len(test)} to test, {len(names)} keywords")

        # 1. The features of each recording, once. The next run with the same folder finds them.
        store = bundles.extract_features(
            bundle,
            list(map(str, paths)),
            options.features or Path(scratch) / "features",
            layers=options.layer,
            num_workers=options.workers,
        )

        # 2. The head alone is trained, on the store. The encoder is not even there.
        head = AttentiveStatisticsClassifier(bundle.num_features, len(names), dropout=0.1)
        print(f"accuracy before: {accuracy(head, store, labels, test):.3f}")
        fit(head, store, labels, train, options)
        print(f"accuracy after: {accuracy(head, store, labels, test):.3f}")

        # 3. On recordings, encoder and head together give the same answers.
        model = bundle.get_model(freeze=True, head=head)
        taken = bundles.snapshot(model)
        model.train()
        if options.layer is None:
            print(f"accuracy on recordings: {heard(model, bundle, paths, labels, test):.3f}")
        bundles.verify_frozen(model, taken)
        print(f"frozen bytes are equal: {len(taken)} tensors")


def fit(
    head: nn.Module,
    store: bundles.FeatureStore,
    labels: torch.Tensor,
    train: list[int],
    options: argparse.Namespace,
) -> None:
    """Train a head on stored features."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.lr)
    head.train()
    for _ in range(options.epochs):
        for chosen in batches(train, options.batch_size):
            features, lengths = store.collate([store[index].float() for index in chosen])
            loss = nn.functional.cross_entropy(head(features, lengths), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(head: nn.Module, store: bundles.FeatureStore, labels: torch.Tensor, test: list[int]) -> float:
    """The share of recordings whose features the head takes for the right keyword."""
    head.eval()
    right = []
    for chosen in chunks(test, 32):
        features, lengths = store.collate([store[index].float() for index in chosen])
        right.append(head(features, lengths).argmax(1) == labels[chosen])
    return torch.cat(right).float().mean().item()


@torch.no_grad()
def heard(
    model: nn.Module, bundle: bundles.Bundle, paths: list[Path], labels: torch.Tensor, test: list[int]
) -> float:
    """The same of the whole model, from the recordings."""
    model.eval()
    waves = waveforms(bundle, [paths[index] for index in test])
    answers = [model(wave[None]) for wave in waves]
    best = torch.tensor([(out[0] if isinstance(out, tuple) else out).argmax().item() for out in answers])
    return (best == labels[test]).float().mean().item()


if __name__ == "__main__":
    start(main)
