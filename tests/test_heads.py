"""Heads: padding has no say, statistics survive half precision, any head fits any encoder."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bundles
from bundles.builders.head import attach_head, fits_slot
from bundles.errors import FreezeWithoutWeightsWarning, HeadError
from bundles.heads import (
    AttentiveStatisticsClassifier,
    AttentiveStatisticsPool,
    CTCHead,
    MeanPool,
    MeanPoolClassifier,
    TextClassifier,
    WeightedLayers,
)
from bundles.heads.protocol import takes_lengths, uses_layers

DIM = 12
LAYERS = {
    "stem": ["feature_extractor", "encoder.feature_projection", "encoder.transformer.pos_conv_embed"],
    "blocks": "encoder.transformer.layers.{i}",
    "norm": "encoder.transformer.layer_norm",
}
POOLS: dict[str, Callable[[int], nn.Module]] = {
    "mean": MeanPool,
    "attentive": lambda dim: AttentiveStatisticsPool(dim, 5),
    "channelwise": lambda dim: AttentiveStatisticsPool(dim, 5, channelwise=True),
}
CLASSIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "mean": lambda dim: MeanPoolClassifier(dim, 3),
    "attentive": lambda dim: AttentiveStatisticsClassifier(dim, 3),
    "channelwise": lambda dim: AttentiveStatisticsClassifier(dim, 3, channelwise=True),
}
ON_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "layers": lambda dim: WeightedLayers(dim, 3, MeanPoolClassifier(dim, 3)),
    "layers normalized": lambda dim: WeightedLayers(dim, 3, CLASSIFIERS["channelwise"](dim), normalize=True),
}
LENGTHS_HEADS = {f"{name} pool": make for name, make in POOLS.items()} | CLASSIFIERS | ON_LAYERS
pools = pytest.mark.parametrize("make", POOLS.values(), ids=POOLS)
lengths_heads = pytest.mark.parametrize("make", LENGTHS_HEADS.values(), ids=LENGTHS_HEADS)


def run(head: nn.Module, features: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Call any head; one that uses layers gets three that differ."""
    given = [features, features * 0.5, features + 1] if uses_layers(head) else features
    out: Tensor = head(given, lengths=lengths)
    return out


def batch(items: int = 3, frames: int = 7, dim: int = DIM) -> tuple[Tensor, Tensor]:
    return torch.randn(items, frames, dim), torch.tensor([frames, 4, 1][:items])


def encoder(**changes: Any) -> nn.Module:
    """A tiny wav2vec 2.0 with everything that could disturb: dropout, layer drop."""
    arguments = {
        "extractor_mode": "layer_norm",  # group norm mixes padding into every frame (torchaudio #2242)
        "extractor_conv_layer_config": [(8, 10, 5), (8, 3, 2)],
        "extractor_conv_bias": True,
        "encoder_embed_dim": DIM,
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": 4,
        "encoder_pos_conv_groups": 2,
        "encoder_num_layers": 3,
        "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.1,
        "encoder_ff_interm_features": 16,
        "encoder_ff_interm_dropout": 0.1,
        "encoder_dropout": 0.1,
        "encoder_layer_norm_first": False,
        "encoder_layer_drop": 0.5,
        "aux_num_out": None,
    }
    model: nn.Module = torchaudio.models.wav2vec2_model(**(arguments | changes))
    return model


TINY = bundles.Bundle("TINY", encoder, layers=LAYERS, num_features=DIM)
HEADS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda dim: nn.Linear(dim, 3),
    "ctc": lambda dim: CTCHead(dim, 3, dropout=0.1),
    **CLASSIFIERS,
    "layers": lambda dim: WeightedLayers(dim, 3, MeanPoolClassifier(dim, 3)),
    "layers ctc": lambda dim: WeightedLayers(dim, 3, CTCHead(dim, 3)),
}
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def model_with(make: Callable[[int], nn.Module], **request: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FreezeWithoutWeightsWarning)
        return TINY.get_model(pretrained=False, head=make, **request)


def first(out: Any) -> Tensor:
    logits: Tensor = out[0] if isinstance(out, tuple) else out
    return logits


# --- padding --------------------------------------------------------------------------------------


def pooled_alone(pool: nn.Module, frames: Tensor) -> Tensor:
    """What a pool is for one utterance ``[frames, dim]`` without padding, written down plainly."""
    if isinstance(pool, MeanPool):
        return frames.mean(0)
    assert isinstance(pool, AttentiveStatisticsPool)
    hidden = pool.hidden(frames)
    if pool.context is not None:
        variance = frames.var(0, unbiased=False).clamp(min=1e-12)
        hidden = hidden + pool.context(torch.cat([frames.mean(0), variance.sqrt()]))
    weights = pool.score(hidden.tanh()).softmax(0)
    mean = (weights * frames).sum(0)
    variance = (weights * (frames - mean) ** 2).sum(0).clamp(min=1e-12)
    return torch.cat([mean, variance.sqrt()])


@pools
@settings(deadline=None)
@given(data=st.data())
def test_each_item_is_pooled_as_if_it_were_alone(
    make: Callable[[int], nn.Module], data: st.DataObject
) -> None:
    frames, dim = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(1, frames), min_size=1, max_size=4))
    scale = data.draw(st.sampled_from([1e-3, 1.0, 1e3]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    pool = make(dim).double()
    features = scale * torch.randn(len(lengths), frames, dim, dtype=torch.float64)
    alone = torch.stack([pooled_alone(pool, item[:n]) for item, n in zip(features, lengths, strict=True)])
    torch.testing.assert_close(pool(features, torch.tensor(lengths)), alone, rtol=1e-9, atol=1e-9)


@lengths_heads
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30], ids=str)
def test_what_the_padding_holds_changes_no_bit_and_gets_no_gradient(
    make: Callable[[int], nn.Module], garbage: float
) -> None:
    head = make(DIM)
    features, lengths = batch()
    padded = torch.arange(features.shape[1]) >= lengths[:, None]
    clean = run(head, features.masked_fill(padded[..., None], 0.0), lengths)
    dirty = features.masked_fill(padded[..., None], garbage).requires_grad_()
    out = run(head, dirty, lengths)
    assert torch.equal(out, clean)
    torch.autograd.backward(out.sum())
    assert dirty.grad is not None
    assert not dirty.grad[padded].any()
    assert dirty.grad[~padded].any(1).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@lengths_heads
def test_no_lengths_means_that_all_frames_count(make: Callable[[int], nn.Module]) -> None:
    head, (features, _) = make(DIM), batch()
    full = torch.full([3], 7)
    assert torch.equal(run(head, features), run(head, features, full))
    assert not torch.equal(run(head, features), run(head, features, full - 1))
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(run(head, features, full.to(dtype)), run(head, features))


@lengths_heads
@pytest.mark.parametrize("frames", [1, 4])
def test_an_item_without_frames_is_pooled_as_one_frame_of_zeros(
    make: Callable[[int], nn.Module], frames: int
) -> None:
    head = make(DIM).eval()
    features = torch.randn(2, frames, DIM, requires_grad=True)
    out = run(head, features, torch.tensor([0, frames]))
    torch.autograd.backward(out.sum())
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert not features.grad[0].any()
    if not uses_layers(head):
        zero = run(head, torch.zeros(1, 1, DIM))
        torch.testing.assert_close(out[:1], zero)
        torch.testing.assert_close(run(head, torch.zeros(1, 0, DIM)), zero)


@lengths_heads
def test_shapes_can_be_had_without_values(make: Callable[[int], nn.Module]) -> None:
    features, lengths = batch()
    shape = run(make(DIM).to("meta"), features.to("meta"), lengths.to("meta")).shape
    assert shape == run(make(DIM), features, lengths).shape


@pools
def test_gradients_are_those_of_the_function(make: Callable[[int], nn.Module]) -> None:
    pool = make(2).double()
    features = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pool(x, torch.tensor([3, 2])), features)


@pytest.mark.parametrize(
    ("features", "lengths", "words"),
    [
        (
            torch.zeros(7, DIM),
            None,
            r"was given a tensor of float32 \[7, 12\] and takes .* \[batch, frames, dim\]",
        ),
        ([torch.zeros(7, DIM)], None, "was given a list and takes features of shape"),
        (
            torch.zeros(2, 7, DIM),
            [7, 3],
            "lengths is a list: pass the number of valid frames of each of the 2",
        ),
        (torch.zeros(2, 7, DIM), torch.ones(2), r"lengths is a tensor of float32 \[2\]: pass the number"),
        (torch.zeros(2, 7, DIM), torch.ones(2, 7, dtype=torch.bool), r"lengths is a tensor of bool \[2, 7\]"),
        (torch.zeros(2, 7, DIM), torch.tensor([7]), r"lengths is a tensor of int64 \[1\]"),
        (
            torch.zeros(2, 7, DIM),
            torch.tensor([3, 1600]),
            "goes from 3 to 1600 and the features have 7 frames",
        ),
        (torch.zeros(2, 7, DIM), torch.tensor([-1, 7]), "goes from -1 to 7 and the features have 7 frames"),
    ],
)
@pools
def test_a_wrong_shape_or_length_is_named(
    make: Callable[[int], nn.Module], features: Any, lengths: Any, words: str
) -> None:
    with pytest.raises(HeadError, match=words):
        make(DIM)(features, lengths)


# --- precision ------------------------------------------------------------------------------------


@pools
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])  # the sum and the squares of 300 are beyond float16
def test_statistics_survive_half_precision(
    make: Callable[[int], nn.Module], dtype: torch.dtype, scale: float
) -> None:
    pool = make(DIM).to(dtype)
    features, lengths = (1 + torch.randn(2, 500, DIM)) * scale, torch.tensor([500, 320])
    features = features.to(dtype).requires_grad_()
    out = pool(features, lengths)
    assert out.dtype == dtype
    exact = copy.deepcopy(pool).double()(features.detach().double(), lengths)
    assert (out.double() - exact).abs().max() < 40 * torch.finfo(dtype).eps * scale
    torch.autograd.backward(out.sum())
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pools
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_frames_that_are_all_alike_have_finite_gradients(
    make: Callable[[int], nn.Module], dtype: torch.dtype
) -> None:
    pool, features = make(DIM).to(dtype), torch.ones(1, 5, DIM, dtype=dtype, requires_grad=True)
    pool(features, torch.tensor([5])).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("make", [lambda dim: CTCHead(dim, 3), *CLASSIFIERS.values(), *ON_LAYERS.values()])
def test_a_float32_head_takes_the_features_of_a_half_encoder(make: Callable[[int], nn.Module]) -> None:
    head, features = make(DIM), torch.randn(2, 7, DIM).bfloat16()
    out = run(head, features) if takes_lengths(head) else head(features)
    assert out.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(head, features) if takes_lengths(head) else head(features)
    assert (mixed - out).abs().max() < 0.1


# --- each head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bundles.heads.__all__)
def test_every_head_takes_in_features_first_and_says_them(name: str) -> None:
    cls = getattr(bundles.heads, name)
    assert next(iter(inspect.signature(cls).parameters)) == "in_features"
    heads = [CTCHead(5, 2), TextClassifier(5, 2), *(make(5) for make in LENGTHS_HEADS.values())]
    assert {head.in_features for head in heads if isinstance(head, cls)} == {5}
    assert cls.__doc__


def test_the_ctc_head_is_the_linear_layer_of_upstreams_asr_models() -> None:
    head, aux = CTCHead(DIM, 5, dropout=0.5), encoder(aux_num_out=5).get_submodule("aux")
    head.load_state_dict(aux.state_dict())
    aux.load_state_dict(head.state_dict())
    features = torch.randn(2, 7, DIM)
    assert torch.equal(head.eval()(features), aux(features))
    assert not torch.equal(head.train()(features), aux(features))


@pytest.mark.parametrize("make", [CTCHead, MeanPoolClassifier, AttentiveStatisticsClassifier])
def test_dropout_acts_in_training_and_before_the_linear_layer(make: Callable[..., nn.Module]) -> None:
    head = make(DIM, 3, dropout=1.0)
    bias = next(
        parameter
        for name, parameter in head.named_parameters()
        if name.endswith("bias") and len(parameter) == 3
    )
    features, _ = batch()
    assert not torch.equal(head.eval()(features), bias.expand_as(head(features)))
    assert torch.equal(head.train()(features), bias.expand_as(head(features)))


def test_the_weighted_sum_is_a_softmax_over_layers() -> None:
    stack = torch.randn(3, 2, 7, DIM)
    for normalize in (False, True):
        head = WeightedLayers(DIM, 3, nn.Identity(), normalize=normalize)
        nn.init.normal_(head.weights)
        layers = nn.functional.layer_norm(stack, (DIM,)) if normalize else stack
        expected = (head.weights.softmax(0).view(3, 1, 1, 1) * layers).sum(0)
        features, lengths = head(list(stack), None)
        assert lengths is None
        torch.testing.assert_close(features, expected)
        assert torch.equal(head.layer_weights, head.weights.softmax(0).detach())


def test_layers_count_alike_at_first_and_the_useful_one_more_later() -> None:
    head = WeightedLayers(DIM, 3, MeanPoolClassifier(DIM, 2))
    assert torch.equal(head.layer_weights, torch.full([3], 1 / 3))
    noise, labels = torch.randn(3, 64, 7, DIM), torch.randint(2, [64])
    noise[1, ..., 0] = (labels * 2.0 - 1)[:, None]
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(head(list(noise)), labels))
        optimizer.step()
    assert head.layer_weights.argmax() == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WeightedLayers(DIM, 0, MeanPool(DIM)), "num_layers=0 is no positive number"),
        (lambda: WeightedLayers(DIM, MeanPool(DIM), 12), r"num_layers=MeanPool\(\) is no positive number"),  # type: ignore[arg-type]
        (lambda: WeightedLayers(DIM, 3, MeanPool), "The head of WeightedLayers is a type: pass a module"),  # type: ignore[arg-type]
        (lambda: WeightedLayers(DIM, 3, WeightedLayers(DIM, 3, MeanPool(DIM))), "is a WeightedLayers: pass"),
        (lambda: WeightedLayers(DIM, 3, MeanPool(4)), "takes 4 features and the layers have 12"),
        (
            lambda: WeightedLayers(DIM, 3, MeanPool(DIM))([torch.zeros(1, 2, DIM)] * 4),
            "The encoder gives 4 layers and WeightedLayers was made for 3: make it with num_layers=4",
        ),
    ],
)
def test_a_weighted_sum_that_cannot_be_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(HeadError, match=words):
        make()


# --- what a head may ask --------------------------------------------------------------------------


class OwnHead(nn.Module):
    """A user's: it takes lengths by keyword alone, and no base class of ours."""

    def forward(self, features: Tensor, *, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return features.sum(-1), lengths


class OwnLayersHead(nn.Module):
    uses_layers = True

    def forward(self, layers: list[Tensor]) -> int:
        return len(layers)


@pytest.mark.parametrize(
    ("head", "lengths", "layers"),
    [
        (nn.Linear(4, 2), False, False),
        (CTCHead(4, 2), False, False),
        (nn.Sequential(MeanPool(4)), False, False),
        (MeanPool(4), True, False),
        (OwnHead(), True, False),
        (OwnLayersHead(), False, True),
        (WeightedLayers(4, 2, CTCHead(4, 2)), True, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_a_head_asks_is_read_off_it_and_through_wrappers(
    head: nn.Module, lengths: bool, layers: bool
) -> None:
    compiled: Any = torch.compile(head)
    for wrapped in (head, compiled, nn.DataParallel(head), nn.DataParallel(compiled), copy.deepcopy(head)):
        assert (takes_lengths(wrapped), uses_layers(wrapped)) == (lengths, layers)
        assert fits_slot(wrapped) == (not lengths and not layers)


def test_heads_of_ones_own_get_what_they_ask_for() -> None:
    waves, lengths = torch.randn(2, 400), torch.tensor([400, 300])
    model = model_with(lambda _: OwnHead())
    _, frames = model.get_submodule("encoder")(waves, lengths)
    assert torch.equal(model(waves, lengths)[1], frames)
    assert model(waves)[1] is None
    assert model_with(lambda _: OwnLayersHead())(waves, lengths)[0] == 3
    assert bundles.EncoderWithHead(nn.Identity(), OwnHead())(torch.zeros(1, 2, 3))[1] is None


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (
            lambda dim: WeightedLayers(dim, 12, MeanPool(dim)),
            "takes 12 layers and the encoder has 3: .* num_layers=3",
        ),
        (
            lambda dim: MeanPool(768),
            "The head takes 768 features and TINY gives 12: make it with in_features=12",
        ),
        (MeanPoolClassifier, "cannot be called with 12 alone .*num_classes"),
    ],
)
def test_a_head_of_the_wrong_size_fails_before_anything_is_fetched(head: Any, words: str) -> None:
    for call in (TINY.plan, TINY.get_model):
        with pytest.raises(HeadError, match=words):
            call(head=head)


def test_an_encoder_without_layers_is_named() -> None:
    with pytest.raises(HeadError, match="takes the outputs of all layers and Linear has no extract_features"):
        bundles.EncoderWithHead(nn.Linear(2, DIM), WeightedLayers(DIM, 3, MeanPool(DIM)))


def test_the_slot_is_for_heads_that_take_the_features_alone() -> None:
    model = encoder(aux_num_out=5)
    assert attach_head(model, "aux", CTCHead(DIM, 3)) is model
    assert model(torch.randn(2, 400))[0].shape == (2, 39, 3)
    with pytest.raises(HeadError, match="A MeanPool takes lengths or layers and the slot 'aux' gives only"):
        attach_head(model, "aux", MeanPool(DIM))


# --- behind an encoder ----------------------------------------------------------------------------


@every_head
def test_shapes_and_lengths_behind_a_speech_encoder(make: Callable[[int], nn.Module]) -> None:
    model = model_with(make)
    out = model(torch.randn(2, 400), torch.tensor([400, 300]))
    if first(out).ndim == 3:  # a label per frame
        assert isinstance(out, tuple)
        assert (out[0].shape, out[1].tolist()) == ((2, 39, 3), [39, 29])
        assert model(torch.randn(2, 400))[1] is None
    else:
        assert out.shape == model(torch.randn(2, 400)).shape == (2, 3)
    assert {name.partition(".")[0] for name in model.state_dict()} == {"encoder", "head"}


@every_head
def test_a_padded_item_gives_what_it_gives_alone(make: Callable[[int], nn.Module]) -> None:
    model = model_with(make)
    waves, lengths = torch.randn(2, 400), torch.tensor([400, 300])
    together = first(model(waves, lengths))
    for index, length in enumerate(lengths.tolist()):
        alone = first(model(waves[index : index + 1, :length]))[0]
        valid = together[index, : alone.shape[0]] if alone.ndim == 2 else together[index]
        torch.testing.assert_close(valid, alone, rtol=0, atol=1e-5)
    loud = waves.clone()
    loud[1, 300:] = 100.0
    ours = first(model(loud, lengths))[1, :29] if together.ndim == 3 else first(model(loud, lengths))[1]
    theirs = together[1, :29] if together.ndim == 3 else together[1]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@every_head
@pytest.mark.parametrize("mode", ["eval", "features"])
def test_the_frozen_encoder_stays_and_the_head_trains(make: Callable[[int], nn.Module], mode: str) -> None:
    model = model_with(make, freeze=True, freeze_mode=mode).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    waves, lengths = torch.randn(2, 400), torch.tensor([400, 300])
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(first(model(waves, lengths)).square().sum())
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("head.")}


@every_head
def test_dropout_and_layer_drop_of_a_frozen_encoder_are_off(make: Callable[[int], nn.Module]) -> None:
    model = model_with(make, freeze=True)
    waves, lengths = torch.randn(2, 400), torch.tensor([400, 300])
    expected = first(model(waves, lengths))
    model.train()
    assert model.training
    assert all(module.training for module in model.get_submodule("head").modules())
    assert not model.get_submodule("encoder.encoder.transformer").training
    model.get_submodule("head").eval()
    for _ in range(4):
        assert torch.equal(first(model(waves, lengths)), expected)


def test_the_layers_weights_belong_to_the_head() -> None:
    plan = TINY.plan(freeze="encoder", head=HEADS["layers"])
    assert plan.trainable == ("head.weights", "head.head.linear.weight", "head.head.linear.bias")
    assert plan == bundles.freeze_plan(model_with(HEADS["layers"], freeze="encoder"))
    assert set(TINY.plan(freeze="last:1", head=HEADS["layers"]).trainable) > set(plan.trainable)


def encoder_bundles() -> list[bundles.Bundle]:
    found = [bundles.get_bundle(name) for name in bundles.list_bundles()]
    return [bundle for bundle in found if bundle.builder in ("torchaudio_wav2vec2", "torchaudio_wavlm")]


@every_head
def test_every_encoder_bundle_takes_every_head(make: Callable[[int], nn.Module]) -> None:
    assert len(encoder_bundles()) >= 30
    for bundle in encoder_bundles():
        head = make(bundle.num_features or 0)
        if isinstance(head, WeightedLayers):
            layers = bundle.architecture["encoder_num_layers"]
            head = WeightedLayers(head.in_features, layers, head.head)
        trainable = bundle.plan(head=head).trainable
        assert len(trainable) == len(list(head.parameters()))
        assert all(name.startswith("head.") or ".aux." in f".{name}" for name in trainable)


# --- copies, compilers ----------------------------------------------------------------------------


class Toy(nn.Module):
    """An encoder that pickles; torchaudio's own does not, for its weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, DIM)

    def forward(self, waves: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.layer(waves[..., None]), lengths

    def extract_features(
        self, waves: Tensor, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        features, lengths = self(waves, lengths)
        return [features, features * 2, features * 3], lengths


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@every_head
def test_copies_and_pickles_do_the_same(make: Callable[[int], nn.Module]) -> None:
    model = bundles.EncoderWithHead(Toy(), make(DIM)).eval()
    bundles.freeze(model, "match:encoder")
    waves, lengths = torch.randn(2, 9), torch.tensor([9, 4])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(first(twin(waves, lengths)), first(model(waves, lengths)))
        assert first(twin(waves, lengths=lengths)).shape == first(model(waves)).shape
    deep = copy.deepcopy(model_with(make, freeze=True))
    assert first(deep(torch.randn(2, 400))).shape[-1] == 3


@every_head
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_and_exported_models_do_the_same(make: Callable[[int], nn.Module]) -> None:
    model = model_with(make)
    waves, lengths = torch.randn(2, 400), torch.tensor([400, 300])
    expected = first(model(waves, lengths))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(first(compiled(waves, lengths)), expected)
    items = torch.export.Dim("items", min=2, max=16)
    shapes = {"args": ({0: items}, {0: items})}
    exported = torch.export.export(model, (waves, lengths), dynamic_shapes=shapes).module()
    more, few = torch.randn(5, 400), torch.tensor([400, 300, 1, 20, 399])
    assert torch.equal(first(exported(more, few)), first(model(more, few)))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("make", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_a_compiled_head_takes_too_long_a_length_as_all_frames(make: Callable[[int], nn.Module]) -> None:
    head, (features, _) = make(DIM), batch()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    assert torch.equal(compiled(features, torch.tensor([7, 70, 700])), head(features))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning")
@every_head
def test_heads_can_be_scripted_as_upstreams_encoders_can(make: Callable[[int], nn.Module]) -> None:
    head, (features, lengths) = make(DIM).eval(), batch()
    scripted = torch.jit.script(head)
    assert (takes_lengths(scripted), uses_layers(scripted)) == (takes_lengths(head), uses_layers(head))
    inputs = [features] * 3 if uses_layers(head) else features
    extra = (lengths,) if takes_lengths(head) else ()
    torch.testing.assert_close(first(scripted(inputs, *extra)), first(head(inputs, *extra)))


@pytest.mark.parametrize("name", ["linear", "layers"])
def test_in_features_mode_no_gradient_passes_whichever_way_the_encoder_is_entered(name: str) -> None:
    model = model_with(HEADS[name], freeze=True, freeze_mode="features").train()
    waves = torch.randn(2, 400, requires_grad=True)
    with pytest.warns(bundles.BundlesWarning, match="input of a frozen Wav2Vec2Model requires grad"):
        made = first(model(waves))
    torch.autograd.backward(made.sum())
    assert waves.grad is None
    assert all(p.grad is not None for p in model.head.parameters())  # type: ignore[union-attr]


# --- how they are reached -------------------------------------------------------------------------


def test_heads_are_an_attribute_that_is_imported_when_asked_for() -> None:
    code = (
        "import sys, bundles\n"
        "assert 'heads' in dir(bundles) and 'heads' in bundles.__all__\n"
        "assert 'torch' not in sys.modules and 'bundles.heads' not in sys.modules\n"
        "assert bundles.heads.MeanPool(3).in_features == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
