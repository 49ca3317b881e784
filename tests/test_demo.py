"""The demonstration does what it says, on real weights."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from pathlib import Path

import pytest
import torch

import bundles
from bundles.demo import numerals, pitch, tasks, vowels, ways

# a weight per layer, attention over frames, and a linear layer from means and deviations
_NUMERAL_HEAD = 4 + (96 + 1) * 128 + 128 + (2 * 96 + 1) * 5


@pytest.fixture(scope="module")
def singing() -> tasks.Task:
    return tasks.make_task(bundles.CREPE_TINY, train=256, seed=1)


@pytest.fixture(scope="module")
def counting() -> tasks.Task:
    return tasks.make_task(bundles.get_bundle("WAV2VEC2_NANO_DIGITS"), train=64, seed=1)


def run(build: ways.Way, name: str, task: tasks.Task, epochs: int = 1) -> ways.Outcome:
    return ways.run(build, bundles.get_bundle(name), task, epochs=epochs, seed=0, tick=lambda: None)


@pytest.mark.parametrize("hertz", [110.0, 440.0, 987.77])
@pytest.mark.parametrize("name", ["CREPE_TINY", "CREPE_FULL"])
def test_crepe_hears_a_tone_within_20_cents(name: str, hertz: float) -> None:
    bundle = bundles.get_bundle(name)
    model = bundle.get_model(freeze="all", freeze_mode="features")
    heard, confidence = pitch.hear(model, pitch.tone(hertz, 0.2, bundle.sample_rate), bundle)
    assert abs(pitch.cents_between(heard, hertz)) < 20
    assert confidence > 0.5


def test_frames_are_those_of_torchcrepe() -> None:
    import torchcrepe

    bundle = bundles.CREPE_TINY
    audio = pitch.tone(200.0, 0.3, bundle.sample_rate) + 0.1 * torch.randn(4800)
    theirs = next(torchcrepe.preprocess(audio[None], bundle.sample_rate, bundle.hop_length, pad=False))
    torch.testing.assert_close(pitch.frames(audio, bundle), theirs)


def test_the_task_is_generated_from_its_seed_alone() -> None:
    first, again = (vowels.vowels(8, 1024, 16000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (8, 1024)
    assert first[0].mean(1).abs().max() < 1e-5


def test_numerals_are_generated_from_their_seed_alone() -> None:
    first, again = (numerals.numerals("test", 45, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (45, numerals.LENGTH)
    assert first[1].bincount().tolist() == [13, 8, 8, 8, 8]
    assert not torch.equal(first[0][0], first[0][40])  # one utterance, two recordings


def test_singers_frozen_by_us_nothing_moves_and_the_head_learns(singing: tasks.Task) -> None:
    outcome = run(ways.frozen_by_us, "CREPE_TINY", singing)
    assert (outcome.parameters_moved, outcome.buffers_moved, outcome.warned) == ((), (), ())
    assert outcome.trained == 256 * 2 + (256 + 1) * 128 + (128 + 1) * 5
    assert outcome.shift == 0


def test_singers_frozen_by_habit_the_batch_norms_count_on(singing: tasks.Task) -> None:
    outcome = run(ways.frozen_by_habit, "CREPE_TINY", singing)
    assert outcome.parameters_moved == ()
    assert outcome.buffers_moved == tuple(f"conv{i}_BN.num_batches_tracked" for i in range(1, 7))
    assert outcome.shift > 0.1


def test_counting_frozen_by_us_nothing_moves_and_the_head_learns(counting: tasks.Task) -> None:
    outcome = run(ways.frozen_by_us, "WAV2VEC2_NANO_DIGITS", counting, epochs=6)
    assert (outcome.parameters_moved, outcome.buffers_moved, outcome.warned) == ((), (), ())
    assert outcome.trained == _NUMERAL_HEAD
    assert outcome.shift == 0
    assert outcome.accuracy > 0.5  # chance is 0.2


def test_counting_frozen_by_habit_dropout_goes_on_in_the_frozen_part(counting: tasks.Task) -> None:
    outcome = run(ways.frozen_by_habit, "WAV2VEC2_NANO_DIGITS", counting)
    assert (outcome.parameters_moved, outcome.buffers_moved) == ((), ())
    assert outcome.trained == _NUMERAL_HEAD
    assert outcome.shift > 0.1


@pytest.mark.parametrize("name", ["CREPE_TINY", "WAV2VEC2_NANO_DIGITS"])
def test_frozen_at_random_warns_and_holds_all_the_same(
    name: str, singing: tasks.Task, counting: tasks.Task
) -> None:
    outcome = run(ways.frozen_at_random, name, singing if name == "CREPE_TINY" else counting)
    assert (outcome.parameters_moved, outcome.buffers_moved) == ((), ())
    assert len(outcome.warned) == 1
    assert "never loaded from pretrained weights" in outcome.warned[0]


def test_a_bundle_of_another_kind_is_refused() -> None:
    other = bundles.Bundle("OTHER", builder=torch.nn.Identity)
    with pytest.raises(bundles.BundlesError, match="one for speech encoders, and OTHER is neither: type"):
        tasks.make_task(other, None, 0)


def test_a_recording_is_read_resampled_and_heard(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    samples = (pitch.tone(330.0, 0.5, 44100) * 20000).to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 44100, len(samples), "NONE", ""))
        file.writeframes(samples.numpy().tobytes())
    bundle = bundles.CREPE_TINY
    heard, _ = pitch.hear(bundle.get_model(), pitch.read_wav(path, bundle.sample_rate), bundle)
    assert abs(pitch.cents_between(heard, 330.0)) < 20


def test_audio_that_is_none_and_audio_too_short_are_refused(tmp_path: Path) -> None:
    (tmp_path / "page.wav").write_text("<html>")
    with pytest.raises(bundles.BundlesError, match=r"page\.wav cannot be read as audio"):
        pitch.read_wav(tmp_path / "page.wav", 16000)
    with pytest.raises(bundles.BundlesError, match="has 10 samples at 16000 Hz: at least 1024"):
        pitch.frames(torch.zeros(10), bundles.CREPE_TINY)


def test_the_whole_demo_prints_its_tables() -> None:
    program = str(Path(sys.executable).with_name("bundles"))
    arguments = ["demo", "--examples", "64", "--epochs", "1"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # two of a busy machine wait for each other
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True, env=one_thread)
    assert "WAV2VEC2_NANO_DIGITS hears 'four one two one' in 'four one two one'" in done.stdout
    assert "CREPE_TINY hears 440.4 Hz" in done.stdout
    for way, moved in zip(ways.WAYS, (0, 6, 0), strict=True):
        words, vowel = (line for line in done.stdout.splitlines() if line.strip().startswith(way))
        assert "0 parameters, 0 buffers" in words
        assert f"0 parameters, {moved} buffers" in vowel
        assert all(("equal" in line) == (moved == 0) for line in (words, vowel))
    assert done.stdout.count("warned (frozen without weights)") == 2
    assert "4/4" in done.stderr
    assert "1/1" in done.stderr
