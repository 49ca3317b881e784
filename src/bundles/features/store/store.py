"""A store of features as a torch dataset."""

from __future__ import annotations

import copy
import operator
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bundles.builders.tensors import dtype_named
from bundles.errors import FeatureError, FeatureStoreError
from bundles.features.store.collate import pad
from bundles.features.store.manifest import FILE, Manifest, read_manifest
from bundles.features.store.reader import OpenFile, ShardReader, damaged
from bundles.features.store.shard import check_shard
from bundles.spec.features import FeatureFacts
from bundles.spec.values import shown

_OPEN_FILES = 64  # of a store; some systems give a process 256 in all
_READ = ("manifest", "names", "_shards", "_stops", "_positions")  # anew by whoever gets a store
_SHARDS = "[0-9]*-*.safetensors"


class FeatureStore(Dataset[Any]):
    """Features of a dataset, in its order, with random access to items of any length.

    ``store[i]`` is ``[frames, dim]`` (or ``[dim]`` of pooled features) in memory of its own, so that writing
    to it changes nothing. A store of several layers gives a dict by the layers' names. A store, also of a
    class of one's own below this, goes to the workers of a ``DataLoader`` by its path, and opens its files
    where it reads them.

    Args:
        path: the folder that :func:`~bundles.extract_features` wrote to, or the folder of one store in it.
        layer: the only layer to read, as ``"block.6"``; all that are stored by default.
        dtype: what to read the numbers as; as they are stored by default.

    Raises:
        FeatureStoreError: the folder holds no store or several, or one that is damaged. Sizes and headers
            are looked at here, all bytes by :meth:`verify`.
        FeatureError: the layer is not stored, or the dtype is unknown.

    >>> import bundles, tempfile, torch
    >>> frames = [torch.randn(n, 1024) for n in (2, 5, 3)]
    >>> folder = tempfile.mkdtemp()
    >>> store = bundles.extract_features(bundles.CREPE_TINY, frames, folder, progress=False)
    >>> padded, lengths = store.collate([store[0], store[1]])
    >>> len(store), store[-1].shape, padded.shape, lengths
    (3, torch.Size([3, 256]), torch.Size([2, 5, 256]), tensor([2, 5]))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        layer: str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        self.path = find_store(Path(path).expanduser().absolute())
        self._layer, self._dtype = layer, _dtype(dtype)
        self._open()

    def _open(self) -> None:
        self.manifest: Manifest = read_manifest(self.path)
        if self._layer is not None and self._layer not in self.facts.layers:
            raise FeatureError(
                f"The store {self.path} has no layer {shown(self._layer)}: name one of "
                f"{', '.join(self.facts.layers)}."
            )
        shards, open_file = self.manifest.shards, lru_cache(_OPEN_FILES)(OpenFile)
        self._shards = [ShardReader(self.path / shard.name, shard, self.facts, open_file) for shard in shards]
        self._stops = [*accumulate(shard.items for shard in shards)]

    @property
    def facts(self) -> FeatureFacts:
        """Everything but the inputs that decides what the features are."""
        return self.manifest.facts

    @property
    def state(self) -> str:
        """Digest of the values that the features were computed with."""
        return self.manifest.state

    @property
    def digest(self) -> str:
        """64 hex digits over the facts and the contents; equal wherever and however they were computed."""
        return self.manifest.digest

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are read."""
        return self.facts.layers if self._layer is None else (self._layer,)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each item."""
        return tuple(name for shard in self._shards for name in shard.names)

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, index: int) -> Any:
        if len(self.layers) == 1:
            return self.read(index, self.layers[0])
        return {layer: self.read(index, layer) for layer in self.layers}

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def read(self, index: int, layer: str | None = None) -> Tensor:
        """Return one layer of an item.

        Args:
            index: of the item; negative ones count from the end.
            layer: its name; may be left out where one is read.

        Raises:
            IndexError: there is no such item.
            FeatureError: there is no such layer, or several and none is named.
            FeatureStoreError: its shard is damaged.
        """
        shard, item = self._place(index)
        found = shard.read(item, self._known(layer))
        return found if self._dtype is None else found.to(self._dtype)

    def find(self, identity: bytes) -> int | None:
        """Return the first item that was computed from this input, or ``None``.

        Args:
            identity: 32 bytes, as :func:`~bundles.features.inputs.item.identity_of` gives them.
        """
        return self._positions.get(identity)

    def collate(self, items: Sequence[Any]) -> tuple[Any, Any]:
        """Pad items to the longest, as ``collate_fn`` of a ``DataLoader`` or inside of one's own.

        Args:
            items: as ``store[i]`` gives them.

        Returns:
            ``(padded, lengths)`` of shapes ``[batch, frames, dim]`` and ``[batch]``, zeros in the padding; of
            several layers two dicts of these. Of pooled features, ``[batch, dim]``, each length is ``dim``.

        Raises:
            FeatureError: there are no items, or they do not fit together.
        """
        return pad(items)

    def layer(self, name: str) -> Self:
        """Return the same store, of which one layer is read."""
        other = copy.copy(self)
        other._layer = name
        other._open()
        return other

    def verify(self) -> None:
        """Read every byte, on all cores, and compare the digests.

        Raises:
            FeatureStoreError: some shards are not as they were written; ``shards`` names all.
        """
        shards = self.manifest.shards
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            reasons = pool.map(lambda shard: check_shard(self.path, shard), shards)
            found = {shard.name: why for shard, why in zip(shards, reasons, strict=True) if why}
        if found:
            raise damaged(self.path, found)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _READ}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        dtype = str(self._dtype).removeprefix("torch.") if self._dtype else self.facts.dtype
        return f"<FeatureStore of {len(self)} items, {', '.join(self.layers)} in {dtype}: {self.path}>"

    @cached_property
    def _positions(self) -> dict[bytes, int]:
        identities = [identity for shard in self._shards for identity in shard.identities]
        return {identity: index for index, identity in reversed([*enumerate(identities)])}

    def _place(self, index: int) -> tuple[ShardReader, int]:
        try:
            position = operator.index(index)
        except TypeError:
            raise TypeError(f"A store is asked for one item by its number, not for {shown(index)}.") from None
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"The store {self.path} has {len(self)} items, and item {index} was asked for.")
        shard = bisect_right(self._stops, position)
        return self._shards[shard], position - (self._stops[shard - 1] if shard else 0)

    def _known(self, layer: str | None) -> str:
        if layer is None and len(self.layers) == 1:
            return self.layers[0]
        if layer not in self.layers or layer is None:
            raise FeatureError(
                f"The layer {shown(layer)} was asked for, and the store {self.path} has "
                f"{', '.join(self.layers)}: name one of these."
            )
        return layer


def find_store(path: Path) -> Path:
    """Return the folder of the only store at a path or directly in it.

    Raises:
        FeatureStoreError: there is none, or there are several.
    """
    if (path / FILE).is_file():
        return path
    found = sorted(file.parent for file in path.glob(f"*/{FILE}")) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise FeatureStoreError(_several(path, found))
    if unfinished := [*path.glob(_SHARDS), *path.glob(f"*/{_SHARDS}")]:
        raise FeatureStoreError(
            f"{path} holds {len(unfinished)} files of an extraction that did not finish: start it again, "
            f"and it goes on from there."
        )
    raise FeatureStoreError(
        f"There is no store of features in {path}: pass the folder that bundles.extract_features wrote to."
    )


def _several(path: Path, found: Sequence[Path]) -> str:
    first, *others = (read_manifest(folder).facts for folder in found)
    lines = [
        found[0].name,
        *(
            f"{folder.name} ({'; '.join(first.differences(facts))})"
            for folder, facts in zip(found[1:], others, strict=True)
        ),
    ]
    return (
        f"{path} holds {len(found)} stores, shown with how they differ from the first: {', '.join(lines)}; "
        f"name one, as {found[0]}."
    )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = dtype_named(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise FeatureError(f"dtype is {shown(dtype)}: name a floating-point one, as 'float32'.")
    return found
