"""Look at this machine: versions, caches, what is here, and what cannot work and why."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from bundles import __version__
from bundles.errors import BundlesError, MissingDependencyError
from bundles.sources import cache
from bundles.sources.fetch import is_offline
from bundles.sources.hub.cache import hub_cache

# Distributions whose versions decide what a bundle comes to; with the extra that brings one.
LIBRARIES: Mapping[str, str | None] = {
    "torch": None,
    "torchaudio": None,
    "safetensors": None,
    "huggingface-hub": None,
    "torchvision": "vision",
    "transformers": "transformers",
    "tokenizers": "text",
    "timm": "timm",
    "torchcrepe": "torchcrepe",
}
_VARIABLES = (
    "BUNDLES_CACHE",
    "BUNDLES_SHARED_CACHE",
    "BUNDLES_REMOTE_CACHE",
    "BUNDLES_OFFLINE",
    "BUNDLES_MIRROR",
    "BUNDLES_NO_PLUGINS",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_TOKEN",
)


@dataclass(frozen=True)
class Finding:
    """One line about this machine.

    Attributes:
        topic: what it is about, as ``"torchaudio"`` or ``"cache"``.
        text: what was found, and what to type where something is wrong.
        kind: ``"wrong"`` where something cannot work, ``"careful"`` where it may hurt.
    """

    topic: str
    text: str
    kind: Literal["fact", "careful", "wrong"] = "fact"


def examine() -> Iterator[Finding]:
    """Yield what there is to say of this machine, without a network and without writing anything.

    Passwords in addresses and the token of the Hub are not repeated.

    >>> [finding.topic for finding in examine()][:3]
    ['Python', 'bundles', 'torch']
    """
    yield from _versions()
    yield from _environment()
    for folder in dict.fromkeys(cache.roots()):
        yield from examine_folder("cache", folder, is_written=folder == cache.root())
    yield from examine_folder("Hub cache", hub_cache(), is_written=True)


def _versions() -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("Python", f"{platform.python_version()} on {system}")
    yield Finding("bundles", __version__)
    for name, extra in LIBRARIES.items():
        if (version := installed(name)) is not None:
            yield Finding(name, version)
        else:
            line = f"pip install 'pretrained-bundles[{extra}]'" if extra else f"pip install {name}"
            kind: Literal["fact", "wrong"] = "fact" if extra else "wrong"
            yield Finding(name, f"not installed; bundles that need it: `{line}`", kind)
    yield from broken("torchaudio")


def installed(name: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def broken(name: str) -> Iterator[Finding]:
    """Yield that a package cannot be imported, as torchaudio beside a torch for another CUDA."""
    from bundles.builders.require import require

    try:
        require(name)
    except MissingDependencyError as error:
        yield Finding(name, str(error), "wrong")


def library_of(builder: object) -> str | None:
    """Return the package that a builder of our table imports, ``None`` for somebody's own function.

    >>> library_of("torchaudio_wav2vec2")
    'torchaudio'
    """
    return builder.partition("_")[0] if isinstance(builder, str) else None


def needs(builder: object) -> Iterator[Finding]:
    """Yield why a bundle cannot be built here."""
    name = library_of(builder)
    if name is not None and (importlib.util.find_spec(name) is None or name != "torchaudio"):
        yield from broken(name)


def _environment() -> Iterator[Finding]:
    for name in _VARIABLES:
        if value := os.environ.get(name):
            yield Finding(name, "is set" if name == "HF_TOKEN" else _harmless(value))
    if is_offline():
        yield Finding("network", "switched off: what is not on this machine cannot be had", "careful")


def _harmless(value: str) -> str:
    """A value without the passwords and tokens of the addresses in it, of which there may be several."""
    return re.sub(r"\?[^\s,]*", "?…", re.sub(r"://[^\s,]*@", "://…@", value))


def examine_folder(topic: str, folder: Path, *, is_written: bool) -> Iterator[Finding]:
    """Yield where a cache is, how much it holds, and whether it can be used and trusted."""
    try:
        mode = os.stat(folder).st_mode
    except (FileNotFoundError, NotADirectoryError):
        yield from _examine_absent(topic, folder, is_written)
        return
    except OSError as error:
        yield Finding(topic, f"{folder} cannot be read ({error.strerror}): check its mode", "wrong")
        return
    if not stat.S_ISDIR(mode):
        yield Finding(topic, f"{folder} is no folder: {_other(topic)}", "wrong")
        return
    yield Finding(topic, f"{folder} ({_content(folder)})")
    if is_written and not os.access(folder, os.W_OK):
        yield Finding(
            topic, f"{folder} cannot be written, so nothing new can be fetched: {_other(topic)}", "wrong"
        )
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        yield Finding(
            topic,
            f"{folder} can be written by everybody on this machine: type `chmod o-w {folder}`",
            "careful",
        )


def _examine_absent(topic: str, folder: Path, is_written: bool) -> Iterator[Finding]:
    parent = next((path for path in folder.parents if os.path.exists(path)), Path("/"))
    if not is_written:
        yield Finding(topic, f"{folder} is not there: check BUNDLES_SHARED_CACHE", "careful")
    elif parent.is_dir() and os.access(parent, os.W_OK):
        yield Finding(topic, f"{folder} (made at the first download)")
    else:
        yield Finding(topic, f"{folder} cannot be made: {_other(topic)}", "wrong")


def _other(topic: str) -> str:
    name = "HF_HOME" if topic == "Hub cache" else "BUNDLES_CACHE"
    return f"set {name} to a folder that can be written"


def _content(folder: Path) -> str:
    """How much a cache holds: files of ours, repositories of the client's."""
    try:
        files = sum(entry.is_file() for entry in os.scandir(folder / "files"))
        return f"{files} downloaded files"
    except OSError:
        repositories = list(folder.glob("models--*")) if os.access(folder, os.R_OK) else []
        return f"{len(repositories)} repositories" if repositories else "nothing downloaded"


def said(error: BundlesError) -> str:
    """Return an error as one line."""
    return " ".join(str(error).split())
