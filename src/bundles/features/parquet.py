"""Features as Parquet, written by a cluster to wherever Ray writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from bundles.assemble.request import Freeze
from bundles.features.engines.ray import RayRows, map_rows, map_windows, telling_why
from bundles.features.engines.source import source_of
from bundles.features.engines.tasks import Tasks
from bundles.features.extract import prepare
from bundles.features.inputs.preprocess import Preprocessing
from bundles.spec.bundle import Bundle
from bundles.spec.mode import FreezeMode

_WINDOW = 128  # items that an actor holds at a time


def extract_to_parquet(
    bundle: Bundle | str,
    dataset: Any,
    out: str,
    *,
    layers: Sequence[int | str] | int | str | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    dtype: str | torch.dtype = "float16",
    freeze: Freeze = True,
    freeze_mode: str | FreezeMode | None = None,
    num_workers: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    preprocessing: Preprocessing | None = None,
    **options: Any,
) -> None:
    """Write what a frozen encoder makes of every item of a dataset as Parquet, by actors of Ray.

    For tables and other programs. There is no manifest: asking again computes everything again, into more
    files; of a killed run there is a part. :func:`bundles.extract_features` keeps a store.

    The columns are ``name`` and ``identity`` (32 bytes) of the item, ``frames``, one for each layer, a list
    of ``frames * dim`` numbers, row by row (of pooled features ``frames`` is null), and ``error``, which says
    of an item that was left out why. bfloat16 is written as float32, which holds it exactly.

    Args:
        bundle: a bundle, its name or its pin.
        dataset: a ``ray.data.Dataset``, or whatever :func:`bundles.extract_features` takes that pickles.
        out: a folder of any filesystem that Ray writes to, as ``"s3://bucket/features"``.
        layers: as for :func:`bundles.extract_features`, like all that follows.
        batch_size: items that the model is given at once.
        device: where the model computes; with ``"cuda"`` an actor takes a GPU.
        dtype: of the features.
        freeze: as :func:`bundles.get_model` takes it.
        freeze_mode: as :func:`bundles.get_model` takes it.
        num_workers: actors.
        on_error: ``"raise"``, or ``"skip"`` to leave out what cannot be read.
        preprocessing: what becomes of an item before the model sees it.
        options: of the bundle's builder.

    Raises:
        FeatureError: the model is no bundle, an item cannot be read, or Ray gave up.
        NotDeterministicError, InputError, FreezeArgumentError, SourceError: as
            :func:`bundles.extract_features`.
    """
    recipe, inputs = prepare(
        source_of(bundle, freeze=freeze, freeze_mode=freeze_mode, device=device, options=options),
        dataset,
        ".",  # where shards would go
        layers=layers,
        batch_size=batch_size,
        dtype=dtype,
        engine="ray",
        on_error=on_error,
        preprocessing=preprocessing,
    )
    if isinstance(inputs, RayRows):
        tables = map_rows(recipe, inputs, _WINDOW, num_workers, as_table=True)
    else:
        tables = map_windows(recipe, inputs, Tasks(inputs, _WINDOW), num_workers, as_table=True)
    with telling_why():
        tables.write_parquet(out)
