"""The recipes run, on data as a user's would lie there; slowly, on what they generate."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("soundfile")
pytest.importorskip("timm")
pytest.importorskip("torchcrepe")
pytest.importorskip("transformers")

RECIPES = Path(__file__).parent.parent / "scripts" / "recipes"
NAMES = ("ctc_schedule", "enhancement", "image_head", "keyword_spotting", "text_classifier")


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that writes data; its folder is where ``python scripts/recipes/...`` looks first."""
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("recipe_data")


def run(name: str, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    importlib.import_module(name).main([*map(str, arguments)])
    out = capsys.readouterr().out
    assert re.search(r"frozen bytes are equal: [1-9]\d* tensors", out)
    return out


def numbers(pattern: str, out: str) -> list[float]:
    found = [float(number) for number in re.findall(rf"{pattern}:? ([\d.]+)", out)]
    assert found, out
    return found


def test_keyword_spotting(data: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_numerals(tmp_path / "mine", 60)
    given = ("--data", tmp_path / "mine", "--features", tmp_path / "features", "--epochs", 15)
    out = run("keyword_spotting", capsys, *given)
    before, after = numbers("accuracy before", out) + numbers("accuracy after", out)
    assert after > before
    assert numbers("accuracy on recordings", out) == [after]  # the features were those of the model
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.safetensors")}
    assert run("keyword_spotting", capsys, *given) == out
    assert shards == {path: path.stat().st_mtime_ns for path in shards}  # and found again


def test_ctc_with_a_schedule(data: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_numerals(tmp_path, 40)
    out = run("ctc_schedule", capsys, "--data", tmp_path / "texts.tsv", "--epochs", 3)
    assert re.findall(r"epoch \d: (\S+), (\d+) tensors", out) == [
        ("Encoder()", "94"),
        ("ExceptLast(2)", "60"),
        ("Group('feature_extractor')", "21"),
    ]
    losses = numbers("loss", out)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("bundle", "moved", "alike"),
    [
        ("WAV2VEC2_NANO_DIGITS", ["0", "0"], ["True", "True"]),  # it has no batch norm
        ("CREPE_TINY", ["0", "6"], ["True", "False"]),
    ],
)
def test_enhancement_through_a_frozen_recogniser(
    data: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bundle: str,
    moved: list[str],
    alike: list[str],
) -> None:
    data.write_speech(tmp_path)
    given = ("--data", tmp_path, "--bundle", bundle, "--epochs", 1, "--pieces", 16)
    out = run("enhancement", capsys, *given)
    assert all(gradient > 0 for gradient in numbers("gradient at the front-end", out))
    assert re.findall(r"statistics that moved: (\d+)", out) == moved
    assert re.findall(r"alone as in a batch: (\w+)", out) == alike


def test_text_classifier_on_cached_features(
    data: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.write_sentences(tmp_path / "mine.tsv", 150)
    out = run("text_classifier", capsys, "--data", tmp_path / "mine.tsv", "--epochs", 15)
    assert numbers("accuracy after", out) > numbers("accuracy before", out)


def test_image_head(data: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_images(tmp_path, 45)
    out = run("image_head", capsys, "--data", tmp_path, "--epochs", 4)
    assert numbers("accuracy after", out) > numbers("accuracy before", out)


def test_data_that_cannot_be_used_is_said(data: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "yes").mkdir()
    (tmp_path / "yes" / "a.wav").touch()
    with pytest.raises(SystemExit, match=r"holds no files \.wav, .* in at least two subfolders"):
        importlib.import_module("keyword_spotting").main(["--data", str(tmp_path)])
    (tmp_path / "texts.tsv").write_text("only a text\n")
    with pytest.raises(SystemExit, match=r"Line 1 of .* has \d columns parted by a tab, not two"):
        importlib.import_module("text_classifier").main(["--data", str(tmp_path / "texts.tsv")])
    (tmp_path / "texts.tsv").write_text("a text\tgood\nanother\tgood\n")
    with pytest.raises(SystemExit, match="has one class, good, and no other"):
        importlib.import_module("text_classifier").main(["--data", str(tmp_path / "texts.tsv")])
    with pytest.raises(SystemExit, match="nowhere is no folder"):
        importlib.import_module("image_head").main(["--data", str(tmp_path / "nowhere")])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_without_arguments(name: str) -> None:
    done = subprocess.run(
        [sys.executable, RECIPES / f"{name}.py"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "frozen bytes are equal" in done.stdout
