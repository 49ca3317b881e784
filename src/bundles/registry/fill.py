"""Write values into a card file and leave everything else of it as it is: comments, order, layout."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from bundles.errors import CardError
from bundles.registry.cards import read_card_text
from bundles.registry.lines import Path

Values = Mapping[str, Mapping[Path, Any]]  # name of the card -> path of the key in it -> value


def filled(path: str, values: Values) -> str:
    """Return the text of a card file with these values in it.

    A value goes into the card's own table, also where the card inherits the key.

    Raises:
        CardError: the file would not be good with them.
    """
    import tomlkit

    with open(path, encoding="utf-8", newline="") as file:
        document = tomlkit.parse(file.read())
    for name, entries in values.items():
        for key, value in entries.items():
            _set(document[name], key, value)
    text = tomlkit.dumps(document)
    if problems := read_card_text(path, text).problems:
        raise CardError(
            "What is to be filled in is not good:\n" + "\n".join(problems), problems=tuple(problems)
        )
    return text


def replace_text(path: str, text: str) -> None:
    """Put a new text in the place of a file in one step: readers see the old one or the new one.

    Raises:
        OSError: the folder cannot be written; the file is as it was.
    """
    target = os.path.realpath(path)  # a link stays one
    handle, temporary = tempfile.mkstemp(prefix=".card-", dir=os.path.dirname(target))
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # gone, if all went well
            os.unlink(temporary)


def _set(table: Any, key: Path, value: Any) -> None:
    """Set a key, before the comments and empty lines that end the table: they are about the next one."""
    import tomlkit

    if isinstance(value, Mapping):
        value = _inline(value)
    inside = table
    for depth, part in enumerate(key[:-1]):
        if part not in inside:  # new ones dotted, as in: weights.size = 3
            tail = _cut_tail(inside)
            inside.append(tomlkit.key(list(key[depth:])), value)
            _append_all(inside, tail)
            return
        inside = inside[part]
    if key[-1] in inside:
        inside[key[-1]] = value
        return
    tail = _cut_tail(inside)
    inside[key[-1]] = value
    _append_all(inside, tail)


def _inline(value: Mapping[str, Any]) -> Any:
    import tomlkit

    table = tomlkit.inline_table()
    for key, entry in value.items():
        table[key] = _inline(entry) if isinstance(entry, Mapping) else entry
    return table


def _cut_tail(table: Any) -> list[Any]:
    body = getattr(getattr(table, "value", None), "body", [])
    tail = []
    while body and body[-1][0] is None:
        tail.append(body.pop()[1])
    return tail[::-1]


def _append_all(table: Any, items: list[Any]) -> None:
    for item in items:
        table.add(item)
