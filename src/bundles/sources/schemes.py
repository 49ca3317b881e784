"""The table of schemes: one small function each.

A local scheme finds a file that is on this machine already (``file:``, ``package:``), a remote one
writes the bytes of a download to an open file. What happens to those bytes, from the temporary name to the
digest check, is the same for every scheme and is not the scheme's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bundles.sources.file import locate_file
from bundles.sources.package import locate_package_file
from bundles.spec.source import WeightSource


@dataclass(frozen=True)
class Local:
    """A scheme whose files are used where they lie."""

    locate: Callable[[WeightSource], Path]


@dataclass(frozen=True)
class Remote:
    """A scheme whose files are put into the cache."""

    download: Callable[[WeightSource, BinaryIO], None]


SCHEMES: dict[str, Local | Remote] = {
    "file": Local(locate_file),
    "package": Local(locate_package_file),
}
