"""Weights that the library ties whatever a configuration says, and the file does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def untie(model: Any, config: Mapping[str, Any]) -> None:
    """Give a model a layer over words of its own where ``tie_word_embeddings`` is ``False``.

    Version 5 ties that of T5 to the embeddings all the same (``T5Config.__post_init__``), and
    ``from_pretrained`` takes the tie back when it finds both in the file, as in those of T5 1.1 and FLAN-T5.
    """
    if config.get("tie_word_embeddings") is not False:
        return
    outputs = model.get_output_embeddings()  # None of a model without words
    if outputs is None or outputs.weight is not model.get_input_embeddings().weight:
        return
    outputs.weight = nn.Parameter(torch.empty_like(outputs.weight))
    nn.init.normal_(outputs.weight, std=getattr(model.config, "initializer_factor", 1.0))
    own = [name for name, weight in model.named_parameters() if weight is outputs.weight]
    for name in own:  # or save_pretrained would leave it out
        model.all_tied_weights_keys.pop(name, None)
