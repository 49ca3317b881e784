"""Read a ``config.json`` as timm writes it (``timm/models/_hub.py: save_config_for_hf``)."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from bundles.builders.image_layers import image_layers
from bundles.builders.require import require
from bundles.builders.table import build
from bundles.builders.timm import CONFIGURATION, check_name
from bundles.errors import BuildError
from bundles.spec.architectures import argument_problem
from bundles.spec.bundle import Bundle
from bundles.spec.values import shown

# Where the blocks are, by the module of timm that defines the model; elsewhere layers are derived.
ROWS = {
    "beit": "blocks.{i}",
    "convnext": "stages.{s}.blocks.{i}",
    "deit": "blocks.{i}",
    "efficientnet": "blocks.{s}.{i}",
    "eva": "blocks.{i}",
    "mobilenetv3": "blocks.{s}.{i}",
    "regnet": "s{s}.b{i}",
    "resnet": "layer{s}.{i}",
    "swin_transformer": "layers.{s}.blocks.{i}",
    "swin_transformer_v2": "layers.{s}.blocks.{i}",
    "vision_transformer": "blocks.{i}",
}
# Buffers that a model computes anew: files that were made with an older timm have them all the same.
COMPUTED = ("*relative_position_index", "*relative_coords_table", "*attn_mask", "rope.*")
LICENSES = {
    "apache-2.0": "Apache-2.0",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "mit": "MIT",
}


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a ``config.json`` of timm says, as keyword arguments of :class:`bundles.Bundle`.

    The model is built on the meta device, which takes milliseconds, to learn its groups and its head.

    Raises:
        MissingDependencyError: timm is absent or broken.
        BuildError: the configuration is none of timm's, names a model that timm does not have, or has
            arguments that are not among ours.

    >>> found = describe({"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": {}})
    >>> found["head_slot"], found["num_features"]
    ('fc', 96)
    """
    model = config.get("architecture")
    if not isinstance(model, str):
        raise BuildError(f"The config.json names no model of timm: its 'architecture' is {shown(model)}.")
    check_name(model)
    arguments = _arguments(config)
    architecture = {"model": model, "pretrained_cfg": _configuration(config, arguments), **arguments}
    for name, value in architecture.items():
        if problem := argument_problem("timm", name, value):
            raise BuildError(f"The config.json of {model} cannot be used: its {name} {problem}.")
    built = build(Bundle(model, "timm", architecture), parameters="meta")
    return {
        "builder": "timm",
        "architecture": architecture,
        "keys": {"ignore": computed_in(built)},
        "default_policy": "encoder",
        **groups_of(built),
        "metadata": _metadata(built),
    }


def computed_in(model: nn.Module) -> list[str]:
    """Return the globs on names that a file may have and the model does not: buffers computed anew."""
    kept = model.state_dict().keys()
    return [glob for glob in COMPUTED if not any(fnmatchcase(name, glob) for name in kept)]


def groups_of(model: nn.Module) -> dict[str, Any]:
    """Return ``layers``, ``head_slot`` and ``num_features`` of a model that timm built."""
    settings: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    entry = require("timm.models").model_entrypoint(settings["architecture"])
    row = ROWS.get(entry.__module__.rpartition(".")[2])
    slots = _classifiers(model)
    names = [name for name, _ in model.named_parameters()]
    slot = slots[0] if len(slots) == 1 else None
    return {
        "layers": image_layers(names, [row] if row else [], slots),
        "head_slot": slot,
        "num_features": _num_features(model, slot),
    }


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of what timm calls the classifier: two where there is one for distillation, at times none."""
    find: Any = getattr(model, "get_classifier", lambda: ())
    found = find()
    found = found if isinstance(found, tuple | list) else (found,)
    return tuple(name for name, module in model.named_modules() if any(module is one for one in found))


def _num_features(model: nn.Module, slot: str | None) -> int | None:
    """The size of what the classifier takes, which is not that of the last block where layers follow it."""
    if slot is None:
        return None
    size = getattr(model.get_submodule(slot), "in_features", None)
    size = size or getattr(model, "head_hidden_size", None) or getattr(model, "num_features", None)
    return size if isinstance(size, int) else None


def _configuration(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What it says of the images and classes; addresses of weights are left out."""
    inner = config.get("pretrained_cfg", config)  # until 2023 all was in one table
    if not isinstance(inner, Mapping):
        raise BuildError(f"The pretrained_cfg of the config.json is {shown(inner)}, not a table.")
    outer = ("num_classes", "label_names", "label_descriptions")
    found = {**inner, **{key: config[key] for key in outer if key in config}}
    if "labels" in found:
        found.setdefault("label_names", found["labels"])
    if found.get("input_size") is not None or {"in_chans", "img_size"} & arguments.keys():
        found["input_size"] = sized(found.get("input_size"), arguments)
    return {key: value for key, value in found.items() if key in CONFIGURATION and key != "architecture"}


def sized(size: Any, arguments: Mapping[str, Any]) -> list[int]:
    """Return timm's ``input_size``, channels first, where arguments of the model may say another.

    Raises:
        BuildError: it is no such size.
    """
    size = (3, 224, 224) if size is None else size
    if (
        not isinstance(size, list | tuple)
        or len(size) != 3
        or not all(type(n) is int and n > 0 for n in size)
    ):
        raise BuildError(f"The input_size {shown(size)} is not a list of channels, height and width.")
    channels, height, width = size
    side = arguments.get("img_size")
    return [arguments.get("in_chans", channels), side or height, side or width]


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("model_args") or {}
    if not isinstance(found, Mapping):
        raise BuildError(f"The model_args of the config.json are {shown(found)}, not a table.")
    given = {name: value for name, value in found.items() if value is not None}
    size = given.get("img_size")
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        given["img_size"] = size[0]
    return given


def _metadata(model: nn.Module) -> dict[str, Any]:
    settings: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    license = settings.get("license")
    found = {
        "companions": "vision",
        "license": LICENSES.get(str(license), license),
        "modality": "vision",
        "classes": require("timm.data").infer_imagenet_subset(settings),
        "task": "image_classification" if settings.get("num_classes") else "image_features",
        "input_shape": [1, *settings["input_size"]],
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return {key: value for key, value in found.items() if value is not None}
