"""A small real task on generated audio: which vowel is sung, whatever the pitch, speaker and noise.

Vowels are made by the source-filter model: harmonics of a random pitch, shaped by the resonances of
the vocal tract. Formants are the male averages of Peterson and Barney 1952 (table II).
"""

from __future__ import annotations

import math

import torch

from bundles.features.inputs.waveform import normalise

FORMANTS = {
    "ee": (270.0, 2290.0, 3010.0),
    "eh": (530.0, 1840.0, 2480.0),
    "ah": (730.0, 1090.0, 2440.0),
    "aw": (570.0, 840.0, 2410.0),
    "oo": (300.0, 870.0, 2240.0),
}
_BANDWIDTH = 100.0  # Hz
_HARMONICS = 60


def vowels(
    count: int, length: int, rate: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``count`` frames of singing, ``[count, length]``, and which vowel each is, ``[count]``.

    Pitch 100 to 250 Hz, vocal tracts up to 10 % longer or shorter, noise 10 to 25 dB below the voice.
    """

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    labels = torch.randint(len(FORMANTS), (count,), generator=generator)
    formants = torch.tensor(list(FORMANTS.values()))[labels] * between(0.9, 1.1)
    harmonics = between(100.0, 250.0) * torch.arange(1, _HARMONICS + 1)
    loudness = _resonance(harmonics, formants) / torch.arange(1, _HARMONICS + 1) * (harmonics < rate / 2)
    phases = 2 * math.pi * torch.rand(count, _HARMONICS, generator=generator)
    voice = torch.zeros(count, length)
    for number in range(_HARMONICS):  # one harmonic at a time keeps memory small
        angle = 2 * math.pi * harmonics[:, number, None] * torch.arange(length) / rate
        voice += loudness[:, number, None] * torch.sin(angle + phases[:, number, None])
    noise = torch.randn(count, length, generator=generator) * 10 ** (-between(10.0, 25.0) / 20)
    return normalise(normalise(voice) + noise), labels


def _resonance(harmonics: torch.Tensor, formants: torch.Tensor) -> torch.Tensor:
    """Gain of each harmonic, ``[count, harmonics]``: the sum of three resonances."""
    distance = harmonics[:, :, None] - formants[:, None, :]
    return (_BANDWIDTH**2 / (distance**2 + _BANDWIDTH**2)).sum(-1).sqrt()
