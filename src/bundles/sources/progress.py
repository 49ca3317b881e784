"""Tell people how a download goes: a bar on a terminal, one line in the log elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from bundles.display import safe

Tell = Callable[[int, int | None], None]

enabled = True
"""A program that wants neither bars nor lines, whoever downloads, sets this to ``False``."""

_log = logging.getLogger("bundles")


@contextlib.contextmanager
def telling(name: str, host: str, *, show: bool) -> Iterator[Tell]:
    """Yield what is to be called with the bytes that are there and the size, if it is known.

    Args:
        name: of the file.
        host: where it comes from.
        show: whether anything is told.
    """
    name = safe(name, limit=60)
    if not (show and enabled):
        yield lambda there, total: None
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar(name) as tell:
            yield tell
    else:
        yield _line(name, host)


def readable(size: int) -> str:
    """Return a number of bytes for people.

    >>> readable(999), readable(377_664_473), readable(10**13)
    ('999 bytes', '378 MB', '10.0 TB')
    """
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 0 if unit == "bytes" or value >= 99.5 else 1
    return f"{value:.{digits}f} {unit}"


def _line(name: str, host: str) -> Tell:
    told = False

    def tell(there: int, total: int | None) -> None:
        nonlocal told
        if not told:
            told = True
            _log.info("Downloading %s (%s) from %s", name, _size(total), host)

    return tell


def _size(total: int | None) -> str:
    return "size unknown" if total is None else readable(total)


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda there, total: progress.update(task, completed=there, total=total)
