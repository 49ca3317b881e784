"""Fetch: decide what a source needs, do only that, and return a path with the pinned bytes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from bundles.errors import (
    ChecksumError,
    OfflineError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
    UnpinnedSourceWarning,
    warn,
)
from bundles.sources import cache
from bundles.sources.hub.cache import hub_cache
from bundles.sources.hub.unpinned import warn_unpinned
from bundles.sources.options import Options, Order
from bundles.sources.records import Known, known
from bundles.sources.schemes import SCHEMES, Local, Remote
from bundles.sources.verify import Verify, check_file
from bundles.spec.source import WeightSource
from bundles.spec.suggest import accepted

Action = Literal["use", "download", "refuse"]

_log = logging.getLogger("bundles")
_DEFAULTS = Options()


def fetch(
    source: WeightSource, *, verify: Verify = "once", progress: bool = True, options: Options = _DEFAULTS
) -> Path:
    """Return a local file that holds a source's weights.

    With a digest and the file present this uses no network, takes no lock and writes nothing but, the
    first time, a stamp that saves hashing it again. A ``url:`` source without a digest is recorded when it
    is downloaded, and behaves as if pinned from then on. An ``hf:`` source without one is held to its
    commit, and to what the Hub calls the file; one that names a branch, a tag or nothing is asked for
    anew each time there is a network, and warns.

    Where a source has alternates, they are tried in order when its own address has nothing, refuses, or
    gives other bytes; what is on this machine, under whichever address, comes before every download.

    Args:
        source: address, digest and size.
        verify: ``"once"`` hashes a file again only after it changed, ``"always"`` at each call,
            ``"off"`` never and warns (the size is still checked, and so is what comes off the network).
        progress: whether a download shows a bar on a terminal, or else a line in the log.
        options: what a download allows itself.

    Raises:
        SourceNotFoundError: nothing is there, or the scheme is unknown.
        SourceAccessError: it may not be read.
        ChecksumError: size or digest differ from the pinned or recorded ones.
        OfflineError: a download is needed and ``BUNDLES_OFFLINE`` is set.
        DownloadError: the transfer failed, also after retries.
        CacheError: the cache folder cannot be written, or has no room.

    >>> import bundles
    >>> fetch(bundles.CREPE_TINY.weights).name
    'tiny.pth'
    """
    if verify == "off":
        warn(f"With verify='off' nobody knows what {source.shown} gives.", UnpinnedSourceWarning)
    if source.alternates:
        return _fetch_any(source, verify, progress, options)
    return _fetch_from(source, verify, progress, options)


def decide(cached: Path | None, *, offline: bool) -> Action:
    """Say what a remote source needs: a pure decision, ordered by how little each takes."""
    if cached is not None:
        return "use"
    return "refuse" if offline else "download"


def is_offline() -> bool:
    """Whether downloads are switched off, by ``BUNDLES_OFFLINE`` or ``HF_HUB_OFFLINE``."""
    names = ("BUNDLES_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _fetch_any(source: WeightSource, verify: Verify, progress: bool, options: Options) -> Path:
    """Return the file from the first of a source's places that gives it."""
    places = source.places()
    for place in places:
        if (path := _here(place, verify)) is not None:
            return path
    failures: list[SourceError] = []
    for place in places:
        try:
            path = _fetch_from(place, verify, progress, options)
        except SourceError as error:
            failures.append(error)
            continue
        if failures:
            _log.warning("%s; an alternate gave the same bytes: %s", failures[0], place.shown)
        return path
    first, *others = failures
    told = "; ".join(f"{place.shown}: {error}" for place, error in zip(places[1:], others, strict=True))
    first.args = (f"{first} None of its alternates helps: {told}", *first.args[1:])
    raise first


def _here(source: WeightSource, verify: Verify) -> Path | None:
    """Return the file if it is on this machine and sound."""
    try:
        match _scheme(source):
            case Local(locate):
                path = locate(source)
                check_file(path, Known(source), verify)
                return path
            case Remote() as remote:
                return _look(known(source), remote, verify)[0]
    except SourceError:
        return None  # it is said when the place is tried


def _fetch_from(source: WeightSource, verify: Verify, progress: bool, options: Options) -> Path:
    match _scheme(source):
        case Local(locate):
            path = locate(source)
            check_file(path, Known(source), verify)
            return path
        case Remote() as remote:
            return _fetch_remote(source, remote, verify, progress, options)


def _scheme(source: WeightSource) -> Local | Remote:
    if source.scheme not in SCHEMES:
        raise SourceNotFoundError(
            f"The weight source {source.uri!r} has the unknown scheme {source.scheme!r}: there is "
            f"{accepted(source.scheme, SCHEMES)}."
        )
    return SCHEMES[source.scheme]


def _fetch_remote(
    source: WeightSource, remote: Remote, verify: Verify, progress: bool, options: Options
) -> Path:
    if remote.is_moving(source):
        return _fetch_moving(source, remote, verify, progress, options)
    cached, damage = _look(known(source), remote, verify)
    match decide(cached, offline=is_offline()):
        case "use":
            assert cached is not None  # noqa: S101 - what "use" means
            return cached
        case "refuse":
            raise damage or _offline(source)
        case "download":
            return _download(source, remote, verify, progress, options)


def _fetch_moving(
    source: WeightSource, remote: Remote, verify: Verify, progress: bool, options: Options
) -> Path:
    """Return what a branch or tag gives now; without a network, what it gave last."""
    if is_offline():
        path, damage = _look(known(source), remote, verify)
        if path is None:
            raise damage or _offline(source)
    else:
        path = remote.download(
            Order(known=Known(source), is_locked=False, progress=progress, options=options)
        )
        if verify == "always":
            remote.check(path, Known(source), verify)
    warn_unpinned(source, path)
    return path


def _offline(source: WeightSource) -> OfflineError:
    folder = hub_cache() if source.scheme == "hf" else cache.root()
    return OfflineError(
        f"{source.shown} is not in the cache {folder} and BUNDLES_OFFLINE is set: fetch it "
        f"once with a network, or point BUNDLES_SHARED_CACHE at a cache that has it."
    )


def _download(source: WeightSource, remote: Remote, verify: Verify, progress: bool, options: Options) -> Path:
    from bundles.sources.lock import held  # here: what is on this machine needs no lock

    with held(cache.key(source.uri), source.name, options) as is_locked:
        now = known(source)
        cached, damage = _look(now, remote, verify)  # somebody may have been faster
        if damage is not None:
            _log.warning("Fetching %s again: %s", source.shown, damage)
        order = Order(known=now, is_locked=is_locked, progress=progress, options=options)
        if cached is None and os.environ.get("BUNDLES_REMOTE_CACHE"):
            from bundles.sources.remote import read_through

            return read_through(order, remote.download)
        return cached or remote.download(order)


def _look(wanted: Known, remote: Remote, verify: Verify) -> tuple[Path | None, SourceError | None]:
    """Return the first file on this machine that is the right one, else what is wrong with a cached one.

    A cache that holds a damaged file, or may not be read, hides none of those after it.
    """
    damage: SourceError | None = None
    for path in _cached(wanted.source):
        problem = _problem(check_file, path, wanted, verify)
        if problem is None:
            return path, None
        if isinstance(problem, ChecksumError):
            damage = damage or problem
    for path in remote.places(wanted.source):
        problem = _problem(remote.check, path, wanted, "once" if verify == "off" else verify)
        if problem is None:
            return path, None
        if remote.is_addressed and isinstance(problem, ChecksumError | SourceAccessError):
            damage = damage or problem
    return None, damage


def _problem(
    check: Callable[[Path, Known, Verify], None], path: Path, wanted: Known, verify: Verify
) -> OSError | None:
    try:
        check(path, wanted, verify)
    except OSError as error:  # other bytes; or gone in the meantime, or not readable for this user
        return error
    return None


def _cached(source: WeightSource) -> Iterator[Path]:
    for folder in cache.roots() if source.sha256 else []:
        if os.path.isfile(path := folder / "files" / str(source.sha256)):  # False where nobody may look
            yield path
