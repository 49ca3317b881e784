"""Companions of forced alignment (``torchaudio.pipelines.Wav2Vec2FABundle``)."""

from __future__ import annotations

from typing import Any

from bundles.builders.require import require
from bundles.companions.needs import needs
from bundles.spec.bundle import Bundle


@needs("labels")
def get_labels(bundle: Bundle, star: str | None = "*", blank: str = "-") -> tuple[str, ...]:
    """Return what each output of the model stands for, the blank first and the star last.

    Args:
        bundle: that of the model.
        star: how the star, which fits anything, is written; ``None`` for a model ``with_star=False``.
        blank: how the blank is written.

    >>> import bundles
    >>> bundles.MMS_FA.get_labels(star=None)[-2:]
    ('q', 'x')
    """
    labels = (blank, *bundle.metadata["labels"])
    return labels if star is None else (*labels, star)


@needs("labels")
def get_dict(bundle: Bundle, star: str | None = "*", blank: str = "-") -> dict[str, int]:
    """Return label -> output of the model.

    >>> import bundles
    >>> bundles.MMS_FA.get_dict()["a"]
    1
    """
    return {label: index for index, label in enumerate(get_labels(bundle, star=star, blank=blank))}


@needs("labels")
def get_tokenizer(bundle: Bundle) -> Any:
    """Return a callable from words, spelt in the bundle's labels, to lists of tokens.

    >>> import bundles
    >>> bundles.MMS_FA.get_tokenizer()(["ab", "a"])
    [[1, 17], [1]]
    """
    return require("torchaudio.pipelines._wav2vec2.aligner").Tokenizer(get_dict(bundle))


def get_aligner(bundle: Bundle) -> Any:
    """Return a callable from log-probabilities ``[frames, labels]`` and tokens to time-stamped spans."""
    return require("torchaudio.pipelines._wav2vec2.aligner").Aligner(blank=0)
