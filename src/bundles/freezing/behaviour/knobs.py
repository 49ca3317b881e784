"""Attributes that switch off, beside the ``training`` flag, one of the things that the flag governs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from bundles.freezing.behaviour.hold import base_class
from bundles.freezing.behaviour.reads import own_code, words_of
from bundles.spec.table import Knob

# Rates at which whole layers or time steps are left out in torchaudio, fairseq and transformers. "Off" is
# below zero for layers: torchaudio drops where a draw from [0, 1) is <= the rate.
_STRUCTURE = {
    "layer_drop": -1e-9,
    "layerdrop": -1e-9,
    "encoder_layerdrop": -1e-9,
    "decoder_layerdrop": -1e-9,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}
_GRAPH = "_requires_grad"  # by which transformers' audio models have the waveform require grad
_RECURRENT = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
_FUSED = (nn.MultiheadAttention.forward, nn.Linear.forward)


def drops_layers(module: nn.Module) -> bool:
    """Whether the module has a rate of layer drop or of time masking, or its code speaks of one."""
    rates = any(_is_rate(getattr(module, name, None)) for name in _STRUCTURE)
    return rates or not words_of(module).isdisjoint(_STRUCTURE)


def knobs_of(module: nn.Module) -> tuple[Knob, ...]:
    """Return the attributes of the module itself; rates in a config, which modules share, are none."""
    return tuple(_knobs(module))


def _knobs(module: nn.Module) -> Iterator[Knob]:
    own, words = vars(module), words_of(module)
    if _forward_of(module) in _RECURRENT and not own_code(module):
        yield Knob("dropout", "noise", 0.0)
    rates = [name for name in _STRUCTURE if name in words]
    if all(_is_rate(own.get(name)) for name in rates):
        yield from (Knob(name, "structure", _STRUCTURE[name]) for name in rates)
    if _calls_foreign_layers(module):
        is_stack = isinstance(module, nn.TransformerEncoder)
        yield Knob("use_nested_tensor" if is_stack else "activation_relu_or_gelu", "fused", False)
    if _GRAPH in words and isinstance(own.get(_GRAPH), bool):
        yield Knob(_GRAPH, "graph", False)


def _calls_foreign_layers(module: nn.Module) -> bool:
    """Whether torch's fused forward, which calls no layer, would pass by one that is not torch's own.

    An adapter around ``linear1`` is such: in ``eval()`` over frozen weights it would have no effect.
    """
    forward = _forward_of(module)
    if forward is nn.TransformerEncoder.forward:
        return any(_calls_foreign_layers(layer) for layer in module.get_submodule("layers").children())
    if forward is not nn.TransformerEncoderLayer.forward:
        return False
    called = map(module.get_submodule, ("self_attn", "linear1", "linear2"))
    return any(_forward_of(layer) not in _FUSED for layer in called)


def _forward_of(module: nn.Module) -> Any:
    return getattr(base_class(module), "forward", None)


def _is_rate(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
