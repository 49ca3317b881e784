"""How models are called with a batch: with lengths, with a mask, or with inputs of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from bundles.features.encode.layers import extractor_of, is_of_library
from bundles.freezing.behaviour.hold import base_class

Takes = Literal["lengths", "mask", "samples_mask", "frames", "stack"]


@dataclass(frozen=True)
class Way:
    """How a model is called.

    Attributes:
        takes: ``"lengths"``: ``[batch, time]`` and the number of valid steps of each, ``[batch]``, as
            torchaudio's; ``"mask"``: tokens and an ``attention_mask``, as transformers';
            ``"samples_mask"``: the same over samples; ``"frames"``: the frames of one input are its batch, as
            CREPE's; ``"stack"``: a batch of inputs and nothing else.
        pads: whether inputs of several lengths may share a call; what is computed over time, as a
            ``GroupNorm`` of wav2vec2's extractor, would see the padding.
        known: whether that is known of the library rather than to be tried.
        filler: what is padded with.
        asks: whether lengths are to be given with inputs of one length, too.
    """

    takes: Takes
    pads: bool
    known: bool
    filler: int = 0
    asks: bool = False


def way_of(encoder: nn.Module) -> Way:
    """Return how a model is called, by its class and the arguments of its ``forward``.

    >>> import bundles
    >>> way_of(bundles.CREPE_TINY.get_model())
    Way(takes='frames', pads=False, known=True, filler=0, asks=False)
    """
    known = is_of_library(encoder)
    if base_class(encoder).__module__.startswith("torchcrepe."):
        return Way("frames", False, known)
    arguments = signature(encoder.forward).parameters
    if "lengths" in arguments:
        known = known and extractor_of(encoder) is not None
        asks = arguments["lengths"].default is Parameter.empty
        return Way("lengths", not (known and _norms_over_time(encoder)), known, asks=asks)
    argument = getattr(encoder, "main_input_name", None)
    if known and argument == "input_ids" and "attention_mask" in arguments:
        filler = getattr(getattr(encoder, "config", None), "pad_token_id", None)
        return Way("mask", True, known, max(filler or 0, 0))
    if known and argument == "input_values" and _takes_samples_mask(encoder, arguments):
        return Way("samples_mask", True, known)
    return Way("stack", not known, known)


def call(encoder: nn.Module, way: Way, inputs: Sequence[Tensor]) -> tuple[Any, list[int] | None]:
    """Call a model with a batch.

    Args:
        encoder: the model.
        way: how.
        inputs: without the batch dimension; of several lengths only where the way ``pads``.

    Returns:
        What the model returns, and the length of each input where some are padded.
    """
    if way.takes == "frames":
        return encoder(torch.cat(list(inputs))), None
    lengths = [len(tensor) for tensor in inputs]
    if len(set(lengths)) == 1 and not way.asks:
        return encoder(torch.stack(list(inputs))), None
    batch = nn.utils.rnn.pad_sequence(list(inputs), batch_first=True, padding_value=way.filler)
    counts = torch.tensor(lengths, device=batch.device)
    if way.takes == "lengths":
        return encoder(batch, counts), lengths
    if way.takes == "stack":
        return encoder(batch), lengths
    mask = torch.arange(batch.shape[1], device=batch.device) < counts[:, None]
    return encoder(batch, attention_mask=mask.long()), lengths


def frames_of(encoder: Any, way: Way, lengths: list[int], returned: Tensor | None) -> list[int]:
    """Return how many of a padded batch's frames are each input's.

    Args:
        encoder: the model.
        way: how it was called.
        lengths: of the inputs.
        returned: the lengths that the model, or its extractor, returned.
    """
    if way.takes == "lengths" and returned is not None:
        return [int(length) for length in returned]
    if way.takes == "samples_mask":
        frames: Tensor = encoder_lengths(encoder)(torch.tensor(lengths))
        return [int(length) for length in frames]
    return lengths


def encoder_lengths(encoder: Any) -> Any:
    """Return the method of transformers' that turns numbers of samples into numbers of frames."""
    return getattr(encoder, "_get_feat_extract_output_lengths", None)


def _norms_over_time(encoder: nn.Module) -> bool:
    return any(isinstance(module, nn.GroupNorm | _InstanceNorm) for module in encoder.modules())


def _takes_samples_mask(encoder: nn.Module, arguments: Mapping[str, Any]) -> bool:
    config = getattr(encoder, "config", None)
    if getattr(config, "add_adapter", False):  # whose frames are fewer than those of the blocks
        return False
    by_step = getattr(config, "feat_extract_norm", None) == "layer"
    return by_step and "attention_mask" in arguments and encoder_lengths(encoder) is not None
