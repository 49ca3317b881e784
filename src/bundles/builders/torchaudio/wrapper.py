"""What torchaudio puts around a speech encoder, mended where batch mates disturb each other."""

from __future__ import annotations

import torch
from torch import nn
from torchaudio.pipelines._wav2vec2 import utils


def wrap(model: nn.Module, normalize: str | None, log_softmax: bool, with_star: bool) -> nn.Module:
    """Return the model inside upstream's wrapper, or one of those below; the keys are the same."""
    kind = _PerUtterance if normalize == "per_utterance" else _Wav2Vec2Model
    wrapped: nn.Module = kind(model, normalize == "batch", log_softmax, with_star)
    return wrapped


class _Wav2Vec2Model(utils._Wav2Vec2Model):  # type: ignore[misc]
    """Upstream's wrapper, but the star fits batches of any size, not of one."""

    def forward(
        self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.normalize_waveform:
            waveforms = nn.functional.layer_norm(waveforms, waveforms.shape)
        output, output_lengths = self.model(waveforms, lengths)
        if self.apply_log_softmax:
            output = nn.functional.log_softmax(output, dim=-1)
        if self.append_star:
            output = torch.cat((output, torch.zeros_like(output[..., :1])), dim=-1)
        return output, output_lengths


class _PerUtterance(_Wav2Vec2Model):
    """The same, but each waveform is normalised by its own mean and variance."""

    def forward(
        self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return super().forward(normalize_each(waveforms, lengths), lengths)

    def extract_features(
        self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None, num_layers: int | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        output: tuple[list[torch.Tensor], torch.Tensor | None] = super().extract_features(
            normalize_each(waveforms, lengths), lengths, num_layers
        )
        return output


_PerUtterance.__name__ = _PerUtterance.__qualname__ = _Wav2Vec2Model.__name__


def normalize_each(waveforms: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Return the waveforms, each with mean 0 and variance 1 over its own samples.

    Args:
        waveforms: ``[batch, samples]``.
        lengths: valid samples of each, ``[batch]``; what follows them becomes 0.

    >>> normalize_each(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([2])).round(decimals=3)
    tensor([[-1.,  1.,  0.]])
    """
    if lengths is None:
        return nn.functional.layer_norm(waveforms, waveforms.shape[-1:])
    result = torch.zeros_like(waveforms)
    for row, (waveform, length) in enumerate(zip(waveforms, lengths.tolist(), strict=True)):
        # One at a time, so that each is, to the last bit, what it would be alone.
        result[row, :length] = nn.functional.layer_norm(waveform[:length], (length,))
    return result
