"""A JSON Schema of experiment files, made from the tables that read them, for editors to complete by.

``schema.json`` beside this file is what :func:`schema` returns; ``scripts/schema.py`` writes it, and a test
says when it is old. It accepts any name that a bundle may have, since people add their own: a misspelt one
is for :func:`bundles.from_config`, which says what is the closest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bundles.experiment.checks import DTYPES
from bundles.experiment.config import ModelConfig
from bundles.heads.recipes import ACTIVATIONS, CLASSES
from bundles.registry.origins import add_builtin
from bundles.registry.registry import Registry
from bundles.spec.bundle import Bundle
from bundles.spec.mode import AXES, PRESETS, FreezeMode
from bundles.spec.policy import EXAMPLES, PREFIXES, WORDS, parse_policy

SCHEMA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schema.json")

_NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,95}"
_PIN = r"@sha256:[0-9a-f]{64}"
_VALUES: dict[str, dict[str, Any]] = {  # by what a head's recipe says of an argument
    "a number from 1": {"type": "integer", "minimum": 1},
    "a rate from 0 to 1": {"type": "number", "minimum": 0, "maximum": 1},
    "a bool": {"type": "boolean"},
    "a word": {"type": "string", "enum": sorted(ACTIVATIONS.values())},
    "a recipe": {"$ref": "#/definitions/head"},
}


def schema() -> dict[str, Any]:
    """Return the schema of an experiment file, as JSON types: draft 7, which editors know for TOML and YAML.

    It serves for a YAML file with the key ``model``, too, of which the rest is left alone.

    >>> schema()["definitions"]["model"]["properties"]["freeze_mode"]["anyOf"][0]["enum"][:2]
    ['eval', 'features']
    """
    model = {"$ref": "#/definitions/model"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "bundles: an experiment",
        "description": "Which pretrained models somebody wants, and what is frozen in them.",
        "type": "object",
        "properties": {
            "model": {**model, "description": "The only model."},
            "models": {
                "description": "Several models, by name.",
                "type": "object",
                "minProperties": 1,
                "additionalProperties": model,
            },
        },
        "oneOf": [{"required": ["model"]}, {"required": ["models"]}],
        "definitions": {"model": _model(), "head": _head()},
    }


def _model() -> dict[str, Any]:
    values: dict[str, dict[str, Any]] = {
        "bundle": {"anyOf": [_builtin(), *_others()]},
        "freeze": {
            "anyOf": [{"type": "boolean"}, *_policies()],
            "default": False,
            "examples": list(EXAMPLES),
        },
        "freeze_mode": {"anyOf": [_presets(), _axes()]},
        "head": {"$ref": "#/definitions/head"},
        "dtype": {"type": "string", "enum": list(DTYPES)},
        "lock": {"type": "string", "minLength": 1},
    }
    said = _argument_docs(ModelConfig)
    return {
        "type": "object",
        "properties": {key: {"description": said[key], **value} for key, value in values.items()},
        "required": ["bundle"],
        "additionalProperties": False,
        "dependencies": {"freeze_mode": ["freeze"]},
    }


def _builtin() -> dict[str, Any]:
    registry = Registry(populate=add_builtin)
    return _words({name: _bundle_text(registry[name]) for name in registry})


def _bundle_text(bundle: Bundle) -> str:
    said = bundle.metadata
    size = f"{said['num_parameters'] / 1e6:.1f} M parameters" if "num_parameters" in said else ""
    parts = (
        said.get("description", ""),
        said.get("task", "").replace("_", " "),
        size,
        said.get("license", ""),
    )
    return "; ".join(part for part in parts if part)


def _others() -> Iterable[dict[str, Any]]:
    repository = r"hf:[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
    yield {
        "type": "string",
        "pattern": rf"^{_NAME}({_PIN})?$",
        "description": "Name of a bundle of your own, or a pin as bundle.pin() prints it.",
    }
    yield {
        "type": "string",
        "pattern": rf"^{repository}(@[A-Za-z0-9][A-Za-z0-9._/-]*)?({_PIN})?$",
        "description": "A repository on the Hugging Face Hub: hf:owner/repo@ and the commit, 40 hex digits.",
    }
    yield {
        "type": "string",
        "pattern": r"^(file:.+|(?!hf:).*/.*)$",
        "description": "A folder on this machine: file:DIR, or a path with a '/' in it.",
    }


def _policies() -> Iterable[dict[str, Any]]:
    switches = {True: "The bundle's default policy.", False: "Nothing is frozen."}
    yield _words({**{word: _first_line(make()) for word, make in WORDS.items()}, **switches})
    for prefix, (pattern, _) in PREFIXES.items():
        example = next(text for text in EXAMPLES if text.startswith(f"{prefix}:"))
        yield {
            "type": "string",
            "pattern": f"^{prefix}:({pattern.replace(chr(92) + 'd', '[0-9]')})$",
            "description": _first_line(parse_policy(example)),
            "examples": [example],
        }


def _presets() -> dict[str, Any]:
    axes = {
        name: ", ".join(f"{axis} {getattr(mode, axis)}" for axis in AXES) for name, mode in PRESETS.items()
    }
    return _words(axes)


def _axes() -> dict[str, Any]:
    said, default = _argument_docs(FreezeMode), FreezeMode()
    return {
        "type": "object",
        "properties": {
            axis: {
                "type": "string",
                "enum": list(values),
                "default": getattr(default, axis),
                "description": said[axis],
            }
            for axis, values in AXES.items()
        },
        "additionalProperties": False,
        "minProperties": 1,
    }


def _head() -> dict[str, Any]:
    kinds = []
    for name, (kind, takes) in CLASSES.items():
        said = _argument_docs(kind) if _is_ours(kind) else {}
        properties = {
            argument.rstrip("!"): {**_documented(said.get(argument.rstrip("!"))), **_VALUES[what]}
            for argument, what in takes.items()
        }
        kinds.append(
            {
                "type": "object",
                "properties": {"type": {"const": name}, **properties},
                "required": ["type", *(argument[:-1] for argument in takes if argument.endswith("!"))],
                "additionalProperties": False,
            }
        )
    names = _words(
        {
            name: _first_line(kind) if _is_ours(kind) else f"torch.nn.{name}"
            for name, (kind, _) in CLASSES.items()
        }
    )
    return {
        "description": "What follows the encoder.",
        "type": "object",
        "properties": {"type": names},  # all of them together, or editors complete by some alone
        "required": ["type"],
        "anyOf": kinds,
    }


def _is_ours(kind: type) -> bool:
    """Whether a docstring changes with this library alone."""
    return kind.__module__.startswith("bundles.")


def _words(described: Mapping[Any, str]) -> dict[str, Any]:
    """An enum with a text for each value: for VS Code and yaml-language-server, and for Taplo."""
    texts = list(described.values())
    return {
        "enum": list(described),
        "enumDescriptions": texts,
        "x-taplo": {"docs": {"enumValues": texts}},
    }


def _documented(text: str | None) -> dict[str, str]:
    return {} if text is None else {"description": text}


def _first_line(thing: object) -> str:
    return _plain((thing.__doc__ or "").strip().splitlines()[0])


def _argument_docs(cls: type) -> dict[str, str]:
    """Return what the docstring of a class says of its arguments."""
    section = re.search(r"^ *Args:\n(.*?)(?:\n\n|\Z)", cls.__doc__ or "", re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: _plain(" ".join(text.split())) for name, text in entries}


def _plain(text: str) -> str:
    """Return a docstring's text without its markup."""
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")
