"""Which part of a file each connection fetches next."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from bundles.sources.web.partial import Partial
from bundles.sources.web.ranges import Ranges

Run = tuple[int, int]


class Runs:
    """Hands out what is missing of a partial file, so that no two connections fetch the same bytes.

    Runs are given from the start of the file on, so that the hash can follow: long ones while there is
    much to do, short ones towards the end, so that all connections finish together.
    """

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._lock = threading.Lock()
        self._claimed: list[Run] = []

    @contextlib.contextmanager
    def claim(self, connections: int) -> Iterator[Run | None]:
        """Yield a run that is missing and that nobody else is at, or ``None``.

        Args:
            connections: how many share the work; one alone gets as much as there is in one piece.
        """
        with self._lock:
            run = self._next(connections)
            if run is not None:
                self._claimed.append(run)
        try:
            yield run
        finally:
            if run is not None:
                with self._lock:
                    self._claimed.remove(run)

    def _next(self, connections: int) -> Run | None:
        options, total = self._partial.options, self._partial.version.total or 0
        with self._partial.changed:
            taken = Ranges([*self._partial.ranges, *self._claimed])
        if (gap := next(taken.gaps(total), None)) is None or connections == 1:
            return gap
        share = (total - len(taken)) // (2 * connections)
        longest = max(options.shortest_run, min(options.longest_run, share))
        return gap[0], min(gap[1], gap[0] + longest)
