"""WAV2VEC2_NANO_DIGITS ships with the package, and does what its card says."""

from __future__ import annotations

import hashlib
import importlib
import random
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torchaudio.functional import edit_distance

import bundles
from bundles.demo.speech import expand, transcribe, utterances

BUNDLE = bundles.get_bundle("WAV2VEC2_NANO_DIGITS")
WEIGHTS = Path(bundles.__file__).parent / "weights" / "wav2vec2_nano_digits.safetensors"
SCRIPTS = Path(__file__).parent.parent / "scripts"

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return BUNDLE.get_model()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("train_nano_digits")


def error_rate(model: nn.Module, waves: list[torch.Tensor], texts: list[str]) -> float:
    heard = [transcribe(model, wave, BUNDLE.get_labels()) for wave in waves]
    wrong: int = sum(edit_distance(a, b) for a, b in zip(texts, heard, strict=True))
    return wrong / sum(map(len, texts))


def test_it_transcribes_what_ships_with_the_package(model: nn.Module) -> None:
    heard = [transcribe(model, said.wave, BUNDLE.get_labels()) for said in utterances()]
    assert heard[:2] == ["four one two one", "two five seven zero"]
    assert edit_distance(heard[2], "three eight four eight four") <= 2  # it hears one "foure"
    assert heard[3:] == ["nine one four", "seven two four two"]


def test_its_error_over_noise_is_what_the_card_says(model: nn.Module, script: ModuleType) -> None:
    draw, spoken = random.Random(0), importlib.import_module("spoken_digits")
    said = utterances() * 8
    crowd = spoken.Speech(
        tuple(s.wave for s in said), tuple(s.text for s in said), tuple(s.voice for s in said)
    )
    waves = [spoken.noisy(one.wave, crowd, script.LOUD_NOISE, draw) for one in said]
    assert error_rate(model, waves, [one.text for one in said]) < 2 * BUNDLE.letters_wrong_in_noise


def test_the_file_is_the_one_of_the_card_and_small() -> None:
    assert BUNDLE.weights is not None
    assert BUNDLE.weights.sha256 == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert BUNDLE.weights.size == WEIGHTS.stat().st_size <= 1_000_000


def test_the_card_describes_the_model(model: nn.Module, script: ModuleType) -> None:
    assert sum(p.numel() for p in model.parameters()) == BUNDLE.num_parameters
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "".join(BUNDLE.get_labels()) == script.LABELS
    architecture = {**script.ARCHITECTURE}
    convolutions = [list(layer) for layer in architecture.pop("extractor_conv_layer_config")]
    assert [list(layer) for layer in BUNDLE.architecture["extractor_conv_layer_config"]] == convolutions
    assert {name: BUNDLE.architecture[name] for name in architecture} == architecture


def test_a_batch_is_heard_as_its_utterances_are(model: nn.Module) -> None:
    waves = [said.wave for said in utterances()]
    lengths = torch.tensor([len(wave) for wave in waves])
    emissions, frames = model(nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths)
    for wave, heard, length in zip(waves, emissions, frames, strict=True):
        torch.testing.assert_close(heard[:length], model(wave[None])[0][0], atol=1e-4, rtol=1e-4)


def test_loudness_does_not_matter(model: nn.Module) -> None:
    said = utterances()[3]
    heard = [transcribe(model, gain * said.wave, BUNDLE.get_labels()) for gain in (0.1, 0.3, 1.0)]
    assert heard == [said.text] * 3


def test_the_utterances_say_what_they_are() -> None:
    assert len(utterances("train")) == 35
    assert len(utterances("test")) == 40
    voices = [{said.voice for said in utterances(part)} for part in ("train", "test")]
    assert voices[0].isdisjoint(voices[1])
    assert all(0.85 < said.wave.abs().max() < 1 for part in ("digits", "test") for said in utterances(part))


def test_codes_become_samples_as_torchaudio_says() -> None:
    from torchaudio.functional import mu_law_decoding

    codes = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(expand(codes), mu_law_decoding(codes, 256))


def test_held_out_voices_are_held_out(script: ModuleType) -> None:
    held_out = importlib.import_module("spoken_digits").HELD_OUT
    assert set(held_out["valid"]).isdisjoint(held_out["test"])
    heard = {said.voice.split("+")[1] for part in ("digits", "test") for said in utterances(part)}
    assert heard <= set(held_out["test"])


def test_without_espeak_the_scripts_say_what_to_type(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"espeak-ng is not on PATH: type `apt-get install espeak-ng`"):
        importlib.import_module("spoken_digits").espeak("--version")


@pytest.mark.slow
@needs_espeak
def test_digits_spoken_anew_are_heard_as_the_card_says(model: nn.Module, script: ModuleType) -> None:
    spoken = importlib.import_module("spoken_digits").corpus("test", 60, seed=123)
    texts = [text.replace("|", " ").lower() for text in spoken.texts]
    assert error_rate(model, list(spoken.waves), texts) < 2 * BUNDLE.letters_wrong


@pytest.mark.slow
@needs_espeak
def test_a_corpus_follows_from_its_seed(script: ModuleType, tmp_path: Path) -> None:
    spoken = importlib.import_module("spoken_digits")
    first, again = spoken.corpus("valid", 4, seed=7), spoken.kept(tmp_path, "valid", 4, seed=7)
    assert (first.texts, first.voices) == (again.texts, again.voices)
    for wave, kept in zip(first.waves, again.waves, strict=True):
        torch.testing.assert_close(wave, kept, atol=1 / 32767, rtol=0)
