"""The recipes run, on data as a user's would lie there; slowly, on what they generate."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

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
    with pytest.raises(SystemExit, match=r"holds files \.wav, .* in 1 of its subfolders: give one that does"):
        importlib.import_module("keyword_spotting").main(["--data", str(tmp_path)])
    (tmp_path / "texts.tsv").write_text("only a text\n")
    with pytest.raises(SystemExit, match=r"Line 1 of .* has \d columns parted by a tab, not two"):
        importlib.import_module("text_classifier").main(["--data", str(tmp_path / "texts.tsv")])
    (tmp_path / "texts.tsv").write_text("a text\tgood\nanother\tgood\n")
    with pytest.raises(SystemExit, match="has one class, good, and no other"):
        importlib.import_module("text_classifier").main(["--data", str(tmp_path / "texts.tsv")])
    with pytest.raises(SystemExit, match="nowhere is no folder"):
        importlib.import_module("image_head").main(["--data", str(tmp_path / "nowhere")])


def refused(data: ModuleType, words: str, name: str, *arguments: object) -> None:
    """A recipe ends with one sentence, before it trains."""
    recipe = importlib.import_module(name)
    with pytest.raises(SystemExit, match=words):
        data.start(lambda: recipe.main([*map(str, arguments), "--epochs", "3"]))


@pytest.mark.parametrize("name", ["keyword_spotting", "ctc_schedule", "enhancement"])
@pytest.mark.parametrize(("content", "words"), [(b"", "is empty: get"), (b"none", "cannot be read as audio")])
def test_a_recording_that_is_broken_is_named(
    data: ModuleType, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    data.write_numerals(tmp_path, 10)
    path = sorted(tmp_path.glob("*/*.wav"))[-1]
    path.write_bytes(content)
    given = tmp_path / "texts.tsv" if name == "ctc_schedule" else tmp_path
    refused(data, rf"{path.parent.name}/{path.name} {words}", name, "--data", given)


def test_a_recording_that_is_too_short_for_the_encoder_is_named(data: ModuleType, tmp_path: Path) -> None:
    data.write_numerals(tmp_path, 10)
    path, text = data.table(tmp_path / "texts.tsv")[3]
    data.write_wave(Path(path), torch.zeros(100))
    words = rf"{text}/0003.wav: The Wav2Vec2Model does not take .* \[100\], so mend it or leave it out: "
    refused(data, words, "keyword_spotting", "--data", tmp_path)
    words = rf"{text}/0003.wav has 0 frames, and '{text}' needs {len(text)}: leave it out"
    refused(data, words, "ctc_schedule", "--data", tmp_path / "texts.tsv")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{path}\t" + "eins" * 50, r"has \d+ frames, and 'einseins.*' needs 200: leave it out"),
        ("{path}\taal", r"has 3 frames, and 'aal' needs 4: leave it out"),
        ("nowhere.wav\teins", r"2 of 22 files cannot be used; the first: nowhere.wav is not there: get it"),
        ("{path}\t", "Line 11 of .* has an empty column: fill it, or leave the line out"),
    ],
)
def test_a_text_that_ctc_cannot_spell_is_named(
    data: ModuleType, tmp_path: Path, row: str, words: str
) -> None:
    data.write_numerals(tmp_path, 10)
    data.write_wave(tmp_path / "short.wav", torch.zeros(1300))
    with (tmp_path / "texts.tsv").open("a") as file:
        file.write(row.format(path=tmp_path / "short.wav") + "\n")
    given = ("--data", tmp_path / "texts.tsv", "--test", tmp_path / "texts.tsv")
    refused(data, words, "ctc_schedule", *given)


def test_letters_that_training_lacks_are_named(data: ModuleType, tmp_path: Path) -> None:
    data.write_numerals(tmp_path, 10)
    path, _ = data.table(tmp_path / "texts.tsv")[0]
    (tmp_path / "test.tsv").write_text(f"{path}\tqqx\n")
    given = ("--data", tmp_path / "texts.tsv", "--test", tmp_path / "test.tsv")
    refused(data, r"the letters \['q', 'x'\] of those to test: leave", "ctc_schedule", *given)


def test_a_picture_that_is_broken_is_named(data: ModuleType, tmp_path: Path) -> None:
    data.write_images(tmp_path, 6)
    (tmp_path / "checks" / "0005.png").write_bytes(b"no picture")
    words = r"1 of 6 files cannot be used; the first: .*checks/0005.png cannot be read as a picture"
    refused(data, words, "image_head", "--data", tmp_path)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("enhancement", ["--data", "nowhere"], r"nowhere is no folder of files \.wav, .*: give one"),
        ("enhancement", ["--data", "{}", "--bundle", "RESNET50_IMAGENET1K_V2"], "takes image, not waveform"),
        ("image_head", ["--data", "{}", "--bundle", "NO_SUCH"], "There is no bundle 'NO_SUCH': did you"),
        ("ctc_schedule", ["--data", "{}"], r"cannot be read as text in UTF-8 \(.*\): give another file"),
        ("text_classifier", ["--data", "{}/empty.tsv"], "holds no lines: give a file of two columns"),
    ],
)
def test_what_no_recipe_can_use_is_said(
    data: ModuleType, tmp_path: Path, name: str, arguments: list[str], words: str
) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "empty.tsv").touch()
    refused(data, words, name, *(argument.format(tmp_path) for argument in arguments))


def test_numbers_on_the_command_line_are_checked(
    data: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        with pytest.raises(SystemExit, match="2"):
            importlib.import_module(name).main(["--batch-size", "0"])
        assert "argument --batch-size: 0 is no number of at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--epochs 2 is too few for three steps: give 3 or more"):
        importlib.import_module("ctc_schedule").main(["--epochs", "2"])


def test_a_table_with_a_byte_order_mark_is_read(data: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n\nc\td\n", encoding="utf-8-sig")
    assert data.table(tmp_path / "x.tsv") == [("a", "b"), ("c", "d")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_without_arguments(name: str) -> None:
    done = subprocess.run(
        [sys.executable, RECIPES / f"{name}.py"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "frozen bytes are equal" in done.stdout
