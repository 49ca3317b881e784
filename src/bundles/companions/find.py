"""Find a companion by its place, and bind it to a bundle."""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from types import MethodType
from typing import Any

from bundles.builders.require import require
from bundles.errors import MissingDependencyError
from bundles.spec.bundle import Bundle


def find_companion(bundle: Bundle, place: str) -> Any:
    """Return a function of ours as a method of the bundle, anything else as it is.

    Raises:
        AttributeError: the upstream library that defines it is absent or broken; it says what to type.
    """
    module, _, name = place.partition(":")
    if module.startswith("bundles."):
        return MethodType(getattr(import_module(module), name), bundle)
    try:
        return reduce(getattr, name.split("."), require(module))
    except MissingDependencyError as error:  # hasattr and dir walk over it
        raise AttributeError(str(error)) from error
