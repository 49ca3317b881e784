"""One answer for an utterance: who speaks, in which mood, which command."""

from __future__ import annotations

from torch import Tensor, nn

from bundles.heads.pooling import AttentiveStatisticsPool, MeanPool


class _PoolClassifier(nn.Module):
    """A pool, dropout and a linear layer."""

    def __init__(self, pool: MeanPool | AttentiveStatisticsPool, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.in_features = pool.in_features
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(pool.out_features, num_classes)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits, ``[batch, num_classes]``.

        Args:
            features: ``[batch, frames, in_features]``.
            lengths: valid frames of each item, ``[batch]``; ``None`` means all.

        Raises:
            HeadError: a shape or a length is wrong.
        """
        pooled = self.pool(features, lengths).to(self.linear.weight.dtype)
        logits: Tensor = self.linear(self.dropout(pooled))
        return logits


class MeanPoolClassifier(_PoolClassifier):
    """The mean over the valid frames, then a linear layer.

    It is what SUPERB trains for speakers, intents and emotions (Yang et al., 2021, arXiv:2105.01051);
    S3PRL has one more linear layer before the mean; with nothing between them the two are one.

    Args:
        in_features: size of the encoder's features.
        num_classes: number of classes.
        dropout: probability at which pooled features are dropped in training.

    >>> import torch
    >>> MeanPoolClassifier(768, num_classes=10)(torch.randn(2, 50, 768), torch.tensor([50, 31])).shape
    torch.Size([2, 10])
    """

    def __init__(self, in_features: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__(MeanPool(in_features), num_classes, dropout)


class AttentiveStatisticsClassifier(_PoolClassifier):
    """Mean and deviation over the valid frames under a learned attention, then a linear layer.

    Args:
        in_features: size of the encoder's features.
        num_classes: number of classes.
        dropout: probability at which pooled features are dropped in training.
        attention_features: as in :class:`~bundles.heads.AttentiveStatisticsPool`, which has the sources.
        channelwise: the same.

    >>> import torch
    >>> head = AttentiveStatisticsClassifier(768, num_classes=1251, channelwise=True)
    >>> head(torch.randn(2, 50, 768), torch.tensor([50, 31])).shape
    torch.Size([2, 1251])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        dropout: float = 0.0,
        *,
        attention_features: int = 128,
        channelwise: bool = False,
    ) -> None:
        pool = AttentiveStatisticsPool(in_features, attention_features, channelwise=channelwise)
        super().__init__(pool, num_classes, dropout)
