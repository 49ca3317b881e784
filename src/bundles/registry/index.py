"""The cards of a folder, through an index in the cache that says which files need not be parsed again.

The index is a SQLite file. It is believed for a card file while size, inode and both times of that file are
those that were indexed, and never for a file that was younger than two seconds when it was read: an edit
within a timestamp's grain would not show (git calls such entries racy). Where the cache cannot be written,
or the index is damaged, the files are parsed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bundles.registry.names import natural_key
from bundles.registry.shelf import Row, Shelf, facts_of
from bundles.spec.places import cache_folder

if TYPE_CHECKING:
    import sqlite3

_SETTLED_NS = 2_000_000_000
_TABLES = {
    "folder": "path TEXT PRIMARY KEY, id INTEGER, stamps TEXT, names TEXT",
    "file": "folder INTEGER, name TEXT, stamp TEXT, problems TEXT, broken TEXT, PRIMARY KEY (folder, name)",
    "fact": "folder INTEGER, key TEXT, facts TEXT, PRIMARY KEY (folder, key)",
    "card": "folder INTEGER, file TEXT, nth INTEGER, name TEXT, text TEXT, PRIMARY KEY (folder, file, nth)",
}
_SAME = "SELECT id, names FROM folder WHERE path = ? AND stamps = ?"
_FACTS = "SELECT facts FROM fact JOIN folder ON id = folder WHERE key = ? AND path = ? AND stamps = ?"
_CARDS = "SELECT name, file, text FROM card WHERE folder = ? ORDER BY file, nth"
_FILES = "SELECT name, stamp, problems, broken FROM file WHERE folder = ? ORDER BY name"
_WRONG = "SELECT name, problems, broken FROM file WHERE folder = ? AND problems != '[]' ORDER BY name"


class Found(NamedTuple):
    """What a file gave, or all files of a folder: cards, and what is wrong with the others."""

    rows: list[Row]
    problems: list[str]
    broken: dict[str, list[str]]
    order: list[str] | None = None  # the names in natural order, where somebody has sorted them already
    facts: Callable[[str], dict[str, Any] | None] | None = None  # what the cards have at a key, by name


def read_folder(folder: str, label: str | None = None) -> Shelf:
    """Return the cards of a folder's ``*.toml`` files as they are now, good and broken.

    Args:
        folder: an absolute path.
        label: what stands before a file's name where an origin is shown; the folder without it.

    Raises:
        OSError: the folder cannot be read.
    """
    now = time.time_ns()
    stamps = _stamps(folder)
    found = _find(folder, stamps, now) if stamps else Found([], [], {})
    return Shelf(folder, os.path.join(folder, "") if label is None else label, *found)


def read_file(folder: str, file: str) -> Found:
    """Return what one file of a folder gives, parsed."""
    from bundles.registry.cards import read_card_file

    found = read_card_file(os.path.join(folder, file))
    return Found([(name, file, card) for name, card in found.cards.items()], found.problems, found.broken)


def _stamps(folder: str) -> list[str]:
    """Return a line for each card file, its name and its stamp; no stamp where it cannot be looked at."""
    lines = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.endswith(".toml"):
                try:  # on Windows an entry of a listing may be older than the file
                    now = os.stat(entry.path) if os.name == "nt" else entry.stat()
                except OSError:
                    lines.append(f"{name}/")
                else:
                    stamp = f"{now.st_mtime_ns} {now.st_ctime_ns} {now.st_size} {now.st_ino}"
                    lines.append(f"{name}/{stamp}")
    return sorted(lines)


def _find(folder: str, lines: list[str], now: int) -> Found:
    known: dict[str, tuple[str, Found]] = {}
    with _index() as index:
        index.execute("BEGIN")  # one state of it, whatever other processes write
        if _is_current(index):
            if row := index.execute(_SAME, (folder, "\n".join(lines))).fetchone():
                return _everything(index, *row)._replace(facts=partial(_facts, folder, "\n".join(lines)))
            known = _by_file(index, folder)
    stamps = dict(sorted(line.split("/") for line in lines))
    fresh = {file for file, stamp in stamps.items() if not stamp or known.get(file, ("",))[0] != stamp}
    files = {file: read_file(folder, file) if file in fresh else known[file][1] for file in stamps}
    found = _joined(files.values())
    with _index(create=True) as index:
        index.execute("BEGIN IMMEDIATE")
        _write(index, folder, {file: files[file] for file in fresh}, stamps, now)
        index.execute("COMMIT")
    return found


@contextlib.contextmanager
def _index(*, create: bool = False) -> Iterator[sqlite3.Connection]:
    """Yield the index; what goes wrong with it only costs time, so it ends the block and nothing else."""
    import sqlite3

    place = os.path.join(cache_folder(), "index", "cards.sqlite3")
    if create:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(place), exist_ok=True)
    try:
        index = sqlite3.connect(place, timeout=0.5, isolation_level=None)
    except (sqlite3.Error, ValueError):
        index = sqlite3.connect(":memory:")  # an empty one does as well
    try:
        with contextlib.closing(index):
            yield index
    except sqlite3.OperationalError:  # locked, read-only, full, or not there
        pass
    except sqlite3.DatabaseError:  # damaged, or no SQLite file at all
        with contextlib.suppress(OSError):
            os.unlink(place)
    except (
        sqlite3.Error,
        ValueError,
        TypeError,
        LookupError,
        OSError,
    ):  # what no database takes
        pass


def _everything(index: sqlite3.Connection, number: int, order: str) -> Found:
    wrong = index.execute(_WRONG, (number,)).fetchall()
    return Found(
        index.execute(_CARDS, (number,)).fetchall(),
        [line for _, problems, _ in wrong for line in json.loads(problems)],
        {name: lines for _, _, broken in wrong for name, lines in json.loads(broken).items()},
        json.loads(order),
    )


def _facts(folder: str, lines: str, key: str) -> dict[str, Any] | None:
    """Return what all cards have at a key; ``None`` where the index has gone on since they were listed."""
    with _index() as index:
        index.execute("BEGIN")
        if _is_current(index):
            row = index.execute(_FACTS, (key, folder, lines)).fetchone()
            return json.loads(row[0]) if row else None
    return None


def _by_file(index: sqlite3.Connection, folder: str) -> dict[str, tuple[str, Found]]:
    """Return stamp and contents of each file that is known of a folder."""
    number = _number(index, folder)
    known = {
        name: (stamp, Found([], json.loads(problems), json.loads(broken)))
        for name, stamp, problems, broken in index.execute(_FILES, (number,))
    }
    for row in index.execute(_CARDS, (number,)):
        known[row[1]][1].rows.append(row)
    return known


def _write(
    index: sqlite3.Connection, folder: str, fresh: dict[str, Found], stamps: dict[str, str], now: int
) -> None:
    if not _is_current(index):
        for table, columns in _TABLES.items():
            index.execute(f"DROP TABLE IF EXISTS {table}")
            index.execute(f"CREATE TABLE {table} ({columns}) WITHOUT ROWID")
        index.execute(f"PRAGMA user_version = {_rules()}")
    number = _number(index, folder)
    if number is None:
        number = index.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM folder").fetchone()[0]
    there = {name for (name,) in index.execute("SELECT name FROM file WHERE folder = ?", (number,))}
    old = [(number, file) for file in fresh.keys() | there - stamps.keys()]
    index.executemany("DELETE FROM file WHERE folder = ? AND name = ?", old)
    index.executemany("DELETE FROM card WHERE folder = ? AND file = ?", old)
    for file, found in fresh.items():
        stamp = stamps[file] if _is_settled(stamps[file], now) else ""
        wrong = json.dumps(found.problems), json.dumps(found.broken)
        index.execute("INSERT INTO file VALUES (?, ?, ?, ?, ?)", (number, file, stamp, *wrong))
        cards = [
            (number, file, nth, name, json.dumps(card)) for nth, (name, _, card) in enumerate(found.rows)
        ]
        index.executemany("INSERT INTO card VALUES (?, ?, ?, ?, ?)", cards)
    # From what is in the tables now: another process may have been here between our look and our lock.
    lines = sorted(f"{name}/{stamp}" for name, stamp, _, _ in index.execute(_FILES, (number,)))
    names = sorted({name for name, _, _ in index.execute(_CARDS, (number,))}, key=natural_key)
    index.execute("DELETE FROM fact WHERE folder = ?", (number,))
    facts = _by_key(index.execute(_CARDS, (number,)))
    rows = [(number, key, json.dumps(values)) for key, values in facts.items()]
    index.executemany("INSERT INTO fact VALUES (?, ?, ?)", rows)
    row = (folder, number, "\n".join(lines), json.dumps(names))
    index.execute("INSERT OR REPLACE INTO folder VALUES (?, ?, ?, ?)", row)


def _by_key(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Return what cards have, first by key and then by name; of two of one name the first counts."""
    facts: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    for name, _, text in rows:
        if name.lower() not in seen:
            seen.add(name.lower())
            for key, value in facts_of(json.loads(text)).items():
                facts.setdefault(key, {})[name] = value
    return facts


def _number(index: sqlite3.Connection, folder: str) -> int | None:
    row = index.execute("SELECT id FROM folder WHERE path = ?", (folder,)).fetchone()
    return row[0] if row else None


def _is_settled(stamp: str, now: int) -> bool:
    return bool(stamp) and max(map(int, stamp.split()[:2])) < now - _SETTLED_NS


def _is_current(index: sqlite3.Connection) -> bool:
    return bool(index.execute("PRAGMA user_version").fetchone()[0] == _rules())


def _rules() -> int:
    """Return a number that stands for the code that checks cards: another version may judge otherwise."""
    here = os.path.dirname(os.path.abspath(__file__))
    facts = []
    for folder in (here, os.path.join(os.path.dirname(here), "spec")):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            files = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(".py")]
            facts += sorted((name, status.st_size, status.st_mtime_ns) for name, status in files)
    return zlib.crc32(repr(facts).encode()) >> 1 or 1


def _joined(files: Iterable[Found]) -> Found:
    joined = Found([], [], {})
    for found in files:
        joined.rows.extend(found.rows)
        joined.problems.extend(found.problems)
        joined.broken.update(found.broken)
    return joined
