"""Attach a head: in the slot that the architecture has for one, or after the encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bundles.errors import HeadError
from bundles.spec.bundle import Bundle

Head = nn.Module | Callable[[int], nn.Module]
ENCODER = "encoder."


class EncoderWithHead(nn.Module):
    """A model without a head slot, followed by a head.

    ``forward(*args, **kwargs)`` calls ``encoder`` with everything it is given and ``head`` with the
    features that come out, shape ``[..., num_features]``. Where the encoder returns a tuple its first
    entry is taken as the features, and the others are returned behind the head's output.

    >>> import torch
    >>> EncoderWithHead(nn.Linear(4, 8), nn.Linear(8, 2))(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``head(features)``, or ``(head(features), *rest)``."""
        features = self.encoder(*args, **kwargs)
        if isinstance(features, tuple):
            return (self.head(features[0]), *features[1:])
        return self.head(features)


def make_head(bundle: Bundle, head: Head) -> nn.Module:
    """Return the head as a module, made for the size of the bundle's features, and trainable.

    Raises:
        HeadError: the size is unknown, differs from that of the head, or nothing of use is given.
    """
    size = bundle.num_features
    if isinstance(head, nn.Module):
        wanted = getattr(head, "in_features", size)
        if size is not None and wanted != size:
            raise HeadError(
                f"The head takes {wanted} features and {bundle.name} gives {size}: make it with "
                f"in_features={size}, or pass head=lambda features: ..."
            )
        return head.requires_grad_(True)
    if not callable(head):
        raise HeadError(
            f"head={head!r} is neither a module nor a callable: pass head=lambda n: nn.Linear(n, 10)."
        )
    if size is None:
        raise HeadError(
            f"{bundle.name} does not say how many features it gives, so a callable cannot be asked for a "
            f"head: pass the module itself, or set num_features= in the Bundle."
        )
    try:
        made = head(size)
    except TypeError as error:
        raise HeadError(
            f"The callable head cannot be called with {size} alone ({error}): pass a function of the "
            f"number of features, as head=lambda n: nn.Linear(n, 10)."
        ) from error
    if not isinstance(made, nn.Module):
        raise HeadError(f"The callable head returned a {type(made).__name__}: it must return an nn.Module.")
    return made.requires_grad_(True)


def attach_head(model: nn.Module, slot: str | None, head: nn.Module) -> nn.Module:
    """Return the model with the head in its slot, or an :class:`EncoderWithHead` where it has none.

    Raises:
        HeadError: the model has no module at the slot.
    """
    if slot is None:
        return EncoderWithHead(model, head)
    owner, _, local = slot.rpartition(".")
    try:
        model.get_submodule(slot)
    except AttributeError as error:
        raise HeadError(f"The model has no module {slot!r} for a head to replace.") from error
    setattr(model.get_submodule(owner), local, head)
    return model
