"""``file:PATH``: a file on this machine, used where it lies."""

from __future__ import annotations

from pathlib import Path

from bundles.errors import SourceAccessError, SourceNotFoundError
from bundles.spec.source import WeightSource


def locate_file(source: WeightSource) -> Path:
    """Return the path of a ``file:`` source.

    Raises:
        SourceNotFoundError: there is no such file, or it is a folder.
        SourceAccessError: it may not be read.
    """
    path = Path(source.address).expanduser()
    return check_readable(path, source)


def check_readable(path: Path, source: WeightSource) -> Path:
    """Return the path if a file can be read there.

    Raises:
        SourceNotFoundError, SourceAccessError: it cannot.
    """
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise SourceNotFoundError(f"The file {path} of {source.uri} {what}: check the path.")
        with path.open("rb"):
            return path
    except PermissionError as error:
        if isinstance(error, SourceAccessError):
            raise
        raise SourceAccessError(
            f"The file {path} of {source.uri} may not be read: check its mode."
        ) from error
