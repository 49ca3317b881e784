"""What is wrong with the table of a model, wherever it comes from: every problem, with its dotted path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from bundles.errors import BundlesError
from bundles.experiment.plain import Path, read_plain
from bundles.registry import default
from bundles.spec.hub import parse_hub
from bundles.spec.mode import AXES, PRESETS, parse_mode
from bundles.spec.pin import split_pin
from bundles.spec.policy import parse_policy
from bundles.spec.suggest import accepted, closest
from bundles.spec.values import shown

Problem = tuple[Path, str]

DTYPES = ("float32", "float16", "bfloat16", "float64")
# What people try, and what it is called here.
_MEANT = {"name": "bundle", "model": "bundle", "policy": "freeze", "mode": "freeze_mode", "frozen": "freeze"}
_OF_A_PIN = ("commit", "digest", "pin", "revision", "sha256")
_OF_A_RUN = ("device", "pretrained", "frozen_dtype", "dl_kwargs")
_SWITCHES = {
    **dict.fromkeys(("yes", "on", "y", "true"), "true"),
    **dict.fromkeys(("no", "off", "n", "false"), "false"),
}


def check_table(table: object, where: Path, keys: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """Return a model's table as plain data, and one line for each problem in it.

    Args:
        table: a mapping from anywhere.
        where: the keys that lead to it, for the lines.
        keys: those that it may have.

    >>> check_table({"bundle": "CREPE_TINY", "freze": True}, ("model",), ("bundle", "freeze"))[1]
    ["model.freze: True, did you mean 'freeze'? It takes bundle, freeze"]
    """
    plain, found = read_plain(table)
    if not isinstance(plain, dict):
        hint = "; its vars() are one" if hasattr(table, "bundle") else ""
        found = [((), f"{shown(table)} is no table with the key bundle{hint}")]
        return {}, [_line((*where, *path), problem) for path, problem in found]
    broken = {path[:1] for path, _ in found}
    found += [(path, problem) for path, problem in _problems_of(plain, keys) if path[:1] not in broken]
    return plain, [_line((*where, *path), problem) for path, problem in found]


def _problems_of(plain: dict[str, Any], keys: tuple[str, ...]) -> Iterator[Problem]:
    for key, value in plain.items():
        if key not in keys:
            yield (key,), _unknown(key, value, keys)
        elif value is not None or key in ("bundle", "freeze"):
            yield from (((key, *path), problem) for path, problem in _CHECKS[key](value))
    if "bundle" not in plain:
        yield ("bundle",), "is missing: give the name of a bundle, as `bundles list` prints them"
    is_misspelt = any(key not in keys for key in plain)  # as freeze may be
    if plain.get("freeze_mode") is not None and plain.get("freeze", False) is False and not is_misspelt:
        yield ("freeze_mode",), "it is given without freeze: add freeze = true, or a policy"


def _unknown(key: str, value: Any, keys: tuple[str, ...]) -> str:
    if key in _OF_A_PIN:
        quoted = "" if isinstance(value, str) else f"; {_not_text(value)}"
        return (
            f"is no key: a commit belongs in the address, as in 'hf:owner/repo@<commit>', and a digest in "
            f"the pin, as in 'NAME@sha256:<digest>'{quoted}"
        )
    if key in _OF_A_RUN:
        return f"{shown(value)} belongs to a run and not to a model: give it to get_model in Python"
    if isinstance(value, dict) and "bundle" in value:
        return f"it is a table of a model itself: give config[{shown(key)}]"
    if key == "lock":
        return "an experiment file has its lock beside it, as NAME.lock.toml: leave it out"
    nearest = _MEANT.get(key) or closest(key, keys, count=1)[0]
    return f"{shown(value)}, did you mean {nearest!r}? It takes {', '.join(keys)}"


# --- the keys, one by one -------------------------------------------------------------------------


def _check_bundle(value: Any) -> Iterator[Problem]:
    if not isinstance(value, str):
        yield (), _not_text(value)
    elif not value.strip() or not value.isprintable():
        yield (), f"{shown(value)} is not the name of a bundle"
    else:
        yield from _attempt(_look_up, value)


def _look_up(value: str) -> None:
    """Look a name up; what an address leads to is read when the model is built."""
    name, _ = split_pin(value) or (value, "")
    if name.startswith("hf:"):
        parse_hub(name.removeprefix("hf:"))
    elif not name.startswith("file:") and os.sep not in name:
        _ = default.default_registry[name]


def _check_freeze(value: Any) -> Iterator[Problem]:
    if isinstance(value, str) and value.lower() in _SWITCHES:
        yield (), f"{shown(value)} is text here, a switch has no quotes: write {_SWITCHES[value.lower()]}"
    elif isinstance(value, str):
        yield from _attempt(parse_policy, value)
    elif not isinstance(value, bool):
        yield (), f"{shown(value)} is neither true or false nor the text of a policy, as 'last:2'"


def _check_mode(value: Any) -> Iterator[Problem]:
    if isinstance(value, str):
        yield from _attempt(parse_mode, value)
    elif isinstance(value, dict):
        for axis, choice in value.items():
            yield from (((axis,), problem) for problem in _axis_problems(axis, choice))
    else:
        quoted = f"; {_not_text(value)}" if isinstance(value, bool) else ""
        what = f"neither one of {', '.join(PRESETS)} nor a table of {', '.join(AXES)}"
        yield (), f"{shown(value)} is {what}{quoted}"


def _axis_problems(axis: str, choice: Any) -> Iterator[str]:
    if axis not in AXES:
        yield f"{shown(choice)}, did you mean {closest(axis, AXES, count=1)[0]!r}? It takes {', '.join(AXES)}"
    elif not isinstance(choice, str) or choice not in AXES[axis]:
        quoted = "" if isinstance(choice, str) else f"; {_not_text(choice)}"
        yield f"{shown(choice)} is not one of {accepted(str(choice), AXES[axis])}{quoted}"


def _check_head(value: Any) -> Iterator[Problem]:
    from bundles.heads.recipes import recipe_problems  # which needs torch

    if not isinstance(value, dict):
        yield (), f"{shown(value)} is no table, as {{ type = 'MeanPoolClassifier', num_classes = 10 }}"
    elif "in_features" in value:
        yield ("in_features",), "the bundle knows it: leave it out"
    else:
        yield from (((), problem) for problem in recipe_problems(value))


def _check_dtype(value: Any) -> Iterator[Problem]:
    if not isinstance(value, str):
        yield (), _not_text(value)
    elif value not in DTYPES:
        yield (), f"{shown(value)} is not one of {accepted(value, DTYPES)}"


def _check_lock(value: Any) -> Iterator[Problem]:
    if not isinstance(value, str):
        yield (), _not_text(value)
    elif not value.strip() or not value.isprintable():
        yield (), f"{shown(value)} is not the path of a lock, as 'configs/probe.lock.toml'"


_CHECKS: dict[str, Callable[[Any], Iterator[Problem]]] = {
    "bundle": _check_bundle,
    "freeze": _check_freeze,
    "freeze_mode": _check_mode,
    "head": _check_head,
    "dtype": _check_dtype,
    "lock": _check_lock,
}


def _not_text(value: Any) -> str:
    """Say what stands where text belongs: YAML reads digits, and words such as ``no``, as something else."""
    if isinstance(value, bool):
        words = "yes, on and y" if value else "no, off and n"
        return f"{str(value).lower()} is no text, and YAML reads {words} so: quote it"
    if isinstance(value, int | float):
        return f"{shown(value)} is a number, and YAML reads digits without quotes so: quote it"
    return f"{shown(value)} is no text" if value is not None else "nothing is given"


def _attempt(parse: Callable[[str], object], value: str) -> Iterator[Problem]:
    try:
        parse(value)
    except BundlesError as error:
        yield (), str(error).rstrip(".")


def _line(path: Path, problem: str) -> str:
    plain = (part if part.isprintable() and len(part) < 66 else shown(part) for part in path)
    return f"{'.'.join(plain)}: {problem}" if path else problem
