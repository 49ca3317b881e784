"""Labels for each frame."""

from __future__ import annotations

from torch import Tensor, nn


class CTCHead(nn.Linear):
    """A linear layer over each frame, whose outputs go into ``torch.nn.CTCLoss``.

    It is an ``nn.Linear``, as ``aux`` of torchaudio's ``Wav2Vec2Model`` is: ``state_dict`` has the same
    ``weight`` and ``bias``, so checkpoints go either way. Behind an encoder that returns lengths the model
    returns ``(logits, lengths)``.

    Args:
        in_features: size of the encoder's features.
        num_labels: number of labels, the blank among them.
        dropout: probability at which features are dropped in training.

    >>> import torch
    >>> head = CTCHead(768, num_labels=29)
    >>> features, lengths = torch.randn(2, 50, 768), torch.tensor([50, 31])
    >>> logits = head(features)
    >>> logits.shape
    torch.Size([2, 50, 29])
    >>> labels, label_lengths = torch.randint(1, 29, (2, 9)), torch.tensor([9, 5])
    >>> loss = nn.CTCLoss(blank=0)(logits.log_softmax(2).transpose(0, 1), labels, lengths, label_lengths)
    """

    def __init__(self, in_features: int, num_labels: int, dropout: float = 0.0) -> None:
        super().__init__(in_features, num_labels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, ``[batch, frames, num_labels]``, of features, ``[batch, frames, in_features]``."""
        return nn.functional.linear(self.dropout(features.to(self.weight.dtype)), self.weight, self.bias)
