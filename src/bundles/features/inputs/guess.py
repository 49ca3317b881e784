"""What the items of a dataset are, where no model tells."""

from __future__ import annotations

from typing import Any

from bundles.errors import InputError
from bundles.features.inputs.open import open_inputs
from bundles.features.inputs.preprocess import Preprocessing


def guess(dataset: Any) -> Preprocessing:
    """Return the kind of input that the first item looks like, of which no rate is known.

    Raises:
        InputError: it is no tensor of a known form.

    >>> import torch
    >>> guess([torch.zeros(3, 8, 8)]).kind, guess([torch.zeros(80)]).kind
    ('image', 'waveform')
    """
    inputs = open_inputs(dataset, Preprocessing("frames"))
    if inputs.count is None:
        raise InputError(
            "Nothing tells what the items of a stream are: pass "
            "preprocessing=Preprocessing('waveform', 16000), or another kind."
        )
    first = inputs.read(0).tensor
    if first.dim() == 1:
        return Preprocessing("waveform" if first.is_floating_point() else "tokens")
    if first.dim() == 3:
        return Preprocessing("image")
    raise InputError(
        f"An input of shape {list(first.shape)} may be anything: pass preprocessing=Preprocessing('frames'), "
        f"or another kind."
    )
