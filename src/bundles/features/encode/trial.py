"""Try on a model that nobody knows whether it is the same each time, and what may share a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Features = Mapping[str, Tensor]

_WRONG = 1e-4  # relative difference from which on a result is another one, and not rounded otherwise
_TF32 = 2.0**-10
_SHORTEST = 12  # steps of a trial of padding, so that it does not come out by which input is the first


class Run(Protocol):
    """Computes the features of a batch; of padded ones, it cuts the layers that are ``framed``."""

    def __call__(self, batch: Sequence[Tensor], framed: frozenset[str] | None = None) -> list[Features]:
        """Return the features of each input."""


@dataclass(frozen=True)
class Sharing:
    """What may share a call of a model.

    Attributes:
        stacks: whether several inputs may.
        pads: whether inputs of several lengths may.
        framed: names of the layers whose first dimension goes with the input's; ``None``: those that
            have more dimensions than one, as all models of the libraries we know.
    """

    stacks: bool
    pads: bool
    framed: frozenset[str] | None = None


def try_sharing(run: Run, like: Tensor) -> Sharing:
    """Return what may share a call, as noise in the shape of an input tells.

    Noise, because silence comes out of most models the same, padded or not.

    Args:
        run: computes features.
        like: an input.
    """
    one, other = (_noise_like(like, seed) for seed in range(2))
    try:
        if not _agree(run([one, other]), [*run([one]), *run([other])]):
            return Sharing(stacks=False, pads=False)
    except Exception:  # noqa: BLE001 - somebody's model, given what it may not be made for
        return Sharing(stacks=False, pads=False)
    try:
        one, other = (_noise_like(like, seed, max(len(like), _SHORTEST)) for seed in range(2))
        shorter = other[: len(other) - len(other) // 3]
        alone = [*run([one]), *run([shorter])]
        framed = frozenset(name for name in alone[0] if alone[0][name].shape != alone[1][name].shape)
        return Sharing(stacks=True, pads=_agree(run([one, shorter], framed), alone), framed=framed)
    except Exception:  # noqa: BLE001
        return Sharing(stacks=True, pads=False)


def distance(one: Features, other: Features) -> float:
    """Return the largest relative difference between two computations of the same features.

    Relative to the largest value of a layer; 0.0 where every bit is equal, infinite where shapes differ or
    only one has a number.

    >>> distance({"output": torch.tensor([1.0, 4.0])}, {"output": torch.tensor([1.0, 2.0])})
    1.0
    """
    return max(_distance(one[name], other[name]) for name in other)


def tolerance(features: Features) -> float:
    """Return the largest difference that is another rounding: 1e-4, more where the numbers are shorter."""
    values = next(iter(features.values()))
    short = values.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    eps = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    return max(_WRONG, 8 * eps, 8 * _TF32 * short)


def first_random(model: nn.Module, call: Callable[[], object]) -> str | None:
    """Return the name of the first module that gives something else in a second call for the same input."""
    first, second = _record(model, call), _record(model, call)
    differs = [
        (one[0], one[1] == other[1]) for one, other in zip(first, second, strict=False) if one[2] != other[2]
    ]
    return next((name for name, was_given_the_same in differs if was_given_the_same), None)


def _distance(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    if torch.equal(one, other):
        return 0.0
    if not torch.equal(one.isnan(), other.isnan()):
        return float("inf")
    one, other = (torch.nan_to_num(values.double()) for values in (one, other))
    size = float(other.abs().max())
    return float((one - other).abs().max()) / (size or 1.0)


def _noise_like(like: Tensor, seed: int, length: int | None = None) -> Tensor:
    """Return noise in the shape of an input, or longer; of integers, those that it has."""
    shape = like.shape if length is None else (length, *like.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    if like.is_floating_point():
        return torch.randn(shape, generator=generator).to(like)
    return like.flatten()[torch.randint(like.numel(), shape, generator=generator).to(like.device)]


def _agree(batch: Sequence[Features], alone: Sequence[Features]) -> bool:
    return all(distance(*pair) <= tolerance(pair[1]) for pair in zip(batch, alone, strict=True))


def _record(model: nn.Module, call: Callable[[], object]) -> list[tuple[str, str, str]]:
    """Return name, digest of the input and digest of the output of each module in the order of return."""
    found: list[tuple[str, str, str]] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found.append((name, _digest((args, kwargs)), _digest(output)))

        return hook

    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True) for name, module in model.named_modules()
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _digest(values: Any) -> str:
    leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
