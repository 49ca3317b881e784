"""Find a companion by its place, and bind it to a bundle."""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from types import MethodType
from typing import Any

from bundles.builders.require import require
from bundles.errors import BuildError
from bundles.spec.bundle import Bundle
from bundles.spec.companions import NEEDS


def find_companion(bundle: Bundle, place: str) -> Any:
    """Return a function of ours as a method of the bundle, anything else as it is.

    Raises:
        BuildError: the bundle lacks what its companions need, as labels.
        MissingDependencyError: the upstream library that defines it is absent or broken.
    """
    module, _, name = place.partition(":")
    needs = NEEDS.get(bundle.metadata.get("companions", ""), ())
    if missing := [need for need in needs if need not in bundle.metadata and need not in bundle.assets]:
        raise BuildError(
            f"{bundle.name}.{name} needs {', '.join(missing)}, which the bundle has not: give "
            f"Bundle(metadata=, assets=) with them."
        )
    if module.startswith("bundles."):
        return MethodType(getattr(import_module(module), name), bundle)
    return reduce(getattr, name.split("."), require(module))
