"""Read the index of a sharded checkpoint: which tensor is in which of the files beside it.

The layout is that of ``save_pretrained``: ``{"metadata": {"total_size": bytes}, "weight_map": {tensor:
file}}`` (``huggingface_hub/serialization/_base.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundles.errors import WeightsFileError
from bundles.spec.hub import path_problem
from bundles.spec.sniff import describe_file
from bundles.spec.values import shown

_LARGEST = 16 << 20  # bytes; the index of a model of 100,000 tensors has 10 MiB
_MOST = 10_000  # files


@dataclass(frozen=True)
class ShardIndex:
    """What an index says.

    Attributes:
        path: of the index.
        places: name of a tensor -> name of the file beside the index that holds it.
        total_size: bytes of all tensors together, ``None`` where it does not say.
    """

    path: Path
    places: Mapping[str, str]
    total_size: int | None = None

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the files, in order."""
        return tuple(sorted(set(self.places.values())))


def read_index(path: Path) -> ShardIndex:
    """Return what an index says, after checking that it names nothing but files beside it.

    Raises:
        WeightsFileError: it is no index, names a tensor twice, or a file that is not beside it.
    """
    entries = _parsed(path)
    places, metadata = entries.get("weight_map"), entries.get("metadata") or {}
    if not isinstance(places, dict) or not places or not isinstance(metadata, dict):
        raise _wrong(path, "has no weight_map, a table of tensors and the files that hold them")
    for name, shard in places.items():
        if problem := _shard_problem(shard):
            raise _wrong(path, f"says that the tensor {shown(name)} is in {shown(shard)}, {problem}")
    if len(set(places.values())) > _MOST:
        raise _wrong(path, f"names more than {_MOST} files")
    return ShardIndex(path, places, _total_size(path, metadata.get("total_size")))


def check_shard(index: ShardIndex, shard: str, path: Path, names: Iterable[str]) -> None:
    """Check that a file of a sharded checkpoint holds no tensor that the index says is in another one.

    A tensor that the index has and its file lacks is no error here: files are written without the second name
    of a tied tensor. Whether one is missing is for the model to say.

    Raises:
        WeightsFileError: it does.
    """
    for name in names:
        if index.places.get(name, shard) != shard:
            raise _wrong(index.path, f"says that {name} is in {index.places[name]}, and {path} holds it")


def check_total(index: ShardIndex, sizes: Mapping[str, int]) -> None:
    """Check the bytes of the tensors against what the index says of all of them.

    Where the index has tensors that no file holds, it may have counted them.

    Args:
        index: of the checkpoint.
        sizes: of each tensor that was found, in bytes.

    Raises:
        WeightsFileError: they differ.
    """
    found, said = sum(sizes.values()), index.total_size
    may_be_more = bool(index.places.keys() - sizes.keys())
    if said is not None and said != found and not (may_be_more and said > found):
        raise _wrong(index.path, f"says total_size = {said}, and the shards hold {found} bytes")


def _parsed(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST:
        raise _wrong(path, f"has more than {_LARGEST >> 20} MiB, which no index has")
    try:
        entries = json.loads(path.read_bytes().decode(), object_pairs_hook=_without_repetition)
    except _RepeatedKeyError as error:
        raise _wrong(path, f"holds the key {shown(error.args[0])} twice") from error
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"is {describe_file(path)} and cannot be read as JSON") from error
    if not isinstance(entries, dict):
        raise _wrong(path, "is no table")
    return entries


def _shard_problem(shard: object) -> str | None:
    if not isinstance(shard, str) or "/" in shard or path_problem(shard):
        return "which is not the plain name of a file beside the index"
    return None if shard.endswith(".safetensors") else "which is no safetensors file"


def _total_size(path: Path, total: object) -> int | None:
    if total is None:
        return None
    if isinstance(total, float) and total.is_integer():  # older tools counted in fractions of a byte
        total = int(total)
    if type(total) is not int or total < 0:
        raise _wrong(path, f"says total_size = {shown(total)}, which is no number of bytes")
    return total


class _RepeatedKeyError(ValueError):
    """A key of a JSON table is there twice."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise _RepeatedKeyError(key)
        entries[key] = value
    return entries


def _wrong(path: Path, what: str) -> WeightsFileError:
    return WeightsFileError(f"The shard index {path} {what}: get the checkpoint again.")
