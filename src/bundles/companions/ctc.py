"""Companions of CTC models."""

from __future__ import annotations

from bundles.companions.needs import needs
from bundles.spec.bundle import Bundle


@needs("labels")
def get_labels(bundle: Bundle, *, blank: str = "-") -> tuple[str, ...]:
    """Return what each output of the model stands for, the blank first.

    Args:
        bundle: that of the model.
        blank: how the blank is written.

    >>> import bundles
    >>> bundles.WAV2VEC2_ASR_BASE_960H.get_labels()[:4]
    ('-', '|', 'E', 'T')
    """
    return (blank, *bundle.metadata["labels"])
