"""What a repository of transformers says of the audio that its model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bundles.assemble.places import Place, open_place
from bundles.errors import InputError
from bundles.spec.bundle import Bundle
from bundles.spec.values import shown

_FILES = {"preprocessor_config.json": None, "processor_config.json": "feature_extractor"}
_FASTEST = 1_000_000  # hertz


def audio_settings(bundle: Bundle) -> dict[str, Any]:
    """Return ``sample_rate`` and ``normalize`` of a bundle that a repository or folder is, as far as it says.

    Raises:
        InputError: its file is broken.
        SourceError, CacheError, BuildError: it cannot be had.
    """
    if not bundle.name.startswith(("hf:", "file:")):
        return {}
    place = open_place(bundle.name)
    found = next(((name, inner) for name, inner in _FILES.items() if name in place.files), None)
    if found is None:
        return {}
    settings = _read(place, *found)
    rate = settings.get("sampling_rate")
    if rate is not None and (type(rate) is not int or not 0 < rate <= _FASTEST):
        raise InputError(f"{found[0]} of {bundle.name} gives the sample rate {shown(rate)}: mend the file.")
    kind = settings.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
    normalize = kind == "Wav2Vec2FeatureExtractor" and settings.get("do_normalize") is True
    return {"sample_rate": rate, "normalize": normalize}


def _read(place: Place, name: str, inner: str | None) -> Mapping[str, Any]:
    try:
        whole = json.loads(place.small(name, "configuration").read_bytes())
        settings = whole if inner is None else whole.get(inner, {})
    except (ValueError, RecursionError, AttributeError) as error:
        raise InputError(f"{name} of {place.address} is no table in JSON: get it again.") from error
    if not isinstance(settings, dict):
        raise InputError(f"{name} of {place.address} holds {shown(settings)}: a table is needed.")
    return settings
