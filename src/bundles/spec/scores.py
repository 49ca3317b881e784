"""How important the parts of a model are: numbers by name, as a value that can be stored and compared."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from bundles.errors import FreezeArgumentError
from bundles.spec.values import FrozenDict, plain_value, shown

Per = Literal["tensor", "group", "unit"]


class Score(NamedTuple):
    """One entry of a :class:`Scores`: a name, the unit's index where there are units, and the score."""

    name: str
    unit: int | None
    value: float


@dataclass(frozen=True, repr=False)
class Scores:
    """What :func:`bundles.importance` measured: a finite number per tensor, per group or per unit.

    Attributes:
        method: how it was measured, as ``"rgn"``.
        per: what the names are and what a number is for: ``"tensor"`` (parameter name -> score),
            ``"group"`` (layer group -> score) or ``"unit"`` (parameter name -> a score for each index of
            its dimension 0, which are the outputs of a linear layer and the filters of a convolution).
        values: name -> score, or name -> tuple of scores.

    Raises:
        FreezeArgumentError: a score is not a finite number, or not what ``per`` says.

    >>> scores = Scores("rgn", "tensor", {"0.weight": 0.5, "0.bias": 0.25})
    >>> scores.top(1)
    (Score(name='0.weight', unit=None, value=0.5),)
    >>> Scores.from_json(scores.to_json()) == scores
    True
    """

    method: str
    per: Per
    values: Mapping[str, float | tuple[float, ...]]

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.per not in get_args(Per):
            raise FreezeArgumentError(
                f"Scores({shown(self.method)}, {shown(self.per)}) needs a method's name and one of "
                f"{get_args(Per)}, as in Scores('rgn', 'tensor', values)."
            )
        if not isinstance(self.values, Mapping):
            raise FreezeArgumentError(f"Scores of {shown(self.values)}: give a mapping from name to score.")
        read = _units if self.per == "unit" else _number
        values = {_text(name): read(value, name) for name, value in self.values.items()}
        object.__setattr__(self, "values", FrozenDict(values))

    def __len__(self) -> int:
        """The number of scores, each unit counted."""
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Score]:
        """Every score, in the order of the model."""
        for name, value in self.values.items():
            if isinstance(value, tuple):
                yield from (Score(name, unit, each) for unit, each in enumerate(value))
            else:
                yield Score(name, None, value)

    def ranked(self, *, smallest: bool = False) -> tuple[Score, ...]:
        """Return every score, the highest first, or the lowest; equal ones in the order of the model."""
        sign = 1 if smallest else -1
        return tuple(sorted(self, key=lambda score: sign * score.value))

    def top(self, n: int, *, smallest: bool = False) -> tuple[Score, ...]:
        """Return the ``n`` highest scores, or the lowest."""
        return self.ranked(smallest=smallest)[:n]

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits over method, kind, names and scores; the order does not count."""
        content = {"method": self.method, "per": self.per, "values": plain_value(self.values)}
        return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the scores as JSON text, every digit kept."""
        content = {"method": self.method, "per": self.per, "values": plain_value(self.values)}
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """Read what :meth:`to_json` wrote.

        Raises:
            FreezeArgumentError: the text is something else.
        """
        try:
            data = json.loads(text)
            if data.keys() == {"method", "per", "values"}:
                return cls(**data)
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise FreezeArgumentError(f"The text is not scores written by to_json(): {error}") from error
        raise FreezeArgumentError(
            f"The text is not scores written by to_json(): its keys are {shown(list(data))}, expected are "
            f"method, per and values."
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores to a JSON file, whole or not at all."""
        target = Path(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.to_json() + "\n")
            os.replace(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read a file that :meth:`save` wrote.

        Raises:
            FreezeArgumentError: the file holds something else.
            FileNotFoundError: it is not there.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise FreezeArgumentError(
                f"{os.fspath(path)} does not hold scores; write such a file with "
                f"bundles.importance(model, data).save(path): {error}"
            ) from error

    def __repr__(self) -> str:
        return f"<Scores {self.method} per {self.per}: {len(self)} scores, {self.digest[:19]}>"

    def __str__(self) -> str:
        """A table of the highest scores."""
        best = self.top(12)
        labels = [name if unit is None else f"{name}[{unit}]" for name, unit, _ in best]
        width = max(map(len, labels), default=0)
        lines = (f"{label:{width}}  {score.value:.4g}" for label, score in zip(labels, best, strict=True))
        rest = [f"and {more} more"] if (more := len(self) - len(best)) else []
        return "\n".join([f"{self.method} per {self.per}, highest of {len(self)}", *lines, *rest])


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise FreezeArgumentError(f"A score is given to {shown(name)}, which is no name.")
    return name


def _plain(value: Any) -> Any:
    """The value as Python's own, where it is a tensor's or an array's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _number(value: Any, name: str) -> float:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FreezeArgumentError(f"The score of {name!r} is {shown(value)}, expected is a finite number.")
    return float(value)


def _units(value: Any, name: str) -> tuple[float, ...]:
    value = _plain(value)
    if not isinstance(value, list | tuple):
        raise FreezeArgumentError(
            f"The scores of {name!r} are {shown(value)}, expected is a list with a number for each unit."
        )
    return tuple(_number(each, name) for each in value)
