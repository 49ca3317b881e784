"""Twenty-three real architectures stay frozen after ``train()``, and what docs/peers.md says was measured."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import bundles
from freeze_checks import CHECKS, Way, deterministic
from real_models import REAL, run
from toys import fingerprint

ROOT = Path(__file__).parent.parent
HABIT = Way(
    lambda model: model.requires_grad_(False).eval(), lambda model: model.requires_grad_(True).train()
)
PARAMETRIZED = {"wav2vec2", "hubert", "Wav2Vec2", "Hubert", "WavLM", "EnCodec", "Wav2Vec2-Conformer"}
STEADY = {"conv_tasnet", "wav2letter", "EnCodec"}  # nothing in them is random


def freeze_all(model: object) -> object:
    with pytest.warns(bundles.NothingTrainableWarning):
        return bundles.freeze(model, "all")  # type: ignore[type-var]


EVAL = Way(freeze_all, bundles.unfreeze)


def test_there_are_twenty_three() -> None:
    assert len(REAL) == 23


@pytest.mark.parametrize("name", REAL)
def test_a_real_model_stays_frozen(name: str) -> None:
    verdicts = {check: ask(REAL[name], EVAL) for check, ask in CHECKS.items()}
    pickles = None if name in PARAMETRIZED else True  # torch refuses to pickle parametrized modules
    assert verdicts == dict.fromkeys(CHECKS, True) | {"pickle": pickles}


@pytest.mark.parametrize("name", REAL)
def test_undo_gives_back_every_attribute(name: str) -> None:
    model = REAL[name].make()
    run(model, REAL[name].make_input())  # some keep what they last saw
    before = fingerprint(model)
    EVAL.freeze(model)
    EVAL.undo(model.train())
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", REAL)
def test_the_plain_habit_leaves_whatever_can_be_random_random(name: str) -> None:
    assert deterministic(REAL[name], HABIT) == (name in STEADY)


def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("marked")


@pytest.mark.parametrize("name", ["architectures", "mechanism"])
def test_the_page_about_peers_says_what_was_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = tables(monkeypatch)
    assert "| yes |" in marked.stored(name)
    assert marked.printed(name) == marked.stored(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "needs"), [("architectures.py", "fastai"), ("mechanism", "pytorch_lightning")]
)
def test_measuring_again_gives_the_page_about_peers(
    name: str, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(needs)
    command = [sys.executable, str(ROOT / "benchmarks" / name)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert tables(monkeypatch).stored(name.removesuffix(".py")) in told.stdout
