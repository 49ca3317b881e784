"""``bundles features``: what is stored is said in a line, what cannot be read at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import soundfile
import torch
from torch import nn
from torchaudio.functional import resample

import bundles
from bundles.cli.main import main
from bundles.demo.speech import utterances
from bundles.features.store.store import FeatureStore

NAME = "WAV2VEC2_NANO_DIGITS"


def run(*arguments: str) -> int:
    """The command in this process, which has torch imported already."""
    with pytest.raises(SystemExit) as ended:
        main(["features", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Three spoken utterances as files of three types and rates."""
    folder = tmp_path / "speech"
    folder.mkdir()
    rates = {"a.wav": 16000, "b.flac": 8000, "c.mp3": 44100}
    for said, (name, rate) in zip(utterances(), rates.items(), strict=False):
        soundfile.write(folder / name, resample(said.wave, 16000, rate).numpy(), rate)
    return folder


def test_files_are_stored_and_the_store_is_said(speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = speech.parent / "out"
    options = ("--workers", "1", "--batch-size", "1")
    assert run(NAME, "--input", f"{speech}/*", "--out", str(out), *options) == 0
    told = capsys.readouterr()
    store = FeatureStore(out)
    assert told.out.startswith("3 items: output in float16 (")
    assert told.out.rstrip().endswith(f"in {store.path}")
    assert told.out.count("\n") == 1
    assert store.names == ("a.wav", "b.flac", "c.mp3")
    model = bundles.get_bundle(NAME).get_model(
        freeze=True, freeze_mode="features", head=lambda _: nn.Identity()
    )
    wave = torch.from_numpy(soundfile.read(speech / "a.wav", dtype="float32")[0])
    with torch.inference_mode():
        wanted = model(wave[None])[0][0]
    assert torch.equal(store[0], wanted.half())


def test_layers_and_dtype_are_those_asked_for(speech: Path) -> None:
    out = speech.parent / "out"
    options = ("--layers", "1,-1", "--dtype", "float32", "--batch-size", "1", "--workers", "1")
    assert run(NAME, "--input", str(speech), "--out", str(out), *options) == 0
    store = FeatureStore(out)
    blocks = [
        group.name for group in bundles.get_bundle(NAME).plan().groups if group.name.startswith("block")
    ]
    assert store.layers == (blocks[1], blocks[-1])
    assert store[0][blocks[1]].dtype == torch.float32


def test_unreadable_files_are_listed_at_the_end_and_the_rest_is_stored(
    speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (speech / "aa.wav").write_text("this is text")
    (speech / "d.wav").write_bytes(b"")
    soundfile.write(speech / "e.wav", torch.zeros(5).numpy(), 16000)  # shorter than a frame
    out = speech.parent / "out"
    for _ in range(2):  # asked again, it says the same
        assert run(NAME, "--input", f"{speech}/*", "--out", str(out), "--workers", "1") == 1
        told = capsys.readouterr()
        assert told.out.startswith("3 items, 3 left out: ")
        *unreadable, too_short = told.err.splitlines()
        assert unreadable == [
            "bundles: aa.wav cannot be read as audio (Format not recognised): give WAV, FLAC, OGG or MP3.",
            "bundles: d.wav is empty: get it again, or leave it out.",
        ]
        assert too_short.startswith("bundles: e.wav")
        assert "does not take inputs of shape [5]" in too_short
    assert FeatureStore(out).names == ("a.wav", "b.flac", "c.mp3")


def test_a_name_that_a_terminal_would_obey_is_said_once(
    speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (speech / "\x1b[31mred\n.wav").write_text("this is text")
    assert run(NAME, "--input", str(speech), "--out", str(speech.parent / "out"), "--workers", "1") == 1
    told = capsys.readouterr()
    assert told.out.startswith("3 items, 1 left out: ")
    assert told.err.startswith("bundles: [31mred.wav cannot be read as audio (")
    assert told.err.count("red") == told.err.count("\n") == 1


def test_one_item_is_one(speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(speech.parent / "out")
    assert run(NAME, "--input", str(speech / "a.wav"), "--out", out, "--workers", "1") == 0
    assert capsys.readouterr().out.startswith("1 item: output in float16 (")


def test_what_ctrl_c_leaves_is_gone_on_from(speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(60):
        shutil.copy(speech / "a.wav", speech / f"{number:02d}.wav")
    out = speech.parent / "out"
    command = (NAME, "--input", str(speech), "--out", str(out), "--workers", "1")

    def stop() -> None:
        while not (written := [*out.rglob("*.safetensors")]) and watched.is_set():
            time.sleep(0.005)
        if written:
            os.kill(os.getpid(), signal.SIGINT)

    watched = threading.Event()
    watched.set()
    watcher = threading.Thread(target=stop)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watcher.start()
        code = run(*command)
    finally:
        watched.clear()
        watcher.join()
        signal.signal(signal.SIGINT, before)
    told = capsys.readouterr()
    assert (code, told.out) == (130, "")
    assert told.err == "bundles: stopped; the same command goes on from what is finished.\n"
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert 0 < len(written) < 8
    assert run(*command) == 0
    assert capsys.readouterr().out.startswith("63 items: ")
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            [NAME, "--input", "{}/*.xyz", "--out", "o"],
            2,
            "the glob matches no file; give a file",
        ),
        ([NAME, "--input", "{}/a.wav", "{}/b.flac", "--out", "o"], 2, "put the glob in quotes"),
        ([NAME, "--input", "", "--out", "o"], 2, "'': the file is not there; give a file"),
        (
            [NAME, "--input", "{}", "--out", "o", "--engine", "spark"],
            2,
            "'spark' is not one of 'local', 'ray'",
        ),
        ([NAME, "--out", "o"], 2, "Missing option '--input'"),
        (["NO_SUCH", "--input", "{}", "--out", "o"], 2, "NO_SUCH"),
        ([NAME, "--input", "{}", "--out", "o", "--layers", "99"], 2, "99"),
        ([NAME, "--input", "{}", "--out", "o", "--freeze-mode", "mc"], 1, "mc"),
        (
            [NAME, "--input", "{}", "--out", "o", "--sample-rate", "8000"],
            2,
            "takes waveform at 16000 Hz: leave",
        ),
    ],
)
def test_a_wrong_word_ends_with_one_sentence_and_the_right_code(
    arguments: list[str],
    code: int,
    words: str,
    speech: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(speech.parent)
    assert run(*(argument.format(speech) for argument in arguments)) == code
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""
    assert not Path("o").exists() or not os.listdir("o")


def test_the_program_asks_twice_and_computes_once(speech: Path) -> None:
    program = str(Path(sys.executable).with_name("bundles"))
    command = ["features", NAME, "--input", f"{speech}/*.wav", "--out", str(speech.parent / "out")]
    first = subprocess.run([program, *command], capture_output=True, text=True, check=True)
    written = {path: path.stat().st_mtime_ns for path in (speech.parent / "out").rglob("*.safetensors")}
    assert (first.stdout.count("\n"), first.stderr) == (1, "")
    assert written
    assert run(*command[1:]) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_help_says_what_is_taken_and_ends_in_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    told = capsys.readouterr().out
    assert "Example: bundles features" in told
    assert all(option in told for option in ("--input", "--out", "--layers", "--engine", "--workers"))
