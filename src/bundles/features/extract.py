"""Compute the features of a dataset once, and store them where they are found again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from bundles.assemble.request import Freeze
from bundles.errors import FeatureError
from bundles.features.encode.deterministic import check_deterministic
from bundles.features.encode.layers import find_layers
from bundles.features.encode.state import code_digest, state_digest
from bundles.features.engines.ray import RayRows, check_source, is_ray_dataset
from bundles.features.engines.run import Extraction
from bundles.features.engines.source import BundleSource, Source, plan_digest, source_of
from bundles.features.engines.window import Recipe
from bundles.features.inputs.open import Inputs, open_inputs
from bundles.features.inputs.preprocess import Preprocessing, preprocessing_of
from bundles.features.store.manifest import DTYPES
from bundles.features.store.store import FeatureStore
from bundles.spec.bundle import Bundle
from bundles.spec.features import FeatureFacts
from bundles.spec.mode import FreezeMode
from bundles.spec.values import shown

Engine = Literal["local", "ray"]


def extract_features(
    bundle_or_model: Bundle | str | nn.Module,
    dataset: Any,
    out: str | os.PathLike[str],
    *,
    layers: Sequence[int | str] | int | str | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    dtype: str | torch.dtype = "float16",
    engine: Engine = "local",
    freeze: Freeze = True,
    freeze_mode: str | FreezeMode | None = None,
    num_workers: int | None = None,
    shard_size: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
    preprocessing: Preprocessing | None = None,
    **options: Any,
) -> FeatureStore:
    """Store what a frozen encoder makes of every item of a dataset.

    The dataset is cut into windows, each of which becomes a file that is a function of the model, the plan,
    the layers and the window's inputs, and of nothing else. So what is there already is not computed again,
    whether the last call was finished or killed; whatever changed is.

    Args:
        bundle_or_model: a bundle, its name or its pin; or any module, which is taken as it is.
        dataset: paths, a glob or a folder; a list of tensors or texts; a dataset of torch, torchaudio or
            ``datasets``; tars, Parquet files; a stream; with ``engine="ray"`` also a ``ray.data.Dataset``.
            See :func:`bundles.features.inputs.open.open_inputs`.
        out: a folder, in which stores of several models have room. One of one model holds one dataset.
        layers: blocks by number from 0, negative ones from the end, as ``[6, 9]``; ``"prefix"`` for the end
            of what is frozen; ``None`` for what the head is given, and without one what the model returns.
        batch_size: items that the model is given at once. It decides no more than the last bits, see
            ``store.manifest.bound``.
        device: where the model computes.
        dtype: of what is stored: float16, bfloat16 or float32.
        engine: ``"local"``, this process and others beside it, of one thread each; or ``"ray"``, actors of a
            cluster.
        freeze: how a bundle is frozen, as :func:`bundles.get_model` takes it.
        freeze_mode: as :func:`bundles.get_model` takes it.
        num_workers: processes, this one among them, or actors; without it one for each core that this
            process may use. On an accelerator the others read for this one.
        shard_size: items in a window, whose features are in memory until it is written; without it that of
            the store that is there, or 16 windows of 8 to 128, of fewer where several layers are stored.
        on_error: what becomes of an item that cannot be read, or that the model does not take: ``"raise"``
            stops, and keeps what is finished; ``"skip"`` leaves it out and notes it in the manifest.
        progress: whether a bar is shown.
        preprocessing: what becomes of an item before the model sees it, where nothing tells.
        options: of the bundle's builder, as ``normalize="per_utterance"``.

    Returns:
        The store, of which ``store[i]`` is ``[frames, dim]`` in the order of the dataset.

    Raises:
        NotDeterministicError: the model would give other features the next time.
        InputError: an item cannot be read, or the dataset is none of those that are taken.
        FeatureError: an argument is not one of those accepted, or a worker died.
        FreezeArgumentError, NothingSelectedError, UnknownBundleError, SourceError, WeightsError, BuildError,
            CacheError: as :func:`bundles.get_model`, or the folder cannot be written.

    >>> import tempfile, torch, bundles
    >>> frames = list(torch.randn(3, 2, 1024))
    >>> store = extract_features(bundles.CREPE_TINY, frames, tempfile.mkdtemp(), progress=False)
    >>> len(store), store[0].shape, store[0].dtype
    (3, torch.Size([2, 256]), torch.float16)
    """
    _check_numbers(num_workers=num_workers, shard_size=shard_size)
    recipe, inputs = prepare(
        source_of(bundle_or_model, freeze=freeze, freeze_mode=freeze_mode, device=device, options=options),
        dataset,
        out,
        layers=layers,
        batch_size=batch_size,
        dtype=dtype,
        engine=engine,
        on_error=on_error,
        preprocessing=preprocessing,
    )
    return Extraction(recipe, inputs, engine, shard_size).run(num_workers, progress=progress)


def prepare(
    source: Source,
    dataset: Any,
    out: str | os.PathLike[str],
    *,
    layers: Sequence[int | str] | int | str | None,
    batch_size: int,
    dtype: str | torch.dtype,
    engine: Engine,
    on_error: Literal["raise", "skip"],
    preprocessing: Preprocessing | None,
) -> tuple[Recipe, Inputs | RayRows]:
    """Return what an engine needs, arguments as for :func:`extract_features`; nothing is written."""
    _check_numbers(batch_size=batch_size)
    _check_choice("engine", engine, get_args(Engine))
    _check_choice("on_error", on_error, ("raise", "skip"))
    given = source.bundle if isinstance(source, BundleSource) else source.module
    if engine == "ray":
        check_source(source)
    preprocessing = preprocessing or preprocessing_of(given, dataset)
    inputs: Inputs | RayRows
    if engine == "ray" and is_ray_dataset(dataset):
        inputs = RayRows(dataset, preprocessing)
    else:
        inputs = open_inputs(dataset, preprocessing)
    facts = facts_of(source, layers, _dtype(dtype), preprocessing, batch_size)
    folder = Path(out).expanduser().absolute() / facts.key[:16]
    return Recipe(source, facts, batch_size, folder, on_error == "skip"), inputs


def facts_of(
    source: Source,
    layers: Sequence[int | str] | int | str | None,
    dtype: str,
    preprocessing: Preprocessing,
    batch_size: int = 1,
) -> FeatureFacts:
    """Return everything but the inputs that decides the features; of a bundle no weights are read for it.

    Raises:
        NotDeterministicError: the model would give other features the next time.
        FreezeArgumentError: the model has no such layer.
    """
    outline = source.outline()
    wanted = [layers] if isinstance(layers, int | str) else layers
    check_deterministic(outline, wanted, batch_size)
    names = tuple(layer.name for layer in find_layers(outline, wanted))
    model = source.pin() if isinstance(source, BundleSource) else _model_digest(outline, names)
    return FeatureFacts(model, plan_digest(outline), names, dtype, preprocessing.to_dict())


def _model_digest(model: nn.Module, layers: Sequence[str]) -> str:
    """What a module that no pin names is known by: values, structure, and the code that it runs."""
    told = f"{state_digest(model, layers)} {code_digest(model)}"
    return "state:" + hashlib.sha256(told.encode()).hexdigest()


def _dtype(dtype: object) -> str:
    name = str(dtype).removeprefix("torch.")
    _check_choice("dtype", name, DTYPES)
    return name


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise FeatureError(
            f"{name}={shown(value)} is none of {', '.join(map(repr, choices))}: pass one of these."
        )


def _check_numbers(**numbers: object) -> None:
    for name, value in numbers.items():
        if (value is None and name != "batch_size") or (type(value) is int and value >= 1):
            continue
        raise FeatureError(f"{name}={shown(value)} is no number of at least 1: pass one, as {name}=8.")
