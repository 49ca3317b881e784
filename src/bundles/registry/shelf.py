"""A shelf: the cards of one folder, in the form in which they are quickest to list.

On the path of ``import bundles; bundles.list_bundles()``: a card from the index is text until somebody asks
for what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from bundles.registry.names import natural_key

Row = tuple[str, str, Any]  # name, file, and the card: a dict, or the JSON text of one


class Shelf:
    """The cards of one folder.

    Args:
        folder: where relative addresses in its cards begin.
        label: what stands before a file's name where people are told a card's origin.
        rows: its cards, in the order of files and of cards in them; the first of a name counts.
        problems: one line each, of cards that cannot be used.
        broken: those lines by the names of the cards.
        order: the names in natural order, where they are sorted already.
        facts: returns what the cards have at a key, by name, or ``None`` where they have to be asked.
    """

    def __init__(
        self,
        folder: str,
        label: str,
        rows: Iterable[Row],
        problems: Iterable[str] = (),
        broken: Mapping[str, list[str]] | None = None,
        order: list[str] | None = None,
        facts: Callable[[str], dict[str, Any] | None] | None = None,
    ) -> None:
        self.folder, self.label = folder, label
        self.problems, self.broken = list(problems), dict(broken or {})
        self._order, self._facts = order, facts
        rows = list(rows)
        self._rows = {row[0]: row for row in rows}
        self.by_lower = {name.lower(): name for name in self._rows}
        if len(self.by_lower) < len(rows):
            self._rows = dict(self._first_of_each_name(rows))
            self.by_lower = {name.lower(): name for name in self._rows}
            self._order = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    @property
    def order(self) -> list[str]:
        """The names in natural order."""
        if self._order is None:
            self._order = sorted(self._rows, key=natural_key)
        return self._order

    def origin(self, name: str) -> str:
        """Return where a card is defined, for people."""
        return self.label + self._rows[name][1]

    def card(self, name: str) -> Mapping[str, Any]:
        """Return a card, checked and complete."""
        row = self._rows[name]
        card = row[2]
        if isinstance(card, str):
            card = json.loads(card)
            self._rows[name] = (row[0], row[1], card)
        result: Mapping[str, Any] = card
        return result

    def facts(self, key: str) -> Mapping[str, Any]:
        """Return what the cards have at a key, by name; those that have nothing there are left out."""
        found = self._facts(key) if self._facts else None
        if found is not None:
            return found
        known = ((name, facts_of(self.card(name))) for name in self)
        return {name: facts[key] for name, facts in known if key in facts}

    def _first_of_each_name(self, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
        seen: dict[str, Row] = {}
        for row in rows:
            first = seen.setdefault(row[0].lower(), row)
            if first is row:
                yield row[0], row
            else:
                self.problems.append(
                    taken_message(row[0], self.label + row[1], first[0], self.label + first[1])
                )


def facts_of(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what bundles are filtered by: a card's keys, and those of its own that it has in ``extra``."""
    return {**card, **card["extra"]} if "extra" in card else card


def taken_message(name: str, origin: str, taken: str, first: str, *, can_override: bool = False) -> str:
    """Return the sentence for a name that is defined twice."""
    other = ", or pass override=True" if can_override else ""
    what = f"The bundle {name} of {origin} is defined already, as {taken} of {first}"
    return f"{what}: give it another name{other}."
