"""A repository on the Hub: what is in it, and how to pin a file of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bundles.errors import (
    BundlesError,
    CacheError,
    DownloadError,
    OfflineError,
    SourceAccessError,
    SourceNotFoundError,
)
from bundles.sources import cache
from bundles.sources.fetch import fetch, is_offline
from bundles.sources.hub.attempts import Attempts
from bundles.sources.hub.cache import cached_commit, snapshot_folder
from bundles.sources.options import Options
from bundles.sources.verify import stamped_sha256
from bundles.spec.hub import HubAddress, path_problem
from bundles.spec.source import WeightSource, sha256_problem, size_problem
from bundles.spec.values import shown

_MOST_FILES = 50_000
_SMALL = 10_000_000
_DEFAULTS = Options()

_log = logging.getLogger("bundles")


@dataclass(frozen=True)
class RepoFile:
    """A file of a repository.

    Attributes:
        path: in the repository, with ``/`` between folders.
        size: in bytes, where it is known.
        sha256: where the Hub publishes it, which is for large files only.
    """

    path: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Repository:
    """What a repository holds at a commit, and what its owner says of it.

    Attributes:
        address: with the commit as revision.
        files: in it, by path.
        license: as the model card has it, or ``None``.
        gated: whether its terms must be accepted before files are given.
        tags, pipeline_tag, library_name: as the Hub shows them.
        is_complete: whether the listing is the Hub's; without a network and without one that was kept, it
            is what happens to be in the client's cache.
    """

    address: HubAddress
    files: Mapping[str, RepoFile]
    license: str | None = None
    gated: bool = False
    tags: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    library_name: str | None = None
    is_complete: bool = True

    def source(self, path: str) -> WeightSource:
        """Return a file of it as a source, with what the listing knows of it.

        Raises:
            SourceNotFoundError: there is no such file.
        """
        if (file := self.files.get(path)) is None:
            raise SourceNotFoundError(
                f"The repository {self.address.uri} has no file {shown(path)}: check it."
            )
        uri = replace(self.address, path=path).uri
        return WeightSource(uri, file.sha256, file.size or None)


def repository(address: HubAddress, *, options: Options = _DEFAULTS) -> Repository:
    """Return what a repository holds.

    The listing of a commit is kept in the cache, so that it is asked for once. Without a network the
    client's cache says what there is of it.

    Args:
        address: of the repository; its path, if any, means nothing here.
        options: how long to wait, and how often to try.

    Raises:
        SourceNotFoundError, SourceAccessError: the Hub says so; or the listing is not one that anybody
            should follow.
        OfflineError: ``BUNDLES_OFFLINE`` is set, and nothing of it is on this machine.
        DownloadError: the Hub cannot be asked, also after retries.
    """
    address = replace(address, path=None)
    if (address.commit or is_offline()) and (kept := _kept(address)) is not None:
        return kept
    if is_offline():
        return _in_cache(address) or _refuse_offline(address)
    try:
        return _ask(address, options)
    except DownloadError as error:
        if (found := _in_cache(address)) is None:
            raise
        _log.warning("Using what is in the cache of %s: %s", address.uri, error)
        return found


def pin(address: HubAddress, *, options: Options = _DEFAULTS) -> WeightSource:
    """Return a file of the Hub as a source that means these bytes for ever: a commit, a digest, a size.

    The Hub publishes the sha256 of large files, so nothing of them is downloaded. Of small ones it publishes
    git's id only; these are downloaded, checked against that, and hashed.

    Raises:
        SourceError: as :func:`repository` and ``fetch``.
    """
    listing = repository(address, options=options)
    source = listing.source(str(address.path))
    is_small = source.size is None or source.size < _SMALL
    if source.sha256 is None and (is_small or not listing.is_complete):
        path = fetch(source, progress=False, options=options)
        source = replace(source, sha256=stamped_sha256(path), size=path.stat().st_size or None)
    return replace(source, shards=dict(_shards(source, listing))) if source.is_index else source


def _shards(source: WeightSource, listing: Repository) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what the listing knows of the files beside an index that it names."""
    folder = source.address.partition("#")[2].removesuffix(source.name)
    data = fetch(source, progress=False).read_bytes()
    try:
        names = set(json.loads(data)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # not an index; whoever reads it says so
    for name in sorted(name for name in names if isinstance(name, str)):
        if (file := listing.files.get(folder + name)) is not None:
            facts = {"sha256": file.sha256, "size": file.size}
            yield name, {key: value for key, value in facts.items() if value is not None}


def _ask(address: HubAddress, options: Options) -> Repository:
    from bundles.sources.hub import client as hub

    attempts = Attempts(address.uri, options, options.small_deadline)
    facts = attempts.run(lambda: hub.repository_facts(address, options.connect_timeout))
    found = _read(address, facts)
    with suppress(CacheError):
        for name in {found.address, address}:  # a branch or tag: without a network it is what it was now
            cache.place_text(_place(name), json.dumps(facts))
    return found


def _kept(address: HubAddress) -> Repository | None:
    """Return the listing that was kept: of a branch what it was when it was last asked for."""
    by_client = replace(address, revision=cached_commit(address) or address.revision)
    for at in dict.fromkeys((address, by_client)):
        for folder in cache.roots():
            with suppress(OSError, ValueError, TypeError, KeyError, BundlesError):
                return _read(at, json.loads((folder / _place(at)).read_text(encoding="utf-8")))
    return None


def _place(address: HubAddress) -> str:
    return f"listings/{cache.key(address.uri)}.json"


def _in_cache(address: HubAddress) -> Repository | None:
    """Return what the client's cache has of a commit, which may be less than there is."""
    folder = snapshot_folder(address)
    if folder is None:
        return None
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: RepoFile(name, _size(folder / name)) for name in names if not path_problem(name)}
    at = replace(address, revision=cached_commit(address))
    return Repository(at, files, is_complete=False) if files else None


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size or None
    return None


def _refuse_offline(address: HubAddress) -> Repository:
    raise OfflineError(
        f"Nothing of {address.uri} is on this machine and BUNDLES_OFFLINE is set: get it once with a "
        f"network, or point BUNDLES_SHARED_CACHE at a cache that has it."
    )


# --- reading what the Hub says -----------------------------------------------------------------------


def _read(address: HubAddress, facts: Mapping[str, Any]) -> Repository:
    commit = facts["commit"]
    found = HubAddress(address.repo, commit if isinstance(commit, str) else None)
    if found.commit is None or (address.commit or commit) != commit:
        raise DownloadError(f"The Hub answers for {address.uri} with the commit {shown(commit)}: try again.")
    return Repository(
        address=found,
        files=_files(address, facts["files"]),
        license=_text(facts["license"]),
        gated=facts["gated"] is not False,
        tags=tuple(tag for tag in facts["tags"] if isinstance(tag, str)),
        pipeline_tag=_text(facts["pipeline_tag"]),
        library_name=_text(facts["library_name"]),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _files(address: HubAddress, entries: list[list[Any]]) -> dict[str, RepoFile]:
    """Return the files of a listing, all of them or none: a listing with one bad name is nobody's."""
    if len(entries) > _MOST_FILES:
        raise SourceAccessError(
            f"The listing of {address.uri} has {len(entries)} files, and at most {_MOST_FILES} are "
            f"read: name a file of it by '#path'."
        )
    files: dict[str, RepoFile] = {}
    folded: dict[str, str] = {}
    for path, size, sha256, _ in entries:
        problem = path_problem(path) if isinstance(path, str) else f"the path {shown(path)} is no text"
        problem = problem or (size_problem(size) if size else None) or sha256_problem(sha256)
        if problem:
            raise SourceAccessError(f"The listing of {address.uri} is not followed: {problem}.")
        if (other := folded.setdefault(path.casefold(), path)) != path or path in files:
            raise SourceAccessError(
                f"The listing of {address.uri} is not followed: {other} and {path} are one file on many "
                f"disks."
            )
        files[path] = RepoFile(path, size or None, sha256)
    return files
