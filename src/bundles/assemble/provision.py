"""Fetch everything that bundles need, and make a folder of it for machines without a network.

Such a folder has the layout of a cache (see ``sources.cache``), so that ``BUNDLES_SHARED_CACHE`` serves it::

    files/<sha256>            every file, by content
    records/<key>.json        the digest of what an address without one gave
    listings/<key>.json       what a repository of the Hub holds
    converted/<sha256>.*      the safetensors form of pickled checkpoints, so that nothing need be written
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from bundles.assemble.lookup import get_bundle, is_repository
from bundles.assemble.weights import fetch_weights
from bundles.errors import BundlesError, CacheError, ChecksumError, SourceNotFoundError
from bundles.registry.default import list_bundles
from bundles.sources import cache
from bundles.sources.fetch import fetch as fetch_source
from bundles.sources.verify import stamped_sha256
from bundles.spec.bundle import Bundle
from bundles.spec.formats import CONVERTER, is_pickle_name
from bundles.spec.pin import split_pin
from bundles.spec.source import WeightSource

_PIECE = 8 << 20
_ABANDONED = 3600.0  # seconds without a byte
_AT_HOME = ("file", "package")  # schemes of files that are found by their own address, and nowhere else


@dataclass(frozen=True)
class Item:
    """A file that a bundle needs.

    Attributes:
        bundle: the name of the bundle that needs it.
        role: what it is to it: ``"weights"``, ``"shard"``, ``"card"`` (or configuration), ``"settings"`` of
            what the model is fed, or an asset's name.
        source: where it comes from.
        path: where it lies on this machine, verified; ``None`` before it is fetched.
        converted: the safetensors form of a pickled checkpoint.
    """

    bundle: str
    role: str
    source: WeightSource
    path: Path | None = None
    converted: Path | None = None

    @property
    def size(self) -> int | None:
        """In bytes; ``None`` where nobody says before it is there."""
        return self.source.size if self.path is None else self.path.stat().st_size


def fetch(
    names: str | Iterable[str], *, to: str | os.PathLike[str] | None = None, progress: bool = True
) -> list[Item]:
    """Download and verify everything that bundles need, and convert pickled checkpoints.

    What is there already is verified and not fetched again, so an interrupted call is simply repeated.

    Args:
        names: of bundles, globs on names, or addresses of repositories.
        to: a folder that is to hold all of it, for ``BUNDLES_SHARED_CACHE`` on a machine without a network.
            Files are copied into it, whole or not at all, and what it holds already stays.
        progress: whether downloads show a bar.

    Returns:
        The files, each once.

    Raises:
        UnknownBundleError: there is no bundle of that name.
        SourceError, WeightsError, CacheError, CardError, BuildError: a bundle cannot be had.

    >>> [(item.role, item.path.name) for item in fetch("CREPE_TINY")]
    [('weights', 'tiny.pth')]
    """
    return list(fetch_each(expand(names), to=to, progress=progress))


def fetch_each(
    names: Iterable[str], *, to: str | os.PathLike[str] | None = None, progress: bool = True
) -> Iterator[Item]:
    """Yield what :func:`fetch` returns, each file as soon as it is there."""
    yield from fetch_items(items_of(names, progress=progress), to=to, progress=progress)
    if to is not None:
        for name in names:
            keep_listing(name, _folder(to))


def fetch_items(
    items: Iterable[Item], *, to: str | os.PathLike[str] | None = None, progress: bool = True
) -> Iterator[Item]:
    """Yield files as soon as each is there; with ``to`` also in that folder."""
    folder = None if to is None else _folder(to)
    if folder is not None:
        _sweep(folder)
    for item in items:
        path = fetch_source(item.source, progress=progress)
        made = fetch_weights(item.source, progress=progress) if _is_pickled(item) else None
        done = replace(item, path=path, converted=made)
        if folder is not None:
            _keep(done, folder)
        yield done


def expand(names: str | Iterable[str]) -> list[str]:
    """Return the names that globs among them stand for, each once.

    Raises:
        UnknownBundleError: a glob fits no bundle.

    >>> expand(["CREPE_TINY", "CREPE_*"])
    ['CREPE_TINY', 'CREPE_FULL']
    """
    found: dict[str, None] = {}
    for name in [names] if isinstance(names, str) else names:
        is_glob = ":" not in name and any(sign in name for sign in "*?[")
        found.update(dict.fromkeys((list_bundles(name) if is_glob else None) or [name]))
    return list(found)


def items_of(names: Iterable[str], *, progress: bool = False) -> Iterator[Item]:
    """Yield the files that bundles need, each once, as far as can be told without fetching weights.

    Of a repository the listing and the card or configuration are fetched for that, and the indices of sharded
    checkpoints.
    """
    seen: set[tuple[str, str | None]] = set()
    for name in names:
        for bundle in _with_others(get_bundle(name)):
            for item in _items(name, bundle, progress):
                if (identity := (item.source.uri, item.source.sha256)) not in seen:
                    seen.add(identity)
                    yield item


def _with_others(bundle: Bundle) -> Iterator[Bundle]:
    """A bundle, and those that it names as parts of what it offers."""
    yield bundle
    vocoder = bundle.metadata.get("vocoder")
    if isinstance(vocoder, str) and vocoder in list_bundles(vocoder):
        yield get_bundle(vocoder)


def _items(name: str, bundle: Bundle, progress: bool) -> Iterator[Item]:
    if is_repository(name):
        yield from (Item(name, role, source) for role, source in _described_by(bundle.name))
    if (weights := bundle.weights) is not None:
        yield Item(bundle.name, "weights", weights)
        if weights.is_index:
            for shard in _shards(weights, progress):
                yield Item(bundle.name, "shard", weights.shard(shard))
    for role, asset in bundle.assets.items():
        yield Item(bundle.name, role, asset)


def _described_by(address: str) -> Iterator[tuple[str, WeightSource]]:
    """The file by which a repository or folder says what it holds, and those that say what it was fed."""
    from bundles.assemble.places import open_place
    from bundles.assemble.repository import CARD, CONFIG, SETTINGS

    files = open_place(address).files
    yield "card", files[CARD] if CARD in files else files[CONFIG]
    yield from (("settings", files[name]) for name in SETTINGS if name in files)


def _shards(weights: WeightSource, progress: bool) -> tuple[str, ...]:
    """The files that an index names; others may lie beside it."""
    from bundles.builders.index import read_index

    return read_index(fetch_source(weights, progress=progress)).shards


def _is_pickled(item: Item) -> bool:
    return item.role == "weights" and is_pickle_name(item.source.name)


# --- the folder -----------------------------------------------------------------------------------


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half copied."""
    for path in folder.glob("*/.incomplete-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def _keep(item: Item, folder: Path) -> None:
    """Put a file, the record of its digest and its converted form into a folder."""
    assert item.path is not None  # noqa: S101 - it was fetched
    digest = item.source.sha256 or stamped_sha256(item.path)
    if item.source.scheme not in _AT_HOME:
        _copy(item.path, folder, f"files/{digest}", digest)
        if item.source.sha256 is None:
            record = {"uri": item.source.shown, "sha256": digest, "size": item.size, "etag": None}
            _write(folder, f"records/{cache.key(item.source.uri)}.json", json.dumps(record, indent=1))
    if item.converted is not None:
        made = stamped_sha256(item.converted)
        place = f"converted/{digest}.{CONVERTER}.safetensors"
        _copy(item.converted, folder, place, made)
        _write(folder, f"{place}.json", json.dumps({"sha256": made, "size": item.converted.stat().st_size}))


def _folder(to: str | os.PathLike[str]) -> Path:
    return Path(to).expanduser().absolute()


def keep_listing(address: str, folder: Path) -> None:
    """Put what the Hub says of a repository into a folder, as it was kept when it was asked for.

    What is not the address of a repository has no listing.
    """
    from bundles.assemble.places import open_place

    if not address.startswith("hf:"):
        return
    parts = split_pin(address)
    address = parts[0] if parts else address
    place = open_place(address).address
    name = f"listings/{cache.key(place)}.json"
    if (kept := cache.find(name)) is None:
        raise SourceNotFoundError(
            f"The listing of {place} is not in the cache: fetch it with a network, into a cache that can be "
            f"written."
        )
    text = kept.read_text(encoding="utf-8")
    _write(folder, name, text)
    if address != place:  # a branch or tag: offline it is what it was now
        _write(folder, f"listings/{cache.key(address)}.json", text)


def _copy(path: Path, folder: Path, where: str, digest: str) -> None:
    """Copy a file to where it is looked for by its digest, which is that of the copied bytes.

    A copy and not a link: the folder is carried away, and what is done to its files there must not reach
    the cache here.
    """

    def write(file: BinaryIO) -> None:
        found = hashlib.sha256()
        with path.open("rb") as old:
            while piece := old.read(_PIECE):
                found.update(piece)
                file.write(piece)
        if found.hexdigest() != digest:
            raise ChecksumError(f"The file {path} changed while it was copied: fetch again.", path=str(path))

    with _told_right(folder):
        target = folder / where
        if not target.is_file() or stamped_sha256(target) != digest:
            cache.place(where, write, folder)


def _write(folder: Path, where: str, text: str) -> None:
    with _told_right(folder):
        target = folder / where
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            cache.place_text(where, text, folder)


@contextlib.contextmanager
def _told_right(folder: Path) -> Iterator[None]:
    """It is another folder than the cache that cannot be written, and another thing that helps."""
    try:
        yield
    except BundlesError as error:
        if not isinstance(error, CacheError):
            raise
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise CacheError(f"The folder {folder} cannot be written ({reason}): name another one.") from error
    except OSError as error:
        reason = error.strerror or error
        raise CacheError(f"The folder {folder} cannot be used ({reason}): name another one.") from error
