"""Describe a model of transformers from its ``config.json``: everything a bundle says but its weights."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import nn

from bundles.builders.table import build
from bundles.builders.transformers.build import base_of
from bundles.builders.transformers.classes import base_class
from bundles.builders.transformers.configuration import make_configuration, plain_config
from bundles.builders.transformers.families import layout_of
from bundles.errors import BuildError
from bundles.spec.bundle import Bundle
from bundles.spec.groups import match_layers, parse_rules
from bundles.spec.values import shown

# Where the classes of the library have a linear layer that gives the scores; the model calls it with the
# features alone. The heads of pretraining are none: a language model's is tied to its embeddings.
_SLOTS = (
    *("classifier", "classifier.out_proj", "classifier.dense", "classifier.1"),
    *("classification_head.out_proj", "score", "qa_outputs"),
)
_MODALITIES = {
    "input_ids": "text",
    "pixel_values": "vision",
    "input_values": "audio",
    "input_features": "audio",
}


_BATCH, _TOKENS, _SAMPLES = 8, 128, 160_000  # of an example of what is fed


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a :class:`bundles.Bundle` for a ``config.json`` of transformers.

    The class is the configuration's first architecture, without one the base model of its type. The model
    is constructed on the meta device, so no memory is spent and nothing is fetched.

    Args:
        config: the parsed ``config.json``.

    Returns:
        ``builder``, ``architecture``, ``layers`` (empty for a family that is not known: derived then),
        ``head_slot``, ``num_features``, ``default_policy`` and ``metadata``, in which ``encoder_features``
        is the size of the last hidden state where the slot takes another one.

    Raises:
        BuildError: the model is not one of the library's own, or the configuration is no good.
        MissingDependencyError: transformers is absent or broken.

    >>> tiny = {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    >>> told = describe({**tiny, "architectures": ["ViTForImageClassification"], "num_hidden_layers": 1})
    >>> told["head_slot"], told["num_features"], list(told["layers"])
    ('classifier', 8, ['stem', 'blocks', 'norm', 'head'])
    """
    kept = plain_config(config)
    name = _architecture(config, kept)
    architecture = {"model_class": name, "config": kept, "whole": True}
    model: Any = build(Bundle("DESCRIBED", "transformers", architecture), parameters="meta")
    architecture["model_class"] = type(model).__name__
    slot = _slot(model)
    features = features_of(model.config)
    size = model.get_submodule(slot).in_features if slot else features
    other = {"encoder_features": features} if size != features and features else {}
    return {
        "builder": "transformers",
        "architecture": architecture,
        "layers": layers_of(model),
        "head_slot": slot,
        "num_features": size,
        "default_policy": _policy(model, slot),
        "metadata": {**_metadata(model), **other},
    }


def layers_of(model: Any) -> dict[str, Any]:
    """Return the layer groups of a model of transformers, with and without its base model's prefix.

    Without it, too, because ``whole=False`` leaves the base model alone. What is outside of the base model
    is the head.
    """
    base = base_of(model)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    start = "" if base is model else f"{model.base_model_prefix}."
    inside = [name.removeprefix(start) for name in names if name.startswith(start)]
    with_head = base is model and type(model).__name__ != base_class(model.config.model_type)
    found = layout_of(inside, model.config, with_head=with_head)
    if found is None:
        return {}
    layers = {name: _mounted(entry, start) for name, entry in found.items()}
    outside = dict.fromkeys(name.partition(".")[0] for name in names if not name.startswith(start))
    if outside:
        layers["head"] = [*layers.get("head", ()), *outside]
    try:
        match_layers(parse_rules(layers), names)
    except BuildError:
        return {}
    return layers


def features_of(config: Any) -> int | None:
    """Return the size of what a base model gives: of its last hidden state."""
    if getattr(config, "vision_config", None) is not None:
        return None  # two towers: two sizes
    sizes = getattr(config, "hidden_sizes", None) or [getattr(config, "hidden_size", None)]
    return int(sizes[-1]) if isinstance(sizes[-1], int) else None


def _architecture(config: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list | tuple) and named else named
    if not named:
        first = base_class(make_configuration(kept).model_type)
    if not isinstance(first, str):
        raise BuildError(
            f"The configuration's architectures are {shown(named)}: a list with a class's name is needed."
        )
    return first


def _mounted(entry: Any, start: str) -> Any:
    if not start:
        return entry
    match = entry["match"] if isinstance(entry, Mapping) else entry
    both = [name for pattern in match for name in (start + pattern, pattern)]
    return {**entry, "match": both} if isinstance(entry, Mapping) else both


def _slot(model: Any) -> str | None:
    """Return the name of the linear layer that a head may replace."""
    slots = (*_SLOTS, "lm_head") if type(model).__name__.endswith("ForCTC") else _SLOTS
    modules = dict(model.named_modules())
    found = (slot for slot in slots if isinstance(modules.get(slot), nn.Linear))
    return next(found, None)


def _policy(model: Any, slot: str | None) -> str:
    """What ``freeze=True`` freezes: of a model that generates, its encoder, so that something trains."""
    base = base_of(model)
    if slot or not (hasattr(base, "encoder") and hasattr(base, "decoder")):
        return "encoder"
    return "match:encoder" if base is model else "match:*encoder"  # also where the prefix is gone


def _metadata(model: Any) -> dict[str, Any]:
    config = model.config
    two = getattr(config, "vision_config", None) is not None and hasattr(config, "text_config")
    modality = "multimodal" if two else _MODALITIES.get(model.main_input_name)
    labels = getattr(config, "id2label", None) or {}
    told = [labels[index] for index in sorted(labels)]
    named = bool(told) and any(label != f"LABEL_{index}" for index, label in enumerate(told))
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "num_parameters": count,
        **({"modality": modality} if modality else {}),
        **({} if two else _inputs(model)),
        **({"labels": tuple(told)} if named else {}),
    }


def _inputs(model: Any) -> dict[str, Any]:
    """What a batch looks like, for predictions of what a step takes: as far as the configuration tells."""
    config = model.config
    match model.main_input_name:
        case "input_ids":
            names = ("input_ids", "decoder_input_ids")
            takes = tuple(name for name in names if name in signature(model.forward).parameters)
            longest = getattr(config, "max_position_embeddings", None) or _TOKENS
            return {"input_shape": (_BATCH, min(_TOKENS, longest // 2)), "token_inputs": takes}
        case "pixel_values":
            size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
            return {"input_shape": (_BATCH, channels, size, size)} if isinstance(size, int) else {}
        case "input_values":
            return {"input_shape": (_BATCH, _SAMPLES)}
        case _:
            return {}
