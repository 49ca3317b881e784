"""Read TOML cards: one parser for built-in cards, folders and whatever else supplies them.

A card file holds one table per bundle, under its name, and an optional ``[defaults]`` that all of
them inherit::

    [defaults]
    builder = "torchcrepe"

    [CREPE_TINY]
    architecture.model = "tiny"

Card text is untrusted. It can name a builder of our table with arguments of a closed schema, and
weights by address and digest; it cannot name anything to import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bundles.display import safe
from bundles.registry.lines import KeyLines
from bundles.registry.names import name_problem
from bundles.registry.schema import METADATA, Problem, problems_of
from bundles.spec.bundle import Bundle
from bundles.spec.source import WeightSource

Card = dict[str, Any]
_MAX_BYTES = 1 << 20


@dataclass
class CardFile:
    """What one file gave: its good cards, the problems of the others, and whose problems they are."""

    path: str
    cards: dict[str, Card] = field(default_factory=dict)
    broken: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_card_file(path: str) -> CardFile:
    """Parse and check every card of a file; never raises for what is in the file."""
    found = CardFile(path)
    try:
        text = _read_text(path)
        tables = _parse_toml(text)
    except (OSError, ValueError, RecursionError) as error:
        found.problems.append(f"{path}:{_line_of(error)} " + safe(_short(error), limit=600))
        return found
    places, defaults = KeyLines(text), tables.pop("defaults", {})
    if not isinstance(defaults, dict):
        found.problems.append(_problem(path, places, ("defaults",), "is not a table"))
        defaults = {}
    for name, table in tables.items():
        if problems := list(_check(name, table, defaults)):
            lines = [_problem(path, places, (name, *key), why) for key, why in problems]
            found.broken[name] = lines
            found.problems.extend(lines)
        else:
            found.cards[name] = merge(defaults, table)
    return found


def merge(defaults: Mapping[str, Any], table: Mapping[str, Any]) -> Card:
    """Return the card with its defaults; tables are merged key by key, but ``layers`` as a whole."""
    merged = dict(defaults)
    for key, value in table.items():
        inherited = defaults.get(key)
        whole = key == "layers" or not isinstance(value, dict) or not isinstance(inherited, dict)
        merged[key] = value if whole else {**(inherited or {}), **value}
    return merged


def to_bundle(name: str, card: Mapping[str, Any], origin: str) -> Bundle:
    """Return the bundle that a checked card describes.

    Relative ``file:`` addresses are relative to the card's folder.
    """
    weights = card.get("weights")
    return Bundle(
        name=name,
        builder=card["builder"],
        architecture=card.get("architecture", {}),
        weights=_weights(weights, origin) if weights else None,
        layers=card["layers"],
        default_policy=card.get("freeze", "encoder"),
        default_mode=card.get("freeze_mode", "eval"),
        head_slot=card.get("head_slot"),
        num_features=card.get("num_features"),
        metadata={key: card[key] for key in METADATA if key in card} | card.get("extra", {}),
        origin=origin,
    )


def _weights(weights: Mapping[str, Any], origin: str) -> WeightSource:
    source: str = weights["source"]
    if source.startswith("file:"):
        source = "file:" + os.path.join(os.path.dirname(os.path.abspath(origin)), source[len("file:") :])
    return WeightSource(source, weights.get("sha256"), weights.get("size"))


def _problem(path: str, places: KeyLines, key: tuple[str, ...], why: str) -> str:
    return f"{path}:{places.of(key)}: " + safe(f"{'.'.join(key)} {why}", limit=600)


def _check(name: str, table: Any, defaults: Card) -> Iterator[Problem]:
    if problem := name_problem(name):
        yield (), problem
    if not isinstance(table, dict):
        yield (), "is not a table, as in [CREPE_TINY]"
        return
    card = merge(defaults, table)
    yield from problems_of(card)
    weights = card.get("weights")
    if isinstance(weights, dict) and _leaves_folder(weights.get("source")):
        yield ("weights", "source"), "leaves the card's folder; a card names files beside or below itself"


def _leaves_folder(source: Any) -> bool:
    if not isinstance(source, str) or not source.startswith("file:"):
        return False
    parts = re.split(r"[\\/]", source[len("file:") :])
    return parts[0] in ("", "~") or ".." in parts or parts[0].endswith(":")


def _read_text(path: str) -> str:
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError("is larger than 1 MiB, which no card is")
    return data.decode()


def _parse_toml(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def _line_of(error: Exception) -> str:
    """``"5:"`` where the TOML parser names the line, else nothing."""
    found = re.search(r"\(at line (\d+)", str(error))
    return f"{found.group(1)}:" if found else ""


def _short(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.start})"
    return f"is not a card: {error}" if "larger" not in str(error) else str(error)
