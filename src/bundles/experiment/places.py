"""Places on this machine, which experiment files and locks name from the folder that they lie in."""

from __future__ import annotations

import os
from pathlib import Path

from bundles.spec.pin import FilePin
from bundles.spec.source import WeightSource


def placed(address: str, folder: Path) -> str:
    """Return an address; one of a place on this machine from the root, and not from a folder.

    >>> placed("file:mine", Path("/configs")), placed("CREPE_TINY", Path("/configs"))
    ('file:/configs/mine', 'CREPE_TINY')
    """
    if not address.startswith("file:"):
        return address
    path = os.path.expanduser(address[len("file:") :])
    return f"file:{os.path.normpath(folder.absolute() / path)}"


def source_of(file: FilePin, folder: Path) -> WeightSource:
    """Return a pinned file as a source."""
    first, *others = (placed(uri, folder) for uri in (file.source, *file.alternates))
    return WeightSource(first, file.sha256, file.size, alternates=tuple(others))
