"""Companions of speech synthesis (``torchaudio.pipelines.Tacotron2TTSBundle``)."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundles.assemble.lookup import get_bundle
from bundles.assemble.request import ARGUMENTS
from bundles.builders.require import require
from bundles.companions.needs import needs
from bundles.errors import BuildArgumentError, UnsafeWeightsError
from bundles.sources.fetch import fetch
from bundles.spec.bundle import Bundle
from bundles.spec.upstream import wants_progress

GRIFFIN_LIM = "griffin_lim"


def get_tacotron2(
    bundle: Bundle, *, dl_kwargs: Mapping[str, Any] | None = None, **arguments: Any
) -> nn.Module:
    """Return the model, as ``get_model`` does: tokens in, mel spectrogram ``[batch, n_mels, frames]`` out."""
    return bundle.get_model(dl_kwargs=dl_kwargs, **arguments)


@needs("text_unit")
def get_text_processor(bundle: Bundle, *, dl_kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return a callable from texts to tokens ``[batch, tokens]`` and their lengths ``[batch]``.

    Raises:
        MissingDependencyError: the bundle reads phonemes, and deep-phonemizer is not installed.
        UnsafeWeightsError: its phonemizer's file holds code.

    >>> import bundles
    >>> bundles.TACOTRON2_WAVERNN_CHAR_LJSPEECH.get_text_processor()("Hi!")[0].tolist()
    [[19, 20, 2]]
    """
    progress = wants_progress(dl_kwargs)
    synthesis = require("torchaudio.pipelines._tts.impl")
    if bundle.metadata["text_unit"] == "character":
        return synthesis._EnglishCharProcessor()
    require("dp")
    return _phone_processor(synthesis, fetch(bundle.assets["phonemizer"], progress=progress))


@needs("vocoder")
def get_vocoder(
    bundle: Bundle, /, *, dl_kwargs: Mapping[str, Any] | None = None, **arguments: Any
) -> nn.Module:
    """Return a module from mel spectrograms ``[batch, n_mels, frames]`` to waveforms ``[batch, samples]``.

    Args:
        bundle: that of the model.
        dl_kwargs: torchaudio's, deprecated.
        arguments: those of :func:`bundles.get_model` for the vocoder's own bundle, as ``freeze=True``,
            whose model sits inside;
            Griffin-Lim has no weights, so that only ``device`` and ``dtype`` mean something to it.

    >>> import bundles
    >>> bundles.TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH.get_vocoder().sample_rate
    22050
    """
    synthesis = require("torchaudio.pipelines._tts.impl")
    if bundle.metadata["vocoder"] == GRIFFIN_LIM:
        wants_progress(dl_kwargs)  # nothing is fetched, but what is deprecated is so everywhere
        if unknown := sorted(arguments.keys() - set(ARGUMENTS)):
            raise BuildArgumentError(f"get_vocoder has no argument {', '.join(unknown)}.")
        griffin_lim: nn.Module = synthesis._GriffinLimVocoder()
        return griffin_lim.to(device=arguments.get("device"), dtype=arguments.get("dtype"))
    wavernn = get_bundle(bundle.metadata["vocoder"]).get_model(dl_kwargs=dl_kwargs, **arguments)
    vocoder: nn.Module = synthesis._WaveRNNVocoder(wavernn)
    return vocoder.eval()


def _phone_processor(synthesis: Any, checkpoint: Path) -> Any:
    """Upstream's ``_EnglishPhoneProcessor``, its phonemizer read from our checked file, not downloaded."""
    processor = synthesis._EnglishPhoneProcessor.__new__(synthesis._EnglishPhoneProcessor)
    processor._tokens = synthesis.utils._get_phones()
    processor._mapping = {phone: index for index, phone in enumerate(processor._tokens)}
    processor._phonemizer = _read_phonemizer(checkpoint)
    processor._pattern = r"(\[[A-Z]+?\]|[_!'(),.:;? -])"
    return processor


def _read_phonemizer(checkpoint: Path) -> Any:
    """Read a DeepPhonemizer checkpoint: tensors, and three plain classes of its own that are let through."""
    from dp.phonemizer import Phonemizer
    from dp.preprocessing.text import LanguageTokenizer, Preprocessor, SequenceTokenizer

    logger = logging.getLogger("dp")
    level = logger.level
    logger.setLevel(logging.INFO)  # it logs DEBUG otherwise
    try:
        with torch.serialization.safe_globals([Preprocessor, LanguageTokenizer, SequenceTokenizer]):
            return Phonemizer.from_checkpoint(str(checkpoint))
    except pickle.UnpicklingError as error:
        raise UnsafeWeightsError(
            f"The phonemizer {checkpoint} holds more than tensors and the classes of DeepPhonemizer, and "
            f"reading it could run code: it is not the file that was published, so get it again."
        ) from error
    finally:
        logger.setLevel(level)
