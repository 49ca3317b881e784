"""Look at this machine with the eyes of one lock: what of it is here, and what cannot work."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

from bundles import __version__
from bundles.assemble.lookup import get_bundle
from bundles.errors import BundlesError
from bundles.experiment.copies import is_here
from bundles.experiment.doctor import Finding, installed, needs, said
from bundles.sources.fetch import is_offline
from bundles.sources.progress import readable
from bundles.spec.canonical import card_digest
from bundles.spec.lock import Lock
from bundles.spec.pin import FilePin, ModelPin

_PACKAGES = {"bundles": "pretrained-bundles"}
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*==[A-Za-z0-9][\w.+!]*", re.ASCII)  # a lock may be a stranger's


def examine_lock(lock: Lock, path: Path) -> Iterator[Finding]:
    """Yield what there is to say of a lock on this machine, without a network.

    Args:
        lock: names the models.
        path: of its file.
    """
    yield Finding("lock", f"{path}, version {lock.version}, by {lock.created_by}, {len(lock.models)} models")
    for name, pin in lock.models.items():
        yield Finding(name, _summary(pin))
        yield from _versions(name, pin)
        yield from _bundle(name, pin)
        yield from _files(name, pin, path)


def _summary(pin: ModelPin) -> str:
    frozen = f", freezes {pin.freeze} in mode {pin.freeze_mode}" if pin.freeze else ""
    return (
        f"{pin.bundle}, {pin.parameters:,} parameters, {pin.trainable:,} train{frozen}; "
        f"license {pin.license or 'unknown'}{', gated' if pin.gated else ''}"
    )


def _versions(name: str, pin: ModelPin) -> Iterator[Finding]:
    for library, locked in pin.versions.items():
        here = _version(library)
        if here != locked:
            wanted = f"{_PACKAGES.get(library, library)}=={locked}"
            is_plain = library != "python" and _PLAIN.fullmatch(wanted)
            advice = f": type `pip install {wanted}`" if is_plain else ""
            text = f"was locked with {library} {locked}, here is {here or 'none'}{advice}"
            yield Finding(name, text, "careful" if here else "wrong")


def _version(library: str) -> str | None:
    """As locks have it: of Python without the patch level, of torch without the hardware it is built for."""
    if library == "python":
        return ".".join(platform.python_version_tuple()[:2])
    found = __version__ if library == "bundles" else installed(library)
    return None if found is None else found.partition("+")[0]


def _bundle(name: str, pin: ModelPin) -> Iterator[Finding]:
    if ":" in pin.bundle:
        return  # a look into a repository would need a network
    try:
        bundle = get_bundle(pin.bundle)
    except BundlesError as error:
        yield Finding(name, said(error), "wrong")
        return
    for finding in needs(bundle.builder):
        yield Finding(name, finding.text, finding.kind)
    if (found := card_digest(bundle)) != pin.card:
        yield Finding(name, f"the card of {pin.bundle} comes to {found}, the lock has {pin.card}", "wrong")


def _files(name: str, pin: ModelPin, path: Path) -> Iterator[Finding]:
    absent = [file for file in pin.files if not is_here(file, path.parent)]
    here = len(pin.files) - len(absent)
    yield Finding(name, f"{here} of {len(pin.files)} files are here")
    for file in absent:
        yield _absent(name, file, path)


def _absent(name: str, file: FilePin, path: Path) -> Finding:
    what = f"{file.path} ({readable(file.size)}) is not here"
    if file.source.startswith(("file:", "package:")):
        return Finding(name, f"{what}, and nothing can download {file.source}", "wrong")
    if is_offline():
        return Finding(name, f"{what} and the network is off: type `bundles sync {path}` with one", "wrong")
    return Finding(name, f"{what}, would be downloaded from {file.source}: type `bundles sync {path}`")
