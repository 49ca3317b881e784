"""When to try again, and when to give up."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from bundles.errors import CacheError, OfflineError, SourceAccessError, SourceNotFoundError
from bundles.sources.options import Options

PERMANENT = (SourceNotFoundError, SourceAccessError, CacheError, OfflineError)
"""Errors that a second attempt would not change. Everything else may pass: foreign errors too, because
``httpx2.ReadError`` has no base in common with ``OSError``, and a list of what may pass has holes."""

_log = logging.getLogger("bundles")


class Patience:
    """Counts failures and waits between them, with full jitter, as :class:`Options` says.

    Args:
        options: of the download.
        progress: returns how much was ever there at once, and when it was last more than before.
    """

    def __init__(self, options: Options, progress: Callable[[], tuple[int, float]]) -> None:
        self._options, self._progress = options, progress
        self._best, self._since = progress()
        self._failures = self.attempts = 0

    def wait(self, error: Exception) -> None:
        """Wait before the next attempt, or raise the error of the last one."""
        options = self._options
        best, since = self._progress()
        if best > self._best:
            self._best, self._since, self._failures = best, since, 0
        self._failures += 1
        self.attempts += 1
        longest = min(options.longest_wait, options.first_wait * 2 ** (self._failures - 1))
        # Not the seeded generator: forked processes share its state, and would all come back at once.
        jitter = random.SystemRandom().uniform(0, longest)
        seconds = max(jitter, getattr(error, "retry_after", None) or 0)
        is_late = time.monotonic() + seconds > self._since + options.deadline
        if isinstance(error, PERMANENT) or self._failures >= options.attempts or is_late:
            raise error
        _log.info("Attempt %d failed (%s); the next one in %.1f s", self.attempts, error, seconds)
        time.sleep(seconds)
