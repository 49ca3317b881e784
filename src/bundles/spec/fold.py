"""Lists of dotted names in few lines: one line for the same tensor of every block."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

_NUMBER = re.compile(r"(?<=\.)\d{1,6}(?=\.)|^\d{1,6}(?=\.)")
_RANGES = re.compile(r"\{(\d{1,6}(?:-\d{1,6})?(?:,\d{1,6}(?:-\d{1,6})?)*)\}")
_MOST = 200_000  # names; what somebody else wrote must not fill the memory


def fold(names: Iterable[str]) -> tuple[str, ...]:
    """Return names with the first number in each as ranges, sorted.

    >>> fold(["layers.0.weight", "layers.1.weight", "layers.3.weight", "head.bias"])
    ('head.bias', 'layers.{0-1,3}.weight')
    """
    lines: list[str] = []
    numbers: dict[tuple[str, str], set[int]] = {}
    for name in set(names):
        match = _NUMBER.search(name)
        if match is None or "{" in name or str(int(match[0])) != match[0]:
            lines.append(name)
        else:
            numbers.setdefault((name[: match.start()], name[match.end() :]), set()).add(int(match[0]))
    lines += (f"{start}{{{_ranges(found)}}}{end}" for (start, end), found in numbers.items())
    return tuple(sorted(lines))


def unfold(lines: Iterable[str]) -> frozenset[str]:
    """Return the names that :func:`fold` made lines of, the first 200,000 of them.

    >>> sorted(unfold(["head.bias", "layers.{0-1,3}.weight"]))
    ['head.bias', 'layers.0.weight', 'layers.1.weight', 'layers.3.weight']
    """
    return frozenset(islice((name for line in lines for name in _unfold(line)), _MOST))


def _unfold(line: str) -> Iterator[str]:
    match = _RANGES.search(line)
    if match is None:
        yield line
        return
    for part in match[1].split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield f"{line[: match.start()]}{number}{line[match.end() :]}"


def _ranges(numbers: set[int]) -> str:
    """``{0, 1, 2, 5}`` as ``0-2,5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
