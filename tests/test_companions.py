"""Companions: all that torchaudio's bundles have beside their model, with upstream's names and values."""

from __future__ import annotations

import copy
import inspect
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from safetensors.torch import save_file
from torch import nn

import bundles
from bundles.companions.find import find_companion
from bundles.errors import BuildArgumentError, FreezeWithoutWeightsWarning, MissingDependencyError
from bundles.registry.registry import Registry
from bundles.spec.bundle import Bundle
from bundles.spec.companions import COMPANIONS
from bundles.spec.upstream import wants_progress
from zoo import SMALL_TACOTRON2, SMALL_WAVERNN, UPSTREAM, WITH_LABELS, Hub, randomized

every = pytest.mark.parametrize("name", UPSTREAM)
ASR = [name for name in WITH_LABELS if name != "MMS_FA"]
TTS = [name for name in UPSTREAM if name.startswith("TACOTRON2")]
RNNT = "EMFORMER_RNNT_BASE_LIBRISPEECH"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return Hub(tmp_path)


def public(bundle: object) -> list[str]:
    return [name for name in dir(bundle) if not name.startswith("_")]


# --- the same names -------------------------------------------------------------------------------


@every
def test_every_public_attribute_of_torchaudios_bundle_is_there(name: str) -> None:
    theirs, ours = UPSTREAM[name], bundles.get_bundle(name)
    assert set(public(theirs)) <= set(dir(ours))
    for attribute in public(theirs):
        value, wanted = getattr(ours, attribute), getattr(theirs, attribute)
        if inspect.isclass(wanted):
            assert value is wanted
        elif callable(wanted):
            assert inspect.ismethod(value)
            assert value.__self__ is ours
        else:
            assert value == wanted
            assert type(value) is type(wanted)


@every
def test_every_method_takes_what_torchaudios_takes(name: str) -> None:
    theirs, ours = UPSTREAM[name], bundles.get_bundle(name)
    methods = [attribute for attribute in public(theirs) if inspect.ismethod(getattr(theirs, attribute))]
    assert methods
    for method in methods:
        takes = inspect.signature(getattr(ours, method)).parameters
        kinds = {parameter.kind for parameter in takes.values()}
        for place, wanted in enumerate(inspect.signature(getattr(theirs, method)).parameters.values()):
            if wanted.kind is wanted.VAR_KEYWORD or wanted.name not in takes:
                assert inspect.Parameter.VAR_KEYWORD in kinds
            else:
                own = takes[wanted.name]
                assert own.default == wanted.default
                if wanted.kind is wanted.POSITIONAL_OR_KEYWORD:
                    assert list(takes).index(own.name) == place
                    assert own.kind is wanted.kind


@every
def test_a_bundle_has_no_companion_that_torchaudios_lacks(name: str) -> None:
    bundle = bundles.get_bundle(name)
    own = COMPANIONS.get(bundle.metadata.get("companions", ""), {})
    assert set(own) <= set(public(UPSTREAM[name]))


@pytest.mark.parametrize("kind", COMPANIONS)
def test_every_place_in_the_table_is_found(kind: str) -> None:
    bundle = bundles.CREPE_TINY
    for name, place in COMPANIONS[kind].items():
        found = find_companion(bundle, place)
        assert found.__name__ == name
        assert inspect.getdoc(found)
        if not inspect.isclass(found):
            assert found.__self__ is bundle


def test_a_bundle_of_ones_own_has_companions_too() -> None:
    mine = Bundle("MINE", lambda: nn.Linear(1, 1), metadata={"companions": "ctc", "labels": ["a", "b"]})
    assert mine.get_labels(blank="") == ("", "a", "b")
    assert "get_labels" in dir(mine)
    assert "get_labels" not in dir(bundles.HUBERT_BASE)
    with pytest.raises(AttributeError, match=r"'HUBERT_BASE' has no 'get_labels'; it has description, "):
        bundles.HUBERT_BASE.get_labels  # noqa: B018
    with pytest.raises(AttributeError, match=r"'MMS_FA' has no 'get_decoder'; it has .*get_aligner"):
        bundles.MMS_FA.get_decoder  # noqa: B018


def test_labels_and_dictionaries_need_no_torch() -> None:
    code = (
        "import sys, bundles; bundles.WAV2VEC2_ASR_BASE_960H.get_labels(); bundles.MMS_FA.get_dict(); "
        "dir(bundles.MMS_FA); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchaudio", "numpy"} & set(done.stdout.split())


# --- labels and alignment -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASR)
def test_labels_are_torchaudios(name: str) -> None:
    theirs, ours = UPSTREAM[name], bundles.get_bundle(name)
    assert ours.get_labels() == theirs.get_labels()
    assert ours.get_labels(blank="<blk>") == theirs.get_labels(blank="<blk>")
    assert len(ours.get_labels()) == ours.architecture["aux_num_out"]
    with pytest.raises(TypeError, match="positional"):
        ours.get_labels("-")  # keyword-only there, too


@pytest.mark.parametrize("arguments", [(), ("#",), (None,), (None, "~"), ("#", "~")], ids=repr)
def test_labels_and_dictionary_of_the_aligner_are_torchaudios(arguments: tuple[Any, ...]) -> None:
    theirs, ours = UPSTREAM["MMS_FA"], bundles.MMS_FA
    assert ours.get_labels(*arguments) == theirs.get_labels(*arguments)
    assert ours.get_dict(*arguments) == theirs.get_dict(*arguments)
    assert list(ours.get_dict(*arguments)) == list(theirs.get_dict(*arguments))
    named = dict(zip(("star", "blank"), arguments, strict=False))
    assert ours.get_dict(**named) == theirs.get_dict(*arguments)


@pytest.mark.parametrize(
    "words",
    [["hello", "world"], ["*", "a"], ["don't"], [""], []],
    ids=lambda words: " ".join(words) or "none",
)
def test_words_are_tokenised_as_by_torchaudio(words: list[str]) -> None:
    ours, theirs = bundles.MMS_FA.get_tokenizer(), UPSTREAM["MMS_FA"].get_tokenizer()
    assert type(ours) is type(theirs)
    assert ours(words) == theirs(words)


@pytest.mark.parametrize("kind", ["Tokenizer", "Aligner"])
def test_the_aligners_interfaces_are_torchaudios(kind: str) -> None:
    """Upstream's own objects are no instances of the class that it documents, but of that class's base."""
    made = getattr(bundles.MMS_FA, f"get_{kind.lower()}")()
    interface = getattr(bundles.MMS_FA, kind)
    assert interface is getattr(torchaudio.pipelines.Wav2Vec2FABundle, kind)
    assert isinstance(made, interface.__bases__)
    assert isinstance(made, interface) == isinstance(
        getattr(UPSTREAM["MMS_FA"], f"get_{kind.lower()}")(), interface
    )


def test_what_is_no_label_is_no_token() -> None:
    with pytest.raises(KeyError, match="H"):
        bundles.MMS_FA.get_tokenizer()(["Hello"])


@pytest.mark.parametrize("seed", range(3))
def test_words_are_aligned_as_by_torchaudio(seed: int) -> None:
    torch.manual_seed(seed)
    emission = torch.randn(60, 29).log_softmax(-1)
    ours, theirs = bundles.MMS_FA.get_aligner(), UPSTREAM["MMS_FA"].get_aligner()
    tokens = bundles.MMS_FA.get_tokenizer()(["speech", "*", "is", "aligned"])
    spans = ours(emission, tokens)
    assert type(ours) is type(theirs)
    assert spans == theirs(emission, tokens)
    assert [len(word) for word in spans] == [6, 1, 2, 7]
    with pytest.raises(ValueError, match="must be 2D"):
        ours(emission[None], tokens)


# --- speech synthesis -----------------------------------------------------------------------------

CHARACTER = [name for name in TTS if "CHAR" in name]


@pytest.mark.parametrize("name", CHARACTER)
@pytest.mark.parametrize(
    "texts",
    ["Hello, world!", ["Hello World!", "Text-to-speech; yes?"], ["a", "", "é 3 b"], "ÜÖ"],
    ids=str,
)
def test_text_becomes_torchaudios_tokens(texts: Any, name: str) -> None:
    ours, theirs = bundles.get_bundle(name).get_text_processor(), UPSTREAM[name].get_text_processor()
    assert type(ours) is type(theirs)
    assert isinstance(ours, bundles.get_bundle(name).TextProcessor)
    assert ours.tokens == theirs.tokens
    assert len(ours.tokens) == bundles.get_bundle(name).architecture["n_symbol"]
    for made, wanted in zip(ours(texts), theirs(texts), strict=True):
        assert made.dtype == wanted.dtype
        assert torch.equal(made, wanted)


class Command:
    """What a pickle can hold: a call to run when it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.fixture
def phonemizer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Saves a checkpoint of an untrained DeepPhonemizer where upstream looks for the trained one."""
    model = pytest.importorskip("dp.model.model")
    text = pytest.importorskip("dp.preprocessing.text")
    monkeypatch.chdir(hub.folder)
    phones = ["AA", "HH", "L", "OW", "W", "ER", "D"]
    config = {
        "preprocessing": {
            "languages": ["en_us"],
            "text_symbols": "abcdefghijklmnopqrstuvwxyz",
            "phoneme_symbols": [f"[{phone}]" for phone in phones],
            "char_repeats": 3,
            "lowercase": True,
        },
        "model": {"type": "transformer", "d_model": 32, "d_fft": 64, "layers": 1, "dropout": 0.1, "heads": 2},
        "training": {},
    }

    def save(**more: Any) -> Path:
        made = model.create_model(model.ModelType("transformer"), config=config).state_dict()
        known = {"en_us": {"hello": "[HH][AA][L][OW]"}}
        content = {"model": made, "config": config, "step": 1, "phoneme_dict": known}
        content["preprocessor"] = text.Preprocessor.from_config(config)
        return hub.put("checkpoints/en_us_cmudict_forward.pt", content | more)

    return save


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("name", [name for name in TTS if "PHONE" in name])
def test_phonemes_become_torchaudios_tokens(name: str, phonemizer: Callable[..., Path]) -> None:
    path = phonemizer()
    level = logging.getLogger("dp").level
    bundle = replace(bundles.get_bundle(name), assets={"phonemizer": bundles.WeightSource(f"file:{path}")})
    ours, theirs = bundle.get_text_processor(), UPSTREAM[name].get_text_processor()
    assert type(ours) is type(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    assert (ours.tokens, ours._mapping, ours._pattern) == (theirs.tokens, theirs._mapping, theirs._pattern)
    for texts in ("Hello, world!", ["hello there", "good? bye."]):
        for made, wanted in zip(ours(texts), theirs(texts), strict=True):
            assert torch.equal(made, wanted)
    assert logging.getLogger("dp").level == level
    phonemizer(model=Command())
    with pytest.raises(
        bundles.UnsafeWeightsError, match=r"The phonemizer .*en_us_cmudict_forward\.pt holds mo"
    ):
        bundle.get_text_processor()
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", [name for name in TTS if "GRIFFINLIM" in name])
def test_griffin_lim_makes_torchaudios_waveform(name: str) -> None:
    ours, theirs = bundles.get_bundle(name).get_vocoder(), UPSTREAM[name].get_vocoder()
    assert type(ours) is type(theirs)
    assert isinstance(ours, bundles.get_bundle(name).Vocoder)
    assert ours.sample_rate == theirs.sample_rate == bundles.get_bundle(name).sample_rate
    mel, lengths = torch.randn(1, 80, 12) - 4, torch.tensor([12])
    made = []
    for vocoder in (ours, theirs):
        torch.manual_seed(1)
        made.append(vocoder(mel, lengths))
    assert torch.equal(made[0][0], made[1][0])
    assert made[0][0].abs().max() > 0
    assert made[0][1] is lengths
    assert bundles.get_bundle(name).get_vocoder(dtype=torch.float64)._inv_mel.fb.dtype == torch.float64


@pytest.fixture
def wavernn(default: Registry, hub: Hub) -> Bundle:
    """A small WaveRNN in the place of the real one, its random weights where both libraries look."""
    bundle = bundles.get_bundle("WAVERNN_8BITS_LJSPEECH")
    architecture = {**bundle.architecture, **SMALL_WAVERNN}
    model = replace(bundle, architecture=architecture).get_model(pretrained=False)
    path = hub.put("checkpoints/wavernn_10k_epochs_8bits_ljspeech.pth", randomized(model).state_dict())
    small = replace(bundle, architecture=architecture, weights=bundles.WeightSource(f"file:{path}"))
    bundles.register(small, override=True)
    return small


@pytest.mark.parametrize("name", [name for name in TTS if "WAVERNN" in name])
def test_wavernn_makes_torchaudios_waveform(name: str, wavernn: Bundle) -> None:
    upstream = UPSTREAM[name]
    params = {**upstream._wavernn_params, **SMALL_WAVERNN}
    theirs = replace(upstream, _wavernn_params=params).get_vocoder()
    ours = bundles.get_bundle(name).get_vocoder(freeze="all", freeze_mode="features")
    assert type(ours) is type(theirs)
    assert isinstance(ours, bundles.get_bundle(name).Vocoder)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    mel, lengths = torch.randn(2, 8, 6) - 4, torch.tensor([6, 4])
    made = []
    for vocoder in (ours.train(), theirs):  # frozen, so that train() changes nothing
        torch.manual_seed(1)
        with torch.no_grad():
            made.append(vocoder(mel, lengths))
    assert torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1], made[1][1])
    assert len(made[0][0].unique()) > 1


@pytest.mark.parametrize("name", TTS)
def test_get_tacotron2_is_get_model(name: str) -> None:
    bundle = bundles.get_bundle(name)
    bundle = replace(bundle, architecture={**bundle.architecture, **SMALL_TACOTRON2}, weights=None)
    with pytest.warns(FreezeWithoutWeightsWarning, match="stem"):
        model = bundle.get_tacotron2(pretrained=False, freeze=True)
    assert type(model).__name__ == "Tacotron2"
    assert bundles.freeze_plan(model) == bundle.plan()


# --- transducer -----------------------------------------------------------------------------------

STATS = "torchaudio/pipeline-assets/global_stats_rnnt_librispeech.json"
PIECES = "torchaudio/pipeline-assets/spm_bpe_4096_librispeech.model"


@pytest.mark.parametrize("way", ["get_feature_extractor", "get_streaming_feature_extractor"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_features_are_torchaudios(
    way: str, relative: bool, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = {"mean": torch.randn(80).tolist(), "invstddev": torch.rand(80).add(0.5).tolist()}
    path = hub.put(STATS, json.dumps(stats))
    monkeypatch.chdir(path.parent)
    source = bundles.WeightSource(f"file:{path.name if relative else path}")
    bundle = bundles.get_bundle(RNNT)
    ours = getattr(replace(bundle, assets={**bundle.assets, "global_stats": source}), way)()
    theirs = getattr(UPSTREAM[RNNT], way)()
    assert type(ours) is type(theirs)
    assert isinstance(ours, bundle.FeatureExtractor.__bases__)
    assert [type(part) for part in ours.pipeline] == [type(part) for part in theirs.pipeline]
    waveform = torch.randn(4000)
    for made, wanted in zip(ours(waveform), theirs(waveform), strict=True):
        assert torch.equal(made, wanted)
    frames = 26 + (bundle.right_padding if way == "get_feature_extractor" else 0)
    assert ours(waveform)[0].shape == (frames, 80)


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """A sentencepiece model of a few sentences."""
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["he hoped there would be stew", "for dinner turnips and carrots"] * 5),
        model_writer=model,
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    return model.getvalue()


@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
def test_tokens_become_torchaudios_text(pieces: bytes, hub: Hub) -> None:
    path = hub.put(PIECES, pieces)
    bundle = bundles.get_bundle(RNNT)
    assets = {**bundle.assets, "sentencepiece": bundles.WeightSource(f"file:{path}")}
    ours, theirs = replace(bundle, assets=assets).get_token_processor(), UPSTREAM[RNNT].get_token_processor()
    assert type(ours) is type(theirs)
    assert isinstance(ours, bundle.TokenProcessor.__bases__)
    for tokens in ([4096, *range(40)], [4096, 5, 0, 9, 2], [4096], [3, 2, 1]):
        assert ours(tokens) == theirs(tokens)
        assert ours(tokens, lstrip=False) == theirs(tokens, lstrip=False)
    spm = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=pieces)
    assert ours([4096, *spm.encode("he hoped for dinner")]) == "he hoped for dinner"


def quiet(bundle: Bundle, **request: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FreezeWithoutWeightsWarning)
        return bundle.get_decoder(**request)


def test_the_decoder_is_torchaudios_beam_search_around_the_model_as_asked() -> None:
    with torch.device("meta"):  # 77 million parameters, of which nothing is computed
        decoder = quiet(bundles.get_bundle(RNNT), pretrained=False, freeze=True)
    assert type(decoder) is torchaudio.models.RNNTBeamSearch
    assert decoder.blank == UPSTREAM[RNNT]._blank
    parts = {name.split(".")[0] for name, p in decoder.model.named_parameters() if p.requires_grad}
    assert parts == {"predictor", "joiner"}
    assert not decoder.train().model.transcriber.training
    assert decoder.model.joiner.training


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
def test_the_decoder_finds_torchaudios_hypotheses(hub: Hub) -> None:
    upstream, bundle = UPSTREAM[RNNT], bundles.get_bundle(RNNT)
    state = randomized(upstream._rnnt_factory_func()).state_dict()
    paths = hub.put(f"torchaudio/{upstream._rnnt_path}", state), hub.folder / "rnnt.safetensors"
    save_file(state, paths[1])
    ours = replace(bundle, weights=bundles.WeightSource(f"file:{paths[1]}")).get_decoder()
    theirs = upstream.get_decoder()
    for path in paths:
        path.unlink()  # 600 MB
    features, length = torch.randn(20, 80), torch.tensor([20])  # a segment and its right context
    with torch.no_grad():
        (hypotheses, state_), (wanted, wanted_state) = (
            decoder.infer(features, length, 2) for decoder in (ours, theirs)
        )
        assert [(tokens, score) for tokens, _, _, score in ours(features, length, 2)] == [
            (tokens, score) for tokens, _, _, score in theirs(features, length, 2)
        ]
    assert [(h[0], h[3]) for h in hypotheses] == [(h[0], h[3]) for h in wanted]
    assert all(
        torch.equal(a, b)
        for ours_, theirs_ in zip(state_, wanted_state, strict=True)
        for a, b in zip(ours_, theirs_, strict=True)
    )


# --- what is not installed ------------------------------------------------------------------------

WITHOUT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {packages!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import bundles
for call in {calls!r}:
    try:
        eval(call)
    except (bundles.MissingDependencyError, AttributeError) as error:
        print(call, "->", error)
"""


def without(packages: list[str], calls: list[str]) -> dict[str, str]:
    """What each of these calls says in a process where some packages are not installed."""
    code = WITHOUT.format(packages=packages, calls=calls)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return dict(line.split(" -> ") for line in done.stdout.splitlines())


def test_a_companion_says_what_to_install_before_it_fetches_anything() -> None:
    extras = {
        f"bundles.{RNNT}.get_token_processor()": ("sentencepiece", "sentencepiece"),
        "bundles.TACOTRON2_GRIFFINLIM_PHONE_LJSPEECH.get_text_processor()": ("dp", "phonemizer"),
        "bundles.TACOTRON2_WAVERNN_PHONE_LJSPEECH.get_text_processor()": ("dp", "phonemizer"),
    }
    assert without(["sentencepiece", "dp"], list(extras)) == {
        call: f"{package} cannot be imported: it is not installed; "
        f"type `pip install 'pretrained-bundles[{extra}]'`."
        for call, (package, extra) in extras.items()
    }


def test_without_torchaudio_every_door_says_what_to_type_before_it_fetches_anything() -> None:
    calls = [
        "bundles.MMS_FA.get_tokenizer()",
        "bundles.MMS_FA.get_aligner()",
        "bundles.MMS_FA.Aligner",  # an AttributeError, so that hasattr and inspect walk over it
        "bundles.TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH.get_text_processor()",
        "bundles.TACOTRON2_WAVERNN_CHAR_LJSPEECH.get_vocoder()",
        "bundles.TACOTRON2_WAVERNN_CHAR_LJSPEECH.get_tacotron2()",
        f"bundles.{RNNT}.get_feature_extractor()",
        f"bundles.{RNNT}.get_streaming_feature_extractor()",
        f"bundles.{RNNT}.get_token_processor()",
        f"bundles.{RNNT}.get_decoder()",
        "bundles.WAVLM_BASE.get_model()",
        "bundles.HDEMUCS_HIGH_MUSDB.plan()",
    ]
    told = without(["torchaudio"], calls)
    assert list(told) == calls
    for message in told.values():
        assert "torchaudio, which is not installed" in message
        assert '`pip install "torch>=2.11,<2.15" "torchaudio==2.11.*"`' in message


# --- dl_kwargs ------------------------------------------------------------------------------------


def small_tacotron2() -> Bundle:
    bundle = bundles.get_bundle("TACOTRON2_WAVERNN_CHAR_LJSPEECH")
    return replace(bundle, architecture={**bundle.architecture, **SMALL_TACOTRON2}, weights=None)


DOORS: dict[str, Callable[[Any], Any]] = {
    "get_model": lambda given: small_tacotron2().get_model(pretrained=False, dl_kwargs=given),
    "bundles.get_model": lambda given: bundles.get_model(
        small_tacotron2(), pretrained=False, dl_kwargs=given
    ),
    "get_tacotron2": lambda given: small_tacotron2().get_tacotron2(pretrained=False, dl_kwargs=given),
    "get_text_processor": lambda given: small_tacotron2().get_text_processor(dl_kwargs=given),
    "get_vocoder": lambda given: small_tacotron2().get_vocoder(pretrained=False, dl_kwargs=given),
    "griffin_lim": lambda given: bundles.TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH.get_vocoder(dl_kwargs=given),
}
doors = pytest.mark.parametrize("call", DOORS.values(), ids=DOORS)


@doors
@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (
            {"progress": False},
            r"dl_kwargs is deprecated \(progress: False hides the progress bar, as here\)\.",
        ),
        ({"check_hash": True}, r"check_hash: digests are always checked"),
        (
            {"map_location": "cpu", "model_dir": "x"},
            "map_location: pass device=.*; model_dir: set BUNDLES_CACHE",
        ),
        ({}, r"dl_kwargs is deprecated \(leave it out\)"),
    ],
    ids=str,
)
def test_dl_kwargs_are_deprecated_at_the_callers_line(
    given: dict[str, Any], advice: str, call: Callable[[Any], Any]
) -> None:
    with pytest.warns(DeprecationWarning, match=advice) as caught:
        call(given)
    (told,) = [warning for warning in caught if warning.category is DeprecationWarning]
    assert told.filename == __file__
    line = Path(__file__).read_text().splitlines()[told.lineno - 1]
    assert "dl_kwargs=given" in line or "bundles.get_model(" in line


@doors
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"proxies": {}}, r"dl_kwargs holds \['proxies'\]; it takes progress, check_hash, "),
        ({"progress": True, "Progress": True}, r"dl_kwargs holds \['Progress'\]"),
        (3, "dl_kwargs holds 3; it takes progress"),
        ([("progress", True)], "dl_kwargs holds .*; it takes progress"),
    ],
    ids=str,
)
def test_dl_kwargs_that_torchaudio_would_not_take_are_refused(
    given: Any, words: str, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(BuildArgumentError, match=words) as caught:
        call(given)
    assert isinstance(caught.value, TypeError)


@pytest.mark.filterwarnings("ignore:dl_kwargs is deprecated:DeprecationWarning")
def test_dl_kwargs_still_say_whether_there_is_a_progress_bar() -> None:
    given: list[Any] = [None, {}, {"check_hash": True}, {"progress": True}, {"progress": False}]
    assert [wants_progress(entries) for entries in given] == [True, True, True, True, False]


@doors
def test_no_dl_kwargs_no_warning(call: Callable[[Any], Any]) -> None:
    assert call(None) is not None  # a warning would be an error


def test_every_entry_that_torch_hub_takes_has_advice() -> None:
    entries = {*inspect.signature(torch.hub.load_state_dict_from_url).parameters} - {"url"}
    entries |= {*inspect.signature(torch.hub.download_url_to_file).parameters} - {"url", "dst"}
    for entry in entries:
        with pytest.warns(DeprecationWarning, match=rf"\({entry}: \w+"):
            DOORS["get_text_processor"]({entry: None})


@pytest.mark.parametrize("name", ["WAV2VEC2_BASE", "MMS_FA", RNNT, "SQUIM_OBJECTIVE", "HDEMUCS_HIGH_MUSDB"])
def test_every_get_model_takes_dl_kwargs_and_checks_them_first(name: str) -> None:
    with pytest.raises(BuildArgumentError, match=r"dl_kwargs holds \['url'\]"):
        bundles.get_bundle(name).get_model(dl_kwargs={"url": "x"})


def test_missing_dependency_is_an_import_error() -> None:
    assert issubclass(MissingDependencyError, ImportError)


def test_a_bundle_without_what_its_companions_need_says_what() -> None:
    mine = Bundle("MINE", lambda: nn.Linear(1, 1), metadata={"companions": "ctc"})
    with pytest.raises(bundles.BuildError, match=r"MINE\.get_labels needs labels, which the bundle has not"):
        mine.get_labels()


def test_griffin_lim_knows_no_misspelt_argument() -> None:
    with pytest.raises(bundles.BuildArgumentError, match="get_vocoder has no argument freez"):
        bundles.TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH.get_vocoder(freez=True)


def test_attributes_can_be_walked_whatever_is_missing() -> None:
    mine = Bundle("MINE", lambda: nn.Linear(1, 1), metadata={"companions": "ctc", "__deepcopy__": "no"})
    assert hasattr(mine, "get_labels")
    assert dict(inspect.getmembers(mine))["name"] == "MINE"
    assert copy.deepcopy(mine) == mine
