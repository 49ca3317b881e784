"""Policies that choose single elements, channels and tensors by number: masks and scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from bundles.errors import FreezeArgumentError
from bundles.spec.masks import Mask
from bundles.spec.policy import Candidates, ElementPolicy
from bundles.spec.scores import Score, Scores
from bundles.spec.selection import Selection
from bundles.spec.suggest import closest
from bundles.spec.values import FrozenDict, shown


@dataclass(frozen=True, repr=False, init=False)
class Elements(ElementPolicy):
    """Single elements, or channels: parameter name -> mask, True where frozen.

    A mask has the shape of its tensor, or that of its leading dimensions: ``(out,)`` freezes whole
    filters of a convolution or rows of a linear layer. Nested sequences and arrays are taken, too.

    Raises:
        FreezeArgumentError: a mask is none, or does not fit its tensor, or there is no such parameter.

    >>> policy = Elements({"fc.bias": [True, True, False]})
    >>> policy
    Elements({'fc.bias': <Mask (3,): 2 of 3, sha256:8ad12647>})
    >>> policy == Elements({"fc.bias": (1, 1, 0)})
    True
    """

    masks: Mapping[str, Mask]

    def __init__(self, masks: Mapping[str, Any]) -> None:
        if not isinstance(masks, Mapping) or not all(isinstance(name, str) for name in masks):
            raise FreezeArgumentError(
                f"Elements({shown(masks)}) needs a mapping from parameter names to masks, as in "
                f"Elements({{'conv1.weight': [True, False]}})."
            )
        packed = {name: Mask.of(mask) for name, mask in masks.items()}
        object.__setattr__(self, "masks", FrozenDict(packed))

    def choose(self, candidates: Candidates) -> Selection:
        _check_names(self.masks, candidates.names, "Elements")
        return Selection.of((), {name: _fitted(name, mask, candidates) for name, mask in self.masks.items()})


@dataclass(frozen=True, repr=False)
class TopScores(ElementPolicy):
    """The highest-scored part of what :func:`bundles.importance` scored: tensors, groups or units.

    The number taken is ``fraction`` of all scores, rounded to the nearest (halves up), and at least one;
    of equal scores the first in the model goes first. Units are ranked over all tensors together. What
    has no score is not selected.

    Attributes:
        scores: a ``Scores``, or a mapping from the names of parameters, or of layer groups, to numbers.
        fraction: above 0 and up to 1.
        smallest: take the lowest scores instead.

    Raises:
        FreezeArgumentError: an argument is none of these, or the scores are of another model.

    >>> TopScores({"0.weight": 3.0, "1.weight": 1.0}, 0.5)
    TopScores(<Scores given per tensor: 2 scores, sha256:1a39c5c78304>, 0.5)
    """

    scores: Scores | Mapping[str, float]
    fraction: float
    smallest: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.scores, Scores):
            object.__setattr__(self, "scores", Scores("given", "tensor", self.scores))
        in_range = not isinstance(self.fraction, bool) and isinstance(self.fraction, int | float)
        if not in_range or not 0 < self.fraction <= 1:
            raise FreezeArgumentError(
                f"fraction={shown(self.fraction)} is not above 0 and up to 1, as 0.5 is."
            )
        if not len(cast(Scores, self.scores)):
            raise FreezeArgumentError("TopScores needs at least one score, as bundles.importance gives.")

    def choose(self, candidates: Candidates) -> Selection:
        scores, groups = cast(Scores, self.scores), candidates.groups
        count = max(1, math.floor(self.fraction * len(scores) + 0.5))
        taken = scores.top(count, smallest=self.smallest)
        if scores.per == "group" or scores.values.keys() <= set(groups.names):
            _check_names(scores.values, groups.names, "TopScores", "layer group")
            names = {score.name for score in taken}
            return Selection.of((name for g in groups if g.name in names for name in g.parameters), {})
        _check_names(scores.values, candidates.names, "TopScores")
        if scores.per == "tensor":
            return Selection.of((score.name for score in taken), {})
        return Selection.of(
            (), {name: _fitted(name, mask, candidates) for name, mask in _rows(scores, taken)}
        )

    def __repr__(self) -> str:
        which = ", smallest=True" if self.smallest else ""
        return f"TopScores({self.scores!r}, {self.fraction!r}{which})"


def _rows(scores: Scores, taken: Iterable[Score]) -> Iterator[tuple[str, Mask]]:
    """The masks over dimension 0 of the tensors whose units were taken."""
    chosen: dict[str, set[int | None]] = {}
    for name, unit, _ in taken:
        chosen.setdefault(name, set()).add(unit)
    for name, units in chosen.items():
        count = len(cast(tuple[float, ...], scores.values[name]))
        yield name, Mask.of([index in units for index in range(count)])


def _fitted(name: str, mask: Mask, candidates: Candidates) -> Mask:
    try:
        return mask.spread(candidates.shapes.get(name, mask.shape))
    except FreezeArgumentError as error:
        raise FreezeArgumentError(f"{name}: {error}") from error


def _check_names(names: Iterable[str], known: Iterable[str], policy: str, what: str = "parameter") -> None:
    present = set(known)
    for name in names:
        if name not in present:
            raise FreezeArgumentError(
                f"{policy} names {name!r}, and the model has no {what} of that name: the nearest are "
                f"{', '.join(closest(name, present))}."
            )
