"""The names in a checkpoint of transformers, as the installed version reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bundles.builders.require import require
from bundles.builders.transformers.build import LEFT_OUT
from bundles.builders.transformers.classes import class_names, model_class
from bundles.errors import BundlesError, WeightsFileError


def read_names(model: Any, tensors: Mapping[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """Return the tensors under the names of a model of transformers, as ``from_pretrained`` would.

    Names of older versions become today's by the library's own table, the base model's prefix is added or
    removed, and what the library knows to be superfluous is left out: buffers that are no longer saved, and
    the parts of another class of the same type (the pretraining heads of a checkpoint of BERT). A name that
    no class of the library explains stays, and is an error of loading.

    Raises:
        WeightsFileError: the file holds tensors that the library would split or merge, or two of its
            names come to the same.
    """
    state = model.state_dict()
    if tensors.keys() <= state.keys():
        return dict(tensors)
    names = _renamed(model, state, tensors, source)
    strange = [new for new in names.values() if new not in state]
    known = set(_superfluous(model, strange)) if strange else set()
    kept = {old: new for old, new in names.items() if new not in known}
    if len(set(kept.values())) < len(kept):
        twice = sorted(new for new in kept.values() if list(kept.values()).count(new) > 1)
        raise WeightsFileError(f"The tensors of {source} come to the same name, {twice[0]}.")
    return {new: tensors[old] for old, new in kept.items()}


def _renamed(
    model: Any, state: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], source: str
) -> dict[str, str]:
    loading = require("transformers.core_model_loading")
    table = require("transformers.conversion_mapping").get_model_conversion_mapping(model)
    renamings = [entry for entry in table if isinstance(entry, loading.WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, loading.WeightConverter)]
    names = {}
    for old in tensors:
        new, conversion = loading.rename_source_key(
            old, renamings, converters, model.base_model_prefix, state
        )
        if new not in state and old in state:
            new, conversion = old, None  # it has today's name, which a pattern for an older one took
        if conversion is not None and new in state:
            raise WeightsFileError(
                f"The tensor {old} of {source} is laid out as in an older transformers, which no renaming "
                f"mends: load it with {type(model).__name__}.from_pretrained and save it again with "
                f"save_pretrained(..., save_original_format=False)."
            )
        names[old] = new
    return names


def _superfluous(model: Any, strange: list[str]) -> Iterator[str]:
    """Yield those of the names that the model lacks and the library can explain."""
    buffers = [name for name, _ in model.named_buffers()]
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    # Both were buffers that were saved, and are not any more; the library says so in the same words.
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.add(r"(^|\.)position_ids$")
    left = set(strange)
    for names in _explanations(model, left, patterns):
        yield from left & names
        left -= names
        if not left:
            return


def _explanations(model: Any, left: set[str], patterns: set[str]) -> Iterator[set[str]]:
    yield {name for name in left if any(re.search(pattern, name) for pattern in patterns)}
    yield set(getattr(model, LEFT_OUT, ()))
    yield from _siblings(model)


def _siblings(model: Any) -> Iterator[set[str]]:
    """Yield the state-dict names, with and without prefix, of the other classes for this type of model."""
    names = [name for name in class_names(model.config.model_type) if not name.endswith("Config")]
    for name in sorted(names, key=lambda name: ("PreTraining" not in name, name)):
        other = hollow(model_class(model.config.model_type, name), model.config)
        if other is not None:
            prefix = f"{other.base_model_prefix}."
            found = set(other.state_dict())
            yield found | {name.removeprefix(prefix) for name in found}


def hollow(cls: Any, config: Any) -> nn.Module | None:
    """Return a model of that class whose tensors have shapes alone, ``None`` where it cannot be made."""
    config = type(config).from_dict(config.to_dict())
    try:
        with torch.device("meta"):
            model: nn.Module = cls._from_config(config)
    except BundlesError:
        raise
    except Exception:  # noqa: BLE001 - a class that needs what this configuration does not say
        return None
    return model
