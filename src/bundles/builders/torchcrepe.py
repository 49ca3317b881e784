"""CREPE, built by the package torchcrepe (``torchcrepe/model.py``, MIT)."""

from __future__ import annotations

from torch import nn

from bundles.builders.require import require


def build(model: str) -> nn.Module:
    """Return ``torchcrepe.Crepe``.

    Args:
        model: ``"tiny"`` or ``"full"``.

    Raises:
        MissingDependencyError: torchcrepe, or torchaudio that it imports, is absent or broken.

    >>> sum(p.numel() for p in build("tiny").parameters())
    486552
    """
    crepe: nn.Module = require("torchcrepe").Crepe(model)
    return crepe
