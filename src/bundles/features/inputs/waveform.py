"""Audio of any rate, type and number of channels, as a speech encoder is given it: float32 ``[samples]``."""

from __future__ import annotations

import io
import math
import os
import re
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundles.builders.require import require
from bundles.errors import InputError

# By which audio is found in folders and tars.
EXTENSIONS = ("aif", "aiff", "au", "flac", "mp3", "oga", "ogg", "opus", "sph", "w64", "wav")

# Those of torchaudio.functional.resample, written out because they decide the values.
_RESAMPLING = {
    "resampling_method": "sinc_interp_hann",
    "lowpass_filter_width": 6,
    "rolloff": 0.99,
}
RESAMPLING = {"resample": "torchaudio", **_RESAMPLING}
"""How a rate is changed, for the facts of a store."""

_LARGEST = 50_000_000  # numbers in the filters between two rates, which is 200 MB
_FULL_SCALE = {torch.int16: 2**15, torch.int32: 2**31}
# What libsndfile notes of a chunk that is longer than its file.
_CUT_OFF = re.compile(r"^data\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_ENDLESS = 0x7FFFF000  # written as the size of what came through a pipe
_MP3_FRAMES = 2 * 1152  # by which libsndfile may be wrong about an MP3 without a header of its length


def read_audio(file: str | bytes) -> tuple[Tensor, int]:
    """Return the samples of an audio file, float32 ``[channels, samples]`` from -1 to 1, and their rate.

    Args:
        file: its path, or all of its bytes; whatever libsndfile reads, which is WAV, FLAC, OGG, MP3 and more.

    Raises:
        InputError: it is absent or empty, no audio, or ends before its header says. The message begins
            with a verb, for the name of the item to be put before it.
        MissingDependencyError: soundfile is not installed.
    """
    soundfile = require("soundfile")
    if len(file) == 0:
        raise InputError("is empty: give an audio file.")
    try:
        with soundfile.SoundFile(_opened(file)) as audio:
            if audio.seekable():
                audio.seek(0)  # as soundfile.read does: without it the last bits of an MP3 are others
            samples = audio.read(dtype="float32", always_2d=True)
            expected, rate, notes = audio.frames, audio.samplerate, audio.extra_info
            slack = _MP3_FRAMES if audio.format == "MP3" else 0
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).rpartition(": ")[2].rstrip(".")
        raise InputError(f"cannot be read as audio ({reason}): give WAV, FLAC, OGG or MP3.") from error
    if len(samples) + slack < expected or _is_cut_off(notes):
        raise InputError(f"ends too early, after {len(samples)} samples: get the file again.")
    return torch.from_numpy(samples).T, rate


def to_wave(samples: Tensor, rate: int | None, wanted: int | None) -> Tensor:
    """Return audio as float32 ``[samples]``, its channels mixed to their mean, at the rate that is wanted.

    Args:
        samples: ``[samples]`` or ``[channels, samples]``. Floats of any size are taken as they are, int16,
            int32 and uint8 as the codes of a WAV file, which become floats from -1 to 1.
        rate: of the samples; ``None`` if they have the wanted one.
        wanted: of the result; ``None`` if nobody knows it, and then ``rate`` must not be known either.

    Raises:
        InputError: that is no audio: empty, not finite, of another type or shape. The message begins with
            a verb.

    >>> to_wave(torch.tensor([[0, 16384], [16384, 16384]], dtype=torch.int16), None, 16000)
    tensor([0.2500, 0.5000])
    >>> to_wave(torch.zeros(2, 44100), 44100, 16000).shape
    torch.Size([16000])
    """
    wave = _mixed(_as_float(samples.detach().cpu()))
    if wave.numel() == 0:
        raise InputError("holds no samples: leave it out.")
    if not np.isfinite(wave.numpy()).all():  # torch.isfinite takes far longer
        raise InputError("holds samples that are infinite or no number: mend it or leave it out.")
    return _resampled(wave, rate, wanted).contiguous()


def normalized(wave: Tensor) -> Tensor:
    """Return a waveform with mean 0 and variance 1, bit for bit as ``Wav2Vec2FeatureExtractor`` does it.

    >>> normalized(torch.tensor([1.0, 3.0])).round(decimals=3)
    tensor([-1.,  1.])
    """
    values = wave.numpy()
    return torch.from_numpy((values - values.mean()) / np.sqrt(values.var() + 1e-7))


def frames_of(wave: Tensor, frame_length: int, hop_length: int) -> Tensor:
    """Return a waveform as overlapping frames, float32 ``[frames, frame_length]``, each normalised.

    Raises:
        InputError: it is shorter than a frame. The message begins with a verb.

    >>> frames_of(torch.randn(16000), 1024, 160).shape
    torch.Size([94, 1024])
    """
    if len(wave) < frame_length:
        raise InputError(f"has {len(wave)} samples, and a frame has {frame_length}: leave it out.")
    return normalise(wave.unfold(0, frame_length, hop_length))


def normalise(cut: Tensor) -> Tensor:
    """Give each frame mean 0 and standard deviation 1, as CREPE was trained (Kim et al. 2018, section 2)."""
    centred = cut - cut.mean(dim=-1, keepdim=True)
    return centred / centred.std(dim=-1, keepdim=True).clamp_min(1e-10)


def _as_float(samples: Tensor) -> Tensor:
    if samples.is_floating_point():
        return samples.float()
    if samples.dtype == torch.uint8:
        return (samples.float() - 128) / 128
    if samples.dtype not in _FULL_SCALE:
        kind = str(samples.dtype).removeprefix("torch.")
        raise InputError(f"holds {kind}, which is no audio: give float32, int16, int32 or uint8.")
    return samples.float() / _FULL_SCALE[samples.dtype]


def _mixed(samples: Tensor) -> Tensor:
    if samples.dim() == 1:
        return samples
    if samples.dim() == 0:
        raise InputError("is a single number: give a list of waveforms, of one as [waveform].")
    shape = list(samples.shape)
    if samples.dim() != 2 or (samples.shape[0] > samples.shape[1] > 0):
        raise InputError(f"has the shape {shape}: give [samples] or [channels, samples].")
    return samples[0] if samples.shape[0] == 1 else samples.mean(0)


def _resampled(wave: Tensor, rate: int | None, wanted: int | None) -> Tensor:
    if rate is None or rate == wanted:
        return wave
    if wanted is None:
        raise InputError(
            f"has the sample rate {rate}, and that of the model is not known: pass "
            f"preprocessing=Preprocessing('waveform', sample_rate=16000), or --sample-rate 16000."
        )
    common = math.gcd(rate, wanted)
    if (rate // common) * (wanted // common) > _LARGEST:
        raise InputError(f"has the sample rate {rate}, which is odd beside {wanted}: resample it yourself.")
    resampled: Tensor = _resampler(rate, wanted)(wave)
    return resampled


@lru_cache(maxsize=4)
def _resampler(rate: int, wanted: int) -> Any:
    """What changes a rate, with its filters, which take nearly as long to make as to apply.

    With filters made in float32 it gives the bits of ``functional.resample``; those of its own default, made
    in float64, give others.
    """
    return require("torchaudio.transforms").Resample(rate, wanted, dtype=torch.float32, **_RESAMPLING)


def _opened(file: str | bytes) -> Any:
    """What soundfile opens; a path as bytes, where it may be no UTF-8."""
    if isinstance(file, bytes):
        return io.BytesIO(file)
    return file if os.name == "nt" else os.fsencode(file)


def _is_cut_off(notes: str) -> bool:
    found = _CUT_OFF.search(notes)
    return found is not None and int(found[2]) < int(found[1]) < _ENDLESS
