"""A small real task for a speech encoder: which German numeral is said, whoever says it, and over noise."""

from __future__ import annotations

import torch

from bundles.demo.speech import RATE, Utterance, utterances

NUMERALS = ("eins", "zwei", "drei", "vier", "fünf")
LENGTH = 7 * RATE // 10  # samples: the longest numeral has 0.68 s


def numerals(part: str, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``count`` recordings, ``[count, samples]``, and which numeral each is, ``[count]``.

    Each is an utterance of the part, in turn, at a random place in 0.7 s and at a random loudness, with
    white noise 5 to 25 dB below it.
    """
    said = utterances(part)
    chosen = [said[i % len(said)] for i in range(count)]
    waves = torch.stack([_record(one, generator) for one in chosen])
    return waves, torch.tensor([NUMERALS.index(one.text) for one in chosen])


def _record(said: Utterance, generator: torch.Generator) -> torch.Tensor:
    free = LENGTH - len(said.wave)
    before = int(torch.randint(free + 1, (), generator=generator))
    placed = torch.nn.functional.pad(said.wave, (before, free - before))
    snr, loudness = (torch.rand(2, generator=generator) * 20 + torch.tensor([5.0, -20.0])).tolist()
    noise = torch.randn(LENGTH, generator=generator) * said.wave.std() * 10 ** (-snr / 20)
    wave: torch.Tensor = (placed + noise) * 10 ** (loudness / 20)
    return wave
