"""Image classifiers, built by torchvision (``torchvision/models/_api.py``, BSD-3-Clause)."""

from __future__ import annotations

from typing import Any

from torch import nn

from bundles.builders.require import require
from bundles.errors import BuildError
from bundles.spec.suggest import closest

_WITH_AUXILIARY = ("googlenet", "inception_v3")


def build(model: str, **arguments: Any) -> nn.Module:
    """Return ``torchvision.models.get_model(model, weights=None, ...)``: the upstream class, without weights.

    Args:
        model: one of ``torchvision.models.list_models(module=torchvision.models)``, the classifiers.
        arguments: of the model: ``num_classes``; and of GoogLeNet and Inception v3 ``aux_logits``, whether
            there is a classifier half-way, whose output ``train()`` returns too, and ``transform_input``,
            with which they take images normalised like those of all others.

    Raises:
        MissingDependencyError: torchvision is absent or broken.
        BuildError: torchvision has no such classifier; the closest names are given.

    >>> build("resnet18").fc
    Linear(in_features=512, out_features=1000, bias=True)
    """
    version = require("torchvision").__version__
    models = require("torchvision.models")
    known = models.list_models(module=models)
    if model not in known:
        raise BuildError(
            f"torchvision {version} has no classifier {model[:100]!r}: the closest are "
            f"{', '.join(closest(model, known))}."
        )
    if model in _WITH_AUXILIARY:
        arguments = {"init_weights": True, **arguments}  # what upstream does unasked, with a warning
    made: nn.Module = models.get_model(model, weights=None, **arguments)
    return made
