"""What killed processes left half done: taken up where that is safe, removed where nobody can be at it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bundles.sources.options import MIB
from bundles.sources.web.partial import Partial, Version, last_written, machine
from bundles.sources.web.ranges import Ranges
from bundles.spec.source import WeightSource


@dataclass(frozen=True)
class Leftover:
    """A partial download that somebody else began."""

    folder: Path
    version: Version
    ranges: Ranges
    machine: str
    idle: float


def take_up(partial: Partial, source: WeightSource) -> None:
    """Copy the most complete leftover of the same source into a new partial, and remove them all.

    The lock of the source must be held. It says that no owner on this machine is alive; one on another
    machine, where the lock may mean nothing, is believed dead when it has been idle for long.

    Args:
        partial: a new one.
        source: what is wanted. Where no digest will tell if the copy is right, only what was written
            since this machine was started is trusted: a power cut loses pages that were noted as
            written, and nobody would see it.
    """
    found = [left for left in _leftovers(partial, partial.key) if _is_dead(left, partial)]
    fit = [left for left in found if _is_fit(left, source)]
    best = max(fit, key=lambda left: len(left.ranges), default=None)
    if best is not None and len(best.ranges) and _has_room(partial, best):
        partial.begin(best.version)
        _copy(best, partial)
    for left in found:
        shutil.rmtree(left.folder, ignore_errors=True)


def sweep(partial: Partial) -> None:
    """Remove what nobody has touched for long, of any source."""
    for left in _leftovers(partial, ""):
        if left.idle > partial.options.stale_after:
            shutil.rmtree(left.folder, ignore_errors=True)


def _leftovers(partial: Partial, key: str) -> Iterator[Leftover]:
    for folder in sorted(partial.folder.parent.glob(f"{key}*")):
        if folder != partial.folder and folder.is_dir():
            yield _read(folder)


def _read(folder: Path) -> Leftover:
    owner = [*folder.name.split("."), ""][1]
    idle = time.time() - last_written(folder)
    return Leftover(folder, _read_version(folder), _read_notes(folder), owner, idle)


def _read_version(folder: Path) -> Version:
    """Return which version was begun; one that makes no sense cannot be continued."""
    try:
        found = Version(**json.loads((folder / "version.json").read_text()))
    except (OSError, ValueError, TypeError):
        return Version()
    is_sound = type(found.total) is int and isinstance(found.tag, str | None) and found.ranged is True
    return found if is_sound else Version()


def _read_notes(folder: Path) -> Ranges:
    """Return what is noted as written; notes that make no sense are as good as none."""
    try:
        size = (folder / "data").stat().st_size
        # What follows the last line break was being written when the process died.
        lines = (folder / "done").read_text().rpartition("\n")[0].splitlines()
        intervals = [(int(start), int(stop)) for start, stop in (line.split() for line in lines)]
    except (OSError, ValueError):
        return Ranges()
    is_sound = all(0 <= start <= stop <= size for start, stop in intervals)
    return Ranges(intervals if is_sound else ())


def _is_dead(left: Leftover, partial: Partial) -> bool:
    return left.machine == machine() or left.idle > 2 * partial.options.deadline


def _is_fit(left: Leftover, source: WeightSource) -> bool:
    is_of_this_boot = left.machine == machine() and not left.machine.startswith("host-")
    is_trusted = source.sha256 is not None or is_of_this_boot
    return left.version.ranged and is_trusted and source.size in (None, left.version.total)


def _has_room(partial: Partial, left: Leftover) -> bool:
    return (left.version.total or 0) <= shutil.disk_usage(partial.folder).free


def _copy(left: Leftover, partial: Partial) -> None:
    with (left.folder / "data").open("rb") as file:
        for start, stop in left.ranges:
            file.seek(start)
            with partial.writer(start) as write:
                while (start := start + len(chunk := file.read(min(MIB, stop - start)))) <= stop and chunk:
                    write(chunk)
