"""How large batches were, and what they changed, of all shards in a folder: a manifest says it of its own."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from bundles.errors import CacheError
from bundles.sources.cache import place_text

_NAME = "batches.json"


class Measured:
    """The most items that shared a call, and the largest bound that was measured, kept beside the shards.

    A run that is killed leaves shards for the next, which may have other batches.

    Args:
        folder: of the store.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> Measured(folder).add(8, 1e-6)
    >>> again = Measured(folder)
    >>> again.add(1, 0.0)
    >>> again.batch_size, again.bound
    (8, 1e-06)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.batch_size, self.bound = _read(folder / _NAME)

    def add(self, batch_size: int, bound: float) -> None:
        """Take in those of a shard that was made."""
        self.put(max(self.batch_size, batch_size), max(self.bound, bound))

    def put(self, batch_size: int, bound: float) -> None:
        """Have these alone; a folder that cannot be written is left as it is."""
        if (batch_size, bound) != (self.batch_size, self.bound):
            self.batch_size, self.bound = batch_size, bound
            with contextlib.suppress(CacheError):
                place_text(_NAME, json.dumps([batch_size, bound]), self._folder)


def _read(path: Path) -> tuple[int, float]:
    """What was kept; of a file that is none of ours, nothing."""
    try:
        batch_size, bound = json.loads(path.read_text())
        return max(int(batch_size), 0), max(float(bound), 0.0)
    except (OSError, ValueError, TypeError):
        return 0, 0.0
