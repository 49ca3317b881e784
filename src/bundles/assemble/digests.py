"""Fill in what is not known yet of a bundle's files: commit, digest, size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bundles.assemble.lookup import is_repository
from bundles.errors import ChecksumError
from bundles.sources.fetch import fetch
from bundles.sources.records import known
from bundles.sources.schemes import SCHEMES, Local
from bundles.sources.verify import stamped_sha256
from bundles.spec.bundle import Bundle
from bundles.spec.canonical import canonical, digest_of
from bundles.spec.hub import parse_hub
from bundles.spec.source import WeightSource


@dataclass(frozen=True)
class BundleFile:
    """A file of a bundle.

    Attributes:
        role: ``"weights"``, ``"shard"``, ``"card"`` (or configuration), or ``"asset."`` and its name.
        source: where it comes from.
    """

    role: str
    source: WeightSource


def filled(bundle: Bundle, *, download: bool = True) -> Bundle:
    """Return a bundle of whose files commit, digest and size are known.

    They come from its card, else from the listing of the Hub, which downloads nothing but small files and
    shard indices, else from the record of an earlier download, else from the file.

    Args:
        bundle: the descriptor.
        download: whether large files may be downloaded for it; else what is not known stays so.

    Raises:
        SourceError, CacheError: a file cannot be had, or the Hub has other bytes than the card says.

    >>> import bundles
    >>> filled(bundles.CREPE_TINY).weights.size
    1962363
    """
    weights = None if bundle.weights is None else filled_source(bundle.weights, download=download)
    assets = {name: filled_source(asset, download=download) for name, asset in bundle.assets.items()}
    return replace(bundle, weights=weights, assets=assets)


def filled_source(source: WeightSource, *, download: bool = True) -> WeightSource:
    """Return a source with commit, digest and size, of a shard index those of the shards, too."""
    if source.scheme == "hf" and not _is_settled(source):
        source = _listed(source)
    if source.sha256 is None:
        source = replace(known(source).source, shards=source.shards)
    is_local = isinstance(SCHEMES.get(source.scheme), Local)
    if (source.sha256 is None or source.size is None) and (is_local or download):
        path = fetch(source)
        source = replace(
            source, sha256=source.sha256 or stamped_sha256(path), size=path.stat().st_size or None
        )
    return _with_shards(source, download) if source.is_index else source


def is_filled(bundle: Bundle) -> bool:
    """Whether the digest of every file is known."""
    sources = [source for source in (bundle.weights, *bundle.assets.values()) if source is not None]
    facts = [source.shards[name] for source in sources for name in source.shards]
    return all(s.sha256 for s in sources) and all(shard.get("sha256") for shard in facts)


def pin_digest(bundle: Bundle) -> str:
    """Return ``sha256:`` and 64 hex digits over everything of a filled bundle that decides the result."""
    return digest_of(canonical(bundle))


def files_of(bundle: Bundle) -> Iterator[BundleFile]:
    """Yield the files of a filled bundle: weights, shards, assets; of a repository its card, too."""
    if (weights := bundle.weights) is not None:
        yield BundleFile("weights", weights)
        for name in sorted(weights.shards):
            yield BundleFile("shard", weights.shard(name))
    for name, asset in sorted(bundle.assets.items()):
        yield BundleFile(f"asset.{name}", asset)
    if is_repository(bundle.name):
        yield BundleFile("card", filled_source(_description(bundle.name)))


def _description(address: str) -> WeightSource:
    """The file by which a repository or folder says what it holds."""
    from bundles.assemble.places import open_place
    from bundles.assemble.repository import CARD, CONFIG

    files = open_place(address).files
    return files[CARD] if CARD in files else files[CONFIG]


def _is_settled(source: WeightSource) -> bool:
    return parse_hub(source.address).commit is not None and None not in (source.sha256, source.size)


def _listed(source: WeightSource) -> WeightSource:
    """A file of the Hub as its listing knows it."""
    from bundles.sources.hub.repository import pin

    found = pin(parse_hub(source.address))
    if source.sha256 and found.sha256 and source.sha256 != found.sha256:
        raise ChecksumError(
            f"The Hub has other bytes at {found.shown} than the card says: expected sha256 {source.sha256}, "
            f"found sha256 {found.sha256}. Name the commit that has them, or change the card if you trust "
            f"the new bytes.",
            source=source.uri,
            path=str(None),
            expected=f"sha256 {source.sha256}",
            found=f"sha256 {found.sha256}",
        )
    sha256 = source.sha256 or found.sha256
    return replace(
        source,
        uri=found.uri,
        sha256=sha256,
        size=source.size or found.size,
        shards=source.shards or found.shards,
    )


def _with_shards(source: WeightSource, download: bool) -> WeightSource:
    """An index with what is known of the files that it names, and of no others."""
    from bundles.builders.index import read_index

    shards = {}
    for name in read_index(fetch(source)).shards:
        shard = filled_source(source.shard(name), download=download)
        facts = {"sha256": shard.sha256, "size": shard.size}
        shards[name] = {key: value for key, value in facts.items() if value is not None}
    return replace(source, shards=shards)
