"""Features of a frozen encoder: computed once, stored, read in every epoch.

``extract`` computes them, on this machine or on many; ``store`` is the folder that holds them; ``cached``
lets a model train on what is stored. ``inputs`` reads datasets, ``encode`` asks the model.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = ("cached", "extract", "parquet")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"bundles.features.{name}")
    raise AttributeError(
        f"module 'bundles.features' has no attribute {name!r}; it has {', '.join(_MODULES)}."
    )


def __dir__() -> list[str]:
    return list(_MODULES)
