"""How far the world has moved away from a lock: commits, bytes, licences, cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from bundles.assemble.lookup import get_bundle
from bundles.errors import BundlesError, PinError, SourceNotFoundError, UnknownBundleError
from bundles.experiment.agree import ASKED
from bundles.sources.hub.history import commits_of
from bundles.sources.hub.repository import Repository, repository
from bundles.sources.hub.repository import pin as pin_file
from bundles.spec.canonical import card_digest
from bundles.spec.hub import HubAddress, parse_hub
from bundles.spec.lock import Lock
from bundles.spec.pin import FilePin, ModelPin

MAIN = "main"
Kind = Literal["same", "moved", "changed", "gone", "unknown"]


@dataclass(frozen=True)
class Movement:
    """What became of one thing that a lock names.

    Attributes:
        model: its name in the lock.
        what: a repository and its branch, a file, ``"card"``, ``"license"`` or ``"gated"``.
        pinned, now: the commit, the digest or the text, as the lock has it and as it is.
        kind: ``"same"``; ``"moved"`` where a branch is at another commit; ``"changed"`` where bytes or
            terms are others; ``"gone"`` where nothing is there any more; ``"unknown"`` where nobody can be
            asked.
        text: one line for people.
    """

    model: str
    what: str
    pinned: str
    now: str
    kind: Kind
    text: str


def outdated(lock: Lock) -> Iterator[Movement]:
    """Yield what became of everything that a lock names; asks the Hub, downloads no weights.

    Files of a fixed web address and of Python packages are not asked about: only a download would tell.
    """
    answers: dict[str, _Answer | BundlesError] = {}
    for name, pin in lock.models.items():
        yield from _card(name, pin)
        for at, files in _by_repository(pin).items():
            if at not in answers:
                answers[at] = _ask(at)
            found = answers[at]
            if isinstance(found, BundlesError):
                said = " ".join(str(found).split())
                kind: Kind = "gone" if isinstance(found, SourceNotFoundError) else "unknown"
                yield Movement(name, at, _commits(files), "", kind, said)
            else:
                yield from _moved(name, pin, at, files, found)


def _by_repository(pin: ModelPin) -> dict[str, list[FilePin]]:
    """The files of each repository, by its address at the branch that is followed."""
    found: dict[str, list[FilePin]] = {}
    for file in pin.files:
        if file.source.startswith("hf:"):
            repo = parse_hub(file.source[len("hf:") :]).repo
            found.setdefault(HubAddress(repo, _branch(pin, repo)).uri, []).append(file)
    return found


def _branch(pin: ModelPin, repo: str) -> str:
    """The branch that the experiment file names, if it names one of this repository."""
    asked = pin.extra.get(ASKED)
    if isinstance(asked, str) and asked.startswith("hf:"):
        try:
            address = parse_hub(asked[len("hf:") :])
        except PinError:
            return MAIN
        if address.repo == repo and address.revision:
            return address.revision
    return MAIN


@dataclass(frozen=True)
class _Answer:
    """What the Hub says of a branch: the listing of its last commit, and the commits, the last first."""

    listing: Repository
    history: tuple[str, ...]


def _ask(at: str) -> _Answer | BundlesError:
    """Ask the Hub itself: the listing of a branch that is kept in a cache is of no use here."""
    address = parse_hub(at[len("hf:") :])
    try:
        history = tuple(commits_of(address))
        commit = history[0] if history else None
        return _Answer(repository(replace(address, revision=commit or address.revision)), history)
    except BundlesError as error:
        return error


def _moved(name: str, pin: ModelPin, at: str, files: list[FilePin], answer: _Answer) -> Iterator[Movement]:
    now = answer.listing
    pinned, commit = _commits(files), str(now.address.commit)
    if pinned == commit:
        yield Movement(name, at, pinned, commit, "same", f"{at} is still at {commit[:12]}")
    else:
        far = _how_far(answer.history, pinned)
        text = f"{at} moved {far} from {pinned[:12]} to {commit[:12]}"
        yield Movement(name, at, pinned, commit, "moved", text)
    for file in files:
        yield _file(name, file, now, is_moved=pinned != commit)
    yield from _terms(name, pin, now)


def _file(name: str, file: FilePin, now: Repository, *, is_moved: bool) -> Movement:
    listed = now.files.get(file.path)
    if listed is None:
        return Movement(name, file.path, file.sha256, "", "gone", f"{file.path} is there no more")
    digest = listed.sha256 or (file.sha256 if not is_moved else _digest(file, now))
    if digest == file.sha256:
        return Movement(name, file.path, file.sha256, digest, "same", f"{file.path} has the same bytes")
    text = f"{file.path} has other bytes: sha256 {file.sha256[:12]} → {digest[:12]}"
    return Movement(name, file.path, file.sha256, digest, "changed", text)


def _digest(file: FilePin, now: Repository) -> str:
    """Of a small file, whose digest the Hub does not publish."""
    return str(pin_file(replace(now.address, path=file.path)).sha256)


def _how_far(history: tuple[str, ...], pinned: str) -> str:
    """How many commits a branch is ahead of the pinned one."""
    if pinned not in history:
        return "on, and its history has the pinned commit no more,"
    count = history.index(pinned)
    return "by 1 commit" if count == 1 else f"by {count} commits"


def _terms(name: str, pin: ModelPin, now: Repository) -> Iterator[Movement]:
    if not now.is_complete or not pin.bundle.startswith("hf:"):
        return  # of a bundle of the registry it is the card that says them
    for what, then, is_now in (
        ("license", pin.license or "none given", now.license or "none given"),
        ("gated", "gated" if pin.gated else "open", "gated" if now.gated else "open"),
    ):
        if then != is_now:
            yield Movement(name, what, then, is_now, "changed", f"{what}: {then} → {is_now}")


def _card(name: str, pin: ModelPin) -> Iterator[Movement]:
    """Whether this version of the library describes a bundle of the registry as it was pinned."""
    if ":" in pin.bundle:
        return
    try:
        bundle = get_bundle(pin.bundle)
        now = card_digest(bundle)
    except UnknownBundleError as error:
        yield Movement(name, "card", pin.card, "", "gone", " ".join(str(error).split()))
        return
    if now != pin.card:
        yield Movement(name, "card", pin.card, now, "changed", f"card: {pin.card[:19]} → {now[:19]}")
    if (license := bundle.metadata.get("license")) != pin.license:
        text = f"license: {pin.license or 'none given'} → {license or 'none given'}"
        yield Movement(name, "license", str(pin.license), str(license), "changed", text)


def _commits(files: list[FilePin]) -> str:
    """The commit of the first: those of one repository have one."""
    return str(parse_hub(files[0].source[len("hf:") :]).commit)
