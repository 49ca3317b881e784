"""WavLM without two defects of torchaudio's: lost position bias under layer drop, no masks."""

from __future__ import annotations

import torch
from torch import nn
from torchaudio.models.wav2vec2 import components


def mend(model: nn.Module) -> nn.Module:
    """Return the same WavLM, its transformer given the mended class."""
    for module in model.modules():
        if type(module) is components.Transformer:
            module.__class__ = Transformer
    return model


class Transformer(components.Transformer):  # type: ignore[misc]
    """Upstream's, but layer drop never takes the first layer, and ``lengths`` mask the attention.

    The first layer makes the position bias and hands it on; dropped, all others go without. The mask comes
    as ``[batch, 1, frames, frames]``, which WavLM's attention asserts away; its rows are all alike, and it
    takes one of them as ``key_padding_mask``.
    """

    def forward(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the last layer's output, ``[batch, frames, features]``."""
        padding = None if attention_mask is None else attention_mask[:, 0, 0, :]
        x = self._preprocess(x)
        for index, layer in enumerate(self.layers):
            drop = bool(self.training and torch.rand(1).item() <= self.layer_drop)
            if index == 0 or not drop:
                x, position_bias = layer(x, None, position_bias, padding)
        if not self.layer_norm_first:
            x = self.layer_norm(x)
        return x

    def get_intermediate_outputs(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None = None, num_layers: int | None = None
    ) -> list[torch.Tensor]:
        """Return the outputs of the first ``num_layers`` layers, of all without it."""
        if num_layers is not None and not 0 < num_layers <= len(self.layers):
            raise ValueError(f"`num_layers` must be between [1, {len(self.layers)}]")
        padding = None if attention_mask is None else attention_mask[:, 0, 0, :]
        position_bias: torch.Tensor | None = None
        outputs: list[torch.Tensor] = []
        x = self._preprocess(x)
        for index, layer in enumerate(self.layers):
            if num_layers is None or index < num_layers:
                x, position_bias = layer(x, None, position_bias, padding)
                outputs.append(x)
        return outputs
