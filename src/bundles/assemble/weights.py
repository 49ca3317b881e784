"""Get the weights of a source onto this machine, as safetensors."""

from __future__ import annotations

from pathlib import Path

from bundles.spec.formats import CONVERTER, is_pickle_name
from bundles.spec.source import WeightSource


def fetch_weights(source: WeightSource, *, progress: bool = True) -> Path:
    """Return the verified weights as safetensors; pickled checkpoints are converted once."""
    from bundles.builders.pickles import convert_pickle
    from bundles.sources.converted import converted
    from bundles.sources.fetch import fetch

    path = fetch(source, progress=progress)
    return converted(path, CONVERTER, convert_pickle) if is_pickle_name(source.name) else path
