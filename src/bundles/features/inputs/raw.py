"""What a dataset may hold in the place of a tensor: a closed table from values to what is to be prepared."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundles.errors import InputError
from bundles.features.inputs.waveform import EXTENSIONS as AUDIO
from bundles.spec.values import shown

IMAGES = ("bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp")
TEXTS = ("txt",)
FILES: dict[str, tuple[str, ...]] = {"waveform": AUDIO, "image": IMAGES, "tokens": TEXTS, "frames": ()}
"""The extensions by which files and members of tars are found, by the kind of input."""

# In which entry or column the input is, by kind, in the order of preference; extensions are webdataset's, and
# a path stands for its file.
COLUMNS: dict[str, tuple[str, ...]] = {
    "waveform": ("audio", "waveform", "speech", "input_values", *AUDIO, "path", "file"),
    "tokens": ("input_ids", "text", "sentence", *TEXTS),
    "image": ("image", "img", "pixel_values", *IMAGES, "path", "file"),
    "frames": ("input_features", "features", "frames"),
}
RATES = ("sampling_rate", "sample_rate", "samplerate", "sr", "fs")
NAMES = ("__key__", "id", "path", "file")

# The second of a tuple is a rate if it is one of these: a speaker's number may look like one, too.
_COMMON_RATES = frozenset(
    (
        *(8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
        *(88_200, 96_000, 176_400, 192_000),
    )
)


@dataclass(frozen=True)
class Encoded:
    """A file, or all of its bytes: of audio, of a picture, of a text."""

    data: str | bytes


@dataclass(frozen=True, eq=False)
class Sampled:
    """Audio and its sample rate."""

    samples: Tensor
    rate: int | None


def raw_of(value: Any, kind: str) -> Any:
    """Return what an item of a dataset is: :class:`Encoded`, :class:`Sampled`, a tensor, text or picture.

    Args:
        value: a tensor, array or list of numbers; text; a path; a picture; bytes of a file; a tuple that
            begins with one of these, for audio as torchaudio has it, ``(waveform, sample_rate, ...)``; or
            a mapping, of which the entry that :data:`COLUMNS` names is taken.
        kind: of :class:`Preprocessing`.

    Raises:
        InputError: it is none of these. The message begins with a verb.

    >>> raw_of((torch.zeros(1, 8), 8000, "a transcript"), "waveform").rate
    8000
    >>> raw_of({"input_ids": [5, 6], "label": 1}, "tokens")
    tensor([5, 6])
    """
    if isinstance(value, Mapping):
        return _of_mapping(value, kind)
    if isinstance(value, tuple) and value:
        return _of_tuple(value, kind)
    if isinstance(value, bytes):
        return Encoded(value)
    if isinstance(value, PathLike) or (isinstance(value, str) and kind != "tokens"):
        return Encoded(fspath(value))
    if isinstance(value, str) or is_picture(value):
        return value
    return _of_numbers(value)


def is_picture(value: object) -> bool:
    """Whether it is a picture of Pillow, which is not imported for this."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def column_of(names: Sequence[str], kind: str) -> str | None:
    """Return the name of the entry that holds the input; of ``mic.wav`` the extension counts.

    >>> column_of(["__key__", "json", "mic.wav"], "waveform")
    'mic.wav'
    """
    ends = {str(name).rpartition(".")[2]: name for name in reversed(names)}
    found = next((name for name in COLUMNS[kind] if name in names), None)
    return found or next((ends[name] for name in COLUMNS[kind] if name in ends), None)


def _of_mapping(value: Mapping[Any, Any], kind: str) -> Any:
    if kind == "waveform" and value.get("array") is not None:
        return _of_sound(value["array"], value)
    if "bytes" in value and "path" in value:  # as datasets writes audio and images
        return Encoded(_content(value["bytes"], value["path"]))
    name = column_of(list(value), kind)
    if name is None:
        wanted = ", ".join(COLUMNS[kind])
        raise InputError(f"has the entries {shown(list(value))}: one of {wanted} is needed.")
    found = value[name]
    if isinstance(found, Mapping):  # the rate may stand beside the array as well as outside
        found = {**{rate: value[rate] for rate in RATES if rate in value}, **found}
    if kind != "waveform" or isinstance(found, Mapping | tuple | str | bytes | PathLike):
        return raw_of(found, kind)
    return _of_sound(found, value)


def _of_sound(samples: Any, entries: Mapping[Any, Any]) -> Sampled:
    rate = next((entries[name] for name in RATES if entries.get(name) is not None), None)
    return Sampled(_of_numbers(samples), None if rate is None else _whole(rate))


def _content(data: bytes | None, path: str | None) -> str | bytes:
    if data is None and path is None:
        raise InputError("holds neither bytes nor a path: leave it out.")
    return str(path) if data is None else data


def _of_tuple(value: tuple[Any, ...], kind: str) -> Any:
    rate = value[1] if len(value) > 1 else None
    is_sound = kind == "waveform" and not isinstance(value[0], str | bytes | PathLike | Mapping)
    if is_sound and isinstance(rate, Tensor) and rate.numel() == 1 and rate.item() in _COMMON_RATES:
        raise InputError(
            f"is a tuple whose second entry, {shown(rate)}, is a label or a sample rate: if it is a rate, "
            f"give it as a number; if it is a label, the waveform alone."
        )
    if not is_sound or not isinstance(rate, Real) or isinstance(rate, bool):
        return raw_of(value[0], kind)
    if rate not in _COMMON_RATES:
        raise InputError(
            f"is a tuple whose second entry, {shown(rate)}, is no common sample rate: if it is one, give "
            f"{{'audio': ..., 'sampling_rate': {shown(rate)}}}; if it is a label, the waveform alone."
        )
    return Sampled(_of_numbers(value[0]), _whole(rate))


def _whole(rate: Any) -> int:
    try:
        if (whole := int(rate)) == rate and whole > 0:
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"has the sample rate {shown(rate)}, which is no number of hertz: mend it.")


def _of_numbers(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_meta or value.is_nested or value.layout is not torch.strided:
            raise InputError("is a tensor that is sparse, nested or on meta: give one that holds its values.")
        return value
    try:
        array = np.asarray(value)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)  # as scipy reads some WAV files
        found = torch.tensor(array)  # a copy, since what libraries give is often read-only
        is_list = isinstance(value, Sequence) and found.dtype == torch.float64
        return found.float() if is_list else found
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"is a {type(value).__name__}, which holds no numbers: give a tensor, or see COLUMNS of "
            f"bundles.features.inputs.raw for what else is taken."
        ) from error
