"""Cards of installed packages: entry points of the group ``bundles.cards``, found without running them.

A package says where its cards are, in ``pyproject.toml``::

    [project.entry-points."bundles.cards"]
    speech = "my_package.cards"

which names the folder ``cards`` of the package ``my_package``. ``importlib.metadata`` would find that, too,
but importing it takes longer than a whole listing, and reading the files themselves 2 ms for 200 installed
distributions: little enough to do it each time, so there is no cache of it that could be stale.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bundles.registry.registry import Registry

GROUP = "bundles.cards"
_SUFFIXES = (".dist-info", ".egg-info")


class Plugin(NamedTuple):
    """An entry point: the distribution that installed it, its name, and what it says."""

    distribution: str
    name: str
    value: str


def add_plugins(registry: Registry) -> None:
    """Add the cards of all plug-ins; one that cannot be used is among the registry's problems."""
    plugins = find_plugins(sys.path)
    if not plugins:  # as in most processes, which need not import what plug-ins need
        return
    from bundles.display import safe
    from bundles.registry.index import read_folder

    for plugin in plugins:
        try:
            folder = locate(plugin.value)
            shelf = read_folder(folder, f"{plugin.distribution}: {os.path.join(folder, '')}")
        except (ValueError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            line = f"The plug-in {plugin.name!r} of {plugin.distribution} is left out: {why}"
            registry.add_problems([safe(line, limit=600)], {})
        else:
            registry.add_shelf(shelf)


def find_plugins(places: Iterable[str]) -> list[Plugin]:
    """Return the entry points of the group that distributions in these folders have.

    As in ``importlib.metadata``, of two distributions of one name the first counts.
    """
    seen: dict[str, list[Plugin]] = {}
    for place in places:
        for name, folder in _distributions(place or "."):
            if name not in seen:
                seen[name] = list(_entry_points(folder))
    return sorted(plugin for plugins in seen.values() for plugin in plugins)


def locate(value: str) -> str:
    """Return the folder that an entry point names: ``package.folder`` or ``package:folder/in/it``.

    Raises:
        ValueError: there is none; says why.
    """
    from bundles.spec.hub import path_problem

    package, _, inside = value.partition(":")
    top, *parts = package.strip().split(".")
    parts += inside.strip().split("/" if "/" in inside else ".") if inside.strip() else []
    if not top.isidentifier() or (parts and path_problem("/".join(parts))):
        raise ValueError(f"{value!r} does not read 'package.folder' or 'package:folder/in/it'")
    for start in _package_folders(top):
        folder = os.path.join(start, *parts)
        if os.path.isdir(folder):
            if not any(name.endswith(".toml") for name in os.listdir(folder)):
                raise ValueError(f"{folder} holds no *.toml: check that the package installs its data files")
            return os.path.abspath(folder)
    raise ValueError(f"the package {top} has no folder {'/'.join(parts)!r}")


def _package_folders(top: str) -> list[str]:
    """Return a package's folders; of one with a plain name, whose code is not run by looking for it."""
    from importlib.util import find_spec

    try:
        spec = find_spec(top)
    except Exception as error:  # somebody else's finder may raise anything
        raise ValueError(f"the package {top} cannot be looked for ({error})") from error
    if spec is None:
        raise ValueError(f"the package {top} is not installed")
    if not spec.submodule_search_locations:
        raise ValueError(f"{top} is a single module: cards are in a folder of a package")
    return list(spec.submodule_search_locations)


def _distributions(place: str) -> Iterator[tuple[str, str]]:
    """Yield the normalised name and the metadata folder of each distribution in a folder of ``sys.path``."""
    try:
        with os.scandir(place) as entries:
            found = [(entry.name, entry.path) for entry in entries if entry.name.endswith(_SUFFIXES)]
    except OSError:  # sys.path may name what is not there, and zip files
        return
    for file, path in found:
        name = file.rpartition(".")[0].partition("-")[0]
        yield name.lower().replace(".", "_"), path


def _entry_points(folder: str) -> Iterator[Plugin]:
    """Yield the entry points of the group in a metadata folder."""
    try:
        with open(os.path.join(folder, "entry_points.txt"), "rb") as file:
            data = file.read()
    except OSError:  # most distributions have none
        return
    if GROUP.encode() not in data:
        return
    section = ""
    for line in map(str.strip, data.decode(errors="replace").splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif section == GROUP and line and not line.startswith(("#", ";")):
            name, _, value = (part.strip() for part in line.partition("="))
            yield Plugin(_described(folder), name, value)


def _described(folder: str) -> str:
    """Return a distribution's name and version."""
    from bundles.display import safe

    facts = {"Name": os.path.basename(folder).partition("-")[0], "Version": ""}
    for file in ("METADATA", "PKG-INFO"):
        try:
            with open(os.path.join(folder, file), encoding="utf-8", errors="replace") as lines:
                for line in iter(lambda: lines.readline(1000).rstrip("\n"), ""):  # to the end of the headers
                    key, _, value = line.partition(":")
                    if key in facts:
                        facts[key] = value.strip()
        except OSError:
            continue
        break
    return safe(f"{facts['Name']} {facts['Version']}".strip(), limit=100)
