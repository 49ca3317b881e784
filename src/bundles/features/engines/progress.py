"""Tell people how an extraction goes: a bar on a terminal, one line in the log elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from bundles.display import safe
from bundles.sources import progress as downloads

_log = logging.getLogger("bundles")


@contextlib.contextmanager
def telling(name: str, count: int | None, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Yield what is to be called with the number of items that are done since it was called last.

    Args:
        name: of the model.
        count: of the dataset's items; ``None`` of a stream.
        show: whether anything is told.
    """
    if not (show and downloads.enabled):
        yield lambda items: None
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar(safe(name, limit=60), count) as tell:
            yield tell
    else:
        _log.info("Extracting features of %s from %s items", name, "many" if count is None else count)
        yield lambda items: None


@contextlib.contextmanager
def _bar(name: str, count: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=count)
        yield lambda items: progress.advance(task, items)
