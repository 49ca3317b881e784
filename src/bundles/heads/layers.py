"""Use all layers of an encoder instead of the last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bundles.errors import HeadError
from bundles.heads.lengths import padding_mask
from bundles.heads.protocol import takes_lengths, uses_layers


class WeightedLayers(nn.Module):
    """A learned weighted sum over the outputs of an encoder's layers, then another head.

    The weights are a softmax over one number per layer, which starts even. It is how SUPERB uses
    pretrained encoders (Yang et al., 2021, arXiv:2105.01051) and what S3PRL calls ``Featurizer``. S3PRL also
    counts the input of the first layer; torchaudio's ``extract_features`` gives the outputs alone, 12 for a
    base and 24 for a large model.

    Args:
        in_features: size of each layer's features.
        num_layers: how many layers the encoder has.
        head: what the sum goes into, one that takes ``in_features``; it is given ``lengths`` if it
            takes them.
        normalize: whether each frame of each layer is brought to mean 0 and variance 1 before the sum: for
            encoders whose layers grow from one to the next and have their only norm after the last, which
            ``extract_features`` leaves out, as those with a ``norm`` group.

    Raises:
        HeadError: ``num_layers`` is no positive number, or the head fits no sum of this size.

    >>> from bundles.heads import MeanPoolClassifier
    >>> head = WeightedLayers(768, num_layers=12, head=MeanPoolClassifier(768, 10))
    >>> head([torch.randn(2, 50, 768) for _ in range(12)], torch.tensor([50, 31])).shape
    torch.Size([2, 10])
    >>> head.layer_weights[:3]
    tensor([0.0833, 0.0833, 0.0833])
    """

    uses_layers = True
    __constants__ = ("uses_layers", "_head_takes_lengths")  # for torch.jit.script

    def __init__(
        self, in_features: int, num_layers: int, head: nn.Module, *, normalize: bool = False
    ) -> None:
        super().__init__()
        _check(in_features, num_layers, head)
        self.in_features = in_features
        self.num_layers = num_layers
        self.normalize = normalize
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.head = head
        self._head_takes_lengths = takes_lengths(head)

    @property
    def layer_weights(self) -> Tensor:
        """What each layer counts, ``[num_layers]``; sums to 1 and carries no gradient."""
        return self.weights.detach().softmax(0)

    def forward(self, layers: list[Tensor], lengths: Tensor | None = None) -> Any:
        """Return what the inner head returns; ``(output, lengths)`` if it does not take lengths.

        Args:
            layers: ``num_layers`` tensors of shape ``[batch, frames, in_features]``.
            lengths: valid frames of each item, ``[batch]``; ``None`` means all.

        Raises:
            HeadError: the encoder has another number of layers, or a shape or a length is wrong.
        """
        if len(layers) != self.num_layers:
            raise HeadError(
                f"The encoder gives {len(layers)} layers and WeightedLayers was made for {self.num_layers}: "
                f"make it with num_layers={len(layers)}."
            )
        features = self._sum(layers, lengths)
        if self._head_takes_lengths:
            return self.head(features, lengths=lengths)
        return self.head(features), lengths

    def _sum(self, layers: list[Tensor], lengths: Tensor | None) -> Tensor:
        """Return ``[batch, frames, in_features]``, zero in the padding; no stack of all layers is made."""
        padding = None if lengths is None else padding_mask(layers[0], lengths)
        total = torch.zeros_like(layers[0])
        for weight, layer in zip(self.weights.softmax(0).unbind(), layers, strict=True):
            valid = layer if padding is None else layer.masked_fill(padding, 0.0)
            even = nn.functional.layer_norm(valid, (self.in_features,)) if self.normalize else valid
            total = total + weight * even
        return total


def _check(in_features: int, num_layers: int, head: nn.Module) -> None:
    if not isinstance(num_layers, int) or num_layers < 1:
        raise HeadError(
            f"num_layers={num_layers!r} is no positive number: give that of the encoder's layers, as 12."
        )
    if not isinstance(head, nn.Module) or uses_layers(head):
        raise HeadError(
            f"The head of WeightedLayers is a {type(head).__name__}: pass a module that takes features, as "
            f"bundles.heads.MeanPoolClassifier({in_features}, 10)."
        )
    if (size := getattr(head, "in_features", in_features)) != in_features:
        raise HeadError(
            f"The head of WeightedLayers takes {size} features and the layers have {in_features}: make it "
            f"with in_features={in_features}."
        )
