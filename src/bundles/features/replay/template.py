"""What a module below the boundary returns, as far as that does not depend on what is skipped.

It is learnt from real calls, not declared for each architecture. A tensor of floats is a filler: its
sizes matter and its values do not, which the comparison of a replayed call with a real one proves. A
size is a number that was seen, or one of the sizes of the batch; what is true of every call seen stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bundles.errors import FeatureError
from bundles.features.replay.record import Call


@dataclass(frozen=True)
class Sizes:
    """Of one batch.

    Attributes:
        batch: the number of rows.
        samples: the second dimension of what the model is given.
        frames: the first dimension of the longest row's activations.
        lengths: that of each row, int64 ``[batch]``.
    """

    batch: int
    samples: int
    frames: int
    lengths: Tensor

    def named(self) -> dict[str, int]:
        """Return the sizes that others may be equal to."""
        return {"batch": self.batch, "samples": self.samples, "frames": self.frames}


@dataclass(frozen=True)
class Given:
    """A leaf of the output that is a leaf of the input."""

    index: int

    def make(self, module: nn.Module, given: list[Any], sizes: Sizes, device: torch.device) -> Any:
        """Return it."""
        return given[self.index]


@dataclass(frozen=True)
class Constant:
    """No tensor."""

    value: Any

    def make(self, module: nn.Module, given: list[Any], sizes: Sizes, device: torch.device) -> Any:
        """Return it."""
        return self.value


@dataclass(frozen=True)
class Lengths:
    """The number of frames of each row, as torchaudio's models return it."""

    dtype: torch.dtype

    def make(self, module: nn.Module, given: list[Any], sizes: Sizes, device: torch.device) -> Any:
        """Return them."""
        return sizes.lengths.to(device, self.dtype)


@dataclass(frozen=True)
class Bias:
    """WavLM's bias by relative position, which its first layer works out for all of them.

    ``[batch, heads, frames, frames]`` in torchaudio/models/wav2vec2/wavlm_attention.py, the first two
    dimensions as one in transformers/models/wavlm/modeling_wavlm.py.
    """

    rank: int

    def make(self, module: nn.Module, given: list[Any], sizes: Sizes, device: torch.device) -> Any:
        """Return it for the frames of a batch."""
        bias = _bias(module, sizes)
        return bias.flatten(0, 1) if self.rank == 3 else bias


@dataclass(frozen=True)
class Filler:
    """Zeros of the right sizes; each is one of those that it was equal to so far."""

    sizes: tuple[frozenset[int | str], ...]
    dtype: torch.dtype

    def make(self, module: nn.Module, given: list[Any], sizes: Sizes, device: torch.device) -> Any:
        """Return them."""
        named = sizes.named()
        shape = [next(iter({named.get(str(size), size) for size in one})) for one in self.sizes]
        return torch.zeros(shape, dtype=self.dtype, device=device)  # type: ignore[arg-type]

    def is_sure(self, sizes: Sizes) -> bool:
        """Whether all that a size may be equal to is one number."""
        named = sizes.named()
        return all(len({named.get(str(size), size) for size in one}) == 1 for one in self.sizes)

    def also(self, other: Filler) -> Filler:
        """Return what is true of both; a size that follows no rule stays what it was first."""
        pairs = zip(self.sizes, other.sizes, strict=True)
        return Filler(tuple(ours & theirs or _number(ours) for ours, theirs in pairs), self.dtype)


Leaf = Given | Constant | Lengths | Bias | Filler


@dataclass(frozen=True)
class Template:
    """What one call returns."""

    module: str
    leaves: tuple[Leaf, ...]
    spec: TreeSpec

    def make(self, module: nn.Module, given: list[Any], sizes: Sizes, device: torch.device) -> Any:
        """Return it for a batch."""
        return tree_unflatten([leaf.make(module, given, sizes, device) for leaf in self.leaves], self.spec)

    def is_sure(self, sizes: Sizes) -> bool:
        """Whether it is known for a batch of these sizes."""
        return all(leaf.is_sure(sizes) for leaf in self.leaves if isinstance(leaf, Filler))

    def also(self, other: Template) -> Template:
        """Return what is true of two calls.

        Raises:
            FeatureError: they have nothing to do with each other.
        """
        ours, theirs = self._kinds(), other._kinds()
        if ours != theirs:
            raise FeatureError(
                f"{self.module} returns other things from call to call, so what is above it cannot be "
                f"run alone: store layers='output' and train the head on a FeatureStore."
            )
        leaves = zip(self.leaves, other.leaves, strict=True)
        return Template(self.module, tuple(_also(one, two) for one, two in leaves), self.spec)

    def _kinds(self) -> tuple[Any, ...]:
        fixed = [
            (type(leaf), leaf.dtype, len(leaf.sizes)) if isinstance(leaf, Filler) else leaf
            for leaf in self.leaves
        ]
        return (self.module, self.spec, *fixed)


def learn(module: nn.Module, call: Call, sizes: Sizes) -> Template:
    """Return what a call returned, as rules.

    Raises:
        FeatureError: it holds numbers that follow from no size.
    """
    leaves, spec = tree_flatten(call.made)
    return Template(call.module, tuple(_leaf(module, call, leaf, sizes) for leaf in leaves), spec)


def _leaf(module: nn.Module, call: Call, leaf: Any, sizes: Sizes) -> Leaf:
    for index, given in enumerate(call.given):
        if leaf is given and isinstance(leaf, Tensor):
            return Given(index)
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return Constant(leaf)
    if not isinstance(leaf, Tensor):
        raise _opaque(call, module, f"a {type(leaf).__name__}")
    if leaf.is_floating_point():
        bias = _bias(module, sizes)
        if bias is not None and leaf.numel() == bias.numel() and torch.equal(leaf, bias.view_as(leaf)):
            return Bias(leaf.ndim)
        return Filler(tuple(_equal_to(size, sizes) for size in leaf.shape), leaf.dtype)
    if leaf.shape == sizes.lengths.shape and torch.equal(leaf.cpu().long(), sizes.lengths):
        return Lengths(leaf.dtype)
    raise _opaque(call, module, f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}")


def _opaque(call: Call, module: nn.Module, what: str) -> FeatureError:
    return FeatureError(
        f"{call.module} ({type(module).__name__}) returns {what}, which follows from no size of the batch, "
        f"so what is above it cannot be run alone: store layers='output' and train the head on a "
        f"FeatureStore."
    )


def _equal_to(size: int, sizes: Sizes) -> frozenset[int | str]:
    return frozenset({size, *(name for name, value in sizes.named().items() if value == size)})


def _number(sizes: frozenset[int | str]) -> frozenset[int | str]:
    return frozenset(size for size in sizes if isinstance(size, int)) or sizes


def _also(one: Leaf, two: Leaf) -> Leaf:
    return one.also(two) if isinstance(one, Filler) and isinstance(two, Filler) else one


def _bias(module: nn.Module, sizes: Sizes) -> Any:
    """Return WavLM's bias, ``[batch, heads, frames, frames]``; ``None`` of any other module."""
    attention: Any = getattr(module, "attention", None)
    if not hasattr(attention, "compute_bias") or getattr(attention, "rel_attn_embed", None) is None:
        return None
    bias = attention.compute_bias(sizes.frames, sizes.frames)
    return bias.unsqueeze(0).repeat(sizes.batch, 1, 1, 1)
