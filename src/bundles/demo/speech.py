"""Speech that ships with the package: digits and numerals, spoken by espeak-ng in many voices.

``scripts/pack_demo_speech.py`` made it, in voices that WAV2VEC2_NANO_DIGITS was not trained on but for those
of ``"train"``. It is kept as mu-law codes of 8 bits at 8 kHz, as a telephone would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from bundles.builders.require import require

RATE = 16000
_FILE = Path(__file__).with_name("speech.safetensors")
_KEPT_RATE = 8000


@dataclass(frozen=True)
class Utterance:
    """Something said.

    Attributes:
        wave: audio ``[samples]`` at 16 kHz, without silence around it.
        text: what is said, in lower case, words parted by spaces.
        voice: who says it, as espeak-ng names it: a language and a variant.
    """

    wave: torch.Tensor
    text: str
    voice: str


def utterances(part: str = "digits") -> list[Utterance]:
    """Return what is said in one part of the speech that ships with the package.

    Args:
        part: ``"digits"``, five sequences of English digits; ``"train"`` and ``"test"``, German numerals,
            those of ``"test"`` in voices of their own.

    >>> [said.text for said in utterances()][:2]
    ['four one two one', 'two five seven zero']
    """
    with safe_open(_FILE, "pt") as file:
        codes = file.get_tensor(f"{part}.codes")
        lengths = file.get_tensor(f"{part}.lengths").tolist()
        said = json.loads(file.metadata()[part])
    resample = require("torchaudio.functional").resample
    waves = [resample(expand(code), _KEPT_RATE, RATE) for code in codes.split(lengths)]
    return [Utterance(wave, text, voice) for wave, (text, voice) in zip(waves, said, strict=True)]


def expand(codes: torch.Tensor) -> torch.Tensor:
    """Return the samples, from -1 to 1, of mu-law codes of 8 bits.

    >>> expand(torch.tensor([0, 128, 255], dtype=torch.uint8)).round(decimals=3)
    tensor([-1.,  0.,  1.])
    """
    signed = 2 * codes.float() / 255 - 1
    return signed.sign() * torch.expm1(signed.abs() * math.log(256)) / 255


@torch.no_grad()
def transcribe(model: nn.Module, wave: torch.Tensor, labels: Sequence[str]) -> str:
    """Return what a CTC model hears, the likeliest label of each frame, repetitions and blanks dropped.

    Args:
        model: returns ``[batch, frames, labels]`` first.
        wave: audio ``[samples]`` at the model's sample rate.
        labels: as ``bundle.get_labels()`` returns them: the blank first, ``"|"`` between words.
    """
    best = model(wave[None])[0][0].argmax(-1).unique_consecutive().tolist()
    return "".join(labels[index] for index in best if index).replace("|", " ").strip().lower()
