"""The policy that is chosen by memory: train as much as fits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from bundles.errors import FreezeArgumentError
from bundles.spec.policy import Candidates, FreezePolicy

_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?(MB|GB|MiB|GiB)")
_INPUT = re.compile(r"(\d+)(?:x(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True, repr=False)
class Fit(FreezePolicy):
    """Freeze as little as a training step with AdamW can afford within so much memory.

    ``get_model``, ``plan`` and ``predict`` of a bundle turn it into ``Nothing()``, ``ExceptLast(n)`` with
    the largest ``n`` that fits, or ``Encoder()``, before anything is downloaded; the plan names that one.
    What is predicted has to fit with 15 % to spare, for what an allocator holds back; the interpreter and
    its libraries are not counted.

    Args:
        memory: as ``"8GB"``, ``"7.5GiB"``, ``"900MB"``.
        batch: items of a training step; 8 without it, or what the bundle's card says of models that do
            not take waveforms.
        seconds: length of each waveform; 10 without it.

    Raises:
        FreezeArgumentError: ``memory`` is no such text, or a number is not positive.

    >>> Fit.parse("8GB:16x5s")
    Fit('8GB', 16, 5.0)
    """

    unsettled: ClassVar[bool] = True

    memory: str
    batch: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        is_known = isinstance(self.memory, str) and _MEMORY.fullmatch(self.memory)
        counts = [count for count in (self.batch, self.seconds) if count is not None]
        if not is_known or min(self.bytes, *counts, 1) <= 0:
            raise FreezeArgumentError(
                f"{self!r} needs an amount of memory in {', '.join(_UNITS)} and a batch above zero, as in "
                f"Fit('8GB') or Fit('8GB', batch=16, seconds=10)."
            )

    @classmethod
    def parse(cls, text: str) -> Fit:
        """Return what ``"8GB"`` or ``"8GB:16x10s"`` stands for, the part after ``fit:`` of a policy string.

        Raises:
            FreezeArgumentError: the text is neither.
        """
        memory, _, size = text.partition(":")
        found = _INPUT.fullmatch(size)
        if size and not found:
            raise FreezeArgumentError(
                f"'fit:{text}' does not end in a batch size: write 'fit:8GB:16' or 'fit:8GB:16x10s'."
            )
        batch, seconds = found.groups() if found else (None, None)
        return cls(memory, int(batch) if batch else None, float(seconds) if seconds else None)

    @property
    def bytes(self) -> int:
        """The memory in bytes."""
        number, unit = _MEMORY.fullmatch(self.memory).groups()  # type: ignore[union-attr]
        return int(float(number) * _UNITS[unit])

    def select(self, candidates: Candidates) -> frozenset[str]:
        """Refuse: names alone do not say what fits.

        Raises:
            FreezeArgumentError: always.
        """
        raise FreezeArgumentError(
            f"{self!r} asks what a step would take, which only get_model(freeze=...), plan(freeze=...) and "
            f"predict of a bundle work out, and only where it stands alone: freeze this one by 'last:N'."
        )
