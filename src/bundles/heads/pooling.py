"""One vector for an utterance of any length.

Padding is filled with zeros before anything is computed, so what it holds, ``nan`` included, changes no
output, and its gradient is zero. Sums over frames are taken in float32 or wider. An item of length 0,
which is what an encoder makes of audio shorter than its first window, is pooled like a single frame
of zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundles.heads.lengths import padding_mask


class MeanPool(nn.Module):
    """The mean over the valid frames.

    Args:
        in_features: size of the encoder's features; ``out_features`` is the same.

    >>> features, lengths = torch.tensor([[[1.0], [3.0], [float("nan")]]]), torch.tensor([2])
    >>> MeanPool(1)(features, lengths)
    tensor([[2.]])
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = self.out_features = in_features

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return ``[batch, in_features]``.

        Args:
            features: ``[batch, frames, in_features]``.
            lengths: valid frames of each item, ``[batch]``; ``None`` means all.

        Raises:
            HeadError: a shape or a length is wrong.
        """
        padding = padding_mask(features, lengths)
        total = _wide(features.masked_fill(padding, 0.0)).sum(1)
        return (total / _count(padding)).to(features.dtype)


class AttentiveStatisticsPool(nn.Module):
    """Mean and standard deviation over the valid frames, weighted by a learned attention.

    The attention is a layer of ``attention_features`` with tanh, then one weight per frame: Okabe,
    Koshinaka and Shinoda, *Attentive Statistics Pooling for Deep Speaker Embedding*, 2018,
    arXiv:1803.10963. With ``channelwise=True`` each channel has weights of its own, and the attention also
    sees mean and deviation of the whole utterance: section 3.1 of *ECAPA-TDNN*, 2020, arXiv:2005.07143.
    SpeechBrain has ReLU and a batch norm before the tanh; here is neither, since that norm counts padding.

    Args:
        in_features: size of the encoder's features; ``out_features`` is twice that.
        attention_features: size of the attention's hidden layer.
        channelwise: whether to use the form of ECAPA-TDNN.

    >>> AttentiveStatisticsPool(768)(torch.randn(2, 50, 768), torch.tensor([50, 31])).shape
    torch.Size([2, 1536])
    """

    def __init__(self, in_features: int, attention_features: int = 128, *, channelwise: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = 2 * in_features
        self.hidden = nn.Linear(in_features, attention_features)
        self.context = nn.Linear(2 * in_features, attention_features, bias=False) if channelwise else None
        # no bias: softmax over frames does not see a constant
        self.score = nn.Linear(attention_features, in_features if channelwise else 1, bias=False)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return ``[batch, 2 * in_features]``: the means, then the standard deviations.

        Args:
            features: ``[batch, frames, in_features]``.
            lengths: valid frames of each item, ``[batch]``; ``None`` means all.

        Raises:
            HeadError: a shape or a length is wrong.
        """
        padding = padding_mask(features, lengths)
        features = features.to(self.hidden.weight.dtype).masked_fill(padding, 0.0)
        scores = _wide(self._scores(features, padding))
        weights = scores.masked_fill(padding, -1e30).softmax(1)  # not -inf: of that alone softmax is nan
        return _statistics(features, weights)

    def _scores(self, features: Tensor, padding: Tensor) -> Tensor:
        """Return ``[batch, frames, in_features or 1]``."""
        hidden = self.hidden(features)
        if self.context is not None:  # the sum of two layers is one layer over both, and repeats no frame
            even = _wide(padding.logical_not().to(features.dtype)) / _count(padding)[:, None]
            hidden = hidden + self.context(_statistics(features, even))[:, None]
        scores: Tensor = self.score(torch.tanh(hidden))
        return scores


def _statistics(features: Tensor, weights: Tensor) -> Tensor:
    """Return weighted means, then deviations, ``[batch, 2 * dim]``, computed as wide as the weights are."""
    mean = (weights * features).sum(1)
    variance = (weights * (features - mean[:, None]).square()).sum(1)
    deviation = variance.clamp(min=1e-12).sqrt()  # at 0 the root has no gradient
    return torch.cat([mean, deviation], 1).to(features.dtype)


def _count(padding: Tensor) -> Tensor:
    """Return the number of valid frames, at least 1, ``[batch, 1]``."""
    return padding.logical_not().sum(1).clamp(min=1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
