"""Which items a call of a model is about: each row of its input, cut to its own length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bundles.builders.head import EncoderWithHead

_LENGTHS, _MASK = "lengths", "attention_mask"
_ABOVE = ("labels", "decoder_")  # what these are about comes after what is stored
_FLAGS = ("return_dict", "use_cache", "output_attentions", "output_hidden_states")
_ANY = ("return_dict", "use_cache")  # of these flags either value; with the others nothing can be skipped
_ZERO = ("token_type_ids",)  # tokenizers give it always; one segment is what models assume


class NotStored(Exception):
    """A call that the store cannot answer; the message is why."""


@dataclass(frozen=True)
class Batch:
    """The input of one call.

    Attributes:
        inputs: as the model is given it, ``[batch, ...]``.
        rows: each item without batch dimension and padding.
        arguments: names of the arguments that were given and are not ``None``, and the values of flags:
            calls with others of them go through the model by other ways.
    """

    inputs: Tensor
    rows: tuple[Tensor, ...]
    arguments: tuple[str, ...]

    @property
    def samples(self) -> int:
        """The second dimension of the input, padding included."""
        return self.inputs.shape[1]

    @property
    def shortest(self) -> int:
        """The row that is padded most."""
        return min(range(len(self.rows)), key=lambda row: len(self.rows[row]))

    @property
    def is_padded(self) -> bool:
        """Whether any row is shorter than the input."""
        return any(len(row) != self.samples for row in self.rows)


def read_batch(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Batch:
    """Return the rows of a call.

    Raises:
        NotStored: an argument decides what the rows' features are and no store holds that, as
            ``position_ids``; the padding is not on the right; or the input requires a gradient.
    """
    given = _arguments(model, args, kwargs)
    name, inputs = next(iter(given.items()), ("the input", None))
    others = {other: value for other, value in given.items() if other != name}
    if not isinstance(inputs, Tensor) or inputs.ndim < 2 or not inputs.numel():
        raise NotStored(f"{name} is no tensor with a batch dimension")
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(given)):
        raise NotStored(f"{name} requires a gradient")
    for other, value in others.items():
        if other not in (_LENGTHS, _MASK) and not _is_harmless(other, value):
            raise NotStored(f"the argument {other} was given")
    sizes = _sizes(inputs, others.get(_LENGTHS), others.get(_MASK))
    flags = (f"{other}={value}" if other in _FLAGS else other for other, value in given.items())
    return Batch(inputs, _cut(inputs, sizes), tuple(flags))


def alone(batch: Batch, row: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the arguments that give a model one row of a batch without its padding."""
    inputs, device = batch.rows[row][None], batch.inputs.device
    kwargs = {}
    if _LENGTHS in batch.arguments:
        kwargs[_LENGTHS] = torch.tensor([inputs.shape[1]], device=device)
    if _MASK in batch.arguments:
        kwargs[_MASK] = torch.ones(inputs.shape[:2], dtype=torch.long, device=device)
    return (inputs,), kwargs


def _is_harmless(name: str, value: Any) -> bool:
    """Whether an argument decides nothing of what is stored."""
    is_zero = name in _ZERO and isinstance(value, Tensor) and not bool(value.any())
    is_off = name in _FLAGS and (value is False or name in _ANY)
    return is_zero or is_off or name.startswith(_ABOVE)


def _arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a call gives, by name, in the order of the signature; ``None`` gives nothing."""
    encoder = model.encoder if isinstance(model, EncoderWithHead) else model
    try:
        bound = signature(encoder.forward).bind(*args, **kwargs)
    except TypeError as error:  # which the model itself will raise
        raise NotStored(str(error)) from error
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is kind.VAR_KEYWORD:
            named.update(value)
        elif kind is kind.VAR_POSITIONAL:
            named.update((f"*{name}[{index}]", entry) for index, entry in enumerate(value))
        else:
            named[name] = value
    return {name: value for name, value in named.items() if value is not None}


def _sizes(inputs: Tensor, lengths: Any, mask: Any) -> list[int] | None:
    """Return the valid length of each row; ``None`` where all of each is valid."""
    if mask is not None:
        lengths = _masked(inputs, mask)
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor) or lengths.shape != inputs.shape[:1] or lengths.is_floating_point():
        raise NotStored(f"{_LENGTHS} is not one whole number per row")
    return [int(length) for length in lengths.clamp(0, inputs.shape[1]).tolist()]


def _masked(inputs: Tensor, mask: Any) -> Tensor:
    if not isinstance(mask, Tensor) or mask.shape != inputs.shape[:2]:
        raise NotStored(f"{_MASK} is no tensor of shape {list(inputs.shape[:2])}")
    lengths: Tensor = mask.long().sum(-1)
    if not torch.equal(mask.bool(), torch.arange(inputs.shape[1], device=mask.device) < lengths[:, None]):
        raise NotStored(f"the padding in {_MASK} is not on the right")
    return lengths


def _cut(inputs: Tensor, sizes: list[int] | None) -> tuple[Tensor, ...]:
    rows = inputs.unbind()
    return rows if sizes is None else tuple(row[:size] for row, size in zip(rows, sizes, strict=True))
