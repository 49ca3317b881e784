"""Read TOML cards: one parser for built-in cards, folders and whatever else supplies them.

A card file holds one table per bundle, under its name; ``[defaults]``, which all of them inherit, and
``[templates.NAME]``, which those inherit that ask for it::

    [defaults]
    builder = "torchcrepe"

    [templates.small]
    architecture.model = "tiny"

    [CREPE_TINY]
    templates = ["small"]

Card text is untrusted. It can name a builder of our table with arguments of a closed schema, and
weights by address and digest; it cannot name anything to import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

from bundles.display import safe
from bundles.registry.lines import KeyLines, Path
from bundles.registry.names import name_problem
from bundles.registry.schema import METADATA, Problem, problems_of
from bundles.spec.bundle import Bundle
from bundles.spec.keys import KeyMap
from bundles.spec.source import WeightSource
from bundles.spec.values import shown

Card = dict[str, Any]
_MAX_BYTES = 4 << 20


@dataclass
class CardFile:
    """What one file gave: its good cards, the problems of the others, and whose problems they are."""

    path: str
    cards: dict[str, Card] = field(default_factory=dict)
    broken: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    text: str = ""
    tables: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def places(self) -> KeyLines:
        """The lines of its keys, which only problems ask for."""
        return KeyLines(self.text)

    def told(self, key: Path, why: str) -> str:
        """Return the line in which people read of a problem: file, line, key, cause."""
        inherits = _inherited(self.tables.get(key[0]))
        return f"{self.path}:{self.places.of(key, inherits)}: " + safe(f"{'.'.join(key)} {why}", limit=600)


def read_card_file(path: str) -> CardFile:
    """Parse and check every card of a file; never raises for what is in the file."""
    try:
        return read_card_text(path, _read_text(path))
    except (OSError, ValueError) as error:
        return CardFile(path, problems=[_unreadable(path, error)])


def read_card_text(path: str, text: str) -> CardFile:
    """Parse and check every card of a text, which is or may become that of a file."""
    found = CardFile(path, text=text)
    try:
        found.tables = tables = _parse_toml(text)
    except (ValueError, RecursionError) as error:
        found.problems.append(_unreadable(path, error))
        return found
    shared = {key: tables.pop(key, {}) for key in ("defaults", "templates")}
    for key, value in shared.items():
        if not isinstance(value, dict):
            found.problems.append(found.told((key,), "is not a table"))
            shared[key] = {}
    found.problems.extend(found.told(*problem) for problem in _shared_problems(**shared))
    for name, table in tables.items():
        card, problems = _read_card(name, table, **shared)
        if problems:
            lines = [found.told((name, *key), why) for key, why in problems]
            found.broken[name] = lines
            found.problems.extend(lines)
        else:
            found.cards[name] = card
    return found


def merge(defaults: Mapping[str, Any], table: Mapping[str, Any]) -> Card:
    """Return the card with what it inherits; tables are merged key by key, but ``layers`` as a whole."""
    merged = dict(defaults)
    for key, value in table.items():
        inherited = defaults.get(key)
        whole = key == "layers" or not isinstance(value, dict) or not isinstance(inherited, dict)
        merged[key] = value if whole else {**(inherited or {}), **value}
    return merged


def to_bundle(name: str, card: Mapping[str, Any], origin: str, folder: str | None = None) -> Bundle:
    """Return the bundle that a checked card describes.

    Args:
        name: of the bundle.
        card: with all that it inherits.
        origin: where it is defined, for people.
        folder: where relative ``file:`` addresses begin; without it ``origin`` is a file of that folder.
    """
    weights = card.get("weights")
    folder = os.path.dirname(os.path.abspath(origin)) if folder is None else folder
    return Bundle(
        name=name,
        builder=card["builder"],
        architecture=card.get("architecture", {}),
        weights=_source(weights, folder) if weights else None,
        assets={key: _source(asset, folder) for key, asset in card.get("assets", {}).items()},
        keys=KeyMap(**card.get("keys", {})),
        layers=card["layers"],
        default_policy=card.get("freeze", "encoder"),
        default_mode=card.get("freeze_mode", "eval"),
        prefix=card.get("prefix", ""),
        head_slot=card.get("head_slot"),
        num_features=card.get("num_features"),
        metadata={key: card[key] for key in METADATA if key in card} | card.get("extra", {}),
        origin=origin,
    )


def _source(entries: Mapping[str, Any], folder: str) -> WeightSource:
    source, *alternates = (
        _beside(uri, folder) for uri in (entries["source"], *entries.get("alternates", ()))
    )
    facts = entries.get("sha256"), entries.get("size"), entries.get("shards", {})
    return WeightSource(source, *facts, alternates=tuple(alternates))


def _beside(uri: str, folder: str) -> str:
    """An address, of a file on this machine from the card's folder on."""
    return "file:" + os.path.join(folder, uri[len("file:") :]) if uri.startswith("file:") else uri


def _inherited(table: Any) -> list[Path]:
    """The tables that a card inherits, the one that counts most first."""
    asked = table.get("templates", []) if isinstance(table, dict) else []
    names = [key for key in asked if isinstance(key, str)] if isinstance(asked, list) else []
    return [*(("templates", key) for key in reversed(names)), ("defaults",)]


def _read_card(name: str, table: Any, defaults: Card, templates: Card) -> tuple[Card, list[Problem]]:
    """Return a card with all that it inherits, and what is wrong with it."""
    problems: list[Problem] = []
    if problem := name_problem(name):
        problems.append(((), problem))
    if not isinstance(table, dict):
        return {}, [*problems, ((), "is not a table, as in [CREPE_TINY]")]
    own = dict(table)
    asked = own.pop("templates", [])
    if wrong := _template_problem(asked, templates):
        return {}, [*problems, (("templates",), wrong)]
    card = reduce(merge, [*(templates[key] for key in asked), own], defaults)
    return card, [*problems, *problems_of(card), *_paths_outside(card)]


def _shared_problems(defaults: Card, templates: Card) -> Iterator[Problem]:
    """What is wrong with tables that are inherited, whether or not a card asks for them."""
    tables: dict[Path, Any] = {("defaults",): defaults}
    tables |= {("templates", name): table for name, table in templates.items()}
    for path, table in tables.items():
        if not isinstance(table, dict):
            yield path, "is not a table"
        elif "templates" in table:
            yield (*path, "templates"), "does not work there: only a bundle's own table asks for templates"


def _template_problem(asked: Any, templates: Card) -> str | None:
    if not isinstance(asked, list) or not all(isinstance(key, str) for key in asked):
        return f"{shown(asked)} is not a list of templates, as in ['large']"
    known = [key for key, table in templates.items() if isinstance(table, dict)]
    unknown = [key for key in asked if key not in known]
    there = ", ".join(known) or "none in this file"
    return f"{shown(unknown[0])} is not a template; there is {there}" if unknown else None


def _paths_outside(card: Card) -> Iterator[Problem]:
    assets = card.get("assets")
    places: dict[tuple[str, ...], Any] = {("weights",): card.get("weights")}
    places |= {("assets", key): asset for key, asset in assets.items()} if isinstance(assets, dict) else {}
    for path, entries in places.items():
        for key in ("source", "alternates") if isinstance(entries, dict) else ():
            given = entries.get(key)
            if any(map(_leaves_folder, given if isinstance(given, list) else [given])):
                yield (*path, key), "leaves the card's folder; a card names files beside or below itself"


def _leaves_folder(source: Any) -> bool:
    if not isinstance(source, str) or not source.startswith("file:"):
        return False
    parts = re.split(r"[\\/]", source[len("file:") :])
    return parts[0] in ("", "~") or ".." in parts or parts[0].endswith(":")


def _read_text(path: str) -> str:
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError("is larger than 4 MiB, which no card is")
    return data.decode()


def _parse_toml(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def _unreadable(path: str, error: Exception) -> str:
    return f"{path}:{_line_of(error)} " + safe(_short(error), limit=600)


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
