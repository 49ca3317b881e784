"""The model's side of stored features: they are what the model gives, alone or in a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import bundles
from bundles.builders.head import EncoderWithHead
from bundles.builders.transformers.describe import layers_of
from bundles.features.encode.call import way_of
from bundles.features.encode.deterministic import check_deterministic, prefix
from bundles.features.encode.encoder import Encoder
from bundles.features.encode.layers import find_layers
from bundles.features.encode.state import code_digest, state_digest
from bundles.features.encode.trial import distance
from transformers_zoo import TINY
from zoo import KINDS, SMALL_TACOTRON2, randomized, shrunken

pytestmark = pytest.mark.filterwarnings(
    "ignore::bundles.FreezeWithoutWeightsWarning", "ignore::bundles.NothingTrainableWarning"
)
FLOAT = torch.float32
NORMS_OVER_TIME = ("WAV2VEC2_BASE", "WAV2VEC2_ASR_BASE_960H", "VOXPOPULI_ASR_BASE_10K_DE", "WAVLM_BASE")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers tells of odd token ids in tiny vocabularies."""
    monkeypatch.setattr(logging.getLogger("transformers"), "disabled", True)


def speech(name: str, **options: Any) -> Any:
    """A small model of torchaudio's with random weights, each waveform normalised for itself."""
    bundle = shrunken(name)
    if bundle.architecture.get("normalize"):
        options.setdefault("normalize", "per_utterance")
    return randomized(bundle.get_model(pretrained=False, **options))


def tiny(name: str, **changes: Any) -> Any:
    """A tiny model of transformers, with the layer groups that a bundle of it has."""
    from bundles.freezing.derive import carry_rules
    from bundles.spec.groups import parse_rules

    config = transformers.CONFIG_MAPPING[TINY[name].config["model_type"]](**{**TINY[name].config, **changes})
    model = randomized(getattr(transformers, TINY[name].model_class)(config)).eval()
    carry_rules(model, parse_rules(layers_of(model)))
    return model


def alone(model: nn.Module, inputs: list[Tensor], **options: Any) -> list[dict[str, Tensor]]:
    return Encoder(model, batch_size=1, dtype=FLOAT, **options).encode(inputs)


def waves(*lengths: int) -> list[Tensor]:
    return [torch.randn(length) for length in lengths]


# --- what is stored is what the model gives -------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_of_torchaudio_bit_for_bit(name: str) -> None:
    model = speech(name)
    (wave,) = waves(1500)
    found = alone(model, [wave], layers=[0, 1, -1, "output"])[0]
    theirs = model.extract_features(wave[None])[0]
    assert list(found) == ["block.0", "block.1", "block.2", "output"]
    assert all(torch.equal(found[f"block.{k}"], theirs[k][0]) for k in range(3))
    inner = getattr(model, "model", model)
    if inner.aux is None:
        assert torch.equal(found["output"], model(wave[None])[0][0])
    else:  # what the head is given, so the head makes of it what the model returns before its wrapper
        given = wave[None] if inner is model else model._normalized(wave[None], None)
        assert torch.equal(inner.aux(found["output"][None]), inner(given)[0])


HIDDEN = {
    "BertModel": "input_ids",
    "XLMRobertaModel": "input_ids",
    "T5EncoderModel": "input_ids",
    "ViTModel": "pixel_values",
    "Wav2Vec2Model-do_stable_layer_norm": "input_values",
    "HubertModel": "input_values",
}


@torch.no_grad()
@pytest.mark.parametrize("name", HIDDEN)
def test_of_transformers_bit_for_bit(name: str) -> None:
    model = tiny(name)
    given = TINY[name].make_input()[HIDDEN[name]][:1]
    theirs = model(given, output_hidden_states=True)
    found = alone(model, [given[0]], layers=[0, "output"])[0]
    assert torch.equal(found["block.0"], theirs.hidden_states[1][0])
    assert torch.equal(found["output"], theirs.last_hidden_state[0])


@torch.no_grad()
@pytest.mark.parametrize(("name", "key"), [("WhisperModel", "input_features"), ("T5Model", "input_ids")])
def test_of_an_encoder_with_a_decoder_only_the_encoder_is_called(name: str, key: str) -> None:
    model = tiny(name)
    given = TINY[name].make_input()[key][:1]
    theirs = model.get_encoder()(given, output_hidden_states=True)
    found = alone(model, [given[0]], layers=[0, "output"])[0]
    assert torch.equal(found["block.0"], theirs.hidden_states[1][0])
    assert torch.equal(found["output"], theirs.last_hidden_state[0])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("BertForSequenceClassification", lambda model: model.classifier),
        ("RobertaForSequenceClassification", lambda model: model.classifier),
        ("ViTForImageClassification", lambda model: model.classifier),
        (
            "DistilBertForSequenceClassification",
            lambda model: lambda x: model.classifier(model.pre_classifier(x).relu()),
        ),
        ("Wav2Vec2ForCTC", lambda model: model.lm_head),
    ],
)
def test_in_front_of_a_head_that_trains(
    name: str, after: Callable[[Any], Callable[[Tensor], Tensor]]
) -> None:
    model = bundles.freeze(tiny(name), "encoder")
    key, given = next(iter(TINY[name].make_input().items()))
    found = alone(model, [given[0]])[0]["output"]
    assert torch.equal(after(model.eval())(found[None]), model(**{key: given[:1]}).logits)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["RESNET18_IMAGENET1K_V1", "TIMM_SWIN_TINY_PATCH4_WINDOW7_224_MS_IN22K_FT_IN1K"]
)
def test_of_images_what_the_last_layer_is_given(name: str) -> None:
    bundle = bundles.get_bundle(name)
    model: Any = bundle.get_model(pretrained=False, freeze=True)
    image = torch.randn(3, 224, 224)
    found = alone(model, [image])[0]["output"]
    assert found.shape == (bundle.num_features,)
    assert torch.equal(model.get_submodule(bundle.head_slot)(found[None]), model(image[None]))


@torch.no_grad()
def test_of_crepe_the_frames_of_one_input_are_a_batch() -> None:
    model: Any = bundles.CREPE_TINY.get_model(freeze=True)
    inputs = [torch.randn(frames, 1024) for frames in (3, 1, 5)]
    encoder = Encoder(model, dtype=FLOAT)
    found = [features["output"] for features in encoder.encode(inputs)]
    assert [len(features) for features in found] == [3, 1, 5]
    assert all(
        torch.equal(model.classifier(f).sigmoid(), model(x)) for f, x in zip(found, inputs, strict=True)
    )
    assert encoder.bound == 0.0
    long = torch.randn(300, 1024)
    assert distance(encoder.encode([long])[0], {"output": _embedded(model, long)}) < 1e-6


def _embedded(model: Any, frames: Tensor) -> Tensor:
    taken: list[Tensor] = []
    handle = model.classifier.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    model(frames)
    handle.remove()
    return taken[0]


@torch.no_grad()
def test_behind_a_wrapper_and_in_front_of_any_head_it_is_the_encoder() -> None:
    headed = bundles.freeze(
        EncoderWithHead(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, 2)), "encoder"
    )
    x = torch.randn(5, 4)
    assert torch.equal(alone(headed, [x])[0]["output"], headed.encoder(x))
    assert torch.equal(alone(nn.DataParallel(headed), [x])[0]["output"], headed.encoder(x))


# --- a batch gives what each input alone gives ----------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_batches_of_torchaudio_equal_one_by_one(name: str) -> None:
    model, inputs = speech(name), waves(1600, 3200, 1600, 2777, 2000)
    encoder = Encoder(model, layers=[0, "output"], batch_size=3, dtype=FLOAT)
    found = encoder.encode(inputs)
    assert way_of(model).pads == (name not in NORMS_OVER_TIME)
    assert max(map(distance, found, alone(model, inputs, layers=[0, "output"]))) < 5e-6
    assert encoder.bound is not None
    assert 0 <= encoder.bound < 5e-6
    assert [len(f["output"]) for f in found] == [model(x[None])[0].shape[1] for x in inputs]


@pytest.mark.parametrize("name", ["BertModel", "XLMRobertaModel", "RobertaForMaskedLM", "T5EncoderModel"])
def test_batches_of_tokens_equal_one_by_one(name: str) -> None:
    model = tiny(name)
    inputs = [torch.arange(3, 3 + length) for length in (10, 4, 7, 10, 3)]
    encoder = Encoder(model, layers=[0, 1, "output"], batch_size=4, dtype=FLOAT)
    found = encoder.encode(inputs)
    assert [len(features["block.1"]) for features in found] == [10, 4, 7, 10, 3]
    assert max(map(distance, found, alone(model, inputs, layers=[0, 1, "output"]))) < 5e-6


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # WavLM's own
@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("name", ["Wav2Vec2ForCTC", "HubertModel", "WavLMForCTC"])
def test_batches_of_audio_of_transformers_pad_only_what_is_normalised_by_step(name: str, norm: str) -> None:
    model, inputs = tiny(name, feat_extract_norm=norm), waves(400, 700, 400, 1203)
    encoder = Encoder(model, layers=[0, "output"], batch_size=4, dtype=FLOAT)
    found = encoder.encode(inputs)
    assert encoder.kind == ("samples_mask" if norm == "layer" else "stack")
    assert max(map(distance, found, alone(model, inputs, layers=[0, "output"]))) < 5e-6


@torch.no_grad()
def test_padding_a_group_norm_would_be_wrong() -> None:
    """Why equal lengths alone share a call there: the padding of others changes what is heard."""
    model = speech("WAV2VEC2_BASE")
    short, long = waves(1600, 3200)
    padded = torch.stack([F.pad(short, (0, 1600)), long])
    wrong, lengths = model(padded, torch.tensor([1600, 3200]))
    assert distance({"output": wrong[0, : lengths[0]]}, {"output": model(short[None])[0][0]}) > 1e-2


def test_the_bound_is_the_largest_difference_of_the_first_batch() -> None:
    model, inputs = tiny("BertModel"), [torch.arange(3, 3 + length) for length in (9, 4, 7)]
    encoder = Encoder(model, batch_size=3, dtype=FLOAT)
    assert encoder.bound is None
    found = encoder.encode(inputs)
    assert encoder.bound == max(map(distance, found, alone(model, inputs)))
    assert Encoder(model, batch_size=1).bound == 0.0


def test_a_batch_without_padding_does_not_stand_for_those_with_it() -> None:
    model = tiny("BertModel")
    same, others = ([torch.arange(3, 3 + length) for length in lengths] for lengths in ((5, 5), (9, 4)))
    encoder = Encoder(model, dtype=FLOAT)
    encoder.encode(same)
    before = encoder.bound
    model.encoder.layer[1].register_forward_hook(lambda _, args, out: out + out.mean(1, keepdim=True))
    with pytest.raises(bundles.NotDeterministicError, match="pass batch_size=1"):
        encoder.encode(others)
    assert before is not None
    assert before < 1e-6


class Frames(nn.Module):
    """Somebody's model over ``[batch, frames, 4]``."""

    def __init__(self, over: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        self.over = over

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(self.over(self.first(x)))
        return made


SHARES = {
    "each frame alone": (Frames(), True, True),
    "neighbours": (Frames(lambda x: F.avg_pool1d(x.mT, 3, 1, 1).mT), True, False),
    "the mean": (Frames(lambda x: x.mean(1)), True, False),
    "the batch": (Frames(lambda x: x / x.mean()), False, False),
}


@pytest.mark.parametrize("case", SHARES)
def test_what_may_share_a_call_of_an_unknown_model_is_tried(case: str) -> None:
    model, stacks, pads = SHARES[case]
    inputs = [torch.randn(frames, 4) for frames in (9, 5, 9, 7)]
    calls: list[tuple[int, ...]] = []
    encoder = Encoder(model, batch_size=2, dtype=FLOAT)
    first = encoder.encode(inputs)
    handle = model.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[0].shape[:2])))
    assert all(map(_same, encoder.encode(inputs), first))
    handle.remove()
    expected = (
        [(2, 7), (2, 9)] if pads else [(1, 5), (1, 7), (2, 9)] if stacks else [(1, 5), (1, 7), (1, 9), (1, 9)]
    )
    assert calls == expected
    short = Encoder(model, batch_size=2, dtype=FLOAT)
    short.encode([torch.randn(1, 4)])  # what is found out does not hang on which input is the first
    assert all(map(_same, short.encode(inputs), first))
    assert max(map(distance, first, alone(model, inputs))) < 5e-6


def test_what_changes_with_its_batch_after_all_is_refused() -> None:
    """A model of a library that is taken at its word is measured, too."""
    model = speech("WAV2VEC2_LARGE_LV60K", normalize="per_utterance")
    model.model.encoder.transformer.layers[0].register_forward_hook(
        lambda _, args, out: (out[0] + out[0].mean((0, 1)), out[1])
    )
    with pytest.raises(bundles.NotDeterministicError, match=r"differ by .* pass batch_size=1"):
        Encoder(model, batch_size=2).encode(waves(1600, 3200))


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mc", "regularized", "weights"])
def test_a_mode_that_draws_noise_is_refused(mode: str) -> None:
    model = bundles.freeze(speech("WAV2VEC2_BASE", head=nn.Linear(32, 2)), "encoder", mode)
    with pytest.raises(
        bundles.NotDeterministicError, match=f"mode {mode} draws noise in .* mode 'eval'"
    ) as caught:
        Encoder(model, layers=[0])
    stack = "encoder.encoder.transformer"
    assert f"{stack}.layers.0.dropout" in caught.value.modules
    assert not any(name.startswith(f"{stack}.layers.1") for name in caught.value.modules)


def test_layer_drop_that_follows_is_refused_and_what_has_a_rate_of_zero_is_none() -> None:
    mode = bundles.FreezeMode(structure="follow")
    model = bundles.freeze(speech("WAV2VEC2_BASE", head=nn.Linear(32, 2)), "encoder", mode)
    with pytest.raises(bundles.NotDeterministicError, match="layers or time steps out at random") as caught:
        Encoder(model)
    assert caught.value.modules == ("encoder.encoder.transformer",)
    still = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0), nn.Linear(2, 2))
    check_deterministic(bundles.freeze(still, "encoder", "weights"))


def test_statistics_that_move_are_refused_and_a_mode_that_holds_all_there_is_passes() -> None:
    crepe = bundles.CREPE_TINY.get_model(freeze=True, freeze_mode="frontend")
    with pytest.raises(bundles.NotDeterministicError, match="lets statistics move in conv1_BN") as caught:
        check_deterministic(crepe, [1])
    assert caught.value.modules == ("conv1_BN", "conv2_BN")
    check_deterministic(bundles.CREPE_TINY.get_model(freeze=True, freeze_mode="regularized"))


def test_the_prenet_of_tacotron2_is_refused() -> None:
    bundle = bundles.TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH
    arguments = {**bundle.architecture, **SMALL_TACOTRON2}
    small = bundles.Bundle("SMALL", bundle.builder, arguments, layers=bundle.layers)
    with pytest.raises(bundles.NotDeterministicError, match="draws dropout at every call, in eval") as caught:
        Encoder(small.get_model(pretrained=False))
    assert caught.value.modules[0] == "decoder.prenet"


def test_normalising_over_a_batch_is_refused_where_inputs_share_one() -> None:
    model = speech("WAV2VEC2_LARGE_LV60K", normalize="batch")
    with pytest.raises(bundles.NotDeterministicError, match=r"normalize='per_utterance'.*batch_size=1"):
        Encoder(model)
    assert len(alone(model, waves(1600))) == 1


def test_what_trains_in_front_of_a_layer_is_refused() -> None:
    model = bundles.freeze(speech("WAV2VEC2_BASE", head=nn.Linear(32, 2)), "last:2")
    with pytest.raises(bundles.NotDeterministicError, match="'output' is computed with train") as caught:
        Encoder(model)
    assert "encoder.encoder.transformer.layers.1.attention.k_proj" in caught.value.modules
    assert Encoder(model, layers=[0]).layers == ("block.0",)
    assert Encoder(model, layers=["prefix"]).layers == ("block.0",)


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.after(F.dropout(self.before(x)))
        return made


class Counts(Drops):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.before.bias.add_(1)
        made: Tensor = self.after(self.before(x))
        return made


@pytest.mark.parametrize(("cls", "culprit"), [(Drops, "1"), (Counts, "1.before")])
def test_what_is_random_in_eval_is_found_by_calling_it_twice(cls: type[Drops], culprit: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), cls(), nn.Linear(4, 4))
    with pytest.raises(bundles.NotDeterministicError, match="something else in a second call") as caught:
        Encoder(model).encode([torch.randn(5, 4)])
    assert caught.value.modules == (culprit,)
    Encoder(model, layers=[0]).encode([torch.randn(5, 4)])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([3], "no layer 3: it has block.0 to block.2"),
        ([-4], "no layer -4"),
        (["block.9"], "no layer 'block.9'"),
        ([1, "block.1"], "a layer twice"),
        (["prefix", True], "."),
        ("output", "no list of layers"),
        ([], "no list of layers"),
    ],
)
def test_layers_that_are_none(layers: Any, message: str) -> None:
    model = speech("WAV2VEC2_BASE")
    with pytest.raises((bundles.FreezeArgumentError, bundles.NotDeterministicError), match=message):
        find_layers(model, layers)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([[1.0, 2.0]], bundles.InputError, "takes tensors .* not a list"),
        ([torch.randn(2, 1600)], bundles.InputError, r"does not take inputs of shape \[2, 1600\]"),
        ([torch.randn(3)], bundles.InputError, r"does not take inputs of shape \[3\]"),
    ],
)
def test_inputs_that_the_model_does_not_take(inputs: Any, error: type[Exception], message: str) -> None:
    model = speech("WAV2VEC2_BASE").train()
    with pytest.raises(error, match=message):
        Encoder(model).encode(inputs)
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.encoder.transformer.layers)


def test_values_that_a_dtype_does_not_hold_and_arguments_that_are_none() -> None:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 1e6)
    with pytest.raises(
        bundles.FeatureError, match=r"output has values up to 1e\+06, which torch\.float16 does not"
    ):
        Encoder(layer).encode([torch.ones(1, 1)])
    assert Encoder(layer, dtype=torch.bfloat16).encode([torch.ones(1, 1)])[0]["output"].isfinite().all()
    with pytest.raises(bundles.FeatureError, match="batch_size=0 is no number of inputs"):
        Encoder(layer, batch_size=0)
    with pytest.raises(bundles.FeatureError, match="has no values yet"):
        Encoder(nn.Linear(1, 1, device="meta"))
    with pytest.raises(bundles.FeatureError, match=r"dtype=torch\.int8 is none"):
        Encoder(layer, dtype=torch.int8)


class Folds(nn.Module):
    """Folds frames into the batch, and calls one of its three layers not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.three(self.one(x.flatten(0, 1))).view_as(x)
        return made


def test_layers_without_a_row_for_each_input_and_layers_that_are_not_called() -> None:
    with pytest.raises(bundles.FeatureError, match=r"block.0 is of shape \[5, 4\] for 1 inputs"):
        Encoder(Folds(), layers=[0]).encode([torch.randn(5, 4)])
    with pytest.raises(bundles.FeatureError, match=r"did not call block\.1"):
        Encoder(Folds(), layers=[1]).encode([torch.randn(5, 4)])


# --- what encoding leaves behind ------------------------------------------------------------------


def test_the_model_is_left_as_it_was_and_features_are_plain_tensors() -> None:
    model = bundles.freeze(speech("WAV2VEC2_BASE", head=nn.Linear(32, 2)), "encoder").train()
    flags = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (found,) = Encoder(model, dtype=FLOAT).encode(waves(1600))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    features = found["output"]
    assert features.untyped_storage().nbytes() == features.numel() * 4
    model.head(features).sum().backward()
    assert model.head.weight.grad is not None


class Remembers(nn.Module):
    """Makes a table in its first call and keeps it, as rotary positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.kept:
            self.kept.append(torch.arange(4.0))
        return x * (self.kept[0] * self.scale)


def test_what_a_model_keeps_of_a_call_can_be_trained_through() -> None:
    model = Remembers()
    Encoder(model).encode([torch.randn(5, 4)])
    model(torch.randn(2, 5, 4)).sum().backward()
    assert model.scale.grad is not None


def test_nothing_is_computed_after_the_deepest_layer_once_none_is_seen_to_repeat() -> None:
    model, called = speech("WAV2VEC2_BASE"), []
    encoder = Encoder(model, layers=[0])
    encoder.encode(waves(1600))
    for index, layer in enumerate(model.encoder.transformer.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: called.append(index))
    encoder.encode(waves(1600))
    assert called == [0]


def test_a_layer_that_is_overwritten_next_is_stored_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
    encoder, x = Encoder(model, layers=[0], batch_size=1, dtype=FLOAT), torch.randn(5, 4)
    assert all(torch.equal(encoder.encode([x])[0]["block.0"], model[0](x)) for _ in range(3))


def test_a_layer_that_is_called_again_and_again_is_stored_as_it_was_last() -> None:
    model = tiny("AlbertForMaskedLM", num_hidden_layers=3)
    words = torch.arange(3, 9)
    encoder = Encoder(model, layers=[0], batch_size=1, dtype=FLOAT)
    with torch.no_grad():
        expected = model.albert(words[None]).last_hidden_state[0]
    assert all(torch.equal(encoder.encode([words])[0]["block.0"], expected) for _ in range(2))


# --- the digest of the state ----------------------------------------------------------------------


def test_a_digest_is_of_the_encoder_alone() -> None:
    torch.manual_seed(1)
    with_labels, without = speech("WAV2VEC2_ASR_BASE_960H"), speech("WAV2VEC2_BASE")
    without.load_state_dict(with_labels.state_dict(), strict=False)
    own = state_digest(without)
    assert state_digest(with_labels) == own
    assert state_digest(EncoderWithHead(without, nn.Linear(32, 2))) == own
    frozen = bundles.freeze(EncoderWithHead(without, nn.Linear(32, 9)), "encoder").train()
    assert state_digest(frozen) == own
    assert state_digest(without.train()) == own


def test_a_digest_of_transformers_is_that_of_the_base_model() -> None:
    model = tiny("Wav2Vec2ForCTC")
    assert state_digest(bundles.freeze(model, "encoder")) == state_digest(_carried(model.wav2vec2))


def _carried(model: Any) -> nn.Module:
    from bundles.freezing.derive import carry_rules
    from bundles.spec.groups import parse_rules

    carry_rules(model, parse_rules(layers_of(model)))
    frozen: nn.Module = bundles.freeze(model, "all", "features")
    return frozen


def test_what_changes_a_layer_changes_its_digest_and_nothing_else_does() -> None:
    model = speech("WAV2VEC2_ASR_BASE_960H")
    layers = ([0], [1], None)
    before = [state_digest(model, layer) for layer in layers]
    assert len(set(before)) == 3

    def changed(change: Callable[[], object]) -> list[bool]:
        change()
        return [state_digest(model, layer) != old for layer, old in zip(layers, before, strict=True)]

    blocks = model.encoder.transformer.layers
    assert changed(lambda: model.aux.weight.data.add_(1)) == [False, False, False]
    assert changed(lambda: blocks[2].attention.k_proj.bias.data[0].add_(1)) == [False, False, True]
    assert changed(lambda: blocks[1].attention.k_proj.bias.data[0].add_(1)) == [False, True, True]
    assert changed(lambda: model.feature_extractor.conv_layers[0].conv.weight.data.add_(1)) == [True] * 3


def test_a_digest_tells_buffers_classes_and_attributes() -> None:
    def made(activation: nn.Module, eps: float = 1e-5) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 4), activation, nn.BatchNorm1d(4, eps), nn.Dropout(), nn.Linear(4, 2)
        )

    own = state_digest(made(nn.ReLU()))
    assert state_digest(made(nn.ReLU())) == own
    moved: Any = made(nn.ReLU())
    moved[2].running_mean.add_(1)
    assert (
        len({own, state_digest(made(nn.GELU())), state_digest(made(nn.ReLU(), 1e-3)), state_digest(moved)})
        == 4
    )


def test_a_digest_of_code_tells_methods_hooks_and_a_forward_put_on_a_module() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.ndim in {1, 2, 3} else x

    def made(*changes: Any) -> str:
        net = nn.Sequential(nn.Linear(2, 2), Twice())
        for change in changes:
            change(net)
        return code_digest(net)

    def scaled(by: float) -> Any:
        return lambda net: net[0].register_forward_hook(lambda *_: _[2] * by)

    digests = {
        made(),
        made(scaled(2.0)),
        made(scaled(3.0)),
        made(lambda net: vars(net[1]).update(forward=lambda x: x)),
    }
    assert len(digests) == 4
    assert made(scaled(2.0)) in digests
    before, Twice.forward = Twice.forward, lambda self, x: x * 3  # type: ignore[method-assign]
    assert made() not in digests
    Twice.forward = before  # type: ignore[method-assign]
    assert made() in digests


def test_what_is_not_a_number_is_refused() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    with pytest.raises(bundles.InputError, match=r"output has numbers that are not a number"):
        Encoder(Broken(2, 2), batch_size=1).encode([torch.ones(3, 2)])


def test_a_digest_needs_values() -> None:
    with torch.device("meta"), pytest.raises(bundles.FreezeArgumentError, match="meta device"):
        state_digest(nn.Linear(2, 2))


# --- the frozen prefix ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "name", "module"),
    [
        ("encoder", "output", "encoder"),
        ("last:1", "block.1", "encoder.encoder.transformer.layers.1"),
        ("last:2", "block.0", "encoder.encoder.transformer.layers.0"),
        ("first:3", "block.2", "encoder.encoder.transformer.layers.2"),
    ],
)
def test_the_prefix_ends_where_something_trains(policy: str, name: str, module: str) -> None:
    model = bundles.freeze(speech("WAVLM_LARGE", head=nn.Linear(32, 2)), policy)
    if policy == "encoder":
        assert (prefix(model).name, prefix(model).module) == (name, module)
    else:
        assert prefix(model).name == name
        assert prefix(model).module.endswith(module.removeprefix("encoder."))


def test_the_prefix_of_a_model_with_a_dropout_in_front_of_its_head_ends_before_that() -> None:
    model = bundles.freeze(tiny("BertForSequenceClassification"), "encoder")
    found = prefix(model)
    assert (found.module, found.side) == ("dropout", "input")
    assert model.train().dropout.training


@pytest.mark.parametrize("mode", ["regularized", "mc", "weights"])
def test_what_is_not_still_in_training_has_no_prefix(mode: str) -> None:
    model = bundles.freeze(speech("WAV2VEC2_BASE", head=nn.Linear(32, 2)), "encoder", mode)
    with pytest.raises(bundles.NotDeterministicError, match=f"mode {mode}"):
        prefix(model)


def test_what_no_plan_holds_has_a_prefix_only_where_nothing_hangs_on_training() -> None:
    still = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    assert prefix(still).name == "output"
    with pytest.raises(
        bundles.NotDeterministicError, match=r"parameters that 'block\.0' is computed with train"
    ):
        prefix(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(bundles.NotDeterministicError, match="draws noise"):
        prefix(
            nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2)).requires_grad_(False)
        )


def test_masked_elements_end_the_prefix() -> None:
    mask = bundles.Elements({"1.bias": [True, False]})
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    bundles.freeze(model, bundles.Match("0") | mask | bundles.Match("2"))
    assert prefix(model).name == "block.0"
