"""The fields of a card, and what is wrong with a value: one schema for every origin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bundles.errors import BundlesError
from bundles.spec.architectures import ARCHITECTURES, argument_problem, missing_arguments
from bundles.spec.companions import COMPANIONS, NEEDS
from bundles.spec.groups import parse_rules
from bundles.spec.keys import key_map_problems
from bundles.spec.mode import parse_mode
from bundles.spec.policy import parse_policy
from bundles.spec.source import (
    alternates_problem,
    sha256_problem,
    shards_problem,
    size_problem,
    uri_problem,
)
from bundles.spec.suggest import closest
from bundles.spec.values import shown

Problem = tuple[tuple[str, ...], str]  # the key's path within the card, and what is wrong there

METADATA: dict[str, type] = {
    "classes": str,
    "companions": str,
    "description": str,
    "frame_length": int,
    "homepage": str,
    "hop_length": int,
    "input_shape": list,
    "labels": list,
    "languages": list,
    "license": str,
    "modality": str,
    "num_parameters": int,
    "paper": str,
    "pitch_bins": int,
    "sample_rate": int,
    "task": str,
    "text_unit": str,
    "token_inputs": list,
    "training_data": str,
    "vocoder": str,
}
FIELDS: dict[str, type] = METADATA | {
    "architecture": dict,
    "assets": dict,
    "builder": str,
    "extra": dict,
    "freeze": str,
    "freeze_mode": str,
    "head_slot": str,
    "keys": dict,
    "layers": dict,
    "num_features": int,
    "prefix": str,
    "weights": dict,
}
REQUIRED = ("builder", "layers")
_WORDS = {str: "a string", int: "a positive integer", list: "a list", dict: "a table"}


def problems_of(card: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield everything that is wrong with one card, defaults already merged in."""
    for key, value in card.items():
        if key not in FIELDS:
            nearest = closest(key, FIELDS, count=1)[0]
            yield (key,), f"is not a key of a card; the closest is {nearest!r}"
        elif type(value) is not FIELDS[key] or (type(value) is int and not 0 < value < 2**63):
            yield (key,), f"{shown(value)} is not {_WORDS[FIELDS[key]]}"
        elif key in _CHECKS:
            yield from _CHECKS[key](value, card)
    for key in REQUIRED:
        if key not in card:
            yield (key,), "is missing"


def _check_builder(builder: str, card: Mapping[str, Any]) -> Iterator[Problem]:
    if builder not in ARCHITECTURES:
        hint = ""
        if "." in builder or ":" in builder or "/" in builder:
            hint = " (import paths are not taken from cards: use bundles.register(Bundle(builder=function)))"
        yield ("builder",), f"{shown(builder)} is not a builder{hint}; there is {', '.join(ARCHITECTURES)}"
        return
    given = card.get("architecture", {})
    if isinstance(given, Mapping):
        for name in missing_arguments(builder, given):
            yield ("architecture", name), "is missing"


def _check_architecture(arguments: Mapping[str, Any], card: Mapping[str, Any]) -> Iterator[Problem]:
    if card.get("builder") in ARCHITECTURES:
        for name, value in arguments.items():
            if problem := argument_problem(card["builder"], name, value):
                yield ("architecture", name), problem


def _check_weights(weights: Mapping[str, Any], card: Mapping[str, Any]) -> Iterator[Problem]:
    return _check_source(("weights",), weights)


def _check_assets(assets: Mapping[str, Any], card: Mapping[str, Any]) -> Iterator[Problem]:
    for name, source in assets.items():
        if isinstance(source, dict):
            yield from _check_source(("assets", name), source)
        else:
            yield ("assets", name), f"{shown(source)} is not a table with a source, as weights is"


def _check_source(path: tuple[str, ...], entries: Mapping[str, Any]) -> Iterator[Problem]:
    checks: dict[str, Callable[[Any], str | None]] = {
        "source": uri_problem,
        "sha256": sha256_problem,
        "size": size_problem,
        "shards": shards_problem,
        "alternates": alternates_problem,
    }
    for key, value in entries.items():
        if key not in checks:
            yield (*path, key), f"is not a key of {path[0]}; there is {', '.join(checks)}"
        elif problem := checks[key](value):
            yield (*path, key), problem
    if "source" not in entries:
        yield (*path, "source"), "is missing"
    if "alternates" in entries and "sha256" not in entries:
        yield (*path, "alternates"), "needs a sha256, without which nobody can tell other bytes from these"


def _check_keys(keys: Mapping[str, Any], card: Mapping[str, Any]) -> Iterator[Problem]:
    return ((("keys", key), problem) for key, problem in key_map_problems(keys))


def _check_prefix(prefix: str, card: Mapping[str, Any]) -> Iterator[Problem]:
    if not prefix.endswith(".") or not all(prefix[:-1].split(".")):
        yield ("prefix",), f"{shown(prefix)} is not a dotted prefix, as 'model.'"


def _check_companions(kind: str, card: Mapping[str, Any]) -> Iterator[Problem]:
    if kind not in COMPANIONS:
        yield ("companions",), f"{shown(kind)} is not a kind of companions; there is {', '.join(COMPANIONS)}"
        return
    tables = [table for key in ("extra", "assets") if isinstance(table := card.get(key), Mapping)]
    if missing := [need for need in NEEDS[kind] if not any(need in table for table in (card, *tables))]:
        yield ("companions",), f"{shown(kind)} needs {', '.join(missing)}, which the card does not give"


def _check_layers(layers: Mapping[str, Any], card: Mapping[str, Any]) -> Iterator[Problem]:
    for name, entry in layers.items():
        yield from _attempt(("layers", name), lambda: parse_rules({name: entry}))  # noqa: B023
    if not layers:
        yield ("layers",), "is empty"


def _check_input_shape(shape: list[Any], card: Mapping[str, Any]) -> Iterator[Problem]:
    if not shape or not all(type(size) is int and 0 < size < 2**31 for size in shape):
        yield ("input_shape",), f"{shown(shape)} is not a list of positive sizes, as in [16, 1024]"


def _check_words(key: str, words: list[Any]) -> Iterator[Problem]:
    if len(words) > 10_000 or not all(isinstance(word, str) for word in words):
        yield (key,), f"{shown(words)} is not a list of at most 10,000 strings"


def _check_text_unit(unit: str, card: Mapping[str, Any]) -> Iterator[Problem]:
    if unit not in ("character", "phoneme"):
        yield ("text_unit",), f"{shown(unit)} is not one of 'character', 'phoneme'"


def _check_policy(policy: str, card: Mapping[str, Any]) -> Iterator[Problem]:
    return _attempt(("freeze",), lambda: parse_policy(policy))


def _check_mode(mode: str, card: Mapping[str, Any]) -> Iterator[Problem]:
    return _attempt(("freeze_mode",), lambda: parse_mode(mode))


def _check_extra(extra: Mapping[str, Any], card: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in extra.items():
        plain = type(value) in (str, float, bool) or (type(value) is int and abs(value) < 2**63)
        named = (
            key.isidentifier() and not key.startswith("_") and not any(key in c for c in COMPANIONS.values())
        )
        if key in FIELDS or not plain or not named:
            yield ("extra", key), f"{shown(value)} is not text, number or true/false under a key of its own"


def _attempt(path: tuple[str, ...], parse: Callable[[], object]) -> Iterator[Problem]:
    try:
        parse()
    except BundlesError as error:
        yield path, str(error).rstrip(".")


_CHECKS: dict[str, Callable[[Any, Mapping[str, Any]], Iterator[Problem]]] = {
    "builder": _check_builder,
    "architecture": _check_architecture,
    "assets": _check_assets,
    "companions": _check_companions,
    "keys": _check_keys,
    "prefix": _check_prefix,
    "weights": _check_weights,
    "layers": _check_layers,
    "freeze": _check_policy,
    "freeze_mode": _check_mode,
    "extra": _check_extra,
    "input_shape": _check_input_shape,
    "labels": lambda labels, card: _check_words("labels", labels),
    "languages": lambda languages, card: _check_words("languages", languages),
    "text_unit": _check_text_unit,
    "token_inputs": lambda names, card: _check_words("token_inputs", names),
}
