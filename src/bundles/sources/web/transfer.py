"""Bring the bytes of a URL into a partial file: over one connection or several, and again after failures."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bundles.errors import CacheError, ChecksumError, DownloadError, SourceAccessError, SourceNotFoundError
from bundles.sources.patience import PERMANENT, Patience
from bundles.sources.progress import readable
from bundles.sources.records import Known
from bundles.sources.verify import mismatch, sha256_of
from bundles.sources.web.answers import Answer, OtherVersionError, UnusableRangesError, read_answer
from bundles.sources.web.http import body, open_client
from bundles.sources.web.partial import Partial, Version
from bundles.sources.web.runs import Run, Runs
from bundles.spec.sniff import describe_file
from bundles.spec.source import hidden

if TYPE_CHECKING:
    import httpx2


class Transfer:
    """Brings the bytes of one URL into a partial file.

    The first request of a round asks for a small part of what is missing. Its answer says how large the
    file is, which version it is, whether parts can be asked for, and by its speed whether more
    connections would help. Then one connection or several fetch the rest. When all have ended and
    something is still missing, the next round asks for that, after a wait.

    Args:
        url: that is asked.
        known: what is known of the bytes.
        partial: where they go.
    """

    def __init__(self, url: str, known: Known, partial: Partial) -> None:
        self.url, self.known, self.partial = url, known, partial
        is_mirror = f"url:{url}" != known.source.uri
        self.name = f"{hidden(url)} (in place of {known.source.shown})" if is_mirror else hidden(url)
        self._options = partial.options
        self._runs = Runs(partial)
        self._uses_ranges = True
        self._changes = 0
        self._is_stopped = threading.Event()
        self._lock = threading.Lock()
        self._streams: set[Any] = set()

    def run(self) -> None:
        """Return when the partial file is complete.

        Raises:
            SourceNotFoundError, SourceAccessError, CacheError: it never will be.
            ChecksumError: the server has a file of another size.
            DownloadError: it was tried often enough, or for long enough.
        """
        self.partial.count()
        patience = Patience(self._options, lambda: (self.partial.best, self.partial.best_at))
        with open_client(self.url, self._options) as client:
            while not self.partial.is_complete:
                try:
                    self._round(client)
                except Exception as error:  # noqa: BLE001 - see PERMANENT
                    self._forget(error)
                    self._wait(patience, error)

    def start_over(self) -> None:
        """Forget what is there, and from now on ask for the whole file at once."""
        self._uses_ranges = False
        self.partial.reset()

    def _forget(self, error: Exception) -> None:
        """Forget what cannot be continued."""
        is_other = isinstance(error, OtherVersionError)
        self._changes += is_other
        if isinstance(error, UnusableRangesError) or self._changes > 1:
            # What changes twice does not change: two servers behind one name call it differently.
            self._uses_ranges = False
        if is_other or not self.partial.version.ranged:
            self.partial.reset()

    def _wait(self, patience: Patience, error: Exception) -> None:
        try:
            patience.wait(error)
        except (*PERMANENT, ChecksumError):
            raise
        except Exception as last:
            told = str(last) if isinstance(last, DownloadError) else f"{type(last).__name__}: {last}"
            raise DownloadError(
                f"{self.name} cannot be downloaded (attempt {patience.attempts}: {told}): try again, or "
                f"name another server in BUNDLES_MIRROR."
            ) from last

    # --- a round: the opening, then the rest ------------------------------------------------------

    def _round(self, client: httpx2.Client) -> None:
        self._is_stopped.clear()
        start, stop = next(self.partial.ranges.gaps(self.partial.version.total or self._options.opening))
        opening = start, min(stop, start + self._options.opening)
        with self._ask(client, self.url, opening) as (answer, response):
            self._agree(answer, response)
            rate = self._receive(answer, response)
        if not self.partial.is_complete:
            self._fetch_rest(client, str(response.url), rate)
        self._refuse_page()

    def _agree(self, answer: Answer, response: httpx2.Response) -> None:
        """Refuse what cannot be the file; begin anew where the whole of it is coming."""
        source, version, partial = self.known.source, answer.version, self.partial
        if source.size is not None and version.total not in (None, source.size):
            expected, found = f"{source.size} bytes", f"{version.total} bytes"
            raise mismatch(None, self.known, expected, found, origin=self.name)
        if source.sha256 is None:
            _refuse_unclear(answer, response)
            if version.tag is None:  # nothing would notice that the parts are of different versions
                version = replace(version, ranged=False)
        if not version.ranged and not answer.is_whole:
            raise UnusableRangesError("it sends parts of the file without an ETag")
        if not version.ranged or not len(partial.ranges):
            partial.begin(version)
        elif not self._is_same(version):
            raise OtherVersionError("the file changed while it was sent")

    def _fetch_rest(self, client: httpx2.Client, url: str, rate: float) -> None:
        options, total = self._options, self.partial.version.total or 0
        if total < options.parallel_from or rate > options.parallel_below or options.connections < 2:
            self._work(client, url, connections=1)
            return
        count = options.connections
        with ThreadPoolExecutor(count, thread_name_prefix="bundles-download") as pool:
            futures = [pool.submit(self._work, client, url, connections=count) for _ in range(count)]
            try:
                wait(futures)
            finally:
                self._stop()  # an interrupt does not wait for the network
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors and not self.partial.is_complete:
            raise max(errors, key=lambda error: isinstance(error, CacheError | OtherVersionError))

    def _work(self, client: httpx2.Client, url: str, connections: int) -> None:
        """Fetch run after run until nothing is missing that nobody else is at."""
        while not self._is_stopped.is_set():
            with self._runs.claim(connections) as run:
                if run is None:
                    return
                try:
                    self._fetch_run(client, url, run)
                except (CacheError, OtherVersionError):
                    self._is_stopped.set()
                    raise

    def _fetch_run(self, client: httpx2.Client, url: str, run: Run) -> None:
        try:
            with self._ask(client, url, run) as (answer, response):
                if not answer.version.ranged or not self._is_same(answer.version):
                    raise OtherVersionError("the file changed while it was sent")
                self._receive(answer, response)
        except (SourceNotFoundError, SourceAccessError) as error:
            # Said of the place that a redirect led to, which may be good for a minute only; the next
            # round asks the address itself again.
            raise DownloadError(str(error)) from error

    def _stop(self) -> None:
        """End what other threads are waiting for."""
        self._is_stopped.set()
        with self._lock:
            for stream in self._streams:
                with contextlib.suppress(OSError):
                    stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def _refuse_page(self) -> None:
        """Start over when a page for people came in place of the file."""
        data = self.partial.data
        if describe_file(data) == "an HTML page" and sha256_of(data) != self.known.source.sha256:
            self.partial.reset()
            raise DownloadError("it sends an HTML page")

    # --- one request ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _ask(self, client: httpx2.Client, url: str, run: Run) -> Iterator[tuple[Answer, httpx2.Response]]:
        asked = run if self._uses_ranges else None
        headers = {} if asked is None else {"Range": f"bytes={run[0]}-{run[1] - 1}"}
        if asked is not None and self.partial.version.tag is not None:
            headers["If-Range"] = self.partial.version.tag
        with client.stream("GET", url, headers=headers) as response, self._abortable(response):
            yield read_answer(response.status_code, response.headers, asked, self.name), response

    @contextlib.contextmanager
    def _abortable(self, response: httpx2.Response) -> Iterator[None]:
        stream = response.extensions["network_stream"]
        with self._lock:
            self._streams.add(stream)
        try:
            yield
        finally:
            with self._lock:
                self._streams.discard(stream)

    def _is_same(self, version: Version) -> bool:
        mine = self.partial.version
        return version.total == mine.total and (version.tag == mine.tag or None in (version.tag, mine.tag))

    def _receive(self, answer: Answer, response: httpx2.Response) -> float:
        """Write the body of an answer to its place and return its bytes per second."""
        options, size = self._options, self.known.source.size
        at = mark = answer.start
        stop = size if answer.length is None else at + answer.length
        began = since = time.monotonic()
        with self.partial.writer(at) as write:
            for chunk in body(response, direct=(answer.length or 0) >= options.direct_from):
                at, now = at + len(chunk), time.monotonic()
                if stop is not None and at > stop:
                    raise DownloadError(
                        f"it sends more than the {stop - answer.start} bytes that were to come"
                    )
                write(chunk)
                if at - mark >= options.block:
                    mark, since = at, now
                elif now - since > options.deadline:
                    rate = f"{readable(options.block)} in {now - since:.0f} s"
                    raise DownloadError(f"it sends less than {rate}")
                if self._is_stopped.is_set():
                    raise DownloadError("it was stopped")
        if stop is not None and at < stop:
            raise DownloadError(f"it stops {stop - at} bytes early")
        if answer.length is None:
            self.partial.end(at)
        return (at - answer.start) / max(time.monotonic() - began, 1e-6)


def _refuse_unclear(answer: Answer, response: httpx2.Response) -> None:
    """Refuse answers that may not be the file, where no digest would tell."""
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise DownloadError("it answers with an HTML page")
    if not answer.is_framed:
        raise DownloadError(
            "it does not say how long the file is, so that a broken connection looks like its end; with a "
            "sha256 in the source it would not"
        )
    if answer.version.total == 0:
        raise DownloadError("it sends an empty file")
