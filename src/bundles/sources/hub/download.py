"""``hf:owner/repo@commit#file``: brought by the hub client, believed after a check of its own bytes."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from bundles.errors import CacheError, ChecksumError, DownloadError, SourceAccessError
from bundles.sources.hub import client as hub
from bundles.sources.hub.attempts import Attempts
from bundles.sources.hub.cache import (
    blob_name,
    check_etag,
    check_hub_file,
    check_inside,
    hub_cache,
    hub_places,
    is_moving,
    repository_folder,
    snapshot_folder,
)
from bundles.sources.hub.client import FileFacts
from bundles.sources.options import Options, Order
from bundles.sources.progress import Tell, readable, telling
from bundles.sources.records import Known
from bundles.sources.verify import check_file, mismatch, stamp
from bundles.spec.hub import HubAddress, parse_hub

_SMALL = 10_000_000

_log = logging.getLogger("bundles")


def download(order: Order) -> Path:
    """Let the client bring the file of an ``hf:`` source into its cache, and return it there, checked.

    Its bytes are compared with the digest of the source; without one, with what the Hub calls the file.
    Wrong bytes are asked for once more.

    Raises:
        SourceNotFoundError, SourceAccessError: the Hub says so.
        ChecksumError: other bytes came, twice; or the Hub has another file there.
        OfflineError: the client is told to stay offline.
        DownloadError: the transfer failed, also after retries.
        CacheError: the client's cache cannot be written, or has no room.
    """
    source = order.known.source
    address = parse_hub(source.address)
    attempts = Attempts(source.shown, order.options, order.options.small_deadline)
    try:
        facts = ask(address, attempts, order.options)
    except DownloadError as error:
        if (path := _fallback(order.known)) is None:
            raise
        _log.warning("Using the copy of %s that is in the cache: %s", source.shown, error)
        return path
    _refuse_other(order.known, address, facts)
    _refuse_without_room(address, facts)
    return _Download(order, address, facts, attempts).run()


def ask(address: HubAddress, attempts: Attempts, options: Options) -> FileFacts:
    """Return what the Hub says of a file.

    Raises:
        SourceNotFoundError, SourceAccessError, OfflineError, DownloadError: it says nothing.
    """
    return attempts.run(lambda: hub.file_facts(address, options.connect_timeout))


def _fallback(known: Known) -> Path | None:
    """Return the copy of a branch or tag that came last, where the Hub cannot be asked for a newer one."""
    if is_moving(known.source):
        for path in hub_places(known.source):
            with suppress(OSError):
                check_hub_file(path, known)
                return path
    return None


def _refuse_other(known: Known, address: HubAddress, facts: FileFacts) -> None:
    """Refuse before a byte moves what is not what is meant."""
    source = known.source
    if source.sha256 is None and address.commit not in (None, facts.commit):
        raise DownloadError(
            f"{hub.endpoint()} answers for {source.shown} with the commit {facts.commit}: check HF_ENDPOINT, "
            f"or pin the digest."
        )
    if source.size is not None and facts.size not in (None, source.size):
        raise mismatch(None, known, f"{source.size} bytes", f"{facts.size} bytes", origin=hub.endpoint())
    if source.sha256 is not None and len(facts.etag) == 64 and facts.etag != source.sha256:
        expected, found = f"sha256 {source.sha256}", f"sha256 {facts.etag}"
        raise mismatch(None, known, expected, found, origin=hub.endpoint())


def _refuse_without_room(address: HubAddress, facts: FileFacts) -> None:
    folder = hub_cache()
    if (repository_folder(address.repo) / "blobs" / facts.etag).exists():
        return
    there = next((place for place in (folder, *folder.parents) if os.path.exists(place)), Path.cwd())
    if (facts.size or 0) > (free := shutil.disk_usage(there).free):
        raise CacheError(
            f"The download needs {readable(facts.size or 0)} and the disk of {folder} has {readable(free)} "
            f"free: free some, or set HF_HUB_CACHE to a folder on another disk.",
            needed=facts.size,
            free=free,
        )


class _Download:
    """One file on its way through the client's cache."""

    def __init__(self, order: Order, address: HubAddress, facts: FileFacts, attempts: Attempts) -> None:
        self._known, self._options, self._show = order.known, order.options, order.progress
        self._address, self._facts, self._attempts = address, facts, attempts
        self._sound: Path | None = None
        size = order.known.source.size or facts.size
        if size is None or size >= _SMALL:  # the client writes 10 MiB at a time, which is what can be seen
            attempts.allow(5 * order.options.deadline, self._written)

    def run(self) -> Path:
        host = urlsplit(hub.endpoint()).hostname or ""
        force = self._clear_damage()
        with telling(self._known.source.name, host, show=self._show) as tell:
            try:
                return self._checked(self._bring(tell, force=force))
            except ChecksumError:
                return self._checked(self._bring(tell, force=True))

    def _bring(self, tell: Tell, *, force: bool) -> Path:
        return self._attempts.run(
            lambda: hub.bring(
                self._address,
                force=force,
                timeout=self._options.connect_timeout,
                tell=tell,
                is_stopped=self._attempts.stopped.is_set,
            )
        )

    def _checked(self, path: Path) -> Path:
        """Return the path after every check: where it is, what the source pins, what the Hub calls it."""
        if path == self._sound:
            return path
        known, etag = self._known, blob_name(path) or self._facts.etag
        check_inside(path, known.source)
        try:
            check_file(path, known, "always")
            if known.source.sha256 is None:
                check_etag(path, etag, known, "always")
        except ChecksumError:
            self._remove(path)
            raise
        if digest := known.source.sha256 or (etag if len(etag) == 64 else None):
            stamp(path, digest)
        return path

    def _clear_damage(self) -> bool:
        """Remove what the client would give back although it is wrong; whether there was such a file.

        Raises:
            SourceAccessError: it is a link out of the cache, which the client would follow and never replace.
            CacheError: it is no file.
        """
        folder = snapshot_folder(HubAddress(self._address.repo, self._facts.commit))
        if folder is None or not (path := folder / str(self._address.path)).exists():
            return False
        try:
            check_hub_file(path, self._known)
        except (SourceAccessError, CacheError):
            raise
        except OSError:
            with suppress(OSError):
                path.unlink()  # where links cannot be had, the client would not replace it
            return True
        self._sound = path
        return False

    def _remove(self, path: Path) -> None:
        """Remove what is not what it is named after: every user of the cache would get it."""
        blob = path.resolve()
        try:
            check_etag(path, blob_name(path) or self._facts.etag, self._known, "always")
        except ChecksumError:
            with suppress(OSError):
                path.unlink()
                blob.unlink()

    def _written(self) -> int:
        """How much of the repository is on its way, whichever process brings it."""
        total = 0
        for path in repository_folder(self._address.repo).glob("blobs/*.incomplete"):
            with suppress(OSError):
                total += path.stat().st_size
        return total
