"""Take a pin at its word: the bundle with those bytes, or an error that says what differs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from bundles.assemble.digests import filled, is_filled, pin_digest
from bundles.errors import PinMismatchError
from bundles.spec.bundle import Bundle
from bundles.spec.canonical import card_digest
from bundles.spec.pin import FilePin, ModelPin
from bundles.spec.source import WeightSource

if TYPE_CHECKING:
    from bundles.assemble.places import Place


def pinned_bundle(pin: ModelPin, folder: str | os.PathLike[str]) -> Bundle:
    """Return the bundle that a pin means, every file of it with the digest that was locked.

    The files of a repository are taken from the pin: the Hub is not asked for a listing, so that it may be
    gone.

    Args:
        pin: of a lock.
        folder: of the lock, from which ``file:`` sources are named.

    Raises:
        PinMismatchError: the card is another one now.
        UnknownBundleError, SourceError, CacheError, BuildError, CardError: there is no such bundle any more.
    """
    from bundles.assemble.lookup import get_bundle

    if pin.bundle.startswith("hf:"):
        from bundles.assemble.repository import read_place

        return apply_pin(read_place(_place(pin)), pin, folder)
    return apply_pin(get_bundle(_absolute(pin.bundle, folder)), pin, folder)


def apply_pin(bundle: Bundle, pin: ModelPin, folder: str | os.PathLike[str] = ".") -> Bundle:
    """Return a bundle with the commits, digests and alternates of a pin.

    Raises:
        PinMismatchError: the card is another one than the pin's, or has files that the pin has not.
    """
    if (found := card_digest(bundle)) != pin.card:
        raise PinMismatchError(
            f"The card of {pin.bundle} is another one than was locked: locked is {pin.card}, found "
            f"{found}. Type `bundles lock FILE --upgrade-all` to take the new one.",
            locked=pin.card,
            found=found,
        )
    weights = None if bundle.weights is None else _pinned(bundle.weights, pin, "weights", folder)
    if weights is not None and weights.is_index:
        shards = {file.path.rpartition("/")[2]: file for file in pin.files if file.role == "shard"}
        facts = {name: {"sha256": file.sha256, "size": file.size} for name, file in shards.items()}
        weights = replace(weights, shards=facts)
    assets = {name: _pinned(asset, pin, f"asset.{name}", folder) for name, asset in bundle.assets.items()}
    return replace(bundle, weights=weights, assets=assets)


def check_pinned(bundle: Bundle, digest: str, *, download: bool = True) -> Bundle:
    """Return a bundle with every digest that is known of it, if that is what a pin string says.

    Args:
        bundle: as looked up.
        digest: of the pin string.
        download: whether weights may be downloaded to know their digests. If not, what cannot be compared
            yet is compared when the bundle is built.

    Raises:
        PinMismatchError: it is another one.
    """
    whole = filled(bundle, download=download)
    if not is_filled(whole):
        return replace(whole, pinned=digest)
    if (found := pin_digest(whole)) != digest:
        raise PinMismatchError(
            f"{bundle.name} is not what was pinned: pinned is {digest}, found {found}; its card or its "
            f"bytes are others. Pin it anew by bundle.pin() if you trust them.",
            locked=digest,
            found=found,
        )
    return replace(whole, pinned=None)


def _absolute(uri: str, folder: str | os.PathLike[str]) -> str:
    return (
        f"file:{os.path.join(os.path.abspath(folder), uri[len('file:') :])}"
        if uri.startswith("file:")
        else uri
    )


def _source(file: FilePin, folder: str | os.PathLike[str]) -> WeightSource:
    uri, *others = (_absolute(uri, folder) for uri in (file.source, *file.alternates))
    return WeightSource(uri, file.sha256, file.size, alternates=tuple(others))


def _pinned(source: WeightSource, pin: ModelPin, role: str, folder: str | os.PathLike[str]) -> WeightSource:
    """A source as it was locked, and with the address that the card gives for the same bytes by now."""
    file = pin.file(role)
    if file is None:
        raise PinMismatchError(
            f"The card of {pin.bundle} has {role}, of which nothing was locked: type "
            f"`bundles lock FILE --upgrade-all`."
        )
    found = _source(file, folder)
    same = source.sha256 == found.sha256
    known = dict.fromkeys((*found.alternates, *((source.uri, *source.alternates) if same else ())))
    return replace(found, alternates=tuple(uri for uri in known if uri != found.uri))


def _place(pin: ModelPin) -> Place:
    """A repository as far as a pin knows it."""
    from bundles.assemble.places import Place

    own = f"{pin.bundle}#"
    files: Mapping[str, WeightSource] = {
        file.path: _source(file, ".") for file in pin.files if file.source.startswith(own)
    }
    return Place(pin.bundle, files, {"license": pin.license} if pin.license else {})
