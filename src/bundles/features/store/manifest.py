"""The manifest of a store: what the features are of, and which files hold them. It is written last.

It is read as what somebody else wrote: no file outside of the folder is named, and what it says of itself
is checked by its digests: of the store, and of the manifest as a whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bundles.errors import FeatureStoreError
from bundles.features.store.files import placing, sync
from bundles.features.store.shard import Shard
from bundles.sources.cache import sync_folder
from bundles.spec.features import FeatureFacts
from bundles.spec.values import FrozenDict, shown

FORMAT = 1
FILE = "store.json"
DTYPES = ("float16", "bfloat16", "float32")
_SYNCS = 16  # at once: a disk has done with many nearly as soon as with one
_LONGEST = 1 << 28  # bytes; a million shards take 200 MB
_SHARD = re.compile(r"(?P<window>[0-9]{5,18})-[0-9a-f]{16}\.safetensors")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

    Attributes:
        facts: everything but the inputs that decides the features.
        state: digest of the values that the features were computed with.
        count: of the dataset's items, those that could not be read among them.
        shard_size: of a window, in items.
        shards: in the order of the dataset.
        batch_size: the most items that the model was given at once.
        bound: the largest relative difference between an item in a batch and alone, as it was measured;
            0.0 where the bits were equal.
        unreadable: name and reason of each item that could not be read.
        versions: of the libraries that computed it; nothing is decided by them.
    """

    facts: FeatureFacts
    state: str
    count: int
    shard_size: int
    shards: tuple[Shard, ...]
    batch_size: int = 1
    bound: float = 0.0
    unreadable: tuple[tuple[str, str], ...] = ()
    versions: Mapping[str, str] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", tuple(self.shards))
        object.__setattr__(self, "unreadable", tuple((name, why) for name, why in self.unreadable))
        object.__setattr__(self, "versions", FrozenDict(self.versions))

    @property
    def digest(self) -> str:
        """64 hex digits over the facts and every shard's digest: equal wherever and however it was computed.

        Names count, as the shards hold them; batch size, engine and versions do not.
        """
        lines = [self.facts.key, *(f"{shard.name} {shard.sha256}" for shard in self.shards)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest of a store, whole or not at all, once all of its shards are on the disk.

    Raises:
        CacheError: the folder cannot be written, or a shard is not there.
    """
    changed = {"facts": manifest.facts.to_dict(), "versions": dict(manifest.versions)}
    data = {"format": FORMAT, **asdict(manifest), **changed, "digest": manifest.digest}
    text = json.dumps({**data, "sha256": _sum(data)}, indent=1, allow_nan=False)
    path = Path(folder) / FILE
    with placing(path) as file, ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(lambda shard: sync(path.with_name(shard.name)), manifest.shards))
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return path


def read_manifest(folder: Path) -> Manifest:
    """Return what :func:`write_manifest` wrote.

    Raises:
        FeatureStoreError: it is missing, malformed, or of a version that this one does not read.
    """
    path = Path(folder) / FILE
    try:
        if path.stat().st_size > _LONGEST:
            raise _malformed(path, f"it is longer than {_LONGEST} bytes")
        data = json.loads(path.read_bytes().decode(), object_pairs_hook=_without_repetition)
        return _manifest(path, data)
    except FileNotFoundError as error:
        raise FeatureStoreError(f"There is no store in {folder}: {FILE} is missing.") from error
    except OSError as error:
        raise FeatureStoreError(f"{path} cannot be read ({error.strerror or error}).") from error
    except FeatureStoreError:
        raise
    except (ValueError, RecursionError) as error:
        raise _malformed(path, "it is no JSON, or nested too deep") from error


def _manifest(path: Path, data: Any) -> Manifest:
    if not isinstance(data, dict):
        raise _malformed(path, f"it is {shown(data)}")
    if data.get("format") != FORMAT or isinstance(data.get("format"), bool):
        raise FeatureStoreError(
            f"The store {path.parent} has format {shown(data.get('format'))} and this version of bundles "
            f"reads {FORMAT}: type `pip install --upgrade pretrained-bundles`."
        )
    if problem := next(_problems(data), None):
        raise _malformed(path, problem)
    shards = tuple(Shard(**{key: shard[key] for key in _SHARD_TYPES}) for shard in data["shards"])
    facts = FeatureFacts.from_dict({key: data["facts"][key] for key in _FACTS_TYPES})
    others = {key: data[key] for key in ("state", "count", "shard_size", "batch_size", "bound")}
    unreadable = tuple((name, why) for name, why in data["unreadable"])
    manifest = Manifest(facts, shards=shards, unreadable=unreadable, versions=data["versions"], **others)
    if manifest.digest != data["digest"]:
        raise _malformed(path, "its digest is of other facts or shards")
    if data.pop("sha256") != _sum(data):
        raise _malformed(path, "something in it was changed since it was written")
    return manifest


_TYPES: dict[str, Any] = {
    "facts": dict,
    "state": str,
    "count": int,
    "shard_size": int,
    "shards": list,
    "batch_size": int,
    "bound": (int, float),
    "unreadable": list,
    "versions": dict,
    "digest": str,
    "sha256": str,
}
_FACTS_TYPES: dict[str, Any] = {
    "model": str,
    "plan": (str, type(None)),
    "layers": list,
    "dtype": str,
    "preprocessing": dict,
}
_SHARD_TYPES: dict[str, Any] = {"name": str, "items": int, "size": int, "sha256": str}


def _sum(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _problems(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong; whoever asks for the next has seen to the one before."""
    yield from _wrong_types(data, _TYPES, "")
    yield from _wrong_types(data["facts"], _FACTS_TYPES, "facts.")
    layers, dtype = data["facts"]["layers"], data["facts"]["dtype"]
    if not layers or not all(isinstance(name, str) for name in layers) or len({*layers}) < len(layers):
        yield f"facts.layers is {shown(layers)}"
    if dtype not in DTYPES:
        yield f"facts.dtype is {shown(dtype)}"
    if not math.isfinite(data["bound"]) or data["bound"] < 0:
        yield f"bound is {shown(data['bound'])}"
    if data["shard_size"] < 1 or data["batch_size"] < 1:
        yield "a size is less than 1"
    if not all(_is_pair(entry) for entry in data["unreadable"]):
        yield f"unreadable is {shown(data['unreadable'])}"
    if not all(isinstance(version, str) for version in data["versions"].values()):
        yield f"versions is {shown(data['versions'])}"
    yield from _shard_problems(data)


def _shard_problems(data: Mapping[str, Any]) -> Iterator[str]:
    window = -1
    for shard in data["shards"]:
        if not isinstance(shard, dict):
            yield f"a shard is {shown(shard)}"
        yield from _wrong_types(shard, _SHARD_TYPES, "of a shard ")
        name = _SHARD.fullmatch(shard["name"])
        if name is None or int(name["window"]) <= window:
            yield f"the name of a shard is {shown(shard['name'])}"
        elif not _HEX.fullmatch(shard["sha256"]):
            yield f"of the shard {shard['name']} sha256 is {shown(shard['sha256'])}"
        elif shard["items"] > data["shard_size"]:
            yield f"the shard {shard['name']} holds {shown(shard['items'])} items"
        else:
            window = int(name["window"])
    if sum(shard["items"] for shard in data["shards"]) + len(data["unreadable"]) != data["count"]:
        yield f"count is {data['count']}, and the shards hold another number of items"


def _wrong_types(data: Mapping[str, Any], types: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, kinds in types.items():
        value = data.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool) or _is_absurd(value):
            yield f"{where}{key} is {shown(value)}"


def _is_absurd(value: Any) -> bool:
    return isinstance(value, int) and not 0 <= value < 2**63


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key that is there twice")
    return entries


def _malformed(path: Path, what: str) -> FeatureStoreError:
    return FeatureStoreError(
        f"The manifest {path} is malformed: {what}; remove it and extract again, and what is whole is kept."
    )
