"""The models that torchaudio's own factories make as they are."""

from __future__ import annotations

from typing import Any

from torch import nn

from bundles.builders.require import require


def tacotron2(**arguments: Any) -> nn.Module:
    """Return ``torchaudio.models.Tacotron2`` (Shen et al. 2018, arXiv:1712.05884).

    Its prenet draws dropout in ``eval()``, too, so no two calls of ``infer`` are equal.
    """
    return _make("Tacotron2", **arguments)


def wavernn(**arguments: Any) -> nn.Module:
    """Return ``torchaudio.models.WaveRNN`` (Kalchbrenner et al. 2018, arXiv:1802.08435)."""
    return _make("WaveRNN", **_lists(arguments))


def emformer_rnnt(num_symbols: int) -> nn.Module:
    """Return ``torchaudio.models.emformer_rnnt_base`` (Shi et al. 2021, arXiv:2010.10759)."""
    return _make("emformer_rnnt_base", num_symbols=num_symbols)


def conv_tasnet(num_sources: int) -> nn.Module:
    """Return ``torchaudio.models.conv_tasnet_base`` (Luo and Mesgarani 2019, arXiv:1809.07454)."""
    return _make("conv_tasnet_base", num_sources=num_sources)


def hdemucs(sources: tuple[str, ...]) -> nn.Module:
    """Return ``torchaudio.models.hdemucs_high`` (Défossez 2021, arXiv:2111.03600)."""
    return _make("hdemucs_high", sources=list(sources))


def squim_objective() -> nn.Module:
    """Return ``torchaudio.models.squim_objective_base`` (Kumar et al. 2023, arXiv:2304.01448)."""
    return _make("squim_objective_base")


def squim_subjective() -> nn.Module:
    """Return ``torchaudio.models.squim_subjective_base`` (Manocha and Kumar 2022, arXiv:2206.12285)."""
    return _make("squim_subjective_base")


def _make(name: str, **arguments: Any) -> nn.Module:
    made: nn.Module = getattr(require("torchaudio.models"), name)(**arguments)
    return made


def _lists(arguments: dict[str, Any]) -> dict[str, Any]:
    """Cards hold tuples where upstream asks for lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
