"""Folders of cards through the index: the same answer as without it, whatever happened to the files."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import bundles
from bundles.registry import index
from bundles.registry.index import read_file, read_folder
from bundles.registry.names import merged, natural_key
from bundles.registry.registry import Registry
from bundles.registry.shelf import Shelf

CARD = """
[{name}]
builder = "torchcrepe"
architecture.model = "tiny"
layers = {{ blocks = ["conv{{i}}", "conv{{i}}_BN"], head = "classifier" }}
task = "{task}"
"""


def write(path: Path, name: str = "ONE", task: str = "pitch") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CARD.format(name=name, task=task))
    return path


def listed(folder: Path) -> dict[str, str]:
    """The task of each card, by name."""
    shelf = read_folder(str(folder))
    return {name: shelf.card(name)["task"] for name in shelf}


def parsed(folder: Path) -> tuple[dict[str, object], list[str]]:
    """Cards and problems without the index."""
    files = sorted(path.name for path in folder.glob("*.toml"))
    found = [read_file(str(folder), file) for file in files]
    rows = [row for one in found for row in one.rows]
    shelf = Shelf(str(folder), f"{folder}/", rows, [line for one in found for line in one.problems])
    return {name: (shelf.card(name), shelf.origin(name)) for name in shelf}, shelf.problems


def indexed(folder: Path) -> tuple[dict[str, object], list[str]]:
    shelf = read_folder(str(folder))
    return {name: (shelf.card(name), shelf.origin(name)) for name in shelf}, shelf.problems


@pytest.fixture
def cards(tmp_path: Path, empty_cache: Path) -> Path:
    folder = tmp_path / "cards"
    folder.mkdir()
    return folder


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe files as soon as they are written, instead of after two seconds."""
    monkeypatch.setattr(index, "_SETTLED_NS", -(1 << 62))


def place() -> Path:
    return Path(os.environ["BUNDLES_CACHE"], "index", "cards.sqlite3")


# --- the same answer ------------------------------------------------------------------------------


@pytest.mark.usefixtures("trusting")
def test_the_index_gives_what_the_files_give_problems_and_origins_included(cards: Path) -> None:
    write(cards / "a.toml", "A")
    (cards / "b.toml").write_text(CARD.format(name="B", task="x") + CARD.format(name="a", task="y"))
    (cards / "c.toml").write_text("[C]\nbuilder = 3\n")
    (cards / "d.toml").write_bytes(b"\xff")
    cold = parsed(cards)
    assert [indexed(cards) for _ in range(3)] == [cold] * 3
    assert [line.partition(": ")[0] for line in cold[1]] == [
        *(f"{cards}/c.toml:{line}" for line in (2, 1)),
        f"{cards}/d.toml",
        f"The bundle a of {cards}/b.toml is defined already, as A of {cards}/a.toml",
    ]


def test_a_second_process_parses_nothing_once_the_files_are_settled(cards: Path) -> None:
    for number in range(30):
        write(cards / f"{number}.toml", f"CARD_{number}")
    code = (
        f"import sys, bundles; bundles.register_cards({str(cards)!r});"
        "print(*bundles.list_bundles('CARD_*', task='pitch')); print('tomllib' in sys.modules)"
    )

    def run() -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.splitlines()

    names = " ".join(f"CARD_{number}" for number in range(30))
    assert run() == [names, "True"]  # parsed and indexed, but too young to be believed
    time.sleep(2.1)
    assert run() == [names, "True"]
    assert run() == [names, "False"]
    write(cards / "7.toml", "CARD_7", task="ocr")
    assert run() == [names.replace("CARD_7 ", ""), "True"]


@pytest.mark.usefixtures("trusting")
def test_filters_give_the_same_with_and_without_the_index(cards: Path, default: Registry) -> None:
    for number in range(20):
        path = write(cards / f"{number}.toml", f"CARD_{number}", task="ab"[number % 2])
        with path.open("a") as file:
            file.write(f"extra.mine = {number % 3}\nlanguages = ['en', 'x{number % 5}']\n")
    write(cards / "zz.toml", "card_1", task="b")  # taken by 1.toml
    wanted: list[dict[str, object]] = [{"task": "A"}, {"mine": 2}, {"languages": "x3"}, {"mine": None}]
    answers = []
    for _ in range(3):
        with pytest.raises(bundles.CardError, match=r"card_1 of .* is defined already"):
            bundles.register_cards(cards, override=True)
        answers.append([bundles.list_bundles("CARD_*", **filters) for filters in wanted])
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] == [f"CARD_{number}" for number in range(0, 20, 2)]
    assert answers[0][1] == [f"CARD_{number}" for number in range(2, 20, 3)]


@pytest.mark.usefixtures("trusting")
def test_a_filter_after_an_edit_is_that_of_the_cards_that_were_listed(cards: Path) -> None:
    write(cards / "a.toml", "A", task="old")
    listed(cards)
    shelf = read_folder(str(cards))
    write(cards / "a.toml", "A", task="new")
    assert listed(cards) == {"A": "new"}
    assert shelf.facts("task") == {"A": "old"}
    assert shelf.card("A")["task"] == "old"


# --- no stale answer ------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [False, True], ids=["young files", "settled files"])
def test_an_edit_of_the_same_size_and_time_shows_at_once(
    trust: bool, cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trust:
        monkeypatch.setattr(index, "_SETTLED_NS", -(1 << 62))
    path = write(cards / "a.toml", task="a00")
    before = path.stat()
    for number in range(20):
        with path.open("r+") as file:  # the same inode, and the times put back
            file.write(CARD.format(name="ONE", task=f"a{number:02}"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
        if trust:
            time.sleep(0.02)  # the grain of the time of change, which nobody can put back
        assert listed(cards) == {"ONE": f"a{number:02}"}


@pytest.mark.usefixtures("trusting")
def test_a_young_file_is_read_again_and_an_old_one_is_not(cards: Path) -> None:
    write(cards / "a.toml", "A")
    listed(cards)
    with sqlite3.connect(place()) as database:  # were the file read again, this would be gone
        database.execute("UPDATE card SET text = replace(text, 'pitch', 'indexed')")
    database.close()
    assert listed(cards) == {"A": "indexed"}
    write(cards / "b.toml", "B")
    assert listed(cards) == {"A": "indexed", "B": "pitch"}


def test_a_file_younger_than_two_seconds_is_not_believed(cards: Path) -> None:
    write(cards / "a.toml", "A")
    listed(cards)
    with sqlite3.connect(place()) as database:
        database.execute("UPDATE card SET text = replace(text, 'pitch', 'indexed')")
    database.close()
    assert listed(cards) == {"A": "pitch"}


@pytest.mark.usefixtures("trusting")
def test_renaming_removing_replacing_and_relinking_show_at_once(cards: Path, tmp_path: Path) -> None:
    first = write(cards / "a.toml", "A")
    write(cards / "b.toml", "B")
    assert set(listed(cards)) == {"A", "B"}
    first.rename(cards / "c.toml")
    assert read_folder(str(cards)).origin("A") == f"{cards}/c.toml"
    (cards / "b.toml").unlink()
    assert set(listed(cards)) == {"A"}
    os.replace(write(tmp_path / "other.toml", "Z"), cards / "c.toml")
    assert set(listed(cards)) == {"Z"}
    for target in ("D", "E"):
        link = cards / "link.toml"
        link.unlink(missing_ok=True)
        link.symlink_to(write(tmp_path / f"{target}.toml", target))
        assert set(listed(cards)) == {"Z", target}
    shutil.rmtree(cards)
    cards.mkdir()
    assert listed(cards) == {}


@pytest.mark.usefixtures("trusting")
def test_random_changes_never_give_another_answer_than_the_files(cards: Path) -> None:
    draw = random.Random(5)

    def change() -> None:
        path = cards / f"{draw.choice('abcdef')}.toml"
        kind = draw.randrange(6)
        if kind == 0:
            path.unlink(missing_ok=True)
        elif kind == 1:
            path.write_text("[X]\nbuilder = 3\n")
        elif kind == 2 and path.exists():
            path.rename(cards / f"{draw.choice('abcdef')}.toml")
        elif kind == 3:
            path.write_bytes(b"[" * draw.randrange(9))
        else:
            write(path, draw.choice(["A", "a", "B2", "B10"]), draw.choice(["x", "y"]))

    for _ in range(60):
        for _ in range(draw.randrange(3)):
            change()
        assert indexed(cards) == parsed(cards)
        time.sleep(0.005)


# --- when the index cannot be used ----------------------------------------------------------------


def garbage(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_tables(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE card")
        database.execute("CREATE TABLE card (x)")
    database.close()


def other_rules(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE card SET text = replace(text, 'pitch', 'stale')")
        database.execute("PRAGMA user_version = 1")
    database.close()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("damage", [garbage, half, other_tables, other_rules, a_folder, empty])
def test_a_damaged_index_is_as_good_as_none(damage: Callable[[Path], None], cards: Path) -> None:
    for number in range(40):
        write(cards / f"{number}.toml", f"CARD_{number}")
    expected = parsed(cards)
    assert indexed(cards) == expected
    damage(place())
    assert [indexed(cards) for _ in range(3)] == [expected] * 3


def test_a_cache_that_cannot_be_written_costs_time_only(
    cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cards / "a.toml", "A")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "file" / "cache"))
    assert [listed(cards) for _ in range(2)] == [{"A": "pitch"}] * 2


def test_a_locked_index_costs_time_only(cards: Path) -> None:
    write(cards / "a.toml", "A")
    listed(cards)
    lock = sqlite3.connect(place(), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        assert listed(cards) == {"A": "pitch"}
    finally:
        lock.close()


def test_many_at_once_agree(cards: Path) -> None:
    for number in range(50):
        write(cards / f"{number}.toml", f"CARD_{number}")
    expected = parsed(cards)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: indexed(cards), range(12))) == [expected] * 12


def test_file_names_that_are_no_text_are_read_too(cards: Path) -> None:
    path = os.fsencode(cards) + b"/\xff.toml"
    with open(path, "wb") as file:
        file.write(CARD.format(name="A", task="x").encode())
    assert listed(cards) == listed(cards) == {"A": "x"}


# --- sorted names ---------------------------------------------------------------------------------


def test_merging_names_into_sorted_ones_sorts_them() -> None:
    draw = random.Random(1)
    for _ in range(50):
        names = {
            f"{draw.choice(['A', 'B', 'b', 'A_'])}{draw.randrange(300)}" for _ in range(draw.randrange(90))
        }
        order = sorted(draw.sample(sorted(names), draw.randrange(len(names) + 1)), key=natural_key)
        order = sorted({*order, "GONE1"}, key=natural_key)
        assert merged(names, order) == sorted(names, key=natural_key)


def test_a_large_folder_is_listed_among_the_others_in_natural_order(
    cards: Path, default: Registry, trusting: None
) -> None:
    text = "".join(CARD.format(name=f"CREPE_N{number}", task="x") for number in range(300))
    (cards / "all.toml").write_text(text)
    for _ in range(2):
        bundles.register_cards(cards, override=True)
    names = bundles.list_bundles()
    assert names == sorted(names, key=natural_key)
    assert names == sorted(default, key=natural_key)
    assert {"CREPE_TINY", "CREPE_N299"} <= set(names)
