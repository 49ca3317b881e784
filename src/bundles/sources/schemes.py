"""The table of schemes: one small function each.

A scheme either locates a file that is on this machine already (``file:``, ``package:``), or downloads
one by writing its bytes to an open file. What happens to those bytes, from the temporary name to the
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
class Scheme:
    """How to get at a source; exactly one of the two is set."""

    locate: Callable[[WeightSource], Path] | None = None
    download: Callable[[WeightSource, BinaryIO], None] | None = None


SCHEMES: dict[str, Scheme] = {
    "file": Scheme(locate=locate_file),
    "package": Scheme(locate=locate_package_file),
}
