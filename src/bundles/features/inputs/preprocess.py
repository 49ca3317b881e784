"""What becomes of an item before the model sees it: known from its bundle, or said by the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from bundles.assemble.built import built_of
from bundles.assemble.digests import filled_source
from bundles.builders.head import EncoderWithHead
from bundles.errors import InputError
from bundles.features.inputs.repository import audio_settings
from bundles.features.inputs.waveform import RESAMPLING
from bundles.spec.bundle import Bundle
from bundles.spec.inputs import takes_waveforms
from bundles.spec.values import shown

Kind = Literal["waveform", "tokens", "image", "frames"]

# What the models of transformers call the first of their arguments.
_BY_ARGUMENT: dict[str, Kind] = {
    "input_values": "waveform",
    "input_ids": "tokens",
    "pixel_values": "image",
    "input_features": "frames",
}


@dataclass(frozen=True)
class Preprocessing:
    """How items become tensors.

    Args:
        kind: ``"waveform"``: mixed to one channel, resampled, float32 ``[samples]``. ``"tokens"``: int64
            ``[tokens]``, texts by the tokenizer of the bundle. ``"image"``: float32 ``[channels, height,
            width]``, pictures by the transforms of the bundle. ``"frames"``: tensors as they are; for
            CREPE, what does not end in 1024 is audio, and cut into float32 ``[frames, 1024]``.
        sample_rate: of what the model hears, in hertz; ``None`` where it is not known, and then a waveform
            that says its own rate is refused.
        normalize: whether a waveform gets mean 0 and variance 1, as the feature extractors of transformers
            do it for models that were trained so.
        bundle: whose companions prepare texts and pictures.

    Raises:
        InputError: there is no such kind, or the rate is none.

    >>> Preprocessing("waveform", 16000).to_dict()["sample_rate"]
    16000
    """

    kind: Kind
    sample_rate: int | None = None
    normalize: bool = False
    bundle: Bundle | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(
                f"There is no kind of input {shown(self.kind)}: give one of {', '.join(get_args(Kind))}."
            )
        rate = self.sample_rate
        if rate is not None and (type(rate) is not int or rate < 1):
            raise InputError(f"sample_rate={shown(rate)} is no number of hertz: give it as 16000.")

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides what a tensor holds, as JSON has it.

        Raises:
            SourceError, CacheError: the digest of a tokenizer is not known and cannot be had.
            MissingDependencyError: the library that prepares pictures is absent.
        """
        audio = {"sample_rate": self.sample_rate, "mono": "mean", **RESAMPLING}
        if self.kind == "waveform":
            return {"kind": "waveform", **audio, "normalize": self.normalize}
        if self.kind == "tokens":
            return {"kind": "tokens", **_of_texts(self.bundle)}
        if self.kind == "image":
            return {"kind": "image", **_of_pictures(self.bundle)}
        return {"kind": "frames", **(audio if self.cut else {}), **self.cut}

    @property
    def cut(self) -> dict[str, int]:
        """How audio is cut into frames, ``frame_length`` and ``hop_length``; empty where it is not."""
        if self.kind != "frames" or self.bundle is None or self.bundle.builder != "torchcrepe":
            return {}
        return {name: self.bundle.metadata[name] for name in ("frame_length", "hop_length")}

    @property
    def holds(self) -> Kind:
        """The kind of what datasets hold for it: audio where that is cut into frames."""
        return "waveform" if self.cut else self.kind


def preprocessing_of(source: Bundle | nn.Module, dataset: Any = None) -> Preprocessing:
    """Return what a bundle's model needs, or a model that ``get_model`` built.

    Args:
        source: a bundle, or any model.
        dataset: of a model of which no bundle and no class of transformers tells: its first item is looked
            at. One dimension of floats is a waveform of unknown rate, one of integers are tokens, three
            are an image.

    Raises:
        InputError: nothing tells.

    >>> import bundles
    >>> preprocessing_of(bundles.WAV2VEC2_BASE)
    Preprocessing(kind='waveform', sample_rate=16000, normalize=False)
    >>> preprocessing_of(bundles.CREPE_TINY.get_model()).kind
    'frames'
    """
    if isinstance(source, Bundle):
        return _of_bundle(source)
    built = built_of(source)
    if built is not None:
        return _of_bundle(built.bundle)
    encoder = source.encoder if isinstance(source, EncoderWithHead) else source
    kind = _BY_ARGUMENT.get(str(getattr(encoder, "main_input_name", None)))
    if kind is not None:
        return Preprocessing(kind)
    if dataset is None:
        raise InputError(
            f"Nothing tells what {type(encoder).__name__} is given: pass "
            f"preprocessing=Preprocessing('waveform', 16000), or another kind."
        )
    from bundles.features.inputs.guess import guess

    return guess(dataset)


def _of_bundle(bundle: Bundle) -> Preprocessing:
    metadata = bundle.metadata
    if metadata.get("companions") == "text" or metadata.get("token_inputs"):
        return Preprocessing("tokens", bundle=bundle)
    if metadata.get("modality") == "vision":
        return Preprocessing("image", bundle=bundle)
    if takes_waveforms(bundle):
        return Preprocessing("waveform", metadata["sample_rate"], bundle=bundle)
    if _has_raw_audio(metadata):
        return Preprocessing("waveform", **audio_settings(bundle), bundle=bundle)
    return Preprocessing("frames", metadata.get("sample_rate"), bundle=bundle)


def _has_raw_audio(metadata: Mapping[str, Any]) -> bool:
    """Whether a repository's configuration says so, which knows no rate."""
    shape = metadata.get("input_shape")
    return metadata.get("modality") == "audio" and "sample_rate" not in metadata and len(shape or ()) == 2


def _of_texts(bundle: Bundle | None) -> dict[str, Any]:
    if bundle is None or "tokenizer" not in bundle.assets:
        return {}
    source = filled_source(bundle.assets["tokenizer"])
    return {"tokenizer": source.sha256, "max_tokens": bundle.metadata.get("max_tokens")}


def _of_pictures(bundle: Bundle | None) -> dict[str, Any]:
    if bundle is None or bundle.metadata.get("companions") != "vision":
        return {}
    return {"colours": "RGB", "transforms": repr(bundle.transforms())}
