"""Companions of RNN-T models (``torchaudio.pipelines.RNNTBundle``)."""

from __future__ import annotations

from typing import Any

from bundles.builders.require import require
from bundles.companions.needs import needs
from bundles.sources.fetch import fetch
from bundles.spec.bundle import Bundle

_NUMBERS = ("sample_rate", "n_fft", "n_mels", "hop_length", "segment_length", "right_context_length")


@needs("blank")
def get_decoder(bundle: Bundle, /, **arguments: Any) -> Any:
    """Return ``torchaudio.models.RNNTBeamSearch`` around the model.

    Args:
        bundle: that of the model.
        arguments: those of :func:`bundles.get_model`, as ``freeze=True``; the model is ``.model``.
    """
    search = require("torchaudio.models").RNNTBeamSearch
    return search(bundle.get_model(**arguments), bundle.metadata["blank"])


@needs(*_NUMBERS, "right_padding", "global_stats")
def get_feature_extractor(bundle: Bundle) -> Any:
    """Return a module from a waveform ``[samples]`` to features ``[frames, n_mels]`` and length ``[1]``."""
    return _twin(bundle, "global_stats").get_feature_extractor()


@needs(*_NUMBERS, "right_padding", "global_stats")
def get_streaming_feature_extractor(bundle: Bundle) -> Any:
    """Return the same without padding on the right, for segments of a stream."""
    return _twin(bundle, "global_stats").get_streaming_feature_extractor()


@needs("sentencepiece")
def get_token_processor(bundle: Bundle) -> Any:
    """Return a callable from tokens to text.

    Raises:
        MissingDependencyError: sentencepiece is not installed.
    """
    require("sentencepiece")
    return _twin(bundle, "sentencepiece").get_token_processor()


def _twin(bundle: Bundle, asset: str) -> Any:
    """Upstream's own bundle with this one's numbers and one of its files, so that its methods do the work."""
    twin = require("torchaudio.pipelines").RNNTBundle
    path = str(fetch(bundle.assets[asset]).resolve())  # one that is absolute is not downloaded by upstream
    return twin(
        _rnnt_path="",
        _rnnt_factory_func=None,
        _global_stats_path=path,
        _sp_model_path=path,
        **{f"_{name}": bundle.metadata.get(name) for name in (*_NUMBERS, "right_padding", "blank")},
    )
