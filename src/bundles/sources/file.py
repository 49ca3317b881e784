"""``file:PATH``: a file on this machine, used where it lies."""

from __future__ import annotations

from pathlib import Path

from bundles.errors import SourceAccessError, SourceNotFoundError
from bundles.spec.source import WeightSource
from bundles.spec.values import shown


def locate_file(source: WeightSource) -> Path:
    """Return the path of a ``file:`` source.

    Raises:
        SourceNotFoundError: there is no such file, or it is a folder.
        SourceAccessError: it may not be read.
    """
    try:
        path = Path(source.address).expanduser()
    except RuntimeError as error:
        raise SourceNotFoundError(
            f"The home folder in {source.uri} does not exist: check the path."
        ) from error
    return check_readable(path, source)


def check_readable(path: Path, source: WeightSource) -> Path:
    """Return the path if a file can be read there.

    Raises:
        SourceNotFoundError, SourceAccessError: it cannot.
    """
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
        if is_file:
            path.open("rb").close()
    except PermissionError as error:
        raise SourceAccessError(
            f"The file {path} of {source.uri} may not be read: check its mode."
        ) from error
    except (OSError, ValueError) as error:  # a name that no file can have
        raise SourceNotFoundError(f"No file can be at {shown(str(path))}: check the path.") from error
    if not is_file:
        what = "is a folder" if is_folder else "does not exist"
        raise SourceNotFoundError(f"The file {path} of {source.uri} {what}: check the path.")
    return path
