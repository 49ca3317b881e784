"""Cards of the user and of installed packages: found without running anything, harmless when broken."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bundles
from bundles.registry import plugins
from bundles.registry.origins import add_everything
from bundles.registry.plugins import Plugin, find_plugins, locate
from bundles.registry.registry import Registry

CARD = """
[{name}]
builder = "torchcrepe"
architecture.model = "tiny"
layers = {{ blocks = ["conv{{i}}", "conv{{i}}_BN"], head = "classifier" }}
weights.source = "file:{name}.safetensors"
"""
EXPLOSIVE = "raise RuntimeError('a plug-in was imported')\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages at the end of ``sys.path``."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    yield folder
    sys.path_importer_cache.pop(str(folder), None)


def package(site: Path, name: str = "my_cards", cards: str = "cards", bundle: str = "PLUGGED") -> Path:
    """A package whose import fails loudly, with a folder of one card."""
    folder = site / name / cards
    folder.mkdir(parents=True)
    (site / name / "__init__.py").write_text(EXPLOSIVE)
    (folder / "one.toml").write_text(CARD.format(name=bundle))
    return folder


def install(site: Path, entries: str, *, name: str = "my_cards", version: str = "1.2") -> Path:
    """The metadata of a distribution, as pip writes it."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nText.\n")
    (folder / "entry_points.txt").write_text(entries)
    return folder


def group(*lines: str) -> str:
    return "\n".join(["[console_scripts]", "x = y:z", "", "[bundles.cards]", *lines, "", "[other]", "a = b"])


def everything() -> Registry:
    return Registry(populate=add_everything)


# --- installed packages ---------------------------------------------------------------------------


def test_a_packages_cards_are_listed_with_their_origin_and_it_is_not_imported(site: Path) -> None:
    folder = package(site)
    install(site, group("speech = my_cards.cards"))
    registry = everything()
    assert "PLUGGED" in registry.names()
    bundle = registry["PLUGGED"]
    assert bundle.origin == f"my_cards 1.2: {folder}/one.toml"
    assert bundle.weights is not None
    assert bundle.weights.uri == f"file:{folder}/PLUGGED.safetensors"
    assert registry.problems == ()
    assert "my_cards" not in sys.modules


def test_a_fresh_process_lists_them_without_importing_anything_heavy(site: Path) -> None:
    package(site)
    install(site, group("speech = my_cards.cards"))
    code = "import sys, bundles; print(*bundles.list_bundles('PLUGGED')); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(**more: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    names, modules = run()
    assert names == "PLUGGED"
    assert {"my_cards", "importlib.metadata", "torch", "email"}.isdisjoint(modules.split())
    assert run(BUNDLES_NO_PLUGINS="1")[0] == ""


@pytest.mark.parametrize("value", ["1", "true", "ON", "yes"])
def test_plug_ins_are_switched_off_and_the_users_own_folder_is_not(
    value: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(site)
    install(site, group("speech = my_cards.cards", "broken = nothing.there"))
    user(tmp_path, monkeypatch)
    assert {"PLUGGED", "MINE"} <= set(everything())
    monkeypatch.setenv("BUNDLES_NO_PLUGINS", value)
    registry = everything()
    assert "PLUGGED" not in registry
    assert "MINE" in registry
    assert registry.problems == ()


def test_what_is_uninstalled_or_changed_is_so_at_once(site: Path) -> None:
    package(site)
    found = install(site, group("speech = my_cards.cards"))
    assert "PLUGGED" in everything()
    (found / "entry_points.txt").write_text(group("# nothing any more"))
    assert "PLUGGED" not in everything()
    (found / "entry_points.txt").write_text(group("speech=my_cards.cards"))
    assert "PLUGGED" in everything()
    for file in found.iterdir():
        file.unlink()
    found.rmdir()
    assert "PLUGGED" not in everything()


@pytest.mark.parametrize(
    "value", ["my_cards.deep.cards", "my_cards:deep.cards", "my_cards:deep/cards", " my_cards : deep/cards "]
)
def test_the_ways_to_name_a_folder(value: str, site: Path) -> None:
    folder = package(site, cards="deep/cards")
    assert locate(value) == str(folder)


def test_a_package_without_an_init_and_in_two_places_is_looked_for_in_both(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = site.with_name("other")
    (other / "spread").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(other), *sys.path])
    folder = package(site, "spread")
    (site / "spread" / "__init__.py").unlink()
    assert locate("spread.cards") == str(folder)


# --- broken ones ----------------------------------------------------------------------------------

BROKEN = {
    "not_there.cards": "the package not_there is not installed",
    "my_cards.cord": "the package my_cards has no folder 'cord'",
    "my_cards.empty": "holds no *.toml: check that the package installs its data files",
    "lonely.cards": "lonely is a single module: cards are in a folder of a package",
    "my_cards:../cards": "does not read 'package.folder' or 'package:folder/in/it'",
    "my_cards:/etc": "does not read 'package.folder'",
    "../my_cards": "does not read 'package.folder'",
    "": "does not read 'package.folder'",
    "__main__.cards": "__main__ ",  # a single module, or under xdist one without a spec
}


@pytest.mark.parametrize(("value", "why"), BROKEN.items())
def test_a_broken_plug_in_is_listed_with_its_reason_and_harms_nobody(
    value: str, why: str, site: Path
) -> None:
    package(site)
    (site / "my_cards" / "empty").mkdir()
    (site / "lonely.py").write_text(EXPLOSIVE)
    install(site, group(f"bad = {value}", "good = my_cards.cards"))
    registry = everything()
    assert {"PLUGGED", "CREPE_TINY"} <= set(registry)
    (problem,) = registry.problems
    assert problem.startswith("The plug-in 'bad' of my_cards 1.2 is left out: ")
    assert why in problem


def test_a_line_without_a_value_is_a_problem_too(site: Path) -> None:
    install(site, group("nonsense"))
    (problem,) = everything().problems
    assert "The plug-in 'nonsense' of my_cards 1.2 is left out: '' does not read" in problem


def test_a_broken_card_of_a_package_is_listed_and_its_others_work(site: Path) -> None:
    folder = package(site)
    (folder / "bad.toml").write_text("[BAD]\nbuilder = 'os.system'\nlayers.head = '*'\n")
    install(site, group("speech = my_cards.cards"))
    registry = everything()
    (problem,) = registry.problems
    assert problem.startswith(f"{folder}/bad.toml:2: BAD.builder 'os.system' is not a builder")
    assert "PLUGGED" in registry
    with pytest.raises(bundles.CardError, match=r"The card of BAD is broken:\n.*os\.system"):
        registry["BAD"]


def test_a_finder_that_raises_harms_nobody(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "my_cards":
                raise RuntimeError("no")

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    package(site)
    install(site, group("speech = my_cards.cards"))
    (problem,) = everything().problems
    assert problem.endswith("is left out: the package my_cards cannot be looked for (no)")


@pytest.mark.parametrize("name", ["CREPE_TINY", "crepe_tiny"])
def test_a_built_in_name_cannot_be_taken_and_nobody_is_silent_about_it(name: str, site: Path) -> None:
    folder = package(site, bundle=name)
    install(site, group("speech = my_cards.cards"))
    registry = everything()
    assert registry["CREPE_TINY"].origin == "bundles/crepe.toml"
    assert registry.problems == (
        f"The bundle {name} of my_cards 1.2: {folder}/one.toml is defined already, as CREPE_TINY of "
        f"bundles/crepe.toml: give it another name.",
    )


def test_of_two_packages_with_one_name_the_first_in_the_alphabet_wins(site: Path) -> None:
    for name in ("zebra", "aardvark"):
        package(site, name)
        install(site, group(f"it = {name}.cards"), name=name)
    registry = everything()
    assert registry["PLUGGED"].origin.startswith("aardvark 1.2")
    (problem,) = registry.problems
    assert "PLUGGED of zebra 1.2" in problem


def test_hostile_metadata_is_shown_without_control_characters(site: Path) -> None:
    install(site, group("\x1b[31mred = \x1b[31m.x"))
    (problem,) = everything().problems
    assert "\x1b" not in problem


def test_the_command_prints_problems_on_stderr(site: Path) -> None:
    package(site)
    install(site, group("good = my_cards.cards", "bad = gone.cards"))
    program = str(Path(sys.executable).with_name("bundles"))
    done = subprocess.run(
        [program, "list", "PLUGGED", "-q"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "PLUGGED\n"
    assert "The plug-in 'bad' of my_cards 1.2 is left out: the package gone is not installed" in done.stderr


# --- as importlib.metadata ------------------------------------------------------------------------


def test_entry_points_are_those_that_importlib_metadata_finds(site: Path) -> None:
    other = site.with_name("other")
    other.mkdir()
    install(other, group("a = first.cards", "  b=first:cards  ", "# c = d", ""), name="First.Cards")
    install(site, group("a = shadowed.cards"), name="first_cards", version="9")
    install(site, "[bundles.cards]\nd = x.y\n[bundles.cards.more]\ne = x.y\n", name="second")
    install(site, "[console_scripts]\nbundles.cards = x:y\n", name="third")
    egg = site / "fourth.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: fourth\nVersion: 0.1\n")
    (egg / "entry_points.txt").write_text("[bundles.cards]\nf = x.y\n")
    (site / "fifth-1.0-py3.egg-info").write_text("Name: fifth\nVersion: 1.0\n")
    (site / "sixth-1.0.dist-info").mkdir()
    paths = [str(other), str(site), str(site / "not there"), __file__]
    theirs = {
        (f"{found.metadata['Name']} {found.version}", entry.name, entry.value)
        for found in importlib.metadata.MetadataPathFinder().find_distributions(
            importlib.metadata.DistributionFinder.Context(path=paths)
        )
        for entry in found.entry_points
        if entry.group == plugins.GROUP and found.version != "9"  # shadowed: the first of a name counts
    }
    assert set(map(tuple, find_plugins(paths))) == theirs
    assert Plugin("fourth 0.1", "f", "x.y") in find_plugins(paths)
    assert len(theirs) == 4


# --- the user's folder ----------------------------------------------------------------------------


def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str = "MINE") -> Path:
    folder = tmp_path / "config" / "bundles" / "cards"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(CARD.format(name=name))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


def test_the_users_cards_are_there_without_being_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = user(tmp_path, monkeypatch)
    registry = everything()
    assert registry["MINE"].origin == f"{folder}/mine.toml"
    (folder / "mine.toml").write_text(CARD.format(name="OURS"))
    assert "OURS" in everything()


def test_the_users_folder_is_below_home_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user(tmp_path, monkeypatch)
    (tmp_path / "config").rename(tmp_path / ".config")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "MINE" in everything()


def test_without_a_users_folder_or_with_a_file_there_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert everything().problems == ()
    (tmp_path / "bundles").write_text("")
    assert everything().problems == ()


def test_the_users_card_wins_over_a_packages_and_not_over_a_built_in(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = user(tmp_path, monkeypatch, "PLUGGED")
    (folder / "other.toml").write_text(CARD.format(name="CREPE_TINY"))
    package(site)
    install(site, group("speech = my_cards.cards"))
    registry = everything()
    assert registry["PLUGGED"].origin == f"{folder}/mine.toml"
    assert registry["CREPE_TINY"].origin == "bundles/crepe.toml"
    assert [line.partition(" is defined already")[0] for line in registry.problems] == [
        f"The bundle CREPE_TINY of {folder}/other.toml",
        f"The bundle PLUGGED of my_cards 1.2: {site}/my_cards/cards/one.toml",
    ]


# --- a real package -------------------------------------------------------------------------------

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "my-cards"
version = "0.3"
[project.entry-points."bundles.cards"]
speech = "my_cards.cards"
[tool.setuptools.package-data]
my_cards = ["cards/*"]
[tool.setuptools.packages.find]
where = ["."]
"""


@pytest.mark.slow
def test_a_package_that_pip_installs_is_found(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    package(source)
    (source / "pyproject.toml").write_text(PYPROJECT)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    code = "import bundles; print(bundles.get_bundle('PLUGGED').origin, bundles.default_registry.problems)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"my-cards 0.3: {target}/my_cards/cards/one.toml ()\n"
