"""Translate the names of a weight file into a model's, as its bundle declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from bundles.errors import WeightsFileError
from bundles.spec.keys import KeyMap


def translate(tensors: Mapping[str, torch.Tensor], keys: KeyMap, source: str) -> dict[str, torch.Tensor]:
    """Return the tensors under the model's names, without the rows that the model does not have.

    Raises:
        WeightsFileError: a tensor lacks the rows that are to be dropped, or two get one name.

    >>> translate({"aux.bias": torch.arange(4.0)}, KeyMap(drop_rows={"aux.bias": (1, 2)}), "file")
    {'aux.bias': tensor([0., 3.])}
    """
    names = {name: new for name in tensors if (new := keys.name_of(name)) is not None}
    named = {new: _without(tensors[name], name, keys, source) for name, new in names.items()}
    if len(named) < len(names):
        twice = _twice(names.values())
        raise WeightsFileError(f"The tensors of {source} come to the same name, {', '.join(twice)}.")
    return named


def _without(tensor: torch.Tensor, name: str, keys: KeyMap, source: str) -> torch.Tensor:
    rows = frozenset(keys.drop_rows.get(name, ()))
    if not rows:
        return tensor
    count = tensor.shape[0] if tensor.dim() else 0
    if max(rows) >= count:
        raise WeightsFileError(
            f"The tensor {name} of {source} has {count} rows, and its bundle drops row {max(rows)}: "
            f"it is not the file that the bundle was written for."
        )
    return tensor[[row for row in range(count) if row not in rows]]


def _twice(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
