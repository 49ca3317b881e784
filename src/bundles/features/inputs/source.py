"""Where items come from: what every kind of dataset offers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from bundles.errors import BundlesError, InputError
from bundles.features.inputs.raw import NAMES, raw_of

Stamp = tuple[str, int, int, int]
"""What tells without reading it whether a file changed: where it is, size, ``mtime_ns``, ``ctime_ns``."""


class Source(Protocol):
    """A dataset with random access, which pickles if what it reads does."""

    def __len__(self) -> int:
        """Return the number of items."""

    def name(self, index: int) -> str:
        """Return what people call an item."""

    def get(self, index: int) -> Any:
        """Return an item, as :func:`bundles.features.inputs.raw.raw_of` does."""

    def stamp(self, index: int) -> Stamp | None:
        """Return the stamp of an item that is in a file."""


class Items:
    """A ``torch.utils.data.Dataset`` with random access, a list, or a tensor of which each row is an item."""

    def __init__(self, items: Any, kind: str) -> None:
        self._items = items
        self._kind = kind

    def __len__(self) -> int:
        return len(self._items)

    def name(self, index: int) -> str:
        """Return the number of an item."""
        return str(index)

    def get(self, index: int) -> Any:
        """Return an item."""
        return raw_of(self._items[index], self._kind)

    def stamp(self, index: int) -> Stamp | None:
        """Return nothing, since no file is known."""
        return None


class Stream:
    """What can only be walked through: an ``IterableDataset`` of torch, webdataset or datasets."""

    def __init__(self, items: Any, kind: str) -> None:
        self._items = items
        self._kind = kind

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the name of each item, and the item or the error that says why it is none.

        Raises:
            InputError: the stream itself broke.
        """
        items = iter(self._items)
        index = 0
        while True:
            try:
                value = next(items)
            except StopIteration:
                return
            except BundlesError:
                raise
            except Exception as error:
                raise InputError(f"The stream broke after {index} items ({why(error)}): mend it.") from error
            yield _name(value, index), self._get(value)
            index += 1

    def _get(self, value: Any) -> Any:
        try:
            return raw_of(value, self._kind)
        except InputError as error:
            return error


def stamp_of(path: str, part: Sequence[object] = ()) -> Stamp | None:
    """Return the stamp of a file, or of a part of it, ``None`` if it is not there."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    where = "#".join((os.path.abspath(path), *map(str, part)))
    return (where, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def why(error: BaseException) -> str:
    """Return what another library says, on one line; of an error without words what its cause says."""
    told = str(error) or str(error.__cause__ or "")  # as of webdataset's DecodingError
    return f"{type(error).__name__}: {' '.join(told.split())[:200]}".rstrip(": .")


def _name(value: Any, index: int) -> str:
    entries = value if isinstance(value, dict) else {}
    return next(
        (str(entries[name]) for name in NAMES if isinstance(entries.get(name), str | int)), str(index)
    )
