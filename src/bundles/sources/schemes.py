"""The table of schemes: one small function each.

A local scheme finds a file that is on this machine already (``file:``, ``package:``), a remote one brings
it into the cache (``url:``). What is the same for all of them is ``fetch``'s business: digests, caches,
locks, and whether the network may be used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundles.sources.file import locate_file
from bundles.sources.options import Order
from bundles.sources.package import locate_package_file
from bundles.spec.source import WeightSource


@dataclass(frozen=True)
class Local:
    """A scheme whose files are used where they lie."""

    locate: Callable[[WeightSource], Path]


@dataclass(frozen=True)
class Remote:
    """A scheme whose files are put into the cache, at ``files/<sha256>``, when they are right."""

    download: Callable[[Order], Path]


def _download_url(order: Order) -> Path:
    from bundles.sources.url import download  # threads, and what else only a download needs

    return download(order)


SCHEMES: dict[str, Local | Remote] = {
    "file": Local(locate_file),
    "package": Local(locate_package_file),
    "url": Remote(_download_url),
}
