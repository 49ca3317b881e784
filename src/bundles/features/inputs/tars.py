"""Tars as webdataset writes them: members that share a key are one item, read in any order."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bundles.errors import InputError
from bundles.features.inputs.raw import FILES, Encoded
from bundles.features.inputs.source import Stamp, stamp_of, why


@dataclass(frozen=True)
class _Member:
    path: str
    key: str
    offset: int
    size: int


class Tars:
    """The members of tars that hold the input, by their keys: the path of a member up to the first dot.

    The headers are read once, at the start; a member is then read at its offset.

    Args:
        paths: of tars that are not compressed.
        kind: of :class:`Preprocessing`, which tells the extensions.

    Raises:
        InputError: a file is no such tar, one holds no input, or a key several.
    """

    def __init__(self, paths: Sequence[str], kind: str) -> None:
        self._members = [member for path in paths for member in _members(path, FILES[kind])]

    def __len__(self) -> int:
        return len(self._members)

    def name(self, index: int) -> str:
        """Return the key of a member."""
        return self._members[index].key

    def get(self, index: int) -> Encoded:
        """Return the bytes of a member."""
        member = self._members[index]
        with open(member.path, "rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) < member.size:
            raise InputError(f"ends too early in {member.path}: get the tar again.")
        return Encoded(data)

    def stamp(self, index: int) -> Stamp | None:
        """Return the stamp of the tar and the place in it."""
        member = self._members[index]
        return stamp_of(member.path, (member.offset, member.size))


def _members(path: str, extensions: Sequence[str]) -> list[_Member]:
    found: dict[str, _Member] = {}
    others = set()
    for info in _headers(path):
        folder, base = os.path.split(info.name)
        stem, _, ending = base.partition(".")
        if not info.isfile() or not stem:
            continue
        if ending.lower().rpartition(".")[2] not in extensions:
            others.add(ending)
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key in found:
            raise InputError(f"{path} holds two inputs under the key {key!r}: leave one out.", inputs=(key,))
        found[key] = _Member(path, key, info.offset_data, info.size)
    if not found:
        there = ", ".join(sorted(others)[:8]) or "nothing"
        raise InputError(f"{path} holds {there}: one of {', '.join(extensions) or 'no file'} is needed.")
    return list(found.values())


def _headers(path: str) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, as far as it goes: one that was cut off is told when its last member is read."""
    try:
        with tarfile.open(path, "r:") as archive:
            while True:
                info = _next(archive)
                if info is None:
                    return
                yield info
                archive.members = []  # type: ignore[attr-defined]  # of a million members none is kept
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"{path} cannot be read as a tar ({why(error)}): give one that is not compressed."
        ) from error


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except tarfile.ReadError:
        if archive.offset > 0:
            return None
        raise
