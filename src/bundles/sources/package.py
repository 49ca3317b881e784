"""``package:NAME/PATH``: a file inside an installed Python package, found without importing it."""

from __future__ import annotations

import importlib.util
from pathlib import Path, PurePosixPath

from bundles.errors import SourceAccessError, SourceNotFoundError
from bundles.sources.file import check_readable
from bundles.spec.source import WeightSource


def locate_package_file(source: WeightSource) -> Path:
    """Return the path of a ``package:`` source.

    Raises:
        SourceNotFoundError: the package is not installed, or has no such file.
        SourceAccessError: the address leaves the package's folder, or the file may not be read.
    """
    name, _, inside = source.address.partition("/")
    parts = PurePosixPath(inside).parts
    if not name.isidentifier() or not parts or ".." in parts or "\\" in inside or inside.startswith("/"):
        raise SourceAccessError(
            f"The weight source {source.uri!r} does not read 'package:NAME/path/in/it', without '..'."
        )
    try:
        # For a name without dots this looks for the package on sys.path and runs none of its code.
        spec = importlib.util.find_spec(name)
    except ValueError:  # __main__ and other modules that were never found by name
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise SourceNotFoundError(
            f"The package {name} of {source.uri} is not installed: type `pip install {name}`."
        )
    folder = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = check_readable(folder.joinpath(*parts), source)
    if not path.resolve().is_relative_to(folder):
        raise SourceAccessError(f"The file {path} of {source.uri} is a link out of its package.")
    return path
