"""Tables: ``datasets.Dataset``, and Parquet files as that library and others write them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from bundles.builders.require import require
from bundles.errors import InputError
from bundles.features.inputs.raw import COLUMNS, NAMES, RATES, column_of, raw_of
from bundles.features.inputs.source import Stamp, stamp_of, why


class Rows:
    """The rows of a ``datasets.Dataset``.

    Files in it are taken as they are and decoded here, so that torchcodec is not needed.
    """

    def __init__(self, dataset: Any, kind: str) -> None:
        column = _column(dataset.column_names, kind, "The dataset")
        self._kind = kind
        self._rows = undecoded(dataset, column)
        named = next((name for name in NAMES if _is_plain(dataset.features.get(name))), None)
        self._names = dataset.with_format(None).select_columns([named]) if named else None
        self._named = named

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Return what the column of names holds, else the number of the row."""
        found = self._names[index][self._named] if self._names is not None else None
        return str(index if found is None else found)

    def get(self, index: int) -> Any:
        """Return the input of a row."""
        return raw_of(self._rows[index], self._kind)

    def stamp(self, index: int) -> Stamp | None:
        """Return nothing: the library keeps rows in files of its own."""
        return None


def undecoded(dataset: Any, column: str) -> Any:
    """Return a column of a dataset of ``datasets``, in which files are ``{"bytes", "path"}``.

    The columns that tell names and rates come along, if they hold text or numbers.
    """
    features: Any = dataset.features or {}
    plain = (name for name in (*RATES, *NAMES) if _is_plain(features.get(name)))
    dataset = dataset.with_format(None).select_columns(list(dict.fromkeys((column, *plain))))
    feature = features.get(column)
    if not hasattr(feature, "decode"):
        return dataset
    return dataset.cast_column(column, type(feature)(decode=False))


class Parquet:
    """The rows of Parquet files; one row group of one of them is held at a time.

    Args:
        paths: of the files.
        kind: of :class:`Preprocessing`; the column is one of those that belong to it.

    Raises:
        InputError: a file is none, or has no such column.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[str], kind: str) -> None:
        self._paths = list(paths)
        self._kind = kind
        self._groups: list[tuple[str, int, tuple[str, ...], str | None]] = []
        sizes = []
        for path in self._paths:
            described = _open(path)
            columns = described.schema_arrow.names
            column = _column(columns, kind, path)
            named = next((name for name in NAMES if name in columns), None)
            for group in range(described.num_row_groups):
                self._groups.append((path, group, _with_rate(columns, column), named))
                sizes.append(described.metadata.row_group(group).num_rows)
        self._ends = list(accumulate(sizes))
        self._held: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def name(self, index: int) -> str:
        """Return what the column of names holds, else the number of the row."""
        named = self._groups[self._at(index)[0]][3]
        found = self._cell(index, named) if named is not None else None
        return str(index if found is None else found)

    def get(self, index: int) -> Any:
        """Return the input of a row."""
        columns = self._groups[self._at(index)[0]][2]
        values = {name: self._cell(index, name) for name in columns}
        return raw_of(values, self._kind)

    def stamp(self, index: int) -> Stamp | None:
        """Return the stamp of the file and the number of the row."""
        return stamp_of(self._groups[self._at(index)[0]][0], (index,))

    def _at(self, index: int) -> tuple[int, int]:
        """The row group of an item, and its row there."""
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _cell(self, index: int, column: str) -> Any:
        number, row = self._at(index)
        return self._table(number)[column][row].as_py()

    def _table(self, number: int) -> Any:
        if self._held is None or self._held[0] != number:
            path, group, columns, named = self._groups[number]
            wanted = list(dict.fromkeys((*columns, *((named,) if named else ()))))
            self._held = number, _open(path).read_row_group(group, columns=wanted)
        return self._held[1]


def _open(path: str) -> Any:
    parquet = require("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # ArrowInvalid is one
        raise InputError(f"{path} cannot be read as Parquet ({why(error)}): get it again.") from error


def _column(names: Sequence[str], kind: str, what: str) -> str:
    column = column_of(names, kind)
    if column is None:
        raise InputError(
            f"{what} has the columns {', '.join(names)}: one of {', '.join(COLUMNS[kind])} is needed."
        )
    return column


def _with_rate(names: Sequence[str], column: str) -> tuple[str, ...]:
    return (column, *(name for name in RATES if name in names))


def _is_plain(feature: object) -> bool:
    """Whether a column of ``datasets`` holds text or numbers."""
    return type(feature).__name__ == "Value"
