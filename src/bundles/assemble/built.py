"""What a model was built from, carried by the model itself into copies and pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bundles.spec.bundle import Bundle
from bundles.spec.values import FrozenDict

if TYPE_CHECKING:
    from torch import nn

_ATTRIBUTE = "_bundles_built"


@dataclass(frozen=True)
class Built:
    """What :func:`bundles.get_model` made a model of; what was frozen since is on the model's plan.

    Attributes:
        bundle: the descriptor, the options of its builder included.
        options: the builder's arguments that were given to ``get_model``.
        pretrained: whether the bundle's weights were loaded.
        head: dotted name of the head that was given, ``None`` for the bundle's own.
    """

    bundle: Bundle
    options: Mapping[str, Any] = field(default_factory=FrozenDict)
    pretrained: bool = True
    head: str | None = None


def remember(
    model: nn.Module, bundle: Bundle, options: Mapping[str, Any], *, pretrained: bool, has_head: bool
) -> None:
    """Note on a model what it was built from; of a builder that is a Python function nothing is noted.

    A function may be one that no pickle can hold, and nothing identifies what it builds.
    """
    if not isinstance(bundle.builder, str):
        return
    from bundles.builders.head import EncoderWithHead

    slot = "head" if isinstance(model, EncoderWithHead) else f"{bundle.prefix}{bundle.head_slot}"
    model.__dict__[_ATTRIBUTE] = Built(bundle, FrozenDict(options), pretrained, slot if has_head else None)


def built_of(model: nn.Module) -> Built | None:
    """Return what a model was built from, ``None`` where no bundle built it.

    >>> import bundles
    >>> built_of(bundles.CREPE_TINY.get_model()).bundle.name
    'CREPE_TINY'
    """
    found: Built | None = model.__dict__.get(_ATTRIBUTE)
    return found
