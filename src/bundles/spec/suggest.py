"""Find what a misspelt name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def closest(name: str, choices: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """Return the ``count`` choices nearest to ``name``, best first, separators and case ignored.

    >>> closest("hubert-base", ["WAV2VEC2_BASE", "HUBERT_BASE", "CREPE_TINY"], count=1)
    ('HUBERT_BASE',)
    """
    import difflib

    wanted = _bare(name)

    def likeness(choice: str) -> float:
        return difflib.SequenceMatcher(None, wanted, _bare(choice)).ratio()

    return tuple(sorted(choices, key=lambda choice: (-likeness(choice), choice))[:count])


def accepted(name: str, choices: Iterable[str]) -> str:
    """Return every choice as one quoted list, the closest to ``name`` first."""
    ordered = closest(name, choices, count=1000)
    return ", ".join(repr(choice) for choice in ordered)


def _bare(name: str) -> str:
    return "".join(letter for letter in name[:200].lower() if letter.isalnum())
