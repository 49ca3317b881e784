"""An image classifier: a new head in the place of the old one of a frozen vision transformer.

    python scripts/recipes/image_head.py
    python scripts/recipes/image_head.py --bundle VIT_B_16_IMAGENET1K_V1 --data flowers --last 1

Without ``--bundle`` the encoder is small and has random weights: the head learns what such features tell of
stripes and checks. Yours is a folder of one subfolder per class. ``--last 1`` trains the last block, too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from recipe_data import (
    IMAGES,
    at_least_one,
    batches,
    chunks,
    class_folder,
    random_vit,
    readable,
    split,
    start,
    write_images,
)
from torch import nn

import bundles


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bundle", help="such as VIT_B_16_IMAGENET1K_V1; a small one with random weights without it"
    )
    parser.add_argument("--data", type=Path, help="a folder of one subfolder per class")
    parser.add_argument("--last", type=int, help="how many blocks train beside the head")
    parser.add_argument("--epochs", type=at_least_one, default=10)
    parser.add_argument("--batch-size", type=at_least_one, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a head, and print the accuracy before and after."""
    options = parse(arguments)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        if options.data is None:
            options.data = Path(scratch) / "patterns"
            write_images(options.data, 180)
        bundle = bundles.get_bundle(options.bundle) if options.bundle else random_vit(Path(scratch) / "vit")
        paths, labels, names = class_folder(options.data, IMAGES)
        for _ in readable(bundle, paths, "image"):
            pass  # what cannot be read is told before the training, and not in the middle of it
        train, test = split(len(paths))
        print(f"{len(train)} images to train on, {len(test)} to test, classes {', '.join(names)}")

        freeze = True if options.last is None else f"last:{options.last}"
        model = bundle.get_model(freeze=freeze, head=lambda size: probe(size, len(names)))
        taken = bundles.snapshot(model)
        look = Look(bundle.transforms(), paths)
        optimizer = torch.optim.AdamW(bundles.param_groups(model, lr=options.lr, layer_decay=0.7))
        print(f"accuracy before: {accuracy(model, look, labels, test):.3f}")
        for _ in range(options.epochs):
            model.train()  # what is frozen stays in eval mode: no dropout, no stochastic depth
            for chosen in batches(train, options.batch_size):
                if len(chosen) == 1:
                    continue  # of one image the probe has no statistics
                loss = nn.functional.cross_entropy(model(look(chosen)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        print(f"accuracy after: {accuracy(model, look, labels, test):.3f}")
        bundles.verify_frozen(model, taken)
        print(f"frozen bytes are equal: {len(taken)} tensors")


def probe(size: int, classes: int) -> nn.Module:
    """A linear layer over features of one scale, as He et al. probe encoders (arXiv:2111.06377, A.1)."""
    return nn.Sequential(nn.BatchNorm1d(size, affine=False, eps=1e-6), nn.Linear(size, classes))


class Look:
    """The images of some files as the model takes them, ``[batch, channels, height, width]``."""

    def __init__(self, transforms, paths: list[Path]) -> None:
        self.transforms, self.paths = transforms, paths

    def __call__(self, chosen: list[int]) -> torch.Tensor:
        """Return those of these numbers."""
        return torch.stack(
            [self.transforms(Image.open(self.paths[index]).convert("RGB")) for index in chosen]
        )


@torch.no_grad()
def accuracy(model: nn.Module, look: Look, labels: torch.Tensor, test: list[int]) -> float:
    """The share of images that are given the right class."""
    model.eval()
    right = [model(look(chosen)).argmax(1) == labels[chosen] for chosen in chunks(test, 32)]
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    start(main)
