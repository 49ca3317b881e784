"""The files that a lock names: fetch exactly these, or hash again what is on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bundles.assemble.locked import read_mode, read_policy
from bundles.assemble.mismatch import check_plan, check_versions
from bundles.assemble.model import plan
from bundles.assemble.pinned import pinned_bundle
from bundles.assemble.pins import head_of
from bundles.assemble.provision import Item, fetch_items
from bundles.errors import BundlesError, PinMismatchError, SourceError
from bundles.experiment.places import source_of
from bundles.sources import cache
from bundles.sources.present import present
from bundles.spec.lock import Lock
from bundles.spec.pin import FilePin, ModelPin


@dataclass(frozen=True)
class Copy:
    """A file that a lock names, as it is on this machine.

    Attributes:
        model: name in the lock.
        file: what is pinned; ``None`` where it is the converted form, or card and plan, that is looked at.
        what: the file's path, or what else is looked at.
        path: where the right bytes lie; ``None`` where they do not.
        problem: what is wrong or absent, and what to type; ``None`` where all is well.
    """

    model: str
    file: FilePin | None
    what: str
    path: Path | None = None
    problem: str | None = None


def sync(
    lock: Lock, folder: Path, *, to: str | os.PathLike[str] | None = None, progress: bool = True
) -> Iterator[Item]:
    """Fetch exactly what a lock names, verified, and convert pickled checkpoints.

    What is there already is not fetched again.

    Args:
        lock: names the files.
        folder: that the lock lies in.
        to: a folder that is to hold all of it, for ``BUNDLES_SHARED_CACHE`` on a machine without a network.
        progress: whether downloads show a bar.

    Raises:
        SourceError, CacheError, WeightsError: something cannot be had; everything else was fetched.
    """
    failed: list[BundlesError] = []
    for pin in _distinct(lock):
        try:
            yield from fetch_items(_items(pin, folder), to=to, progress=progress)
        except SourceError as error:
            failed.append(error)
    if failed:
        raise _all_of(failed)


def check(lock: Lock, folder: Path, *, strict: bool = False) -> Iterator[Copy]:
    """Hash everything that a lock names again, as far as it is on this machine; no network is used.

    Beside the files these are converted checkpoints, cards, and the plans, which are made anew.

    Args:
        lock: names the files.
        folder: that the lock lies in.
        strict: whether libraries of other versions than the lock's are wrong; else they warn.
    """
    for name, pin in lock.models.items():
        yield from (_checked(name, file, folder) for file in pin.files)
        yield from _converted(name, pin)
        yield from _planned(name, pin, folder, strict)


def is_here(file: FilePin, folder: Path) -> bool:
    """Whether the right bytes are on this machine."""
    with suppress(SourceError):
        return present(source_of(file, folder)) is not None
    return False


def _distinct(lock: Lock) -> Iterable[ModelPin]:
    """One pin of each bundle with the same files: two models may share an encoder."""
    return {(pin.bundle, pin.files): pin for pin in lock.models.values()}.values()


def _items(pin: ModelPin, folder: Path) -> Iterator[Item]:
    seen = set()
    for file in pin.files:
        if file.sha256 not in seen:
            seen.add(file.sha256)
            yield Item(pin.bundle, file.role.removeprefix("asset."), source_of(file, folder))


def _all_of(failed: list[BundlesError]) -> BundlesError:
    """The first of several errors, which says all of them."""
    if len(failed) == 1:
        return failed[0]
    first = failed[0]
    first.args = ("\n".join(map(str, failed)), *first.args[1:])
    return first


def _checked(name: str, file: FilePin, folder: Path) -> Copy:
    try:
        path = present(source_of(file, folder), verify="always")
    except SourceError as error:
        return Copy(name, file, file.path, problem=" ".join(str(error).split()))
    if path is None:
        return Copy(name, file, file.path, problem=f"is not on this machine: {file.source}")
    return Copy(name, file, file.path, path)


def _converted(name: str, pin: ModelPin) -> Iterator[Copy]:
    """The safetensors form of a pickled checkpoint, if it was made here already."""
    weights = pin.file("weights")
    if pin.converted is None or weights is None:
        return
    what = f"{weights.path}, converted"
    place = f"converted/{weights.sha256}.{pin.converted.get('converter')}.safetensors"
    path = cache.find(place)
    if path is None:
        return  # it is made when a model is built, and checked then
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = str(pin.converted.get("sha256")).removeprefix("sha256:")
    problem = f"{path} has the sha256 {found}, the lock {expected}: delete it" if found != expected else None
    yield Copy(name, None, what, None if problem else path, problem)


def _planned(name: str, pin: ModelPin, folder: Path, strict: bool) -> Iterator[Copy]:
    """Card, versions and plan, where what says them is here: of a repository that is one of its files."""
    card = pin.file("card")
    if card is not None and not is_here(card, folder):
        return
    try:
        bundle = pinned_bundle(pin, folder)
        check_versions(pin, bundle, strict=strict)
        if pin.freeze is not None:
            mode = read_mode(pin.freeze_mode)
            head = head_of(pin.head)
            check_plan(pin, plan(bundle, freeze=read_policy(pin.freeze), freeze_mode=mode, head=head))
    except BundlesError as error:
        yield Copy(name, None, "card and plan", problem=" ".join(str(error).split()))
        return
    yield Copy(name, None, "card and plan")


def refuse_bad(copies: Iterable[Copy], lock_name: str) -> None:
    """Raise for everything that is wrong or absent.

    Raises:
        PinMismatchError: something is; every problem is named.
    """
    bad = [f"{copy.model}: {copy.what}: {copy.problem}" for copy in copies if copy.problem]
    if bad:
        more = f"Type `bundles sync {lock_name}` to fetch what is absent or damaged."
        raise PinMismatchError("\n".join((*bad, more)), problems=tuple(bad))
