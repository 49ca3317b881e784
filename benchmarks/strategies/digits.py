"""Handwritten digits from scikit-learn (1,797 images of 8 x 8), and the ways in which they shift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - what everybody calls it
from sklearn.datasets import load_digits
from torch import Tensor

Set = tuple[Tensor, Tensor]  # images (n, 1, 8, 8) from 0 to 1, labels (n,)


@dataclass(frozen=True)
class Split:
    """Disjoint images: many to pretrain on, few to tune on, some to choose a rate by, the rest to judge."""

    source: Set
    tune: Set
    choose: Set
    judge: Set


def split(seed: int, tune: int = 100) -> Split:
    """Return a split that the seed alone decides."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    edges = [0, 1000, 1000 + tune, 1200 + tune, len(labels)]
    parts = [order[start:stop] for start, stop in pairwise(edges)]
    return Split(*((images[part], labels[part]) for part in parts))


def changed(data: Set, change: Callable[[Tensor], Tensor]) -> Set:
    """Return the set with its images changed."""
    return change(data[0]), data[1]


def noisy(images: Tensor) -> Tensor:
    """Add Gaussian noise of deviation 0.3, the same each time for the same number of images."""
    return images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(len(images)))


def blurred(images: Tensor) -> Tensor:
    """Average over 3 x 3 pixels, twice."""
    for _ in range(2):
        images = F.avg_pool2d(images, 3, stride=1, padding=1)
    return images


def moved(images: Tensor) -> Tensor:
    """Move the digit by a pixel to the right and one down."""
    return F.pad(images, (1, 0, 1, 0))[..., :8, :8]


def dimmed(images: Tensor) -> Tensor:
    """Take away half of the contrast."""
    return 0.5 * images + 0.25
