"""Make a tensor of what a dataset holds: one function for each kind of input."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundles.builders.require import require
from bundles.display import safe
from bundles.errors import InputError
from bundles.features.inputs.files import problem_of
from bundles.features.inputs.preprocess import Preprocessing
from bundles.features.inputs.raw import Encoded, Sampled, is_picture
from bundles.features.inputs.waveform import frames_of, normalized, read_audio, to_wave
from bundles.spec.bundle import Bundle


def prepare(raw: Any, preprocessing: Preprocessing) -> Tensor:
    """Return the tensor that the model is given, without a batch dimension.

    Args:
        raw: as :func:`bundles.features.inputs.raw.raw_of` returns it.
        preprocessing: what becomes of it.

    Raises:
        InputError: it cannot be read, or is not what the model takes. The message begins with a verb.
        SourceError, BuildError, MissingDependencyError: the bundle's tokenizer or transforms cannot be had.

    >>> prepare(Sampled(torch.zeros(2, 8000), 8000), Preprocessing("waveform", 16000)).shape
    torch.Size([16000])
    """
    if isinstance(raw, Encoded) and isinstance(raw.data, str) and (problem := problem_of(raw.data)):
        raise InputError(f"is the file {safe(raw.data, limit=400)}, which {problem}")
    return _PREPARED[preprocessing.kind](raw, preprocessing)


def _waveform(raw: Any, preprocessing: Preprocessing) -> Tensor:
    wave = _heard(raw, preprocessing)
    return normalized(wave) if preprocessing.normalize else wave


def _heard(raw: Any, preprocessing: Preprocessing) -> Tensor:
    if isinstance(raw, Encoded):
        raw = Sampled(*read_audio(raw.data))
    elif isinstance(raw, Tensor):
        raw = Sampled(raw, None)
    if not isinstance(raw, Sampled):
        raise InputError(f"is a {type(raw).__name__}, and the model takes audio: give a waveform or a file.")
    return to_wave(raw.samples, raw.rate, preprocessing.sample_rate)


def _tokens(raw: Any, preprocessing: Preprocessing) -> Tensor:
    if isinstance(raw, Encoded):
        raw = _text(raw.data)
    if isinstance(raw, str):
        raw = torch.tensor(_companion(preprocessing.bundle, "transform", "texts")(raw), dtype=torch.long)
    whole = isinstance(raw, Tensor) and not (raw.is_floating_point() or raw.is_complex())
    if not whole or raw.dim() != 1 or raw.dtype == torch.bool:
        raise InputError(f"is {_described(raw)}, and the model takes tokens: give int64 [tokens] or text.")
    if len(raw) == 0:
        raise InputError("holds no tokens: leave it out.")
    tokens: Tensor = raw.detach().long()
    return tokens.contiguous()


def _image(raw: Any, preprocessing: Preprocessing) -> Tensor:
    if isinstance(raw, Encoded):
        raw = _picture(raw.data)
    elif isinstance(raw, Tensor) and raw.dtype == torch.uint8 and raw.dim() == 3 and raw.shape[0] in (1, 3):
        raw = require("PIL.Image").fromarray(raw.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    if is_picture(raw):
        if raw.mode.startswith(("I", "F")):  # white, where Pillow makes RGB of it
            raise InputError(f"is a picture of more than 8 bits (mode {raw.mode}): scale it to 8.")
        raw = _companion(preprocessing.bundle, "transforms", "pictures")(raw.convert("RGB"))
    if not isinstance(raw, Tensor) or raw.dim() != 3 or not raw.is_floating_point() or raw.numel() == 0:
        raise InputError(
            f"is {_described(raw)}, and the model takes images: give a picture, uint8 [3, height, width], or "
            f"floats of that shape as the bundle's transforms() makes them."
        )
    return raw.detach().float().contiguous()


def _frames(raw: Any, preprocessing: Preprocessing) -> Tensor:
    if cut := preprocessing.cut:
        is_cut = isinstance(raw, Tensor) and raw.shape[-1:] == (cut["frame_length"],)
        raw = raw if is_cut else frames_of(_heard(raw, preprocessing), **cut)
    if not isinstance(raw, Tensor) or raw.numel() == 0 or raw.dim() == 0:
        of = preprocessing.bundle.name if preprocessing.bundle else "the model"
        raise InputError(f"is {_described(raw)}, and {of} takes frames: cut them, and give tensors.")
    return raw.detach().contiguous()


_PREPARED: dict[str, Callable[[Any, Preprocessing], Tensor]] = {
    "waveform": _waveform,
    "tokens": _tokens,
    "image": _image,
    "frames": _frames,
}


@lru_cache(maxsize=4)
def _made(bundle: Bundle, name: str) -> Any:
    """The tokenizer or transforms of a bundle, which takes long to make."""
    return getattr(bundle, name)()


def _companion(bundle: Bundle | None, name: str, what: str) -> Any:
    if bundle is None or name not in dir(bundle):
        of = bundle.name if bundle else "the model"
        raise InputError(
            f"is one of {what}, and {of} has no {name}() for them: prepare them and give tensors."
        )
    return _made(bundle, name)


def _text(data: str | bytes) -> str:
    try:
        return (data if isinstance(data, bytes) else Path(data).read_bytes()).decode()
    except UnicodeDecodeError as error:
        raise InputError("is no text in UTF-8: give another file.") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}): give another file.") from error


def _picture(data: str | bytes) -> Any:
    pillow = require("PIL.Image")
    try:
        with pillow.open(io.BytesIO(data) if isinstance(data, bytes) else data) as picture:
            return picture.copy()
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        reason = str(error).partition(" '")[0].partition(" <")[0]
        raise InputError(f"cannot be read as a picture ({reason}): give PNG, JPEG, WebP or TIFF.") from error


def _described(raw: Any) -> str:
    if isinstance(raw, Encoded):
        return "a file"
    if not isinstance(raw, Tensor):
        return f"a {type(raw).__name__}"
    return f"{str(raw.dtype).removeprefix('torch.')} {list(raw.shape)}"
