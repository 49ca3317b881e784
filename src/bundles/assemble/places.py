"""Where a bundle may lie that is not in the registry: a repository of the Hub, or a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bundles.errors import (
    BuildError,
    PinError,
    SourceAccessError,
    SourceNotFoundError,
    UnpinnedSourceWarning,
    warn,
)
from bundles.sources.fetch import fetch
from bundles.spec.hub import parse_hub, path_problem
from bundles.spec.source import WeightSource
from bundles.spec.values import shown

_LARGEST = 1 << 20  # bytes of a card or configuration


@dataclass(frozen=True)
class Place:
    """A repository at a commit, or a folder, as far as a listing tells.

    Attributes:
        address: ``hf:owner/repo@commit``, or ``file:`` and an absolute path.
        files: what is there, each as the source that gives it: with size, and with the digest where the
            Hub publishes one. Of a folder these are the files in it, not those below.
        facts: what else is said of it: ``license``, ``task``.
        is_complete: whether the files are all that there are. Without a network they may be those of the
            client's cache, which checks them against the names it gave them.
    """

    address: str
    files: Mapping[str, WeightSource]
    facts: Mapping[str, str] = field(default_factory=dict)
    is_complete: bool = True

    @property
    def is_hub(self) -> bool:
        """Whether it is a repository, whose content somebody else wrote."""
        return self.address.startswith("hf:")

    def small(self, name: str, what: str) -> Path:
        """Fetch a file of text; one that is larger than 1 MiB is not even fetched.

        Raises:
            BuildError: it is, which no ``what`` is.
            SourceError, CacheError: it cannot be had.
        """
        source = self.files[name]
        path = None if (source.size or 0) > _LARGEST else fetch(source, progress=False)
        if path is None or path.stat().st_size > _LARGEST:
            raise BuildError(f"{name} of {self.address} is larger than 1 MiB, which no {what} is.")
        return path

    def index(self, name: str) -> WeightSource:
        """Return the source of a shard index, with what is known of the files beside it."""
        parent = name.rpartition("/")[0]
        beside = {
            path.rpartition("/")[2]: {"sha256": source.sha256, "size": source.size}
            for path, source in self.files.items()
            if path.rpartition("/")[0] == parent and path.endswith(".safetensors")
        }
        known = {shard: {key: fact for key, fact in facts.items() if fact} for shard, facts in beside.items()}
        return replace(self.files[name], shards=known)

    def listing(self) -> str:
        """The names of the first files, for a message."""
        names = sorted(self.files)
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        return (", ".join(map(shown, names[:12])) + more) or "nothing"


def open_place(address: str) -> Place:
    """Return what an address names, with its files listed.

    Raises:
        PinError: the address is malformed, or one of a file.
        SourceNotFoundError: there is no such repository, revision or folder.
        SourceAccessError, OfflineError, DownloadError: it cannot be listed.
    """
    return _repository(address) if address.startswith("hf:") else _folder(address)


def _repository(address: str) -> Place:
    from bundles.sources.hub.repository import repository

    asked = parse_hub(address[len("hf:") :])
    if asked.path:
        raise PinError(
            f"The address {address} is one of a file: leave out '#{asked.path}' for the bundle of its "
            f"repository, or type load_into(model, {address!r})."
        )
    found = repository(asked)
    where = found.address.uri
    if asked.commit is None:
        warn(f"{address} means {where} now and may mean something else tomorrow.", UnpinnedSourceWarning)
    files = {path: found.source(path) for path in found.files if not path_problem(path)}
    facts = {"license": found.license, "task": found.pipeline_tag}
    said = {key: value for key, value in facts.items() if value}
    return Place(where, files, said, is_complete=found.is_complete)


def _folder(address: str) -> Place:
    if address == "file:":
        raise SourceNotFoundError("The address 'file:' names no folder: type 'file:DIR'.")
    try:
        folder = os.path.abspath(os.path.expanduser(address[len("file:") :]))
        with os.scandir(folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except PermissionError as error:
        raise SourceAccessError(f"The folder of {address} may not be read: check its mode.") from error
    except NotADirectoryError as error:
        raise SourceNotFoundError(
            f"What {address} names is a file: give the folder that it is in, or load_into(model, path)."
        ) from error
    except (OSError, ValueError) as error:
        raise SourceNotFoundError(f"There is no folder {shown(address)}: check the path.") from error
    files = {
        name: WeightSource(f"file:{Path(folder, name)}", size=size or None)
        for name, size in sizes.items()
        if name.isprintable()
    }
    return Place(f"file:{folder}", files)
