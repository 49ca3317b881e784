"""What torchaudio puts around a speech encoder, mended where batch mates disturb each other."""

from __future__ import annotations

import torch
from torch import nn
from torchaudio.pipelines._wav2vec2 import utils


def wrap(model: nn.Module, normalize: str | None, log_softmax: bool, with_star: bool) -> nn.Module:
    """Return the model inside the wrapper, whose keys are upstream's."""
    return _Wav2Vec2Model(model, normalize, log_softmax, with_star)


class _Wav2Vec2Model(utils._Wav2Vec2Model):  # type: ignore[misc]
    """Upstream's wrapper, but the star fits any batch, and each waveform may be normalised alone."""

    def __init__(self, model: nn.Module, normalize: str | None, log_softmax: bool, with_star: bool) -> None:
        super().__init__(model, normalize == "batch", log_softmax, with_star)
        self.normalize_each = normalize == "per_utterance"

    def forward(
        self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, output_lengths = self.model(self._normalized(waveforms, lengths), lengths)
        if self.apply_log_softmax:
            output = nn.functional.log_softmax(output, dim=-1)
        if self.append_star:
            output = torch.cat((output, torch.zeros_like(output[..., :1])), dim=-1)
        return output, output_lengths

    @torch.jit.export
    def extract_features(
        self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None, num_layers: int | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        output: tuple[list[torch.Tensor], torch.Tensor | None] = self.model.extract_features(
            self._normalized(waveforms, lengths), lengths, num_layers
        )
        return output

    def _normalized(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        if self.normalize_each:
            return normalize_each(waveforms, lengths)
        if self.normalize_waveform:
            return nn.functional.layer_norm(waveforms, waveforms.shape)
        return waveforms


def normalize_each(waveforms: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Return the waveforms, each with mean 0 and variance 1 over its own samples.

    Args:
        waveforms: ``[batch, samples]``.
        lengths: valid samples of each, ``[batch]``; what follows them becomes 0. One that is longer than
            the waveforms counts as theirs.

    >>> normalize_each(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([2])).round(decimals=3)
    tensor([[-1.,  1.,  0.]])
    """
    if lengths is None:
        return nn.functional.layer_norm(waveforms, waveforms.shape[-1:])
    result = torch.zeros_like(waveforms)
    sizes: list[int] = lengths.clamp(0, waveforms.size(1)).tolist()
    for row, size in enumerate(sizes):
        # One at a time, so that each is, to the last bit, what it would be alone.
        result[row, :size] = nn.functional.layer_norm(waveforms[row, :size], (size,))
    return result
