"""The digest of a file while it is still being written."""

from __future__ import annotations

import hashlib
import threading
from types import TracebackType
from typing import Self

from bundles.errors import CacheError
from bundles.sources.options import MIB
from bundles.sources.web.partial import Partial


class Hasher:
    """Hashes a partial file from its start, in a thread, as far as it is there without a gap.

    It reads back what was written, so the digest is that of the file and not of what the network gave;
    and the hashing is done a moment after the last byte came, whatever order the bytes came in.
    """

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._generation = partial.generation
        self._position = 0
        self._digest = hashlib.sha256()
        self._error: Exception | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="bundles-sha256", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._partial.changed:
            self._is_stopped = True
            self._partial.changed.notify_all()
        self._thread.join()

    def result(self) -> str:
        """Wait until the file, which must be complete, is hashed; return 64 hex digits.

        Raises:
            CacheError: it cannot be read back.
        """
        with self._partial.changed:
            self._partial.changed.wait_for(lambda: self._is_finished() or self._error is not None)
            if self._error is not None:
                raise CacheError(
                    f"What was written to {self._partial.data} cannot be read back ({self._error}): set "
                    f"BUNDLES_CACHE to a folder on another disk."
                ) from self._error
            return self._digest.hexdigest()

    def _is_finished(self) -> bool:
        partial = self._partial
        return self._generation == partial.generation and self._position == partial.version.total

    def _run(self) -> None:
        buffer = memoryview(bytearray(MIB))
        try:
            with self._partial.data.open("rb", buffering=0) as file:
                while (span := self._wait()) is not None:
                    file.seek(span[0])
                    size = file.readinto(buffer[: span[1] - span[0]])
                    self._digest.update(buffer[:size])
                    self._advance(size)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            with self._partial.changed:
                self._error = error
                self._partial.changed.notify_all()

    def _wait(self) -> tuple[int, int] | None:
        """Return the next positions to hash, once they are there, or ``None`` when nobody wants them."""
        partial = self._partial
        with partial.changed:
            while True:
                if self._is_stopped:
                    return None
                if self._generation != partial.generation:
                    self._generation, self._position, self._digest = partial.generation, 0, hashlib.sha256()
                    partial.changed.notify_all()
                if (prefix := partial.ranges.prefix) > self._position:
                    return self._position, min(prefix, self._position + MIB)
                partial.changed.wait()

    def _advance(self, size: int) -> None:
        partial = self._partial
        with partial.changed:
            if self._generation != partial.generation:
                return  # the file was started over, and what was read may be half of this, half of that
            if not size:
                raise OSError(f"{partial.data} became shorter while it was read")
            self._position += size
            if self._is_finished():
                partial.changed.notify_all()
