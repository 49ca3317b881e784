"""Features of a window as an Arrow table, a row per item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bundles.builders.require import require
from bundles.features.engines.maker import ShardMaker
from bundles.features.engines.tasks import Task
from bundles.features.inputs.open import Inputs
from bundles.features.store.packing import IDENTITY_BYTES


def table_of(maker: ShardMaker, task: Task, inputs: Inputs | None = None) -> Any:
    """Return what :func:`bundles.features.parquet.extract_to_parquet` writes of a window.

    Raises:
        InputError: an item cannot be read, and the recipe skips none.
    """
    pyarrow = require("pyarrow")
    window = maker.read(task, inputs)
    items, features, refused = maker.encode(window.items) if window.items else ((), [], [])
    left_out = [*window.unreadable, *refused]
    none = [None] * len(left_out)
    frames = [_frames(each[maker.recipe.facts.layers[0]]) for each in features]
    columns = {
        "name": pyarrow.array([*(item.name for item in items), *(name for name, _ in left_out)], "string"),
        "identity": pyarrow.array(
            [*(item.identity for item in items), *none], pyarrow.binary(IDENTITY_BYTES)
        ),
        "frames": pyarrow.array([*frames, *none], "int64"),
    }
    for layer in maker.recipe.facts.layers:
        columns[layer] = _lists([each[layer] for each in features], len(none), maker.recipe.facts.dtype)
    columns["error"] = pyarrow.array([*[None] * len(items), *(why for _, why in left_out)], "string")
    return pyarrow.table(columns)


def _frames(features: Tensor) -> int | None:
    return features.shape[0] if features.dim() > 1 else None


def _lists(features: Sequence[Tensor], missing: int, dtype: str) -> Any:
    """Return features as lists of numbers, and an empty list for each item that was left out."""
    pyarrow = require("pyarrow")
    kind = torch.float16 if dtype == "float16" else torch.float32
    flat = torch.cat([torch.empty(0, dtype=kind), *(each.to(kind).reshape(-1) for each in features)])
    ends = torch.tensor([0, *(each.numel() for each in features), *[0] * missing]).cumsum(0)
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(ends.numpy()), pyarrow.array(flat.numpy()))
