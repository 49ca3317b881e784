"""Tables of docs/peers.md and others: made of what the benchmarks stored, between two marks of the page."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent.parent / "docs"
RESULTS = Path(__file__).parent / "results"
NONE = "-"  # not asked
DETAIL = "equals eval"  # the check that is shown for each architecture


def store(name: str, results: dict[str, Any]) -> None:
    """Keep what a benchmark found, and put its tables into the page."""
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    page = _page(name)
    before, start, rest = page.read_text().partition(f"<!-- {name}: generated -->\n")
    end = f"<!-- {name}: end -->\n"
    page.write_text(before + start + TABLES[name](results) + end + rest.partition(end)[2])


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of what is measured."""
    return {package: version(package).partition("+")[0] for package in packages}


def stored(name: str) -> str:
    """Return the tables of what a benchmark last found."""
    return TABLES[name](json.loads((RESULTS / f"{name}.json").read_text()))


def printed(name: str) -> str:
    """Return what the page says."""
    after = _page(name).read_text().partition(f"<!-- {name}: generated -->\n")[2]
    return after.partition(f"<!-- {name}: end -->\n")[0]


def architectures(results: dict[str, Any]) -> str:
    """Return how many architectures pass each check, for each way to freeze, and one check in detail."""
    verdicts = results["verdicts"]
    checks = list(next(iter(next(iter(verdicts.values())).values())))
    counts = [
        [way, *(_count([answers[check] for answers in found.values()]) for check in checks)]
        for way, found in verdicts.items()
    ]
    ours, *others = verdicts
    detail = [
        [name, verdicts[ours][name][DETAIL], _count([verdicts[way][name][DETAIL] for way in others])]
        for name in verdicts[ours]
    ]
    columns = ["output after `train()` equals `eval()`", ours, "of the others"]
    return _versions(results) + _markdown(["frozen by", *checks], counts) + _markdown(columns, detail)


def mechanism(results: dict[str, Any]) -> str:
    """Return one line per check, and the number that pass."""
    rows, answers = results["rows"], results["answers"]
    lines = [[label, *(words[row] for words in answers.values())] for row, label in rows.items()]
    passes = [str(list(words.values()).count("yes")) for words in answers.values()]
    total = [f"**passes of {len(rows)}**", *passes]
    return _versions(results) + _markdown(["check", *answers], [*lines, total])


def trainers(results: dict[str, Any]) -> str:
    """Return one line per trainer and way to freeze."""
    verdicts = results["verdicts"]
    questions = list(next(iter(verdicts.values())))
    lines = [[name, *(words[question] for question in questions)] for name, words in verdicts.items()]
    return _versions(results) + _markdown(["frozen by", *questions], lines)


TABLES = {"architectures": architectures, "mechanism": mechanism, "trainers": trainers}


def _page(name: str) -> Path:
    return PAGES / ("trainers.md" if name == "trainers" else "peers.md")


def _versions(results: dict[str, Any]) -> str:
    named = ", ".join(f"{package} {number}" for package, number in results["versions"].items())
    return f"\nMeasured with {named}.\n"


def _count(words: list[str]) -> str:
    asked = [word for word in words if word != NONE]
    return f"{asked.count('yes')} of {len(asked)}"


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
