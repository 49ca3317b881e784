"""Get the weights of a source onto this machine, as safetensors, and read them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundles.errors import SourceNotFoundError, WeightsFileError
from bundles.spec.bundle import Bundle
from bundles.spec.formats import CONVERTER, is_pickle_name
from bundles.spec.source import WeightSource

if TYPE_CHECKING:
    import torch
    from torch import nn

# Builders whose library knows what the names in its older checkpoints are today, each "module:function".
_NAMES = {"transformers": "bundles.builders.transformers.names:read_names"}


def fetch_weights(source: WeightSource, *, progress: bool = True) -> Path:
    """Return the verified weights as safetensors; pickled checkpoints are converted once.

    Of a sharded checkpoint this is the index, see :func:`fetch_shards`.
    """
    from bundles.builders.pickles import convert_pickle
    from bundles.sources.converted import converted
    from bundles.sources.fetch import fetch

    path = fetch(source, progress=progress)
    return converted(path, CONVERTER, convert_pickle) if is_pickle_name(source.name) else path


def fetch_shards(source: WeightSource, index: Path, *, progress: bool = True) -> dict[str, Path]:
    """Return where each of the files that an index names lies, verified as far as the source knows them.

    Args:
        source: of the index.
        index: what :func:`fetch_weights` gave for it.
        progress: whether downloads show a bar.

    Raises:
        WeightsFileError: the index names what is not there, or is damaged.
    """
    from bundles.builders.index import read_index
    from bundles.sources.fetch import fetch

    paths = {}
    for shard in read_index(index).shards:
        try:
            paths[shard] = fetch(source.shard(shard), progress=progress)
        except SourceNotFoundError as error:
            raise WeightsFileError(
                f"The shard index {source.shown} names {shard}, which is not there: get the checkpoint again."
            ) from error
    return paths


def read_weights(
    source: WeightSource, *, lasting: bool = True, progress: bool = True
) -> tuple[dict[str, torch.Tensor], bool]:
    """Return every tensor of a source, of all its shards, and whether somebody may write to the files.

    ``lasting`` is as for :func:`bundles.builders.tensors.read_tensors`.

    Raises:
        SourceError, CacheError, WeightsError: the weights cannot be had or read.
    """
    from bundles.builders.index import read_index
    from bundles.builders.tensors import is_writable, read_shards, read_tensors

    path = fetch_weights(source, progress=progress)
    if not source.is_index:
        return read_tensors(path, lasting=lasting), is_writable(path)
    paths = fetch_shards(source, path, progress=progress)
    return read_shards(read_index(path), paths, lasting=lasting), any(map(is_writable, paths.values()))


def read_names(
    bundle: Bundle, model: nn.Module, prefix: str, tensors: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """Return tensors under the names that the library of a bundle's model gives them today.

    Args:
        bundle: whose weights they are.
        model: holds what its builder made.
        prefix: where, as ``"encoder."``.
        tensors: by the names of the file, as the bundle's own key map has translated them.

    Raises:
        WeightsFileError: two come to one name, or one would have to be converted.
    """
    if not isinstance(bundle.builder, str) or bundle.builder not in _NAMES or bundle.weights is None:
        return tensors
    module, _, function = _NAMES[bundle.builder].partition(":")
    part = model.get_submodule(prefix.rstrip("."))
    read: Any = getattr(importlib.import_module(module), function)
    named: Mapping[str, torch.Tensor] = read(part, tensors, bundle.weights.uri)
    return named
