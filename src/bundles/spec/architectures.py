"""Which builders a card may name, and which arguments each takes: a closed table, and no import paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundles.spec.values import shown

# builder -> argument -> accepted values; a type accepts every value of that type.
ARCHITECTURES: dict[str, dict[str, tuple[object, ...] | type]] = {
    "torchcrepe": {"model": ("tiny", "full")},
}


def argument_problem(builder: str, name: str, value: Any) -> str | None:
    """Return what is wrong with one builder argument, or ``None``."""
    accepted = ARCHITECTURES[builder].get(name)
    if accepted is None:
        return f"the builder {builder!r} takes {', '.join(ARCHITECTURES[builder])}"
    if isinstance(accepted, type):
        return None if type(value) is accepted else f"{shown(value)} is not a {accepted.__name__}"
    return None if value in accepted else f"{shown(value)} is not one of {', '.join(map(repr, accepted))}"


def missing_arguments(builder: str, given: Mapping[str, Any]) -> list[str]:
    """Return the arguments that a builder needs and a card does not give."""
    return [name for name in ARCHITECTURES[builder] if name not in given]
