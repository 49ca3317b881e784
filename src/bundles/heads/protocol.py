"""What a head may ask of the encoder before it: nothing of it needs a base class.

- A head is called with the features, ``[batch, frames, in_features]``. What the encoder returns
  beside them follows the head's output: ``(head(features), lengths)``.
- A head whose ``forward`` has a parameter ``lengths`` is called as ``head(features, lengths=...)``, and
  what it returns is all that the model returns. ``None`` means that there is no padding.
- A head with the attribute ``uses_layers = True`` is called with the outputs of all layers, a list of
  ``[batch, frames, in_features]``, where others are called with the last.
- An attribute ``in_features`` (and ``num_layers`` of a head that uses layers) is compared with the
  encoder when the two are put together, rather than in the first forward.
"""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn


def takes_lengths(head: nn.Module) -> bool:
    """Whether the head's ``forward`` has a parameter ``lengths``.

    A container such as ``nn.Sequential`` has none, and gives none to what is in it.

    >>> from bundles.heads import CTCHead, MeanPool
    >>> takes_lengths(MeanPool(4)), takes_lengths(CTCHead(4, 2)), takes_lengths(nn.Sequential(MeanPool(4)))
    (True, False, False)
    """
    return "lengths" in _parameters(_within(head))


def uses_layers(head: nn.Module) -> bool:
    """Whether the head is called with the outputs of all layers instead of the last.

    >>> uses_layers(nn.Linear(4, 2))
    False
    """
    return bool(getattr(_within(head), "uses_layers", False))


def _within(head: nn.Module) -> nn.Module:
    """Return the head inside wrappers that pass everything on, as ``torch.compile`` and DDP do."""
    children = list(head.children())
    kinds = set(_parameters(head).values())
    passes_on = kinds and kinds <= {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}
    return _within(children[0]) if passes_on and len(children) == 1 else head


def _parameters(head: nn.Module) -> dict[str, Any]:
    """Return name and kind of each parameter of ``forward``."""
    forward: Any = head.forward
    if isinstance(forward, torch.ScriptMethod):  # of a scripted module, which has a schema instead
        return {argument.name: Parameter.POSITIONAL_OR_KEYWORD for argument in forward.schema.arguments}
    return {name: parameter.kind for name, parameter in signature(forward).parameters.items()}
