"""The one place where registry, sources, builders and freezing meet."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bundles.assemble.into import load_into as load_into
    from bundles.assemble.model import forward_costs as forward_costs
    from bundles.assemble.model import get_model as get_model
    from bundles.assemble.model import plan as plan

_HOMES = {"forward_costs": "model", "get_model": "model", "load_into": "into", "plan": "model"}

__all__ = ["forward_costs", "get_model", "load_into", "plan"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bundles.assemble' has no attribute {name!r}")
    return getattr(import_module(f"bundles.assemble.{_HOMES[name]}"), name)
