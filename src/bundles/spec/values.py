"""Small immutable values that the nouns are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class FrozenDict(Mapping[str, Any]):
    """A mapping that cannot change, so that a shared descriptor cannot either.

    Lists become tuples and nested mappings become ``FrozenDict``; equality is that of ``dict``.

    >>> FrozenDict({"kernel": [3, 3]})["kernel"]
    (3, 3)
    """

    __slots__ = ("_items",)
    _items: dict[str, Any]

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        frozen = {key: freeze_value(value) for key, value in dict(items).items()}
        object.__setattr__(self, "_items", frozen)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("A FrozenDict cannot be changed.")

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return type(self), (self._items,)

    def __repr__(self) -> str:
        return repr(self._items)


def shown(value: object) -> str:
    """Return a short ``repr`` for a message, whatever somebody wrote: long, deep or huge.

    >>> print(shown("x" * 1000))
    'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'
    """
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 66
    try:
        return short.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a huge {type(value).__name__}"


def freeze_value(value: Any) -> Any:
    """Return ``value`` with every list and mapping in it made immutable."""
    if isinstance(value, Mapping):
        return FrozenDict(value)
    if isinstance(value, list | tuple):
        return tuple(freeze_value(item) for item in value)
    return value


def plain_value(value: Any) -> Any:
    """Return ``value`` as JSON types: the inverse of :func:`freeze_value`."""
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value
