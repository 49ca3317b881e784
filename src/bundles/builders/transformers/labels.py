"""Tell a model of transformers how many labels its new head gives: its loss and ``save_pretrained`` ask."""

from __future__ import annotations

from typing import Any

from torch import nn


def relabel(model: nn.Module, head: nn.Module) -> None:
    """Set a model's number of labels to that of the linear layer which took its head's place.

    A head of another kind does not say how many labels it gives, and nothing is changed.

    >>> from bundles.builders.transformers.build import build
    >>> tiny = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> model = build("BertForSequenceClassification", {**tiny, "intermediate_size": 8, "vocab_size": 10})
    >>> relabel(model, nn.Linear(8, 7))
    >>> model.config.num_labels
    7
    """
    known: Any = model
    config = getattr(known, "config", None)
    if config is None or not isinstance(head, nn.Linear):
        return
    if type(model).__name__.endswith("ForCTC"):  # of these the vocabulary is that of the labels
        config.vocab_size = head.out_features
    elif hasattr(known, "num_labels"):
        config.num_labels = known.num_labels = head.out_features
