"""Read the card that a repository of the Hub, or a folder, carries itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bundles.assemble.places import Place
from bundles.errors import CardError
from bundles.registry.cards import read_card_file, to_bundle
from bundles.spec.bundle import Bundle
from bundles.spec.hub import parse_hub
from bundles.spec.source import WeightSource, is_loopback
from bundles.spec.values import shown


def read_carried(place: Place, name: str) -> Bundle:
    """Return the one bundle that a card beside its weights describes, by the rules of every other card.

    ``file:NAME`` is a file beside the card. In a repository of the Hub that, and ``hf:`` with the same
    repository and no commit, is the file at the card's own commit; every file needs a digest, the card's
    or the one that the Hub publishes.

    Raises:
        CardError: the card is broken, describes no bundle or several, or names what it must not.
        BuildError: it is larger than a card.
        SourceError, CacheError: it cannot be read.
    """
    path = str(place.small(name, "card"))
    origin = f"{place.address}{'#' if place.is_hub else '/'}{name}"
    found = read_card_file(path)
    problems = [line.replace(path, origin) for line in found.problems]
    if not problems and len(found.cards) != 1:
        names = ", ".join(found.cards) or "none"
        problems = [f"{origin}: describes {len(found.cards)} bundles ({names}), and has to describe one"]
    _refuse(problems)
    ((title, card),) = found.cards.items()
    if place.is_hub:
        card = _settled(card, place)
        _refuse([f"{origin}: {title}.{what}" for what in _hub_problems(card, place)])
    bundle = to_bundle(title, card, path)
    weights = bundle.weights
    if weights is not None and place.is_hub and weights.is_index:
        weights = _sharded(weights, place)
    return replace(bundle, name=place.address, origin=origin, weights=weights)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise CardError("\n".join(problems), problems=tuple(problems))


def _tables(card: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every table of a card that names a file."""
    if "weights" in card:
        yield "weights", card["weights"]
    yield from ((f"assets.{key}", table) for key, table in card.get("assets", {}).items())


def _settled(card: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The card with its own files named by repository and commit, and with the digests that the Hub has."""
    settled = {key: _at_commit(table, place) for key, table in _tables(card)}
    assets = {key: settled[f"assets.{key}"] for key in card.get("assets", {})}
    weights = {"weights": settled["weights"]} if "weights" in settled else {}
    return {**card, **weights, **({"assets": assets} if assets else {})}


def _at_commit(table: dict[str, Any], place: Place) -> dict[str, Any]:
    if "alternates" in table:
        table = {**table, "alternates": [_own_uri(uri, place) for uri in table["alternates"]]}
    path = _own_path(table["source"], place)
    if path is None:
        return table
    listed = place.files.get(path)
    known = {"sha256": listed.sha256, "size": listed.size} if listed else {}
    known = {key: value for key, value in known.items() if value is not None}
    return {**known, **table, "source": _own_uri(table["source"], place)}


def _own_uri(source: str, place: Place) -> str:
    """The address of a file, at the card's own commit where it is of the same repository."""
    path = _own_path(source, place)
    return source if path is None else f"{place.address}#{path}"


def _own_path(source: str, place: Place) -> str | None:
    """The path of a file of the same repository at the same commit, ``None`` for what lies elsewhere."""
    if source.startswith("file:"):
        return source[len("file:") :].replace("\\", "/").removeprefix("./")
    if not source.startswith("hf:"):
        return None
    address, own = parse_hub(source[len("hf:") :]), parse_hub(place.address[len("hf:") :])
    same = address.repo.lower() == own.repo.lower() and address.revision in (None, own.revision)
    return address.path if same else None


def _hub_problems(card: Mapping[str, Any], place: Place) -> Iterator[str]:
    """What is wrong with the addresses of a card that came from somebody else."""
    for name, table in _tables(card):
        key, source = name.encode("unicode_escape").decode()[:99], table["source"]
        own = source.startswith(f"{place.address}#")
        if problem := _address_problem(source, place):
            yield f"{key}.source {problem}"
        elif "sha256" not in table and not source.startswith("package:") and (place.is_complete or not own):
            yield f"{key}.sha256 is missing, and the Hub publishes none: type `bundles check --write`"
        for other in table.get("alternates", ()):
            if problem := _address_problem(other, place):
                yield f"{key}.alternates {problem}"


def _address_problem(source: str, place: Place) -> str | None:
    path = source.removeprefix(f"{place.address}#")
    if path != source and path not in place.files:
        return f"names {shown(path)}, which is not in {place.address}"
    if source.startswith("url:http:") and not is_loopback(source[len("url:") :]):
        return f"{shown(source)} is read by anybody on the way: give an https:// address"
    return None


def _sharded(weights: WeightSource, place: Place) -> WeightSource:
    name = weights.uri.removeprefix(f"{place.address}#")
    known = place.index(name).shards if name in place.files else {}
    return replace(weights, shards={**known, **weights.shards})
