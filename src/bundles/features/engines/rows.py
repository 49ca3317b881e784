"""Rows of a ``ray.data.Dataset`` as items: a closed table of what its readers call their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bundles.errors import InputError
from bundles.features.engines.tasks import Read
from bundles.features.inputs.item import Item, identity_of
from bundles.features.inputs.prepare import prepare
from bundles.features.inputs.preprocess import Preprocessing
from bundles.features.inputs.raw import NAMES, raw_of
from bundles.spec.values import shown

_CALLED = {"amplitude": "waveform", "item": "audio"}  # by read_audio, from_items


def rows_of(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch in NumPy's format."""
    count = len(next(iter(batch.values()), ()))
    yield from ({name: _plain(column[row]) for name, column in batch.items()} for row in range(count))


def item_of(row: Mapping[str, Any], preprocessing: Preprocessing) -> Read:
    """Return a row as an item, or why it is none.

    Args:
        row: ``bytes`` and ``path`` of ``read_binary_files``; ``amplitude`` and ``sample_rate`` of
            ``read_audio``; or the columns that :data:`bundles.features.inputs.raw.COLUMNS` names. ``id``,
            ``path`` or ``file`` names it; a row without is named by the digest of its input.
        preprocessing: what becomes of it.

    >>> row = {"amplitude": np.zeros((1, 8)), "sample_rate": 8000, "path": "a.wav"}
    >>> item_of(row, Preprocessing("waveform", 4000)).tensor
    tensor([0., 0., 0., 0.])
    """
    entries = {_CALLED.get(name, name): value for name, value in row.items()}
    name = next((str(entries[key]) for key in NAMES if isinstance(entries.get(key), str | int)), None)
    if "bytes" in entries:
        entries = {"bytes": entries["bytes"], "path": entries.get("path")}
    try:
        tensor = prepare(raw_of(entries, preprocessing.kind), preprocessing)
    except InputError as error:
        called = "a row without a name" if name is None else name
        return InputError(f"{shown(called)} {error}", inputs=(called,))
    identity = identity_of(tensor)
    return Item(identity.hex()[:16] if name is None else name, tensor, identity)


def _plain(value: Any) -> Any:
    """Return what NumPy holds as Python's own; arrays, which torch takes only if it may write, as copies."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return np.array(value.tolist() if value.dtype == object else value)
    return value
