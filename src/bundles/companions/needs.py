"""What a companion needs of its bundle."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from bundles.errors import BuildError
from bundles.spec.bundle import Bundle

P = ParamSpec("P")
R = TypeVar("R")


def needs(
    *keys: str,
) -> Callable[[Callable[Concatenate[Bundle, P], R]], Callable[Concatenate[Bundle, P], R]]:
    """Make a companion say what its bundle lacks, before it does anything."""

    def decorate(companion: Callable[Concatenate[Bundle, P], R]) -> Callable[Concatenate[Bundle, P], R]:
        @wraps(companion)
        def checked(bundle: Bundle, /, *args: P.args, **kwargs: P.kwargs) -> R:
            if missing := [key for key in keys if key not in bundle.metadata and key not in bundle.assets]:
                raise BuildError(
                    f"{bundle.name}.{companion.__name__} needs {', '.join(missing)}, which the bundle has "
                    f"not: give Bundle(metadata=, assets=) with them."
                )
            return companion(bundle, *args, **kwargs)

        return checked

    return decorate
