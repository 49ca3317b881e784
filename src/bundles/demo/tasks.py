"""What a new head is to learn in the demonstration: one task for pitch trackers, one for speech encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from bundles.demo.numerals import NUMERALS, numerals
from bundles.demo.vowels import FORMANTS, vowels
from bundles.errors import BundlesError
from bundles.heads import AttentiveStatisticsClassifier, WeightedLayers
from bundles.spec.bundle import Bundle

Examples = tuple[torch.Tensor, torch.Tensor]  # inputs [n, ...] and labels [n]


@dataclass(frozen=True)
class Task:
    """Examples to train on, others to test on, and how.

    Attributes:
        about: what is to be told apart, in a sentence.
        train: inputs ``[n, ...]`` and labels ``[n]``.
        test: the same, and nothing of the former.
        head: makes a head for a number of features.
        loss: of the model's output and labels.
        batch: examples in a step.
        epochs: passes over the training examples after which it is about learned.
    """

    about: str
    train: Examples
    test: Examples
    head: Callable[[int], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    batch: int
    epochs: int


def make_task(bundle: Bundle, train: int | None, seed: int) -> Task:
    """Return the task for a bundle's kind, with ``train`` examples to train on, or as many as it takes.

    Raises:
        BundlesError: there is no task for its kind.
    """
    make = _TASKS.get(bundle.builder) if isinstance(bundle.builder, str) else None
    if make is None:
        raise BundlesError(
            f"The demo has a task for CREPE and one for speech encoders, and {bundle.name} is neither: "
            f"type `bundles demo --bundle CREPE_TINY`."
        )
    return make(bundle, train, torch.Generator().manual_seed(seed))


def singing(bundle: Bundle, train: int | None, generator: torch.Generator) -> Task:
    """Which vowel is sung; train and test share nothing but the generator."""
    train = train or 2048
    length, rate = bundle.frame_length, bundle.sample_rate
    return Task(
        f"which of {len(FORMANTS)} vowels is sung, in 64 ms, at a random pitch, with noise",
        vowels(train, length, rate, generator),
        vowels(max(train // 3, 128), length, rate, generator),
        _vowel_head,
        _yes_or_no,
        batch=64,
        epochs=8,
    )


def counting(bundle: Bundle, train: int | None, generator: torch.Generator) -> Task:
    """Which German numeral is said; train and test share no voice."""
    return Task(
        f"which of {len(NUMERALS)} German numerals is said, with noise, by voices not heard in training",
        numerals("train", train or 280, generator),
        numerals("test", 120, generator),
        partial(_numeral_head, layers=bundle.architecture["encoder_num_layers"]),
        F.cross_entropy,
        batch=16,
        epochs=4,
    )


_TASKS: dict[str, Callable[[Bundle, int | None, torch.Generator], Task]] = {
    "torchcrepe": singing,
    "torchaudio_wav2vec2": counting,
    "torchaudio_wavlm": counting,
}


def _vowel_head(features: int) -> nn.Module:
    hidden = features // 2
    return nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, len(FORMANTS)),
    )


def _numeral_head(features: int, layers: int) -> nn.Module:
    pooled = AttentiveStatisticsClassifier(features, len(NUMERALS))
    return WeightedLayers(features, layers, pooled, normalize=True)


def _yes_or_no(chances: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """CREPE ends in a sigmoid, so each class is a yes or no, as in its own training."""
    return F.binary_cross_entropy(chances, F.one_hot(labels, chances.shape[1]).float())
