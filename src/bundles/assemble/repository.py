"""Make a bundle of any repository of the Hub, or folder: by its card, or by its library's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bundles.assemble.places import Place, open_place
from bundles.errors import BuildError, MissingDependencyError
from bundles.spec.architectures import argument_problem
from bundles.spec.bundle import Bundle
from bundles.spec.formats import is_pickle_name
from bundles.spec.source import WeightSource
from bundles.spec.values import shown

CARD, CONFIG = "bundle.toml", "config.json"
SETTINGS = ("preprocessor_config.json", "processor_config.json")  # of transformers: rate, normalisation
# In this order: what runs no code comes first.
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_MODALITIES = {
    "audio": ("audio-", "automatic-speech-", "text-to-audio", "text-to-speech", "voice-activity-"),
    "text": (
        *("feature-extraction", "fill-mask", "question-answering", "sentence-similarity", "summarization"),
        *("text-classification", "text-generation", "text-ranking", "text2text-", "token-classification"),
        *("translation", "zero-shot-classification"),
    ),
    "vision": (
        "depth-",
        "image-",
        "keypoint-",
        "mask-generation",
        "object-detection",
        "video-classification",
    ),
}


def read_repository(address: str) -> Bundle:
    """Return the bundle that a repository (``hf:owner/repo@commit``) or folder (``file:DIR``) holds.

    Its name is the address, with the commit that was found; its weights carry the digest and size that the
    Hub publishes. Nothing but the card or the configuration is downloaded.

    Raises:
        BuildError: it holds nothing that can be built, or nothing to load.
        CardError: its card is broken, or names what it must not.
        MissingDependencyError: its library is not installed.
        PinError, SourceError, CacheError: it cannot be read.
    """
    return read_place(open_place(address))


def read_place(place: Place) -> Bundle:
    """Return the bundle that a repository or folder holds, of which the files are known."""
    if CARD in place.files:
        from bundles.assemble.carried import read_carried

        return read_carried(place, CARD)
    if CONFIG not in place.files:
        raise BuildError(
            f"There is neither {CARD} nor {CONFIG} in {place.address}, which says what to build; there is "
            f"{place.listing()}."
        )
    return _described(place)


def _described(place: Place) -> Bundle:
    """The bundle that a library's own configuration comes to."""
    config = _read_config(place)
    is_timm = _is_timm(config, place)
    weights = _weights(place)
    try:
        found = _describe(config, is_timm)
    except BuildError as error:
        if isinstance(error, MissingDependencyError):
            raise
        raise BuildError(f"{place.address} cannot be used as a bundle: {error}") from error
    metadata = {**_facts(place), **found.pop("metadata", {})}
    for name, value in found.get("architecture", {}).items():
        if problem := argument_problem(found["builder"], name, value):
            raise BuildError(f"{CONFIG} of {place.address} cannot be used: {name} {problem}.")
    return Bundle(name=place.address, weights=weights, metadata=metadata, origin=place.address, **found)


def _is_timm(config: Mapping[str, Any], place: Place) -> bool:
    """Whether a configuration is timm's, rather than one of transformers."""
    if "model_type" in config:
        return False
    if "architecture" in config:
        return True
    raise BuildError(
        f"{CONFIG} of {place.address} has neither the model_type of transformers nor the architecture of "
        f"timm: add a card, {CARD}, that says what to build."
    )


def _describe(config: Mapping[str, Any], is_timm: bool) -> dict[str, Any]:
    if is_timm:
        from bundles.builders.timm_config import describe as describe_timm

        return describe_timm(config)
    from bundles.builders.transformers.describe import describe

    return describe(config)


def _read_config(place: Place) -> dict[str, Any]:
    try:
        config = json.loads(place.small(CONFIG, "configuration").read_bytes().decode())
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:99]
        raise BuildError(f"{CONFIG} of {place.address} is not JSON ({reason}): get it again.") from error
    if not isinstance(config, dict):
        raise BuildError(f"{CONFIG} of {place.address} holds {shown(config)}: a table is needed.")
    return config


def _weights(place: Place) -> WeightSource:
    name = next((name for name in WEIGHT_FILES if name in place.files), None)
    if name is None:
        raise BuildError(
            f"There are no weights to load in {place.address}: one of {', '.join(WEIGHT_FILES)} is needed, "
            f"and there is {place.listing()}."
        )
    source = place.files[name]
    if source.is_index:
        return place.index(name)
    if place.is_hub and place.is_complete and is_pickle_name(name) and source.sha256 is None:
        raise BuildError(
            f"{name} of {place.address} is a pickle and the Hub publishes no digest of it: use a repository "
            f"with model.safetensors."
        )
    return source


def _facts(place: Place) -> dict[str, Any]:
    """What the Hub says, under the names that cards use."""
    facts: dict[str, Any] = dict(place.facts)
    task = facts.get("task", "")
    modality = next((name for name, tasks in _MODALITIES.items() if task.startswith(tasks)), None)
    return facts | ({"modality": modality} if task and modality else {})
