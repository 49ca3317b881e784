"""Which identity a file had: kept beside a store, so that asking again need not decode every file."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from bundles.errors import CacheError
from bundles.features.inputs.source import Stamp
from bundles.sources.cache import place_text

_OFTEN = 10.0  # seconds
_SETTLED_NS = 2_000_000_000  # a file changed again within a timestamp's grain looks unchanged
_NAME = "stamps.json"


class Stamps:
    """Identities of files that have not changed since, by path, size, and times of the last write and change.

    They are saved at the end of a ``with`` block, too, however it ends.

    Args:
        folder: of the store, whose facts hold for them all.

    >>> import tempfile
    >>> stamps = Stamps(tempfile.mkdtemp())
    >>> stamps.note(("/data/a.wav", 44, 0, 0), bytes(32))
    >>> stamps.save()
    >>> Stamps(stamps.folder).identity(("/data/a.wav", 44, 0, 0)) == bytes(32)
    True
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._known = _read(self.folder / _NAME)
        self._is_new = False
        self._next = time.monotonic() + _OFTEN

    def __enter__(self) -> Stamps:
        return self

    def __exit__(self, *error: object) -> None:
        self.save()

    def identity(self, stamp: Stamp | None) -> bytes | None:
        """Return the identity of a file that looks as it did, ``None`` if it has to be read."""
        if stamp is None or (found := self._known.get(stamp[0])) is None:
            return None
        return bytes.fromhex(str(found[-1])) if found[:-1] == list(stamp[1:]) else None

    def note(self, stamp: Stamp | None, identity: bytes) -> None:
        """Note an identity under the stamp that was taken before the file was read.

        A file that was written in the last two seconds is not noted: another write might leave its stamp.
        """
        if stamp is not None and time.time_ns() - stamp[2] > _SETTLED_NS:
            self._known[stamp[0]] = [*stamp[1:], identity.hex()]
            self._is_new = True

    def save(self) -> None:
        """Write them, atomically; a folder that cannot be written is left as it is."""
        if self._is_new:
            start = time.monotonic()
            with contextlib.suppress(CacheError):
                place_text(_NAME, json.dumps(self._known, separators=(",", ":")), self.folder)
            self._is_new = False
            end = time.monotonic()
            self._next = end + max(_OFTEN, 50 * (end - start))

    def save_at_times(self) -> None:
        """Write them every ten seconds, or less often where there are so many that it takes long."""
        if time.monotonic() >= self._next:
            self.save()


def _read(path: Path) -> dict[str, list[int | str]]:
    """What was saved; of a file that is none of ours, nothing."""
    try:
        found = json.loads(path.read_text())
        return {key: entry for key, entry in found.items() if _is_sound(entry)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _is_sound(entry: object) -> bool:
    if not isinstance(entry, list) or list(map(type, entry)) != [int, int, int, str] or len(entry[3]) != 64:
        return False
    return all(digit in "0123456789abcdef" for digit in entry[3])
