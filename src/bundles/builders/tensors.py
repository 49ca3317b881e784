"""Read a weight file: safetensors by memory map, and nothing else."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from bundles.builders.headers import examine_header
from bundles.builders.index import ShardIndex, check_shard, check_total
from bundles.builders.mapped import map_tensors
from bundles.errors import WeightsFileError
from bundles.spec.hub import is_hub_blob
from bundles.spec.sniff import describe_file, is_safetensors

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def read_tensors(path: Path, *, lasting: bool = True) -> dict[str, torch.Tensor]:
    """Return every tensor of a safetensors file, in order of names.

    A file that nobody may write, as those in the cache, is mapped and not copied: pages are read when
    they are used, and shared between processes. Any other is copied, because a map would follow the
    file when it is rewritten, and kill the process when it is cut short.

    Args:
        path: of the file.
        lasting: whether the tensors will be kept. Where they are only copied from, at once, every file
            is mapped, so that nobody holds a whole copy who wants a part.

    Raises:
        WeightsFileError: the file is of another format, damaged or truncated; it says which.
    """
    if not is_safetensors(path):
        raise WeightsFileError(
            f"The weight file {path} is {describe_file(path)}; a safetensors file is needed."
        )
    copy = lasting and is_writable(path)
    tensors = None if copy else map_tensors(path)
    return _read(path, copy=copy) if tensors is None else tensors


def read_shards(
    index: ShardIndex, paths: Mapping[str, Path], *, lasting: bool = True
) -> dict[str, torch.Tensor]:
    """Return every tensor of a sharded checkpoint, in order of names.

    Args:
        index: what is in which shard.
        paths: where each of its shards lies; a cache may keep them apart.
        lasting: as for :func:`read_tensors`.

    Raises:
        WeightsFileError: a shard is damaged, or the shards do not hold what the index says.
    """
    found: dict[str, torch.Tensor] = {}
    for shard in index.shards:
        tensors = read_tensors(paths[shard], lasting=lasting)
        check_shard(index, shard, paths[shard], tensors)
        if twice := sorted(found.keys() & tensors):
            raise WeightsFileError(
                f"The tensor {twice[0]} is in {paths[shard]} and in another shard: get the checkpoint again."
            )
        found.update(tensors)
    check_total(index, {name: tensor.nbytes for name, tensor in found.items()})
    return {name: found[name] for name in sorted(found)}


def is_writable(path: Path) -> bool:
    """Whether anybody may write to a file, so that a map of it cannot be relied on."""
    return bool(path.stat().st_mode & _WRITABLE) and not is_hub_blob(path)


def _read(path: Path, *, copy: bool) -> dict[str, torch.Tensor]:
    """Read with the official library, which is the judge of what is unusual."""
    examine_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return {name: tensor.clone() for name, tensor in tensors.items()} if copy else tensors
    except (SafetensorError, KeyError, AttributeError, ValueError) as error:
        raise WeightsFileError(
            f"The safetensors file {path} is damaged, truncated or holds a type that torch "
            f"{torch.__version__} lacks: {error}. Get it again."
        ) from error


def dtype_named(name: str) -> torch.dtype | None:
    """Return torch's dtype of a name, ``None`` where it has none.

    >>> dtype_named("float16")
    torch.float16
    """
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else None
