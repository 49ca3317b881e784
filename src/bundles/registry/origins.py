"""Where cards come from: this package, the user's folder, installed packages, folders that are named."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bundles.errors import CardError
from bundles.registry.shelf import Row, Shelf
from bundles.spec.places import config_folder, is_switched_on

if TYPE_CHECKING:
    from bundles.registry.registry import Registry

_CARDS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cards")
INDEX = "index.json"


def add_everything(registry: Registry) -> None:
    """Add what is there without being asked for: built-in cards, the user's, those of installed packages.

    In that order, and the first of a name wins. A card that cannot be used is one of the registry's
    problems. ``BUNDLES_NO_PLUGINS=1`` leaves installed packages out; the user's folder is not one of them.
    """
    add_builtin(registry)
    add_user(registry)
    if not is_switched_on("BUNDLES_NO_PLUGINS"):
        from bundles.registry.plugins import add_plugins

        add_plugins(registry)


def add_builtin(registry: Registry, folder: str = _CARDS) -> None:
    """Add the cards that ship with the package.

    An index beside the cards saves parsing them. It is used for a card file only while that file's
    checksum is the one that was indexed, so an edited card is never shadowed.
    """
    index = _read_index(os.path.join(folder, INDEX))
    rows: list[Row] = []
    problems: list[str] = []
    broken: dict[str, list[str]] = {}
    for file in _card_files(folder):
        known = index.get(file, {})
        if known.get("crc32") == checksum(os.path.join(folder, file)):
            rows += [(name, file, card) for name, card in known["cards"].items()]
        else:
            from bundles.registry.index import read_file  # which a listing need not import

            found = read_file(folder, file)
            rows += found.rows
            problems += found.problems
            broken |= found.broken
    registry.add_shelf(Shelf(folder, "bundles/", rows, problems, broken))


def add_user(registry: Registry) -> None:
    """Add the cards of the user's folder, where there is one."""
    folder = os.path.join(config_folder(), "cards")
    if not os.path.lexists(folder):  # as for most people, who need not import what reads it
        return
    from bundles.registry.index import read_folder

    try:
        shelf = read_folder(os.path.abspath(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        registry.add_problems([f"{folder} cannot be read ({error.strerror}): check its mode"], {})
        return
    registry.add_shelf(shelf)


def add_folder(registry: Registry, folder: str, *, override: bool = False) -> None:
    """Add every ``*.toml`` of a folder; the good cards also where others are broken.

    Raises:
        CardError: lists every problem of every card that could not be added.
        NotADirectoryError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"There is no folder {folder!r} to read cards from.")
    from bundles.registry.index import read_folder

    folder = os.path.abspath(folder)  # relative weights are looked for there, wherever Python goes
    problems = registry.add_shelf(read_folder(folder), override=override, can_override=True)
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
    from bundles.registry.index import read_file

    index = {}
    for file in _card_files(folder):
        found = read_file(folder, file)
        if found.problems:
            raise CardError("\n".join(found.problems), problems=tuple(found.problems))
        cards = {name: card for name, _, card in found.rows}
        index[file] = {"crc32": checksum(os.path.join(folder, file)), "cards": cards}
    return index


def checksum(path: str) -> int:
    """Return the CRC-32 of a file: enough to notice an edit, which is all that the index needs."""
    with open(path, "rb") as file:
        return zlib.crc32(file.read())


def _card_files(folder: str) -> Iterator[str]:
    return iter(sorted(file for file in os.listdir(folder) if file.endswith(".toml")))


def _read_index(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            index: dict[str, Any] = json.load(file)
    except (OSError, ValueError):  # without an index the cards are parsed
        return {}
    return index
