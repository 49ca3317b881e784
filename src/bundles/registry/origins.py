"""Where cards come from: those that ship with the package, and folders of people's own."""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any

from bundles.errors import CardError, DuplicateBundleError

if TYPE_CHECKING:
    from bundles.registry.registry import Registry

_CARDS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cards")
INDEX = "index.json"


def add_builtin(registry: Registry, folder: str = _CARDS) -> None:
    """Add the cards that ship with the package.

    An index beside the cards saves parsing them. It is used for a card file only while that file's
    checksum is the one that was indexed, so an edited card is never shadowed.
    """
    index = _read_index(os.path.join(folder, INDEX))
    for file in _card_files(folder):
        path = os.path.join(folder, file)
        known = index.get(file, {})
        if known.get("crc32") == checksum(path):
            registry.add_problems(_add_cards(registry, known["cards"], f"bundles/{file}", override=False), {})
        else:
            _add_file(registry, path, f"bundles/{file}", override=False, seen={})


def add_folder(registry: Registry, folder: str, *, override: bool = False) -> None:
    """Add every ``*.toml`` of a folder; the good cards also where others are broken.

    Raises:
        CardError: lists every problem of every card that could not be added.
        NotADirectoryError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"There is no folder {folder!r} to read cards from.")
    problems: list[str] = []
    folder = os.path.abspath(folder)  # relative weights are looked for there, wherever Python goes
    seen: dict[str, str] = {}
    for file in _card_files(folder):
        path = os.path.join(folder, file)
        problems += _add_file(registry, path, path, override=override, seen=seen)
    if problems:
        raise CardError(
            f"{len(problems)} problems in the cards of {folder}; every other card was added:\n"
            + "\n".join(problems),
            problems=tuple(problems),
        )


def build_index(folder: str = _CARDS) -> dict[str, Any]:
    """Return what ``index.json`` should hold for a folder of good cards.

    Raises:
        CardError: a card is broken.
    """
    from bundles.registry.cards import read_card_file

    index = {}
    for file in _card_files(folder):
        path = os.path.join(folder, file)
        found = read_card_file(path)
        if found.problems:
            raise CardError("\n".join(found.problems), problems=tuple(found.problems))
        index[file] = {"crc32": checksum(path), "cards": found.cards}
    return index


def checksum(path: str) -> int:
    """Return the CRC-32 of a file: enough to notice an edit, which is all that the index needs."""
    with open(path, "rb") as file:
        return zlib.crc32(file.read())


def _add_file(
    registry: Registry, path: str, origin: str, *, override: bool, seen: dict[str, str]
) -> list[str]:
    """Add a file's cards; ``override`` is for what was there before, not for names ``seen`` beside it."""
    from bundles.registry.cards import read_card_file

    found = read_card_file(path)
    twice = [name for name in found.cards if override and name.lower() in seen]
    problems = [
        f"The bundle {name} of {path} is defined already, as {seen[name.lower()]}: give it another name."
        for name in twice
    ]
    cards = {name: card for name, card in found.cards.items() if name not in twice}
    seen.update({name.lower(): f"{name} of {path}" for name in cards})
    registry.add_problems(found.problems + problems, found.broken)
    return found.problems + problems + _add_cards(registry, cards, origin, override=override)


def _add_cards(registry: Registry, cards: dict[str, Any], origin: str, *, override: bool) -> list[str]:
    problems = []
    for name, card in cards.items():
        try:
            registry.add_card(name, card, origin, override=override)
        except DuplicateBundleError as error:
            problems.append(str(error))
    return problems


def _card_files(folder: str) -> list[str]:
    return sorted(file for file in os.listdir(folder) if file.endswith(".toml"))


def _read_index(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            index: dict[str, Any] = json.load(file)
    except (OSError, ValueError):  # without an index the cards are parsed
        return {}
    return index
