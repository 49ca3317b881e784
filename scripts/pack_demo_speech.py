"""Write the speech that the package ships for its tests, documentation and ``bundles demo``.

Type ``python scripts/pack_demo_speech.py``. It needs espeak-ng on PATH.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save
from spoken_digits import ACCENTS, RATE, WORDS, speak, voices
from torchaudio.functional import mu_law_encoding, resample

OUT = Path(__file__).parent.parent / "src" / "bundles" / "demo" / "speech.safetensors"
NUMERALS = ("eins", "zwei", "drei", "vier", "fünf")
SEED = 0


def main() -> None:
    """Speak the three parts, and write them as mu-law codes of 8 bits at 8 kHz."""
    plans = {"digits": digits(5), "train": numerals("train", 7), "test": numerals("test", 8)}
    parts = {name: list(plan) for name, plan in plans.items()}
    tensors, said = {}, {}
    for name, part in parts.items():
        codes = [encode(speak(text, *how)) for text, how in part]
        tensors[f"{name}.codes"] = torch.cat(codes)
        tensors[f"{name}.lengths"] = torch.tensor([len(code) for code in codes], dtype=torch.int32)
        said[name] = json.dumps([(text, voice) for text, (voice, *_) in part], ensure_ascii=False)
    OUT.write_bytes(save(tensors, said))
    print(f"{OUT.name}: {OUT.stat().st_size} bytes")


def digits(count: int) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Yield English digits, three to five at a time, by voices that the bundle was not trained on."""
    draw = random.Random(f"digits {SEED}")
    for voice in draw.sample(voices("test"), count):
        text = " ".join(draw.choices(WORDS, k=draw.randint(3, 5)))
        yield text, (f"{draw.choice(ACCENTS)}+{voice}", draw.randint(140, 180), draw.randint(30, 70))


def numerals(split: str, count: int) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Yield each German numeral ``count`` times, each time by another voice of a split."""
    draw = random.Random(f"{split} {SEED}")
    for text in NUMERALS:
        for voice in draw.sample(voices(split), count):
            yield text, (f"de+{voice}", draw.randint(140, 200), draw.randint(30, 70))


def encode(wave: torch.Tensor) -> torch.Tensor:
    """Return the mu-law codes of audio at 8 kHz, its peak at 0.9."""
    narrow = resample(wave, RATE, RATE // 2)
    codes: torch.Tensor = mu_law_encoding(0.9 * narrow / narrow.abs().max(), 256)
    return codes.to(torch.uint8)


if __name__ == "__main__":
    main()
