"""A model on stored activations: the same bits as one that computes them, or an error that says why not."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchaudio
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.resnet import BasicBlock, ResNet

import bundles
from bundles.builders.head import EncoderWithHead
from bundles.demo.speech import utterances
from bundles.errors import BundlesWarning, FeatureError, FeatureKeyError, NotDeterministicError
from bundles.features.cached import cached, check, statistics, uncache
from bundles.features.extract import extract_features
from bundles.features.inputs.preprocess import Preprocessing
from bundles.features.store.store import FeatureStore
from bundles.heads import MeanPoolClassifier, WeightedLayers
from transformers_zoo import TINY

DIGITS = "WAV2VEC2_NANO_DIGITS"
Batches = Sequence[Sequence[Tensor]]
Pair = tuple[Any, Any]  # a model on a store, and one without


@cache
def digits() -> tuple[Tensor, ...]:
    """Spoken digits of five lengths."""
    return tuple(said.wave for said in utterances())


@cache
def pieces() -> tuple[Tensor, ...]:
    """Eight pieces of speech of one length."""
    return tuple(wave[start : start + 8000] for wave in digits()[:4] for start in (0, 4000))


def store_of(model: nn.Module, data: Iterable[Tensor], out: Path, **options: Any) -> FeatureStore:
    """Extract in this process, as float32."""
    how = {"dtype": "float32", "num_workers": 1, "progress": False, "batch_size": 4, **options}
    return extract_features(model, list(data), out, **how)


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return a batch as torchaudio's models take it."""
    return pad_sequence(list(rows), batch_first=True), torch.tensor([len(row) for row in rows])


def train(model: nn.Module, batches: Batches, epochs: int = 2) -> dict[str, Tensor]:
    """Train with CTC; return everything that moves, and what the next random numbers depend on."""
    torch.manual_seed(7)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for rows in [batch for _ in range(epochs) for batch in batches]:
        logits, lengths = model(*padded(rows))
        target = torch.ones(len(rows), 2, dtype=torch.long)
        losses = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1), target, lengths, torch.full((len(rows),), 2)
        )
        optimizer.zero_grad()
        losses.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {**model.state_dict(), "drawn from": torch.get_rng_state()}


def differing(one: dict[str, Tensor], two: dict[str, Tensor]) -> list[str]:
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


# --- the same bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["encoder", "last:2", "first:1"])
def test_training_gives_the_same_weights_to_the_last_bit(which: str, tmp_path: Path) -> None:
    everything = pieces()
    batches = [[everything[i] for i in rows] for rows in ((0, 1, 2, 3), (6, 4, 7, 5), (1, 6, 3, 4), (2, 7))]
    plain, other = (bundles.get_model(DIGITS, freeze=which) for _ in range(2))
    start = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    store = store_of(other, everything, tmp_path, layers=None if which == "encoder" else "prefix")
    model = cached(other, store)
    result = train(model, batches)
    assert differing(train(plain, batches), result) == []
    assert statistics(model).hits == 6
    assert statistics(model).compared == 2  # the first call, and the first of another size
    moved = set(differing(start, {name: result[name] for name in start}))
    assert moved == {name for name, p in plain.named_parameters() if p.requires_grad}


def test_ragged_batches_are_the_same_bits_where_they_are_those_of_the_store(tmp_path: Path) -> None:
    plain, other = (bundles.get_model(DIGITS, freeze="last:2") for _ in range(2))
    model = cached(other, store_of(other, digits(), tmp_path, layers="prefix", batch_size=8))
    batches = [list(reversed(digits())), digits()]  # the order of the rows is another one
    assert differing(train(plain, batches), train(model, batches)) == []
    assert statistics(model).hits == 3


def test_other_batches_than_those_of_the_store_differ_by_rounding(tmp_path: Path) -> None:
    plain, other = (bundles.get_model(DIGITS, freeze=True) for _ in range(2))
    store = store_of(other, digits(), tmp_path, batch_size=1)
    model = cached(other, store)
    for rows in (digits()[:2], digits()[2:4], digits()[3:], digits()[1:4]):
        (ours, our_lengths), (theirs, lengths) = model(*padded(rows)), plain(*padded(rows))
        assert torch.equal(our_lengths, lengths)
        assert ours.shape == theirs.shape
        for row, other_row, length in zip(ours, theirs, lengths, strict=True):
            assert torch.allclose(row[:length], other_row[:length], rtol=0, atol=1e-4)
    assert statistics(model).hits >= 1


def test_half_precision_is_within_its_rounding(tmp_path: Path) -> None:
    plain, other = (bundles.get_model(DIGITS, freeze=True) for _ in range(2))
    model = cached(other, store_of(other, pieces(), tmp_path, dtype="float16"))
    batch = torch.stack(pieces()[:4])
    for _ in range(2):
        ours, _ = model(batch)
    theirs, _ = plain(batch)
    assert statistics(model).hits == 1
    assert not torch.equal(ours, theirs)
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-2)


# --- every family -----------------------------------------------------------------------------------


_SPEECH = {
    "extractor_mode": "layer_norm",
    "extractor_conv_layer_config": [(16, 10, 5), (16, 3, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 3,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 48,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.1,
    "aux_num_out": 5,
}


def _speech(**options: Any) -> nn.Module:
    model: nn.Module = torchaudio.models.wav2vec2_model(**{**_SPEECH, **options})
    return model


def _wavlm() -> nn.Module:
    options = {"encoder_num_buckets": 32, "encoder_max_distance": 50}
    model: nn.Module = torchaudio.models.wavlm_model(**_SPEECH, **options)
    return model


def _of_zoo(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        cls = getattr(transformers, TINY[name].model_class)
        config = {key: value for key, value in TINY[name].config.items() if key != "model_type"}
        model: nn.Module = cls(cls.config_class(**config))
        return model

    return make


def _vit() -> nn.Module:
    how: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 3, "num_classes": 5}
    how |= {"drop_rate": 0.1, "drop_path_rate": 0.1}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **how)
    return model


_AUDIO: Callable[[], list[Tensor]] = lambda: list(torch.randn(4, 1200))  # noqa: E731
_IMAGES: Callable[[], list[Tensor]] = lambda: list(torch.randn(4, 3, 32, 32))  # noqa: E731
_SMALL: Callable[[], list[Tensor]] = lambda: list(torch.randn(4, 3, 16, 16))  # noqa: E731
_TEXT: Callable[[], list[Tensor]] = lambda: list(torch.randint(3, 50, (4, 10)))  # noqa: E731

FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Tensor]]]] = {
    "torchaudio wav2vec2": (_speech, _AUDIO),
    "torchaudio wav2vec2, norm first": (lambda: _speech(encoder_layer_norm_first=True), _AUDIO),
    "torchaudio WavLM": (_wavlm, _AUDIO),
    **{f"transformers {name}": (_of_zoo(name), _AUDIO) for name in ("Wav2Vec2ForCTC", "WavLMForCTC")},
    **{
        f"transformers {name}": (_of_zoo(name), _TEXT)
        for name in (
            "BertForSequenceClassification",
            "RobertaForSequenceClassification",
            "XLMRobertaForMaskedLM",
            "DistilBertForSequenceClassification",
        )
    },
    "transformers ViT": (_of_zoo("ViTForImageClassification"), _SMALL),
    "timm ViT": (_vit, _IMAGES),
    "torchvision ResNet": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), _IMAGES),
}


def result_of(output: Any) -> Tensor:
    """Return the first tensor of what a model returns."""
    found = output.to_tuple() if hasattr(output, "to_tuple") else output
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]


OFTEN = (
    "torchaudio wav2vec2",
    "torchaudio WavLM",
    "transformers WavLMForCTC",
    "timm ViT",
    "torchvision ResNet",
)
FAMILY_PARAMS = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("which", ["encoder", "last:1"])
@pytest.mark.parametrize("family", FAMILY_PARAMS)
def test_every_family_gives_its_own_bits(family: str, which: str, tmp_path: Path) -> None:
    make, data = FAMILIES[family]
    model, plain = make(), make()
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        bundles.freeze(each, which).train()
    rows = data()
    store = store_of(model, rows, tmp_path, layers=None if which == "encoder" else "prefix")
    cached(model, store)
    calls = [torch.stack([rows[i] for i in batch]) for batch in ((0, 1, 2, 3), (1, 2), (3, 0, 2, 1))]
    for seed, batch in enumerate((*calls, *calls)):
        torch.manual_seed(seed)
        ours, drawn = result_of(model(batch)), torch.get_rng_state()
        torch.manual_seed(seed)
        theirs = result_of(plain(batch))
        assert torch.equal(torch.get_rng_state(), drawn)
        if seed % 3 == 0:  # the batch as it was computed for the store
            assert torch.equal(theirs, ours)
        assert torch.allclose(theirs, ours, rtol=0, atol=1e-5)
    assert statistics(model).hits == 4
    for name in differing(plain.state_dict(), model.state_dict()):  # statistics of batches moved alike
        assert torch.allclose(plain.state_dict()[name], model.state_dict()[name])


def test_an_encoder_without_a_head(tmp_path: Path) -> None:
    model, plain = (bundles.get_model(DIGITS, freeze=True, freeze_mode="features") for _ in range(2))
    for each in (model, plain):
        setattr(each, "aux", None)  # noqa: B010
    cached(model, store_of(model, digits(), tmp_path, batch_size=8))
    for _ in range(2):
        ours, lengths = model(*padded(digits()))
    theirs, other_lengths = plain(*padded(digits()))
    assert torch.equal(lengths, other_lengths)
    for row, other, length in zip(ours, theirs, lengths, strict=True):
        assert torch.equal(row[:length], other[:length])
        assert not row[length:].any()  # what is stored has no padding
    assert statistics(model).hits == 1


@pytest.mark.parametrize("which", ["encoder", "last:1"])
def test_crepe_takes_the_frames_of_a_recording(which: str, tmp_path: Path) -> None:
    model, plain = (bundles.CREPE_TINY.get_model(freeze=which).train() for _ in range(2))
    recordings = [torch.randn(frames, 1024) for frames in (3, 5, 4)]
    cached(model, store_of(model, recordings, tmp_path, layers=None if which == "encoder" else "prefix"))
    for recording in recordings * 2:
        assert torch.equal(model(recording), plain(recording))
    assert statistics(model).hits == 4
    assert differing(plain.state_dict(), model.state_dict()) == []


def test_text_with_padding_and_what_tokenizers_add(tmp_path: Path) -> None:
    make = _of_zoo("BertForSequenceClassification")
    model, plain = make(), make()
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        bundles.freeze(each, "last:1").train()
    rows = [torch.randint(3, 50, (length,)) for length in (9, 6, 4)]
    cached(model, store_of(model, rows, tmp_path, layers="prefix"))
    for wide in (9, 12):  # padded to the longest, and beyond
        ids = F.pad(pad_sequence(rows, batch_first=True), (0, wide - 9))
        mask = (ids > 0).long()
        given = {
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(ids),
            "labels": torch.tensor([0, 1, 1]),
        }
        for seed in (1, 2):
            torch.manual_seed(seed)
            ours = model(ids, **given)
            torch.manual_seed(seed)
            theirs = plain(ids, **given)
            assert torch.allclose(ours.loss, theirs.loss, rtol=0, atol=1e-6)
    assert statistics(model).hits == 2
    assert statistics(model).misses == 0


# --- heads after an encoder -------------------------------------------------------------------------


def test_a_head_that_takes_lengths(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return bundles.get_model(DIGITS, freeze=True, head=lambda size: MeanPoolClassifier(size, 4))

    model, plain = make(), make()
    assert isinstance(model, EncoderWithHead)
    store = store_of(bundles.get_model(DIGITS, freeze=True), digits(), tmp_path, batch_size=8)
    cached(model, store)  # stored of the encoder alone
    for _ in range(2):
        assert torch.equal(model(*padded(digits())), plain(*padded(digits())))
    assert statistics(model).hits == 1


@pytest.mark.parametrize("family", ["torchaudio", "transformers"])
def test_a_head_that_uses_all_layers(family: str, tmp_path: Path) -> None:
    encoder = _speech(aux_num_out=None) if family == "torchaudio" else _of_zoo("HubertModel")()
    count = 3 if family == "torchaudio" else 2
    model = EncoderWithHead(encoder, WeightedLayers(32, count, MeanPoolClassifier(32, 4)))
    plain = copy.deepcopy(model)
    for each in (model, plain):
        bundles.freeze(each, "encoder").train()
    rows = _AUDIO()
    cached(model, store_of(encoder, rows, tmp_path, layers=list(range(count))))
    for _ in range(2):
        assert torch.equal(model(torch.stack(rows)), plain(torch.stack(rows)))
    assert statistics(model).hits == 1
    with pytest.raises(FeatureKeyError, match=r"uses all layers, .* layers=list\(range\("):
        cached(model, store_of(encoder, rows, tmp_path / "one", layers=[0]))


def test_a_store_for_training_and_one_for_validation(tmp_path: Path) -> None:
    model, plain = (bundles.get_model(DIGITS, freeze=True) for _ in range(2))
    stores = [store_of(model, part, tmp_path / str(len(part))) for part in (pieces()[:5], pieces()[5:])]
    cached(model, *stores)
    for rows in (pieces()[:4], pieces()[4:]):  # the second is of both
        for _ in range(2):
            assert torch.allclose(model(torch.stack(rows))[0], plain(torch.stack(rows))[0], rtol=0, atol=1e-4)
    assert statistics(model).hits == 3
    half = store_of(plain, pieces()[5:], tmp_path / "half", dtype="float16")
    with pytest.raises(FeatureKeyError, match=r"is not .*: dtype: 'float32' and 'float16'"):
        cached(model, stores[0], half)
    model(torch.stack(pieces()[:4]))
    assert statistics(model).hits == 4  # what was there before is as it was


@dataclass
class Answer:
    """What somebody's model returns."""

    scores: Tensor


class Answering(nn.Module):
    """A model that returns such."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))

    def forward(self, x: Tensor) -> Answer:
        return Answer(self.layers(x))


def test_a_result_of_a_class_of_ones_own(tmp_path: Path) -> None:
    model = bundles.freeze(Answering(), "last:1")
    data = torch.randn(4, 6)
    expected = model(data).scores
    cached(model, store_of(model, data, tmp_path, layers="prefix", preprocessing=Preprocessing("frames")))
    for _ in range(2):
        assert torch.equal(model(data).scores, expected)
    assert statistics(model).hits == 1


# --- what a store cannot answer ---------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A model on a store of the pieces of speech, and one without."""
    model, plain = (bundles.get_model(DIGITS, freeze="last:2") for _ in range(2))
    return cached(model, store_of(model, pieces(), tmp_path, layers="prefix")), plain


def both(pair: Pair, *given: Any) -> None:
    """Call both, and see that a call that is not answered from the store is the model's own."""
    (ours, _), (theirs, _) = (model(*given) for model in pair)
    assert torch.equal(ours, theirs)


def test_other_inputs_are_computed_and_counted(pair: Pair) -> None:
    known = torch.stack(pieces()[:4])
    both(pair, known)
    both(pair, torch.cat([known[:3], known[3:] + 1e-6]))
    both(pair, known.double().float().requires_grad_(True))
    both(pair, F.pad(known, (0, 800)), torch.full((4,), 8000))
    both(pair, known)
    found = statistics(pair[0])
    assert (found.hits, found.misses, found.compared) == (1, 3, 1)
    assert found.reasons == {
        "an input is not in the store": 1,
        "waveforms requires a gradient": 1,
        "the batch is padded beyond its longest input": 1,
    }


def test_arguments_that_decide_features_are_computed(tmp_path: Path) -> None:
    make = _of_zoo("BertForSequenceClassification")
    model, plain = make(), make()
    plain.load_state_dict(model.state_dict())
    bundles.freeze(plain, "encoder")
    cached(bundles.freeze(model, "encoder"), store_of(model, rows := _TEXT(), tmp_path)).eval()
    ids = torch.stack(rows)
    for given, reason in (
        ({"position_ids": torch.arange(10).flip(0)[None]}, "the argument position_ids was given"),
        ({"token_type_ids": torch.ones_like(ids)}, "the argument token_type_ids was given"),
        ({"attention_mask": torch.ones_like(ids).index_fill(1, torch.tensor([0]), 0)}, "not on the right"),
        ({"output_hidden_states": True}, "the argument output_hidden_states was given"),
    ):
        assert torch.equal(model(ids, **given).logits, plain.eval()(ids, **given).logits)
        assert any(reason in seen for seen in statistics(model).reasons)
    assert statistics(model).hits == statistics(model).compared == 0


def test_an_error_in_the_model_leaves_nothing_behind(pair: Pair) -> None:
    model, _ = pair
    batch = torch.stack(pieces()[:4])
    for _ in range(2):  # while it is compared, and while it is served
        failing = model.encoder.transformer.layers[3].register_forward_pre_hook(_fail)
        with pytest.raises(ZeroDivisionError):
            model(batch)
        failing.remove()
        both(pair, batch)
        assert not [name for name, part in model.named_modules() if "forward" in vars(part)]
    both(pair, batch)


def _fail(module: nn.Module, args: Any) -> None:
    raise ZeroDivisionError


# --- the wrong store --------------------------------------------------------------------------------


def test_a_store_of_another_model_is_refused(tmp_path: Path) -> None:
    store = store_of(bundles.get_model(DIGITS, freeze=True), pieces(), tmp_path)
    other: Any = bundles.get_model(DIGITS, freeze=True)
    with torch.no_grad():
        other.encoder.transformer.layers[1].final_layer_norm.bias[3] += 1
    with pytest.raises(FeatureKeyError, match="differ in the values of the prefix") as caught:
        cached(other, store)
    assert caught.value.differs == ("the values of the prefix, or its modules",)
    assert not other._forward_pre_hooks
    with pytest.raises(
        FeatureKeyError, match=r"holds output, .* ends at block\.1: extract with layers='prefix'"
    ):
        cached(bundles.get_model(DIGITS, freeze="last:2"), store)
    blocks = bundles.freeze(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), "last:1")
    frames = Preprocessing("frames")
    deep = store_of(blocks, torch.randn(2, 3, 4), tmp_path / "b", layers="prefix", preprocessing=frames)
    fewer = bundles.freeze(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "encoder")
    with pytest.raises(FeatureKeyError, match=r"layers: The model has no layer 'block\.1'"):
        cached(fewer, deep)


def test_another_preprocessing_is_refused(tmp_path: Path) -> None:
    model = bundles.get_model(DIGITS, freeze=True)
    store = store_of(model, pieces(), tmp_path, preprocessing=Preprocessing("waveform", 8000))
    with pytest.raises(FeatureKeyError, match=r"preprocessing: .*8000.* and .*16000"):
        cached(model, store)


def test_a_prefix_that_is_random_or_trains_is_refused(tmp_path: Path) -> None:
    store = store_of(bundles.get_model(DIGITS, freeze=True), pieces(), tmp_path)
    for mode in ("mc", "regularized", "weights"):
        with pytest.raises(NotDeterministicError, match=f"The mode {mode} draws noise"):
            cached(bundles.get_model(DIGITS, freeze=True, freeze_mode=mode), store)
    with pytest.raises(NotDeterministicError, match="train"):
        cached(bundles.get_model(DIGITS), store)


def test_what_is_no_store_is_refused(pair: Pair) -> None:
    with pytest.raises(FeatureError, match=r"A str is no store: pass bundles\.FeatureStore"):
        cached(pair[1], "here")  # type: ignore[arg-type]
    with pytest.raises(FeatureError, match=r"Nothing .* is cached: call bundles\.cached"):
        statistics(pair[1])


@pytest.mark.slow
def test_a_compiled_model_is_refused(pair: Pair) -> None:
    store = pair[0].__dict__["_bundles_cache"].stores[0]
    part: Any = torch.compile(nn.Linear(2, 2))
    wrapped: list[Any] = [torch.compile(pair[1]), nn.Sequential(part)]
    for compiled in wrapped:
        with pytest.raises(FeatureError, match="is compiled, and nothing compiled can be skipped"):
            cached(compiled, store)


@pytest.mark.slow
def test_a_model_that_is_compiled_afterwards_is_refused(pair: Pair) -> None:
    compiled: Any = torch.compile(pair[0], backend="eager")
    with pytest.raises(FeatureError, match="is compiled, and nothing compiled can be skipped"):
        compiled(digits()[0][None])


def test_features_that_the_model_does_not_compute_are_found_in_the_first_call(tmp_path: Path) -> None:
    model = bundles.get_model(DIGITS, freeze=True)
    store = store_of(model, pieces(), tmp_path)
    block = model.get_submodule("encoder.transformer.layers.2")
    block.register_forward_hook(lambda part, args, out: (out[0] * 1.01, out[1]))
    cached(model, store)
    with pytest.raises(FeatureKeyError, match=r"output: values that are .* of the largest apart"):
        model(torch.stack(pieces()[:2]))


class Skip(nn.Module):
    """Hands what an early block made past the others."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        for block in self.blocks[1:]:
            x = block(x).relu()
        return self.head(x + first)  # type: ignore[no-any-return]


def test_what_passes_the_boundary_by_another_way_is_found_in_the_first_call(tmp_path: Path) -> None:
    model = bundles.freeze(Skip(), "last:2")
    data = torch.randn(4, 6)
    store = store_of(model, data, tmp_path, layers="prefix", preprocessing=Preprocessing("frames"))
    cached(model, store)
    with pytest.raises(
        FeatureError, match=r"gives another result .*above blocks\.1 .* store layers='output'"
    ):
        model(data)


def test_what_is_above_may_write_to_its_input(tmp_path: Path) -> None:
    layers = [nn.Flatten(), nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2)]
    model = bundles.freeze(nn.Sequential(*layers), "last:1")
    data = torch.randn(4, 6)
    store = store_of(model, data, tmp_path, layers="prefix", preprocessing=Preprocessing("frames"))
    layers[3].inplace = True  # type: ignore[assignment]
    assert store.layers == ("block.1",)
    expected = model(data)
    cached(model, store)
    for _ in range(2):
        assert torch.equal(model(data), expected)
    assert statistics(model).hits == 1


def test_whisper_trains_its_decoder_on_what_its_encoder_made(tmp_path: Path) -> None:
    model = bundles.freeze(_of_zoo("WhisperForConditionalGeneration")(), "match:model.encoder").train()
    plain = copy.deepcopy(model)
    spectra = list(torch.randn(2, 8, 20))
    cached(model, store_of(model, spectra, tmp_path, batch_size=2))
    given: dict[str, Any] = {"decoder_input_ids": torch.arange(3, 13).view(2, 5)}
    for seed, uses_cache in enumerate((False, False, True, True)):
        torch.manual_seed(seed)
        ours = model(torch.stack(spectra), **given, use_cache=uses_cache)
        torch.manual_seed(seed)
        theirs = plain(torch.stack(spectra), **given, use_cache=uses_cache)
        assert torch.equal(theirs.logits, ours.logits)
    assert statistics(model).hits == 2


# --- while the model changes ------------------------------------------------------------------------


def test_a_schedule_thaws_what_is_stored(tmp_path: Path) -> None:
    everything = pieces()
    plain, other = (bundles.get_model(DIGITS, freeze="last:2") for _ in range(2))
    schedule = bundles.UnfreezeSchedule({0: "last:2", 2: "last:3", 4: "last:2"})
    model = cached(other, store_of(other, everything, tmp_path, layers="prefix"))
    with pytest.warns(BundlesWarning, match="trains now, or is held in another way"):
        _follow(schedule, (model, plain), everything[:4])
    assert differing(plain.state_dict(), model.state_dict()) == []
    found = statistics(model)
    assert (found.hits, found.compared) == (1, 1)
    assert found.reasons == {"the prefix is not frozen": 4}  # also when it is frozen again: it has moved


def _follow(schedule: bundles.UnfreezeSchedule, models: Iterable[nn.Module], rows: Sequence[Tensor]) -> None:
    for model in models:
        for step in range(6):
            schedule.apply(model, step)
            train(model, [rows], epochs=1)


def test_values_that_change_while_frozen_are_an_error(pair: Pair) -> None:
    model, _ = pair
    batch = torch.stack(pieces()[:4])
    for _ in range(2):
        model(batch)
    check(model)
    kept = model.feature_extractor.conv_layers[0].conv.weight.detach().clone()
    with torch.no_grad():
        model.feature_extractor.conv_layers[0].conv.weight.mul_(2)
    with pytest.raises(FeatureKeyError, match="values of the prefix, which changed since"):
        model(batch)
    with pytest.raises(FeatureKeyError, match="values of the prefix, which changed since"):
        check(model)
    with torch.no_grad():
        model.feature_extractor.conv_layers[0].conv.weight.copy_(kept)
    check(model)
    both(pair, batch)


def test_copies_bring_the_store_along(pair: Pair) -> None:
    model, plain = pair
    batch = torch.stack(pieces()[:4])
    model(batch)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert type(model) is type(plain)
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    assert str(bundles.freeze_report(model)) == str(bundles.freeze_report(plain))
    other = copy.deepcopy(model)
    with torch.no_grad():  # of the copy alone
        other.encoder.transformer.layers[3].final_layer_norm.bias += 1
    for _ in range(2):
        ours, _ = other(batch)
    assert statistics(other).hits == 1
    assert not torch.equal(ours, model(batch)[0])
    assert torch.equal(uncache(other)(batch)[0], ours)
    assert not other._forward_hooks
    assert not other._forward_pre_hooks
    assert not other._forward_hooks_always_called
    both(pair, batch)
    assert statistics(model).hits == 2
    cached(model, model.__dict__["_bundles_cache"].stores[0])  # twice is once
    assert len(model._forward_pre_hooks) == 1


def test_pickles_bring_the_store_along(tmp_path: Path) -> None:
    model = bundles.CREPE_TINY.get_model(freeze="last:1")
    recording = torch.randn(3, 1024)
    cached(model, store_of(model, [recording], tmp_path, layers="prefix"))
    expected = model(recording)
    file = tmp_path / "model.pt"
    torch.save(model, file)
    other = torch.load(file, weights_only=False)
    for _ in range(2):
        assert torch.equal(other(recording), expected)
    assert statistics(other).hits == 1
    other.conv1.weight.data[0] = 0
    with pytest.raises(FeatureKeyError, match="values of the prefix"):
        check(other)
    check(model)


def test_a_part_that_is_put_in_later_is_an_error(pair: Pair) -> None:
    batch = torch.stack(pieces()[:4])
    for _ in range(2):
        both(pair, batch)
    part = pair[0].encoder.transformer.layers[0].feed_forward
    part.output_dense = nn.Sequential(part.output_dense, nn.Linear(96, 96))  # as adapters are put in
    with pytest.raises(FeatureKeyError, match="values of the prefix, which changed since"):
        pair[0](batch)


def test_padding_that_a_model_lets_into_its_features_is_said(tmp_path: Path) -> None:
    model = bundles.freeze(_speech(extractor_mode="group_norm"), "encoder")
    rows = [torch.randn(length) for length in (1200, 900)]
    cached(model, store_of(model, rows, tmp_path))
    alone = [model(row[None])[0][0] for row in rows]
    with pytest.warns(BundlesWarning, match="lets padding into its features .*batch equal lengths"):
        model(*padded(rows))
    out, lengths = model(*padded(rows))
    assert statistics(model).hits >= 1
    for row, expected, length in zip(out, alone, lengths, strict=True):
        assert torch.allclose(row[:length], expected, rtol=0, atol=1e-5)


def test_autocast_is_a_way_of_its_own(pair: Pair) -> None:
    batch = torch.stack(pieces()[:4])
    both(pair, batch)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = (model(batch)[0] for model in pair)
        assert ours.dtype == theirs.dtype
        assert torch.allclose(ours.float(), theirs.float(), rtol=0, atol=0.3)
    assert (statistics(pair[0]).compared, statistics(pair[0]).hits) == (2, 1)
