"""Spoken digits from espeak-ng, and what a recording adds to them: silence, loudness, noise.

`espeak-ng <https://github.com/espeak-ng/espeak-ng>`_ must be on PATH (``apt-get install espeak-ng``).
It speaks the same bytes whenever it is asked the same, so a corpus follows from its seed and from the
version of espeak-ng alone.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torchaudio.functional import resample

RATE = 16000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")

# Voices that training never hears, near relatives together (iven and iven2 share a throat).
HELD_OUT = {
    "valid": ("f3", "m5", "Alicia", "boris", "Diogo", "edward", "edward2", "klatt3", "max"),
    "test": (
        *("f2", "f5", "m3", "m7", "Andrea", "Annie", "Denis", "Hugo", "anika", "anikaRobot", "travis"),
        *("iven", "iven2", "iven3", "iven4", "steph", "steph2", "steph3", "pablo", "klatt5"),
    ),
}
SILENCE = 4 * RATE // 10  # samples, at most, on each side of a recording
_NOT_A_VOICE = ("fast",)  # espeak-ng's own test of fast speech
_ESPEAK_RATE = 22050
_WAV_HEADER = 44  # bytes


@dataclass(frozen=True)
class Speech:
    """A split of the corpus: audio ``[samples]`` at 16 kHz, what it says, and the voice that says it."""

    waves: tuple[torch.Tensor, ...]
    texts: tuple[str, ...]
    voices: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.waves)

    @property
    def seconds(self) -> float:
        """Duration of the whole split."""
        return sum(map(len, self.waves)) / RATE


def espeak(*arguments: str) -> bytes:
    """Run espeak-ng and return what it prints.

    Raises:
        SystemExit: it is not on PATH.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise SystemExit(
            "espeak-ng is not on PATH: type `apt-get install espeak-ng` or `brew install espeak-ng`."
        )
    return subprocess.run([program, *arguments], capture_output=True, check=True).stdout


@cache
def voices(split: str) -> tuple[str, ...]:
    """Return the voice variants of a split: ``train`` has all that the others do not hold out."""
    if split != "train":
        return HELD_OUT[split]
    lines = espeak("--voices=variant").decode().splitlines()[1:]
    names = {line.split("!v/")[1].split("(")[0].strip() for line in lines}
    return tuple(sorted(names.difference(_NOT_A_VOICE, *HELD_OUT.values())))


def speak(text: str, voice: str, rate: int = 150, pitch: int = 50, gap: int = 0) -> torch.Tensor:
    """Return spoken text, ``[samples]`` at 16 kHz, without the silence around it.

    Args:
        text: what to say.
        voice: a language and a variant, ``"en-us+f2"``.
        rate: words per minute.
        pitch: 0 to 99.
        gap: pause between words, in steps of 10 ms.
    """
    settings = ("-v", voice, "-s", str(rate), "-p", str(pitch), "-g", str(gap))
    printed = bytearray(espeak(*settings, "--stdout", text)[_WAV_HEADER:])
    wave = torch.frombuffer(printed, dtype=torch.int16).float() / 32768
    heard = (wave.abs() > 0.01 * wave.abs().max()).nonzero()
    return resample(wave[heard[0] : heard[-1] + 1], _ESPEAK_RATE, RATE)


def corpus(split: str, count: int, seed: int) -> Speech:
    """Speak ``count`` sequences of one to six digits, each by a voice of the split drawn at random."""
    draw = random.Random(f"{split} {seed}")
    waves, texts, speakers = [], [], []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(1, 6))
        voice = f"{draw.choice(ACCENTS)}+{draw.choice(voices(split))}"
        said = draw.choice((" ", " ", ", ")).join(words)
        waves.append(
            speak(said, voice, draw.randint(110, 230), draw.randint(20, 80), draw.choice((0, 0, 5, 12)))
        )
        texts.append("|".join(words).upper())
        speakers.append(voice)
    return Speech(tuple(waves), tuple(texts), tuple(speakers))


def kept(folder: Path, split: str, count: int, seed: int) -> Speech:
    """Return :func:`corpus`, spoken once and then read from a file in the folder."""
    path = folder / f"{split}-{count}-{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save(path, corpus(split, count, seed))
    return load(path)


def save(path: Path, speech: Speech) -> None:
    """Write speech to a safetensors file: samples of 16 bits end to end, their lengths, texts and voices."""
    samples = (torch.cat(speech.waves).clamp(-1, 1) * 32767).round().to(torch.int16)
    lengths = torch.tensor([len(wave) for wave in speech.waves])
    said = {"texts": json.dumps(speech.texts), "voices": json.dumps(speech.voices)}
    save_file({"samples": samples, "lengths": lengths}, path, said)


def load(path: Path) -> Speech:
    """Read what :func:`save` wrote."""
    with safe_open(path, "pt") as file:
        samples = file.get_tensor("samples").float() / 32767
        waves = samples.split(file.get_tensor("lengths").tolist())
        said = file.metadata()
    return Speech(waves, tuple(json.loads(said["texts"])), tuple(json.loads(said["voices"])))


def record(wave: torch.Tensor, noise: torch.Tensor | None, snr: float, draw: random.Random) -> torch.Tensor:
    """Return speech as a microphone might: silence around it, noise below it, at any loudness.

    Args:
        wave: speech.
        noise: at least as long as the result, or None for a silent room.
        snr: how far the noise lies below the speech, in decibels.
        draw: for up to 0.4 s of silence on each side, and a peak between 0.05 and 0.9.
    """
    around = (draw.randint(0, SILENCE), draw.randint(0, SILENCE))
    heard = torch.nn.functional.pad(wave, around)
    if noise is not None:
        below = wave.square().mean() / noise.square().mean().clamp_min(1e-10)
        heard = heard + noise[: len(heard)] * (below * 10 ** (-snr / 10)).sqrt()
    return heard * (math.exp(draw.uniform(math.log(0.05), math.log(0.9))) / heard.abs().max())


def noisy(wave: torch.Tensor, crowd: Speech, snr: tuple[float, float], draw: random.Random) -> torch.Tensor:
    """Record speech over white noise, pink noise or four other voices, one of the three at random."""
    length = len(wave) + RATE
    kind = draw.choice(("white", "pink", "babble"))
    noise = babble(crowd, length, draw) if kind == "babble" else hiss(length, draw, pink=kind == "pink")
    return record(wave, noise, draw.uniform(*snr), draw)


def hiss(length: int, draw: random.Random, pink: bool) -> torch.Tensor:
    """Return noise as strong at every frequency, or as strong in every octave (pink)."""
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    white = torch.randn(length, generator=generator)
    if not pink:
        return white
    spectrum = torch.fft.rfft(white)
    return torch.fft.irfft(spectrum / torch.arange(1, len(spectrum) + 1).sqrt(), length)


def telephone(wave: torch.Tensor) -> torch.Tensor:
    """Return the audio without what lies above 4 kHz."""
    return resample(resample(wave, RATE, RATE // 2), RATE // 2, RATE)[: len(wave)]


def babble(crowd: Speech, length: int, draw: random.Random) -> torch.Tensor:
    """Return four voices at once, each repeating itself."""
    several = (crowd.waves[draw.randrange(len(crowd))] for _ in range(4))
    return sum((_repeat(wave, length) for wave in several), torch.zeros(length))


def _repeat(wave: torch.Tensor, length: int) -> torch.Tensor:
    return wave.repeat(length // len(wave) + 1)[:length]


def batches(lengths: Sequence[int], seconds: float, draw: random.Random) -> Iterator[list[int]]:
    """Yield indices in batches of about equal length and of so many seconds, in random order."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i] * draw.uniform(0.9, 1.1))
    ends = list(accumulate((lengths[i] + SILENCE) / RATE for i in order))
    cuts = [
        [i for i, _ in cut] for _, cut in groupby(zip(order, ends, strict=True), lambda e: e[1] // seconds)
    ]
    draw.shuffle(cuts)
    yield from cuts
