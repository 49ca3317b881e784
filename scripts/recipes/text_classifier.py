"""A text classifier over a frozen XLM-R, whose loop does not know that the encoder is not computed.

    python scripts/recipes/text_classifier.py
    python scripts/recipes/text_classifier.py --bundle XLMR_BASE_ENCODER --data reviews.tsv --features kept

``bundles.cached`` lets the model take what its frozen encoder gives out of a store, and the loop stays what
it was. Without ``--bundle`` the encoder is small and has random weights: the head learns what such features
tell of a rule about words. Yours is a file of lines ``text <tab> label``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from recipe_data import at_least_one, batches, chunks, random_xlmr, split, start, table, write_sentences
from torch import nn

import bundles
from bundles.heads import MeanPoolClassifier


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bundle", help="such as XLMR_BASE_ENCODER; a small one with random weights without it"
    )
    parser.add_argument("--data", type=Path, help="a file of lines: text, tab, label")
    parser.add_argument("--features", type=Path, help="where features are kept for the next time")
    parser.add_argument("--epochs", type=at_least_one, default=20)
    parser.add_argument("--batch-size", type=at_least_one, default=16)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--workers", type=at_least_one, default=1, help="processes that compute features")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a head, and print the accuracy before and after."""
    options = parse(arguments)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        if options.data is None:
            options.data = Path(scratch) / "sentences.tsv"
            write_sentences(options.data, 400)
        rows = table(options.data)
        texts, names = [text for text, _ in rows], sorted({label for _, label in rows})
        if len(names) < 2:
            raise SystemExit(f"{options.data} has one class, {names[0]}, and no other: give two or more.")
        labels = torch.tensor([names.index(label) for _, label in rows])
        if options.bundle is None:
            bundle = random_xlmr(Path(scratch) / "xlmr", texts)
        else:
            bundle = bundles.get_bundle(options.bundle)
        train, test = split(len(texts))
        print(f"{len(train)} texts to train on, {len(test)} to test, classes {', '.join(names)}")

        model = bundle.get_model(freeze=True, head=lambda size: MeanPoolClassifier(size, len(names)))
        taken = bundles.snapshot(model)
        store = bundles.extract_features(
            model,  # up to what its head is given
            texts,
            options.features or Path(scratch) / "features",
            dtype="float32",  # as the encoder gives them, so that the head gets the same bytes
            num_workers=options.workers,
        )
        bundles.cached(model, store)  # the one line that a cached training needs
        tokenize = bundle.transform()
        print(f"accuracy before: {accuracy(model, tokenize, texts, labels, test):.3f}")
        optimizer = torch.optim.AdamW(bundles.param_groups(model, lr=options.lr))
        for _ in range(options.epochs):
            model.train()
            for chosen in batches(train, options.batch_size):
                logits = model(**tokenize.batch([texts[index] for index in chosen]))
                loss = nn.functional.cross_entropy(logits, labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        print(f"accuracy after: {accuracy(model, tokenize, texts, labels, test):.3f}")
        bundles.verify_frozen(model, taken)
        print(f"frozen bytes are equal: {len(taken)} tensors")


@torch.no_grad()
def accuracy(model: nn.Module, tokenize, texts: list[str], labels: torch.Tensor, test: list[int]) -> float:
    """The share of texts that are given the right class."""
    model.eval()
    right = []
    for chosen in chunks(test, 32):
        logits = model(**tokenize.batch([texts[index] for index in chosen]))
        right.append(logits.argmax(1) == labels[chosen])
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    start(main)
