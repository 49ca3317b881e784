"""Files of a folder, of a glob or of a list, one item each."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from bundles.display import safe
from bundles.errors import InputError
from bundles.features.inputs.raw import Encoded
from bundles.features.inputs.source import Stamp, stamp_of


class Files:
    """Files in the order given; their names are their paths from a folder, with ``/`` on every system.

    >>> files = Files(["speech/b/1.wav", "speech/a/1.wav"], root="speech")
    >>> files.name(0), files.name(1)
    ('b/1.wav', 'a/1.wav')
    """

    def __init__(self, paths: Sequence[str], root: str) -> None:
        self._paths = list(paths)
        self._root = root

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """Return the path of a file from the folder."""
        return os.path.relpath(self._paths[index], self._root).replace(os.sep, "/")

    def get(self, index: int) -> Encoded:
        """Return a file, which is there and not empty."""
        path = self._paths[index]
        if problem := problem_of(path):
            raise InputError(problem)
        return Encoded(path)

    def stamp(self, index: int) -> Stamp | None:
        """Return the stamp of a file."""
        return stamp_of(self._paths[index])


def problem_of(path: str) -> str | None:
    """Return why a file cannot be one of inputs, as what follows its name; ``None`` if it can."""
    if not os.path.exists(path):
        return "is not there: get it, or leave it out."
    if not os.path.isfile(path):
        return "is no file: give files, or one folder for all in it."
    if not os.access(path, os.R_OK):
        return "may not be read by this user: change its permissions, or leave it out."
    return None if os.path.getsize(path) else "is empty: get it again, or leave it out."


def find(where: str) -> tuple[list[str], str]:
    """Return the files that a path stands for, sorted, and the folder from which they are called.

    Args:
        where: a file; a folder, for all that is in it and below; or a glob, in which ``**`` stands for any
            number of folders. ``~`` is the user's folder. What is hidden is left out.

    Raises:
        InputError: there is nothing.
    """
    path = os.path.expanduser(where)
    if os.path.isdir(path):
        found, root = _below(path), path
    elif os.path.lexists(path):
        found, root = [path], os.path.dirname(path)
    else:
        found = sorted({match for match in glob.iglob(path, recursive=True) if not os.path.isdir(match)})
        root = _fixed_part(path)
    if not found:
        what = "folder is empty" if os.path.isdir(path) else "file is not there"
        what = "glob matches no file" if glob.has_magic(path) and not os.path.isdir(path) else what
        name = safe(where, limit=400) or "''"
        raise InputError(f"{name}: the {what}; give a file, a folder or a glob, as 'data/*.wav'.")
    return found, root or os.curdir


def common_folder(paths: Sequence[str]) -> str:
    """Return the deepest folder that all files are in, from which a list of them is called.

    >>> common_folder(["data/a/1.wav", "data/b/1.wav"]), common_folder(["1.wav"])
    ('data', '.')
    """
    folders = {os.path.dirname(path) for path in paths}
    try:
        return os.path.commonpath(folders) or os.curdir
    except ValueError:  # relative and absolute, or on several drives
        return os.path.commonpath({os.path.abspath(folder) for folder in folders})


def extension(path: str) -> str:
    """Return what follows the last dot of a path, in lower case.

    >>> extension("a.b/SPEECH.WAV"), extension("a.b/readme")
    ('wav', '')
    """
    return os.path.splitext(path)[1][1:].lower()


def _below(folder: str) -> list[str]:
    found, walked = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in walked:
            folders.clear()  # a link to what it is in
            continue
        walked.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _fixed_part(pattern: str) -> str:
    """The folder of a glob that has no wildcard in it."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder
