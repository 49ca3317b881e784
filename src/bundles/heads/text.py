"""One answer for a text: its class."""

from __future__ import annotations

from torch import Tensor, nn

from bundles.errors import HeadError

_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}


class TextClassifier(nn.Module):
    """The first token through a hidden layer, then a linear layer.

    It is torchtext's ``RobertaClassificationHead`` (``torchtext/models/roberta/model.py``): dropout,
    ``dense``, the activation, dropout, ``out_proj``. That of Transformers differs in the activation alone,
    which is ``"tanh"``. Names of the weights are those of both, so a ``state_dict`` goes either way.

    It fits encoders that gather a text in its first token, as RoBERTa's and XLM-R's ``<s>``. A T5 encoder
    has no such token: take :class:`~bundles.heads.MeanPoolClassifier` behind it.

    Args:
        in_features: size of the encoder's features.
        num_classes: number of classes.
        hidden: size of the hidden layer; ``in_features`` without it.
        dropout: probability at which features and hidden ones are dropped in training.
        activation: ``"relu"``, ``"tanh"`` or ``"gelu"``.

    Raises:
        HeadError: ``activation`` is another one.

    >>> import torch
    >>> TextClassifier(768, num_classes=2)(torch.randn(3, 7, 768)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: int | None = None,
        dropout: float = 0.1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise HeadError(f"activation={activation!r} is not one of {', '.join(map(repr, _ACTIVATIONS))}.")
        self.in_features = in_features
        self.dense = nn.Linear(in_features, hidden or in_features)
        self.activation = _ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden or in_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, ``[batch, num_classes]``, of features, ``[batch, tokens, in_features]``.

        Raises:
            HeadError: the features are of another shape.
        """
        if features.ndim != 3:
            raise HeadError(
                f"TextClassifier was given features of shape {list(features.shape)} and takes [batch, "
                f"tokens, dim], of which it uses the first token: for one vector per item take "
                f"torch.nn.Linear({self.in_features}, classes)."
            )
        first = self.dropout(features[:, 0].to(self.dense.weight.dtype))
        logits: Tensor = self.out_proj(self.dropout(self.activation(self.dense(first))))
        return logits
