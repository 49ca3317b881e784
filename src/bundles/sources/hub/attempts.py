"""Ask for something again and again, within a time: what the hub client does not do by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from bundles.errors import BundlesError, ChecksumError, DownloadError
from bundles.sources.options import Options
from bundles.sources.patience import PERMANENT, Patience

T = TypeVar("T")
_POLL = 0.25


class Attempts:
    """The attempts at one file or listing, with one deadline for all of them.

    Args:
        what: is asked for, for messages.
        options: of the download; at most four attempts are made.
        seconds: after which it is given up, waits included.
    """

    def __init__(self, what: str, options: Options, seconds: float) -> None:
        self._what = what
        self._options = replace(options, attempts=min(4, options.attempts))
        self.allow(seconds, lambda: 0)
        self.stopped = threading.Event()

    def allow(self, seconds: float, sign: Callable[[], int]) -> None:
        """Allow so many seconds from now on, and again after each progress.

        Args:
            seconds: after which it is given up.
            sign: returns a number that is another one after progress.
        """
        self._options, self._sign = replace(self._options, deadline=seconds), sign
        self._seen, self._since = sign(), time.monotonic()

    def run(self, call: Callable[[], T]) -> T:
        """Return what the call returns, at one attempt or another.

        A call that shows no progress is given up while it is still waiting: it goes on in a thread that
        nobody waits for, and finds :attr:`stopped` set when it comes back.

        Raises:
            SourceNotFoundError, SourceAccessError, CacheError, OfflineError: at once, as the call does.
            ChecksumError: as the call does.
            DownloadError: it failed each time, or takes too long.
        """
        patience = Patience(self._options, lambda: (0, self._since))
        while True:
            try:
                return self._within(call)
            except ChecksumError:
                raise
            except Exception as error:  # noqa: BLE001 - see PERMANENT
                try:
                    patience.wait(error)
                except PERMANENT:
                    raise
                except Exception as last:
                    raise self._refusal(last, patience.attempts) from last

    def _within(self, call: Callable[[], T]) -> T:
        """Run the call in a thread: the client can be told how long to wait for a byte, not in all."""
        result: list[T] = []
        failure: list[BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                result.append(call())
            except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
                failure.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=work, name="bundles-hub", daemon=True)
        thread.start()
        try:
            self._watch(done)
        except BaseException:
            self.stopped.set()
            raise
        if failure:
            raise failure[0]
        return result[0]

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(min(_POLL, self._options.deadline)):
            if (now := self._sign()) != self._seen:
                self._seen, self._since = now, time.monotonic()
            if time.monotonic() - self._since > self._options.deadline:
                raise DownloadError(f"no end after {self._options.deadline:.0f} s")

    def _refusal(self, error: Exception, attempts: int) -> DownloadError:
        told = str(error) if isinstance(error, BundlesError) else f"{type(error).__name__}: {error}"
        return DownloadError(f"{self._what} cannot be had (attempt {attempts}: {told}): try again later.")
