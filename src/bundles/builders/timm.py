"""Image models, built by timm (``timm/models/_factory.py``, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bundles.builders.require import require
from bundles.errors import BuildError
from bundles.spec.suggest import closest
from bundles.spec.values import plain_value

# What of timm's PretrainedCfg describes a model and its images; the rest says where weights are to be had.
CONFIGURATION = frozenset(
    (
        *("architecture", "tag", "input_size", "test_input_size", "min_input_size", "fixed_input_size"),
        *("interpolation", "crop_pct", "test_crop_pct", "crop_mode", "mean", "std", "num_classes"),
        *("label_names", "label_descriptions", "pool_size", "test_pool_size", "first_conv"),
        *("classifier", "license", "description", "origin_url", "paper_name", "paper_ids", "notes"),
    )
)


def build(model: str, *, pretrained_cfg: Mapping[str, Any] | None = None, **arguments: Any) -> nn.Module:
    """Return ``timm.create_model(model, pretrained=False, ...)``: the upstream class, without weights.

    Args:
        model: a name that ``timm.list_models()`` knows, with the tag of its weights or without, as
            ``"resnet50.a1_in1k"``. A tag tells the number of classes and the size of the images.
        pretrained_cfg: what a ``config.json`` of timm says in the place of a tag.
        arguments: of the model: ``num_classes``, ``in_chans``, ``img_size``, ``global_pool``,
            ``drop_rate``, ``drop_path_rate``.

    Raises:
        MissingDependencyError: timm is absent or broken.
        BuildError: timm has no such model, or no such tag of it; or a key of the configuration is
            none that describes a model.

    >>> build("test_resnet.r160_in1k").num_classes
    1000
    """
    timm = require("timm")
    check_name(model)
    if pretrained_cfg is not None:
        if unknown := sorted(set(pretrained_cfg) - CONFIGURATION):
            raise BuildError(
                f"The pretrained_cfg of {model} holds {', '.join(unknown[:3])}, which describes no model: "
                f"leave it out; there is {', '.join(sorted(CONFIGURATION))}."
            )
        arguments["pretrained_cfg"] = plain_value(pretrained_cfg)
    try:
        made: nn.Module = timm.create_model(model, pretrained=False, **arguments)
    except RuntimeError as error:
        if "meta" in str(error):  # a constructor that looks at values: built with real ones instead
            raise
        raise BuildError(f"timm cannot build {model} ({str(error).splitlines()[0][:200]}).") from error
    if any(buffer.is_meta for buffer in made.buffers()):  # one computed on the device of the parameters
        raise NotImplementedError(f"{model} computes buffers from what has no values on meta.")
    return made


def check_name(model: str) -> None:
    """Refuse what timm would not find in its own tables: addresses, folders, misspelt names.

    Raises:
        BuildError: it is none; the closest names are given.
    """
    registry = require("timm.models")
    name, tag = registry.split_model_name_tag(model)
    known = registry.list_models()
    if name not in known:
        raise BuildError(
            f"timm {require('timm').__version__} has no model {model[:100]!r}: the closest are "
            f"{', '.join(closest(name, known))}."
        )
    tags = [entry.partition(".")[2] for entry in registry.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise BuildError(
            f"timm {require('timm').__version__} has no weights {tag[:100]!r} of {name}: there is "
            f"{', '.join(closest(tag, tags)) or 'none'}."
        )
