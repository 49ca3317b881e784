"""Which bytes of a file are there already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Ranges:
    """A set of byte positions, kept as half-open intervals: sorted, apart, none empty.

    >>> there = Ranges([(0, 4), (8, 10)])
    >>> there.add(4, 6)
    >>> list(there), there.prefix, len(there), list(there.gaps(12))
    ([(0, 6), (8, 10)], 6, 8, [(6, 8), (10, 12)])
    """

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._intervals: list[tuple[int, int]] = []
        for start, stop in intervals:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Add an interval; what touches or overlaps becomes one."""
        if start >= stop:
            return
        apart = []
        for first, last in self._intervals:
            if last < start or stop < first:
                apart.append((first, last))
            else:
                start, stop = min(start, first), max(stop, last)
        self._intervals = sorted([*apart, (start, stop)])

    @property
    def prefix(self) -> int:
        """How much is there from the first byte on without a gap."""
        return self._intervals[0][1] if self._intervals and self._intervals[0][0] == 0 else 0

    def gaps(self, total: int) -> Iterator[tuple[int, int]]:
        """Yield what is not there of a file of that size, in order."""
        at = 0
        for start, stop in self._intervals:
            if at < min(start, total):
                yield at, min(start, total)
            at = stop
        if at < total:
            yield at, total

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._intervals)

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self._intervals)
