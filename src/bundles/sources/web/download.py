"""``url:https://host/path``: a file on the web, downloaded once into the cache."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from bundles.errors import ChecksumError
from bundles.sources import cache
from bundles.sources.options import Order
from bundles.sources.progress import telling
from bundles.sources.records import Known, record
from bundles.sources.verify import mismatch, stamp
from bundles.sources.web.hashing import Hasher
from bundles.sources.web.leftovers import sweep, take_up
from bundles.sources.web.mirror import asked_url
from bundles.sources.web.name_prefix import named_digest
from bundles.sources.web.partial import Partial
from bundles.sources.web.transfer import Transfer


def download(order: Order) -> Path:
    """Download a ``url:`` source into the cache and return the file, whose digest is the known one.

    Where no digest is known, what came is recorded and is the known one from now on.

    Raises:
        SourceNotFoundError, SourceAccessError: the server says so.
        ChecksumError: other bytes came, twice.
        DownloadError: the transfer failed, also after retries.
        CacheError: the cache cannot be written, or has no room.
    """
    source = order.known.source
    url = asked_url(source)
    host = urlsplit(url).hostname or ""
    with (
        telling(source.name, host, show=order.progress) as tell,
        Partial(cache.key(source.uri), order.options, tell) as partial,
    ):
        transfer = Transfer(url, order.known, partial)
        with Hasher(partial) as hasher:
            if order.is_locked:
                take_up(partial, source)
            digest = _bring(transfer, hasher)
        return _publish(transfer, digest)


def _bring(transfer: Transfer, hasher: Hasher) -> str:
    """Return the digest of the complete file; a wrong one gets a second chance, in one piece."""
    digest = _complete(transfer, hasher)
    if not _is_right(transfer, digest):
        transfer.start_over()
        digest = _complete(transfer, hasher)
    if not _is_right(transfer, digest):
        raise _refusal(transfer, transfer.known, digest)
    return digest


def _complete(transfer: Transfer, hasher: Hasher) -> str:
    transfer.run()
    transfer.partial.sync()  # the disk works while the hash catches up
    return hasher.result()


def _is_right(transfer: Transfer, digest: str) -> bool:
    source = transfer.known.source
    return digest.startswith(source.sha256 or named_digest(source))


def _refusal(transfer: Transfer, known: Known, digest: str) -> ChecksumError:
    wanted = known.source.sha256 or f"{named_digest(known.source)}..., as its name says"
    expected, found = f"sha256 {wanted}", f"sha256 {digest}"
    error = mismatch(transfer.partial.data, known, expected, found, origin=transfer.name)
    transfer.partial.reset()  # nobody should continue that
    return error


def _publish(transfer: Transfer, digest: str) -> Path:
    """Give the file its name in the cache, and record its digest if that was not known."""
    partial, source = transfer.partial, transfer.known.source
    target = cache.root() / "files" / digest
    if source.sha256 is None:
        # First the record, then the file: a process killed in between leaves a claim that the next
        # download is held to, and no file that nobody vouches for.
        now = record(source, digest, partial.data.stat().st_size, partial.version.tag)
        if now.source.sha256 != digest:
            raise _refusal(transfer, now, digest)
    with cache.writing(target.parent):
        cache.publish(partial.data, target)
    stamp(target, digest)
    sweep(partial)
    return target
