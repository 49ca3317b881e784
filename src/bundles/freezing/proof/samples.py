"""A few elements of each tensor, kept by value: cheap to look at after every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch

_SIZE = 64  # elements of each tensor
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def take(tensor: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Return the elements at some positions, or else up to 64 of them spread evenly over the tensor.

    The distance between them is odd, so that they do not all lie in one column of a matrix.

    >>> take(torch.arange(1000))[:3].tolist()
    [0, 15, 30]
    """
    size = tensor.numel()
    count, distance = min(size, _SIZE), max(size // _SIZE - 1, 0) | 1
    if positions is None and tensor.is_contiguous():
        return torch.as_strided(tensor, (count,), (distance,), tensor.storage_offset())
    if positions is None:
        positions = torch.arange(count) * distance
    return tensor[torch.unravel_index(positions.to(tensor.device), tensor.shape)]


def fetch(samples: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy samples to the CPU, all of a kind at once."""
    fetched: dict[str, torch.Tensor] = {}
    for names in _kinds(samples):
        sizes = [samples[name].numel() for name in names]
        joined = torch.cat([samples[name] for name in names]).cpu()
        parts = (part.clone() for part in torch.split(joined, sizes))  # a view would pickle all of it
        fetched |= dict(zip(names, parts, strict=True))
    return fetched


def differing(before: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield the names under which two sets of samples differ in a bit; both have the same names."""
    for names in _kinds(now):
        then = torch.cat([before[name] for name in names])
        here = torch.cat([now[name] for name in names]).cpu()
        if not same_bits(then, here):
            yield from (name for name in names if not same_bits(before[name], now[name].cpu()))


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two flat tensors are equal bit for bit: a NaN equals itself, 0.0 is not -0.0.

    >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    False
    """
    if one.dtype != other.dtype:
        return False
    bits = _BITS.get(one.element_size(), torch.int64)
    return torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))


def largest_difference(before: torch.Tensor, now: torch.Tensor) -> float:
    """Return the largest absolute difference of two samples; ``inf`` where one is NaN or of another size.

    >>> largest_difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    0.5
    """
    if before.numel() != now.numel():
        return math.inf
    wide = torch.complex128 if before.is_complex() or now.is_complex() else torch.float64
    then, here = before.to(wide), now.to(wide)
    same = (then == here) | (then.isnan() & here.isnan())
    apart = torch.where(same, 0.0, (here - then).abs())
    return float(apart.nan_to_num(math.inf, math.inf).max()) if len(apart) else 0.0


def _kinds(samples: Mapping[str, torch.Tensor]) -> Iterable[list[str]]:
    """Names of the samples that can be joined: of one dtype and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, sample in samples.items():
        kinds.setdefault((sample.dtype, sample.device), []).append(name)
    return kinds.values()
