"""What a training moved, and how far: a delta beside its base, or beside another delta."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bundles.delta.base import Tensors, base_tensors
from bundles.delta.format import Header, read_parts, reading
from bundles.delta.frozen import masks_of_plans
from bundles.errors import DeltaBaseError
from bundles.freezing.optimizer.masks import mask_like


@dataclass(frozen=True)
class TensorDiff:
    """How one tensor differs.

    Attributes:
        name: of the parameter or buffer.
        count: the number of its elements.
        moved: how many of them differ; ``None`` where only one side has it, as a new head.
        largest: the largest absolute difference; ``inf`` where one of them is NaN.
        relative: the norm of the difference over the norm of the other side.
    """

    name: str
    count: int
    moved: int | None
    largest: float = math.nan
    relative: float = math.nan


def diff(
    first: str | os.PathLike[str], second: str | os.PathLike[str] | None = None
) -> tuple[TensorDiff, ...]:
    """Return how what a delta stores differs from its base, or from another delta on the same base.

    Args:
        first: a delta file.
        second: another one; without it the base, which a bundle has to have built.

    Returns:
        One entry for each tensor that either stores, in the order of the model.

    Raises:
        DeltaBaseError: the two have different bases, or the base has moved or is a module of one's own.
        FileNotFoundError, WeightsFileError, PinError: as :func:`read_delta`.

    >>> import bundles, tempfile, torch
    >>> model = bundles.CREPE_TINY.get_model(freeze=True)
    >>> _ = torch.nn.init.zeros_(model.classifier.bias)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = diff(bundles.save_delta(model, f"{folder}/run.safetensors"))
    >>> [(entry.name, entry.moved, entry.count) for entry in found]
    [('classifier.weight', 0, 92160), ('classifier.bias', 360, 360)]
    """
    header, tensors = read_parts(first)
    with reading(first):
        if second is None:
            return _differences(header, _Side(header, tensors), None)
        other, theirs = read_parts(second)
        _check_bases(header, other)
        return _differences(header, _Side(header, tensors), _Side(other, theirs))


@dataclass(frozen=True)
class _Side:
    """One delta."""

    header: Header
    tensors: Tensors

    def stores(self, name: str) -> bool:
        return name in self.tensors or f"packed:{name}" in self.tensors


def values(
    header: Header, tensors: Tensors, base: Mapping[str, torch.Tensor], name: str
) -> torch.Tensor | None:
    """Return a tensor as the delta makes it of its base; ``None`` where the base lacks what is needed."""
    if name in tensors:
        return tensors[name]
    there = base.get(name)
    if there is None or (packed := tensors.get(f"packed:{name}")) is None:
        return there
    made, mask = there.detach().clone(), dict(masks_of_plans(header.freeze, tensors))[name]
    made[~mask_like(made, mask)] = packed
    return made


def _differences(header: Header, ours: _Side, theirs: _Side | None) -> tuple[TensorDiff, ...]:
    names = [name for name in header.names if ours.stores(name) or (theirs and theirs.stores(name))]
    is_own = "digests" in header.base and theirs is not None
    base = {} if is_own else base_tensors(header.base, header.head, header.dtype)
    found = []
    for name in names:
        a = values(ours.header, ours.tensors, base, name)
        b = base.get(name) if theirs is None else values(theirs.header, theirs.tensors, base, name)
        found.append(_difference(name, math.prod(header.names[name]), a, b))
    return tuple(found)


def _difference(name: str, count: int, a: torch.Tensor | None, b: torch.Tensor | None) -> TensorDiff:
    if a is None or b is None or a.shape != b.shape:
        return TensorDiff(name, count, None)
    wide = torch.complex128 if a.is_complex() else torch.float64
    gap = (a.detach().to(wide) - b.detach().to(wide)).abs()
    if not gap.numel():
        return TensorDiff(name, count, 0, 0.0, 0.0)
    largest, norm = float(gap.max()), float(b.detach().to(wide).norm())
    relative = float(gap.norm()) / norm if norm else (math.inf if largest else 0.0)
    moved = int((gap != 0).sum())
    return TensorDiff(name, count, moved, math.inf if math.isnan(largest) else largest, relative)


def _check_bases(header: Header, other: Header) -> None:
    ours, theirs = header.base, other.base
    if "digests" in ours and "digests" in theirs:
        both = ours["digests"].keys() & theirs["digests"].keys()
        differing = [name for name in both if ours["digests"][name] != theirs["digests"][name]]
        same = not differing and header.names == other.names
    else:
        keys = ("bundle", "card", "files", "options")
        same = all(ours.get(key) == theirs.get(key) for key in keys) and header.names == other.names
    if not same:
        raise DeltaBaseError(
            f"The two deltas have different bases, {_said(ours)} and {_said(theirs)}: compare each with "
            f"its own base.",
            expected=_said(ours),
            found=_said(theirs),
        )


def _said(base: Mapping[str, object]) -> str:
    if "digests" in base:
        return f"a {base['class']}"
    files = base["files"] if isinstance(base["files"], dict) else {}
    return f"{base['bundle']} ({', '.join(files.values()) or base['card']})"
