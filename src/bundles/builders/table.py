"""The table of builders, and how one is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

from bundles.builders.construct import on_meta, without_init
from bundles.errors import BuildError, BundlesError
from bundles.spec.bundle import Bundle

# key -> "module:function", imported at first use; the keys are those of spec.architectures.
_TORCHAUDIO = "bundles.builders.torchaudio"
BUILDERS: dict[str, str] = {
    "timm": "bundles.builders.timm:build",
    "torchaudio_conv_tasnet": f"{_TORCHAUDIO}.models:conv_tasnet",
    "torchaudio_emformer_rnnt": f"{_TORCHAUDIO}.models:emformer_rnnt",
    "torchaudio_hdemucs": f"{_TORCHAUDIO}.models:hdemucs",
    "torchaudio_squim_objective": f"{_TORCHAUDIO}.models:squim_objective",
    "torchaudio_squim_subjective": f"{_TORCHAUDIO}.models:squim_subjective",
    "torchaudio_tacotron2": f"{_TORCHAUDIO}.models:tacotron2",
    "torchaudio_wav2vec2": f"{_TORCHAUDIO}.speech:wav2vec2",
    "torchaudio_wavernn": f"{_TORCHAUDIO}.models:wavernn",
    "torchaudio_wavlm": f"{_TORCHAUDIO}.speech:wavlm",
    "torchcrepe": "bundles.builders.torchcrepe:build",
    "torchvision": "bundles.builders.torchvision:build",
    "transformers": "bundles.builders.transformers.build:build",
}


def build(bundle: Bundle, *, parameters: str = "initialised") -> nn.Module:
    """Construct the module that a bundle describes.

    Args:
        bundle: the descriptor.
        parameters: ``"initialised"``; ``"empty"``, allocated and to be loaded over; or ``"meta"``, names
            and shapes alone.

    Raises:
        MissingDependencyError: the builder's library is absent or broken.
        BuildError: the builder returns something else than a module, or a card's values cannot be built.
    """
    make = _builder(bundle)

    def construct() -> nn.Module:
        return make(**dict(bundle.architecture))

    try:
        module = _constructed(construct, parameters)
    except (ValueError, TypeError, AssertionError, IndexError) as error:
        if isinstance(error, BundlesError) or callable(bundle.builder):
            raise
        raise BuildError(
            f"The architecture of {bundle.name} cannot be built ({type(error).__name__}: {error}): check the "
            f"values in its card."
        ) from error
    if not isinstance(module, nn.Module):
        raise BuildError(
            f"The builder of {bundle.name} returned a {type(module).__name__}: it must return an nn.Module."
        )
    return module


def _constructed(construct: Callable[[], nn.Module], parameters: str) -> nn.Module:
    try:
        return _CONSTRUCT[parameters](construct)
    except (RuntimeError, NotImplementedError):
        if parameters != "meta":
            raise
        return without_init(construct)  # a builder that looks at values, which there are none on meta


_CONSTRUCT: dict[str, Callable[[Callable[[], nn.Module]], nn.Module]] = {
    "initialised": lambda make: make(),
    "empty": without_init,
    "meta": on_meta,
}


def _builder(bundle: Bundle) -> Callable[..., nn.Module]:
    if callable(bundle.builder):
        return bundle.builder
    if bundle.builder not in BUILDERS:
        raise BuildError(
            f"The bundle {bundle.name} names the builder {bundle.builder!r}: there is "
            f"{', '.join(BUILDERS)}, or pass a function as builder=."
        )
    module, _, function = BUILDERS[bundle.builder].partition(":")
    found: Callable[..., nn.Module] = getattr(importlib.import_module(module), function)
    return found
