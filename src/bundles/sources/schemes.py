"""The table of schemes: one small function each.

A local scheme finds a file that is on this machine already (``file:``, ``package:``), a remote one brings
it here (``url:`` into our cache, ``hf:`` into the hub client's). What is the same for all of them is
``fetch``'s business: digests, caches, locks, and whether the network may be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bundles.sources.file import locate_file
from bundles.sources.hub.cache import check_hub_file, hub_places, is_moving
from bundles.sources.options import Order
from bundles.sources.package import locate_package_file
from bundles.sources.records import Known
from bundles.sources.torch_hub import hub_files
from bundles.sources.verify import Verify, check_file
from bundles.spec.source import WeightSource


@dataclass(frozen=True)
class Local:
    """A scheme whose files are used where they lie."""

    locate: Callable[[WeightSource], Path]


@dataclass(frozen=True)
class Remote:
    """A scheme whose files are downloaded, unless they are at ``files/<sha256>`` of a cache.

    Args:
        download: brings the file of an order here, checked.
        places: where else on this machine the file may lie, for use in place.
        check: a file at such a place; raises ``OSError`` if it is not the right one.
        is_moving: whether the address may give other bytes tomorrow and nothing says which are meant. It
            is then asked anew each time.
        is_addressed: whether a file at such a place can only be the one that the address means, so that
            other bytes there are damage. What torch calls ``model.pt`` may be anybody's.
    """

    download: Callable[[Order], Path]
    places: Callable[[WeightSource], Iterator[Path]]
    check: Callable[[Path, Known, Verify], None]
    is_moving: Callable[[WeightSource], bool]
    is_addressed: bool


def _download_url(order: Order) -> Path:
    from bundles.sources.web.download import download  # threads, and what else only a download needs

    return download(order)


def _download_hub(order: Order) -> Path:
    from bundles.sources.hub.download import download

    return download(order)


SCHEMES: dict[str, Local | Remote] = {
    "file": Local(locate_file),
    "package": Local(locate_package_file),
    "url": Remote(_download_url, hub_files, check_file, lambda source: False, is_addressed=False),
    "hf": Remote(_download_hub, hub_places, check_hub_file, is_moving, is_addressed=True),
}
