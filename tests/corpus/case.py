"""One case of the corpus: bytes, and what must come of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Case:
    """Bytes that somebody may give us.

    Attributes:
        id: row of the corpus and a letter: ``"S01a"``. No two cases have the same.
        note: what is wrong with it, in a few words.
        data: makes the bytes.
        outcome: ``"R"`` refused by ``error``, ``"W"`` accepted with the warning ``error``, ``"A"`` accepted.
        error: class of the error or warning; ``None`` where it is accepted.
        words: that its message must hold.
    """

    id: str
    note: str
    data: Callable[[], bytes]
    outcome: Literal["R", "W", "A"]
    error: type[Exception] | None = None
    words: str = ""

    def __str__(self) -> str:
        """Return the id, which pytest shows."""
        return self.id
