"""Heads as plain data, for experiment files, locks and delta checkpoints: a name and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bundles.errors import HeadError
from bundles.heads.classifiers import AttentiveStatisticsClassifier, MeanPoolClassifier
from bundles.heads.ctc import CTCHead
from bundles.heads.layers import WeightedLayers
from bundles.heads.pooling import AttentiveStatisticsPool, MeanPool
from bundles.heads.text import TextClassifier

_COUNT, _RATE, _SWITCH, _WORD, _HEAD = "a number from 1", "a rate from 0 to 1", "a bool", "a word", "a recipe"

# What each head takes after the number of features; those that must be given come with an exclamation mark.
CLASSES: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    "AttentiveStatisticsClassifier": (
        AttentiveStatisticsClassifier,
        {"num_classes!": _COUNT, "dropout": _RATE, "attention_features": _COUNT, "channelwise": _SWITCH},
    ),
    "AttentiveStatisticsPool": (
        AttentiveStatisticsPool,
        {"attention_features": _COUNT, "channelwise": _SWITCH},
    ),
    "CTCHead": (CTCHead, {"num_labels!": _COUNT, "dropout": _RATE}),
    "Linear": (nn.Linear, {"out_features!": _COUNT, "bias": _SWITCH}),
    "MeanPool": (MeanPool, {}),
    "MeanPoolClassifier": (MeanPoolClassifier, {"num_classes!": _COUNT, "dropout": _RATE}),
    "TextClassifier": (
        TextClassifier,
        {"num_classes!": _COUNT, "hidden": _COUNT, "dropout": _RATE, "activation": _WORD},
    ),
    "WeightedLayers": (WeightedLayers, {"num_layers!": _COUNT, "head!": _HEAD, "normalize": _SWITCH}),
}
ACTIVATIONS = {nn.GELU: "gelu", nn.ReLU: "relu", nn.Tanh: "tanh"}


def make_head(recipe: Mapping[str, Any], in_features: int) -> nn.Module:
    """Return the head that a recipe describes.

    Args:
        recipe: ``type``, which is the name of a class of :mod:`bundles.heads` or ``"Linear"``, and the
            arguments of that class but for ``in_features``. The ``head`` of ``WeightedLayers`` is a recipe.
        in_features: size of the encoder's features.

    Raises:
        HeadError: it is no such recipe; every problem is named.

    >>> make_head({"type": "Linear", "out_features": 2}, 8)
    Linear(in_features=8, out_features=2, bias=True)
    >>> make_head({"type": "Linear", "out_fetures": 2}, 8)
    Traceback (most recent call last):
    bundles.errors.HeadError: The head recipe cannot be used: Linear takes out_features, bias and no \
'out_fetures'; Linear needs out_features, a number from 1.
    """
    if problems := recipe_problems(recipe):
        raise HeadError(f"The head recipe cannot be used: {'; '.join(problems)}.", problems=tuple(problems))
    cls, _ = CLASSES[recipe["type"]]
    arguments = {name: value for name, value in recipe.items() if name != "type"}
    if "head" in arguments:
        arguments["head"] = make_head(arguments["head"], in_features)
    return cls(in_features, **arguments)


def recipe_problems(recipe: Any) -> list[str]:
    """Return everything that is wrong with a recipe; nothing is made.

    >>> recipe_problems({"type": "CTCHead", "num_labels": 0})
    ['num_labels = 0 of CTCHead is not a number from 1']
    """
    kind = recipe.get("type") if isinstance(recipe, Mapping) else None
    if not isinstance(kind, str) or kind not in CLASSES:
        return [f"type = {_shown(kind)} is none of {', '.join(CLASSES)}"]
    takes = {name.rstrip("!"): what for name, what in CLASSES[kind][1].items()}
    problems = [
        f"{kind} takes {', '.join(takes) or 'no argument'} and no {_shown(name)}"
        for name in recipe
        if name != "type" and name not in takes
    ]
    for name, what in takes.items():
        if name not in recipe:
            problems += [f"{kind} needs {name}, {what}"] if f"{name}!" in CLASSES[kind][1] else []
        elif what == _HEAD:
            problems += [f"head of {kind}: {problem}" for problem in recipe_problems(recipe[name])]
        elif not _fits(recipe[name], what):
            problems.append(f"{name} = {_shown(recipe[name])} of {kind} is not {what}")
    return problems


def recipe_of(module: nn.Module) -> dict[str, Any] | None:
    """Return the recipe that makes a head of this kind, ``None`` where none does.

    What was changed in it since it was made, so that the recipe would make another, has none.

    >>> recipe_of(CTCHead(8, num_labels=5))
    {'type': 'CTCHead', 'num_labels': 5, 'dropout': 0.0}
    >>> recipe_of(nn.Conv1d(8, 5, 1)) is None
    True
    """
    name = type(module).__name__
    # By name, since a frozen head has a class of its own, which bears the names of the one below.
    known = CLASSES.get(name)
    if known is None or (type(module).__module__, name) != (known[0].__module__, known[0].__name__):
        return None
    try:
        arguments = _READ[name](module)
    except AttributeError:  # a part of it was replaced
        return None
    if arguments.get("head", ...) is None:
        return None
    recipe = {"type": name, **arguments}
    return recipe if _makes(recipe, module) else None


def _makes(recipe: Mapping[str, Any], module: nn.Module) -> bool:
    """Whether a recipe makes a module of the same parts, tensors and rates as this one."""
    if recipe_problems(recipe):
        return False
    size = getattr(module, "in_features", None)
    with torch.device("meta"):
        made = make_head(recipe, 1 if size is None else size)
    ours, theirs = made.state_dict(), module.state_dict()
    same = ours.keys() == theirs.keys() and all(ours[key].shape == theirs[key].shape for key in ours)
    return same and repr(made) == repr(module)


def _fits(value: Any, what: str) -> bool:
    if what == _SWITCH:
        return isinstance(value, bool)
    if what == _WORD:
        return isinstance(value, str) and value in ACTIVATIONS.values()
    if isinstance(value, bool):
        return False
    if what == _COUNT:
        return isinstance(value, int) and 1 <= value < 2**31
    return isinstance(value, int | float) and 0 <= value <= 1


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) < 70 else f"{text[:66]}..."


def _pool(pool: Any) -> dict[str, Any]:
    return {"attention_features": pool.hidden.out_features, "channelwise": pool.context is not None}


def _classes(head: Any) -> dict[str, Any]:
    return {"num_classes": head.linear.out_features, "dropout": head.dropout.p}


_READ: dict[str, Callable[[Any], dict[str, Any]]] = {
    "AttentiveStatisticsClassifier": lambda head: {**_classes(head), **_pool(head.pool)},
    "AttentiveStatisticsPool": _pool,
    "CTCHead": lambda head: {"num_labels": head.out_features, "dropout": head.dropout.p},
    "Linear": lambda head: {"out_features": head.out_features, "bias": head.bias is not None},
    "MeanPool": lambda head: {},
    "MeanPoolClassifier": _classes,
    "TextClassifier": lambda head: {
        "num_classes": head.out_proj.out_features,
        "hidden": head.dense.out_features,
        "dropout": head.dropout.p,
        "activation": ACTIVATIONS.get(type(head.activation), "another"),
    },
    "WeightedLayers": lambda head: {
        "num_layers": head.num_layers,
        "head": recipe_of(head.head),
        "normalize": head.normalize,
    },
}
