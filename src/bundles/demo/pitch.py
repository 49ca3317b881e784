"""What CREPE hears: audio to frames, and its output to hertz (Kim et al. 2018, section 2)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from bundles.builders.require import require
from bundles.errors import BundlesError
from bundles.features.inputs.waveform import normalise
from bundles.spec.bundle import Bundle

_CENTS_PER_BIN = 20
_FIRST_BIN_CENTS = 1997.3794084376191  # above 10 Hz


def tone(hertz: float, seconds: float, rate: int) -> torch.Tensor:
    """Return a sine wave, shape ``[samples]``."""
    return torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)


def read_wav(path: Path, rate: int) -> torch.Tensor:
    """Read the first channel of an audio file at a sample rate, shape ``[samples]``.

    Raises:
        BundlesError: the file cannot be read as audio, or is shorter than a frame.
        MissingDependencyError: soundfile or torchaudio is missing.
    """
    try:
        samples, own_rate = require("soundfile").read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise BundlesError(
            f"The file {path} cannot be read as audio ({error}): give a WAV or FLAC file."
        ) from error
    wave: torch.Tensor = require("torchaudio.functional").resample(
        torch.from_numpy(samples[:, 0].copy()), own_rate, rate
    )
    return wave


def frames(wave: torch.Tensor, bundle: Bundle) -> torch.Tensor:
    """Cut audio into CREPE's frames: ``[samples]`` to ``[frames, 1024]``, each normalised.

    Raises:
        BundlesError: the audio is shorter than one frame.
    """
    if len(wave) < bundle.frame_length:
        raise BundlesError(
            f"The audio has {len(wave)} samples at {bundle.sample_rate} Hz: at least {bundle.frame_length} "
            f"are needed."
        )
    return normalise(wave.unfold(0, bundle.frame_length, bundle.hop_length))


@torch.no_grad()
def hear(model: nn.Module, wave: torch.Tensor, bundle: Bundle) -> tuple[float, float]:
    """Return the median pitch in hertz, and CREPE's confidence in it from 0 to 1."""
    salience = model(frames(wave, bundle))
    best = salience.argmax(dim=1, keepdim=True)
    near = (best + torch.arange(-4, 5)).clamp(0, bundle.pitch_bins - 1)
    weights = salience.gather(1, near)
    cents = (weights * (_CENTS_PER_BIN * near + _FIRST_BIN_CENTS)).sum(1) / weights.sum(1)
    return 10 * 2 ** (cents.median().item() / 1200), salience.amax(1).median().item()


def cents_between(hertz: float, reference: float) -> float:
    """Return the interval between two pitches in cents, 100 to a semitone."""
    return 1200 * math.log2(hertz / reference)
