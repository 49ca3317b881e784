"""The cards of torchaudio's bundles say what torchaudio says, and the maintainers' script keeps them so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import bundles
from bundles.spec.architectures import argument_problem
from zoo import SPEECH, SSL, UPSTREAM, WITH_LABELS, script

every = pytest.mark.parametrize("name", UPSTREAM)

VOXPOPULI = [f"VOXPOPULI_ASR_BASE_10K_{language}" for language in ("DE", "EN", "ES", "FR", "IT")]


facts_of = script.facts_of
FACTS: dict[int, Any] = {}


@pytest.fixture(autouse=True)
def _asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting the parameters of 40 models takes a second, and torchaudio does not change meanwhile."""

    def remembered(bundle: Any) -> Any:
        if id(bundle) not in FACTS:
            FACTS[id(bundle)] = facts_of(bundle)
        return dict(FACTS[id(bundle)])

    monkeypatch.setattr(script, "facts_of", remembered)


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """A copy of the built-in cards."""
    folder = tmp_path / "cards"
    folder.mkdir()
    for path in script.CARDS.glob("*.toml"):
        shutil.copy(path, folder)
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.toml"))}


def damage(folder: Path, file: str, old: str, new: str) -> None:
    path = folder / file
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the script's main function; its exit status."""
    monkeypatch.setattr(sys, "argv", ["torchaudio_cards.py", *map(str, arguments)])
    try:
        script.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def plain(value: Any) -> Any:
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


# --- the script -----------------------------------------------------------------------------------


def test_no_card_differs_from_torchaudio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(UPSTREAM) == 40
    assert run(monkeypatch) == 0
    assert capsys.readouterr().out == ""


@every
def test_the_script_compares_everything_that_a_bundle_is_made_with(name: str) -> None:
    """What is compared is what upstream holds, so that no difference means something."""
    upstream = UPSTREAM[name]
    compared = script.facts_of(upstream)
    assert {("builder",), ("num_parameters",), ("weights", "source")} <= compared.keys()
    own = {key: value for key, value in vars(upstream).items() if key != "__doc__"}
    fields = {
        "_params": [key for key, value in own.get("_params", {}).items() if value is not None],
        "_tacotron2_params": list(own.get("_tacotron2_params", {})),
    }
    for key in (key for keys in fields.values() for key in keys):
        assert ("architecture", key) in compared
    numbers = {key.lstrip("_"): value for key, value in own.items() if type(value) is int}
    assert set(numbers) <= {key[-1] for key in compared}
    assert all(value == compared.get((key,), compared.get(("extra", key))) for key, value in numbers.items())


DAMAGE = [
    ("speech_encoders.toml", "num_parameters = 94370944\n", "num_parameters = 94370945\n"),
    ("speech_encoders.toml", 'asr_ll10m.pth"', 'asr_ll10h.pth"'),
    ("speech_encoders.toml", "encoder_layer_drop = 0.2 }", "encoder_layer_drop = 0.3 }"),
    ("speech_encoders.toml", '"K", "\'", "X"', '"K", "X"'),
    ("transducers.toml", "right_padding = 4, ", ""),
    ("source_separation.toml", "sample_rate = 8000\n", ""),
    ("speech_synthesis.toml", "architecture.n_symbol = 96", "architecture.n_symbol = 38"),
]
LARGE_GROUP_NORM = ["WAV2VEC2_LARGE", *(f"WAV2VEC2_ASR_LARGE_{hours}" for hours in ("10M", "100H", "960H"))]
ENGLISH = [name for name in WITH_LABELS if UPSTREAM[name]._labels[1:2] == ("E",)]
REPORTED = {
    "WAV2VEC2_BASE.num_parameters: torchaudio 94370944, card 94370945",
    *(f"{name}.architecture.encoder_layer_drop: torchaudio 0.2, card 0.3" for name in LARGE_GROUP_NORM),
    "EMFORMER_RNNT_BASE_LIBRISPEECH.extra.right_padding: torchaudio 4, card None",
    "CONVTASNET_BASE_LIBRI2MIX.sample_rate: torchaudio 8000, card None",
    *(
        f"TACOTRON2_{way}_PHONE_LJSPEECH.architecture.n_symbol: torchaudio 96, card 38"
        for way in ("GRIFFINLIM", "WAVERNN")
    ),
}
STARTS = {"WAV2VEC2_ASR_BASE_10M.weights.source: ", *(f"{name}.labels: " for name in ENGLISH)}


def test_damage_is_reported_key_by_key_and_mended(
    cards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, old, new in DAMAGE:
        damage(cards, file, old, new)
    before = texts(cards)
    assert run(monkeypatch, "--cards", cards) == 1
    lines = set(capsys.readouterr().out.splitlines())
    others = lines - REPORTED
    assert lines >= REPORTED
    assert len(others) == len(STARTS) == 1 + 11
    assert all(any(line.startswith(start) for line in others) for start in STARTS)
    assert texts(cards) == before

    assert run(monkeypatch, "--cards", cards, "--write") == 0
    assert set(capsys.readouterr().out.splitlines()) == lines
    assert run(monkeypatch, "--cards", cards) == 0
    assert capsys.readouterr().out == ""
    after = texts(cards)
    assert after.keys() == before.keys()
    for name, text in before.items():
        gone = Counter(text.splitlines()) - Counter(after[name].splitlines())
        assert not any(line.startswith("#") for line in gone)
        assert sum(gone.values()) <= 3  # lines that held a wrong value, and no other


def test_a_changed_value_is_put_back_where_it_was(cards: Path) -> None:
    before = texts(cards)
    for file, old, new in DAMAGE[:2]:
        damage(cards, file, old, new)
    script.write(cards)
    assert texts(cards) == before


def test_cards_that_are_right_are_not_touched(cards: Path) -> None:
    before = texts(cards)
    script.write(cards)
    assert texts(cards) == before


def test_a_bundle_without_a_card_gets_one_to_be_completed(
    cards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cards / "squim.toml"
    text = path.read_text()
    start, end = text.index("[SQUIM_OBJECTIVE]"), text.index("[SQUIM_SUBJECTIVE]")
    removed = text[start:end]
    path.write_text(text[:start] + text[end:])
    facts = script.facts_of(UPSTREAM["SQUIM_OBJECTIVE"])
    before = texts(cards)
    assert run(monkeypatch, "--cards", cards) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"SQUIM_OBJECTIVE.{'.'.join(key)}: torchaudio {value!r}, card None" for key, value in facts.items()
    ]
    assert run(monkeypatch, "--cards", cards, "--write") == 0
    after = texts(cards)
    new = after.pop("torchaudio_new.toml")
    assert after == before
    assert tomllib.loads(new) == {
        "SQUIM_OBJECTIVE": {
            "builder": "torchaudio_squim_objective",
            "sample_rate": 16000,
            "num_parameters": 7387658,
            "weights": {"source": tomllib.loads(removed)["SQUIM_OBJECTIVE"]["weights"]["source"]},
        }
    }
    layers = removed[removed.index("[SQUIM_OBJECTIVE.layers]") :]  # what only people know
    (cards / "torchaudio_new.toml").write_text(new + layers)
    assert run(monkeypatch, "--cards", cards) == 0


# --- what the cards say ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TACOTRON2_WAVERNN_CHAR_LJSPEECH", "TACOTRON2_WAVERNN_PHONE_LJSPEECH"])
def test_the_vocoders_card_is_that_of_both_wavernn_bundles(name: str) -> None:
    upstream, card = UPSTREAM[name], bundles.get_bundle(bundles.get_bundle(name).vocoder)
    assert card.name == "WAVERNN_8BITS_LJSPEECH"
    assert {key: plain(value) for key, value in card.architecture.items()} == upstream._wavernn_params
    assert card.weights is not None
    assert card.weights.uri == f"url:https://download.pytorch.org/torchaudio/models/{upstream._wavernn_path}"
    assert card.hop_length == upstream._wavernn_params["hop_length"]


def test_what_bundles_have_in_common_is_written_once() -> None:
    text = "\n".join(texts(script.CARDS).values())
    lists = Counter(re.findall(r"\[\[.*?\]\]|\[[^\[\]]*\]", text))
    assert lists[
        "[[512, 10, 5], [512, 3, 2], [512, 3, 2], [512, 3, 2], [512, 3, 2], [512, 2, 2], [512, 2, 2]]"
    ]
    assert {found for found, count in lists.items() if count > 1 and found.count(",") > 6} == set()
    assert text.count("encoder_embed_dim = 768") == text.count("n_mels = 80\n") == 1


SAID = {  # words of torchaudio's documentation -> licence
    "MIT License": "MIT",
    "CC BY-NC|CC-BY-NC|Attribution Non Commercial": "CC-BY-NC-4.0",
    r"Attribution 4\.0": "CC-BY-4.0",
}


def test_licences_are_those_of_torchaudios_documentation() -> None:
    assert bundles.list_bundles("[!C]*", license="CC-BY-NC*", modality="audio") == sorted(
        [*VOXPOPULI, "MMS_FA", "SQUIM_SUBJECTIVE"]
    )
    assert bundles.list_bundles(license="CC-BY-4.0") == ["SQUIM_OBJECTIVE"]
    for name, upstream in UPSTREAM.items():
        licences = [licence for words, licence in SAID.items() if re.search(words, upstream.__doc__)]
        assert licences == [entry for entry in [bundles.get_bundle(name).metadata.get("license")] if entry]


@every
def test_a_card_says_what_people_ask(name: str) -> None:
    bundle = bundles.get_bundle(name)
    known = bundle.metadata
    assert {"task", "training_data", "paper", "num_parameters", "description", "sample_rate"} <= known.keys()
    assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", known["paper"])
    assert known["modality"] == "audio"
    if known["task"] in ("asr", "forced_alignment", "tts"):
        assert known["languages"]
    tasks = {"ssl": SSL, "asr": [*WITH_LABELS, "EMFORMER_RNNT_BASE_LIBRISPEECH"]}
    for task, names in tasks.items():
        assert (known["task"] == task) == (name in names and name != "MMS_FA")
    if name in VOXPOPULI:
        assert known["languages"] == (name[-2:].lower(),)


def test_encoders_are_found_by_what_they_are() -> None:
    assert bundles.list_bundles(task="ssl") == sorted(SSL, key=bundles.list_bundles("*").index)
    assert bundles.list_bundles(companions="alignment") == ["MMS_FA"]
    assert len(bundles.list_bundles(paper="https://arxiv.org/abs/2110.13900")) == 3
    assert bundles.list_bundles(languages="de", modality="audio") == ["VOXPOPULI_ASR_BASE_10K_DE"]


def test_the_command_line_says_the_licence() -> None:
    program = str(Path(sys.executable).with_name("bundles"))
    out = subprocess.run([program, "show", "MMS_FA"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=1) for line in out.splitlines()]
    assert any(row[0] == "license" and row[1].strip() == "CC-BY-NC-4.0" for row in rows if len(row) == 2)
    assert "forced_alignment" in out
    out = subprocess.run(
        [program, "list", "--license", "CC-BY-NC*", "--modality", "audio", "-q"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.split() == sorted([*VOXPOPULI, "MMS_FA", "SQUIM_SUBJECTIVE"])


# --- the closed schema ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "name", "value", "words"),
    [
        ("torchaudio_wav2vec2", "encoder_dropout", 0, "0 is not a float"),
        ("torchaudio_wav2vec2", "encoder_dropout", float("nan"), "nan is not a float"),
        ("torchaudio_wav2vec2", "encoder_dropout", float("inf"), "inf is not a float"),
        ("torchaudio_wav2vec2", "encoder_num_layers", 0, "0 is not an int from 1 to 99999"),
        ("torchaudio_wav2vec2", "encoder_num_layers", True, "True is not an int from 1 to 99999"),
        ("torchaudio_wav2vec2", "encoder_num_layers", 2**31, "2147483648 is not an int from 1 to 99999"),
        ("torchaudio_wav2vec2", "extractor_conv_bias", 1, "1 is not true or false"),
        ("torchaudio_wav2vec2", "extractor_conv_layer_config", [], r"[] is not a list of lists"),
        ("torchaudio_wav2vec2", "extractor_conv_layer_config", [512, 3], "is not a list of lists"),
        ("torchaudio_wav2vec2", "extractor_conv_layer_config", [[512, "3"]], "is not a list of lists"),
        ("torchaudio_wav2vec2", "extractor_mode", "batch_norm", "is not one of 'group_norm', 'layer_norm'"),
        ("torchaudio_wav2vec2", "encoder_num_buckets", 320, "is not an argument: the builder"),
        ("torchaudio_wavlm", "with_star", True, "is not an argument: the builder 'torchaudio_wavlm' takes"),
        ("torchaudio_hdemucs", "sources", [1], "[1] is not a list of str"),
        ("torchaudio_squim_objective", "size", 3, "'torchaudio_squim_objective' takes no argument"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_told(builder: str, name: str, value: Any, words: str) -> None:
    problem = argument_problem(builder, name, value)
    assert problem is not None
    assert words in problem


@pytest.mark.parametrize("name", SPEECH)
def test_arguments_of_the_cards_are_of_the_right_kind(name: str) -> None:
    bundle = bundles.get_bundle(name)
    for argument, value in bundle.architecture.items():
        assert argument_problem(str(bundle.builder), argument, value) is None
