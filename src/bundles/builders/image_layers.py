"""Layer groups of image models: residual blocks in order, stage by stage, and what lies around them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def image_layers(names: Iterable[str], rows: Sequence[str], slots: Sequence[str]) -> dict[str, Any]:
    """Return the ``layers`` table of a model by its parameters' names, as a card would hold it.

    What comes before the first block is the stem, what follows the last the norm; what lies between two
    stages, as a layer that halves the image, is a block of its own.

    Args:
        names: of the parameters, in order of registration, which is that of the forward pass.
        rows: patterns of the blocks: ``{i}`` for the number of the block, ``{s}`` for that of its stage.
        slots: dotted names of the classifiers.

    Returns:
        The table; empty where no row matches.

    >>> names = ["conv1.weight", "layer1.0.weight", "layer1.1.weight", "layer2.0.weight", "fc.weight"]
    >>> layers = image_layers(names, ["layer{s}.{i}"], ["fc"])
    >>> layers["stem"], layers["stage_1"], layers["head"]
    ('conv1', {'match': 'layer1.{i}', 'kind': 'block'}, 'fc')
    """
    patterns = [(row, _regex(row)) for row in rows]
    body = [name for name in names if not any(_is_in(name, slot) for slot in slots)]
    parts = [_row_of(name, patterns) for name in body]
    order = list(dict.fromkeys(part for part in parts if part))
    if not order:
        return {}
    found: dict[int, list[str]] = {}  # names outside the blocks, by how many stages came before
    seen = 0
    for name, part in zip(body, parts, strict=True):
        seen = max(seen, order.index(part) + 1) if part else seen
        if part is None:
            found.setdefault(seen, []).append(name)
    between = {
        place: _prefixes(own, [n for n in (*body, *slots) if n not in own]) for place, own in found.items()
    }
    return _table(order, between, slots)


def _table(order: list[str], between: dict[int, list[str]], slots: Sequence[str]) -> dict[str, Any]:
    layers: dict[str, Any] = {}
    for place, row in enumerate(order):
        if place in between:
            name = "stem" if place == 0 else f"between_{place}"
            layers[name] = _one(between[place]) if place == 0 else _block(_one(between[place]))
        layers |= {"blocks": row} if len(order) == 1 else {f"stage_{place + 1}": _block(row)}
    if len(order) in between:
        layers["norm"] = _one(between[len(order)])
    return layers | {"head": _one(list(slots))} if slots else layers


def _block(match: str | list[str]) -> dict[str, Any]:
    return {"match": match, "kind": "block"}


def _one(patterns: list[str]) -> str | list[str]:
    return patterns[0] if len(patterns) == 1 else patterns


def _regex(row: str) -> re.Pattern[str]:
    escaped = re.escape(row).replace(r"\{s\}", r"(?P<s>\d+)").replace(r"\{i\}", r"\d+")
    return re.compile(escaped + r"\.")


def _row_of(name: str, patterns: list[tuple[str, re.Pattern[str]]]) -> str | None:
    """The pattern of the row that a parameter is in, the number of its stage filled in."""
    for row, regex in patterns:
        if found := regex.match(name):
            return row.replace("{s}", found.groupdict().get("s", ""))
    return None


def _prefixes(own: Sequence[str], others: Sequence[str]) -> list[str]:
    """The shortest dotted names that take these parameters and none of the others."""
    taken = {prefix for name in others for prefix in _lineage(name)}
    return list(dict.fromkeys(next(p for p in _lineage(name) if p not in taken) for name in own))


def _lineage(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
