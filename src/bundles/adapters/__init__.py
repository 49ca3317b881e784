"""Adapters for trainers: each translates a trainer's events into those of a :class:`Session`.

Each module imports its library when it is imported itself, ``bundles.adapters.lightning`` and so on; that of
Keras at the first use, since its backend may be chosen until then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bundles.adapters.session import Session as Session

_MODULES = ("accelerate", "fastai", "keras", "lightning", "session", "skorch", "speechbrain", "transformers")

__all__ = ["Session"]


def __getattr__(name: str) -> Any:
    if name == "Session":
        return import_module("bundles.adapters.session").Session
    if name in _MODULES:
        return import_module(f"bundles.adapters.{name}")
    raise AttributeError(
        f"module 'bundles.adapters' has no attribute {name!r}; it has {', '.join(_MODULES)}."
    )


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
