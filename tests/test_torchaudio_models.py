"""torchaudio's models: built, split, frozen and mended, compared with upstream's own bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchaudio.pipelines._wav2vec2 import utils

import bundles
from bundles import heads
from bundles.builders.head import EncoderWithHead
from bundles.builders.table import build
from bundles.builders.torchaudio.wrapper import normalize_each
from bundles.cli.main import main
from bundles.errors import (
    BuildArgumentError,
    FreezeWithoutWeightsWarning,
    InexpressibleModeError,
    NothingTrainableWarning,
)
from bundles.spec.bundle import Bundle
from bundles.spec.groups import idle_patterns
from bundles.spec.plan import FreezePlan
from zoo import (
    KINDS,
    LAYERS,
    NO_DROPOUT,
    SMALL_TACOTRON2,
    SMALL_WAVERNN,
    SPEECH,
    SSL,
    UPSTREAM,
    WIDTH,
    WITH_LABELS,
    WRAPPED,
    Hub,
    randomized,
    script,
    shrunken,
)

every = pytest.mark.parametrize("name", UPSTREAM)
encoders = pytest.mark.parametrize("name", SPEECH)
kinds = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture
def hub(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(hub_folder))
    return Hub(hub_folder)


@pytest.fixture(autouse=True)
def _offline_and_without_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    with torch.no_grad():
        yield


def audio(items: int = 2, samples: int = 2000, seed: int = 1) -> Tensor:
    return torch.randn(items, samples, generator=torch.Generator().manual_seed(seed))


def seeded(call: Callable[..., Any], *arguments: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return call(*arguments)


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    found, wanted = ours.state_dict(), theirs.state_dict()
    return list(found) == list(wanted) and all(torch.equal(found[key], wanted[key]) for key in wanted)


def fresh(bundle: Bundle, **request: Any) -> nn.Module:
    """A model with random weights, the warning about which is not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FreezeWithoutWeightsWarning)
        warnings.simplefilter("ignore", NothingTrainableWarning)
        return bundle.get_model(pretrained=False, **request)


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def assert_partition(groups: Any, names: list[str]) -> None:
    assert sorted(name for group in groups for name in group.parameters) == sorted(names)
    assert all(group.parameters for group in groups)
    assert [block.name for block in groups.blocks] == [f"block.{i}" for i in range(len(groups.blocks))]


# --- every bundle, on the meta device -------------------------------------------------------------


@cache
def on_meta(name: str) -> nn.Module:
    return build(bundles.get_bundle(name), parameters="meta")


@cache
def plan_of(name: str) -> FreezePlan:
    return bundles.get_bundle(name).plan()


@every
def test_names_and_shapes_are_those_of_torchaudios_module_inside_its_wrapper(name: str) -> None:
    upstream = UPSTREAM[name]
    wrapper = "model." if getattr(upstream, "_normalize_waveform", False) else ""
    theirs = script.module_of(upstream)
    ours = on_meta(name)
    assert bundles.get_bundle(name).prefix == wrapper
    if not name.startswith("HDEMUCS"):  # which computes an embedding, so its tensors are empty instead
        assert all(parameter.is_meta for parameter in ours.parameters())
    assert [(key, tensor.shape) for key, tensor in ours.state_dict().items()] == [
        (wrapper + key, tensor.shape) for key, tensor in theirs.state_dict().items()
    ]
    inner = ours.get_submodule(wrapper.rstrip("."))
    assert isinstance(inner, type(theirs))
    assert type(inner).__name__ == type(theirs).__name__
    assert sum(p.numel() for p in ours.parameters()) == bundles.get_bundle(name).num_parameters


@pytest.mark.parametrize("name", [*UPSTREAM, "WAVERNN_8BITS_LJSPEECH"])
def test_layer_groups_partition_the_parameters_and_no_pattern_is_idle(name: str) -> None:
    names = [key for key, _ in on_meta(name).named_parameters()]
    assert_partition(plan_of(name).layer_groups(), names)
    bundle = bundles.get_bundle(name)
    head = [f"{bundle.prefix}aux"] if name in SSL else []  # inherited, for the bundles that have labels
    assert idle_patterns(bundle.rules, names) == head


@pytest.mark.parametrize("name", ["WAV2VEC2_XLSR53", "WAVLM_LARGE", "HUBERT_ASR_XLARGE"])
def test_the_wrapper_changes_no_group(name: str) -> None:
    wrapped = bundles.get_bundle(name)
    plain = {key: value for key, value in wrapped.architecture.items() if key != "normalize"}
    raw = replace(wrapped, architecture=plain, prefix="").plan()
    assert [(g.name, g.parameters) for g in plan_of(name).layer_groups()] == [
        (g.name, tuple("model." + key for key in g.parameters)) for g in raw.layer_groups()
    ]


def test_groups_of_one_size_have_the_same_names_but_for_the_final_norm() -> None:
    raw, wrapped = plan_of("WAV2VEC2_LARGE").layer_groups(), plan_of("WAV2VEC2_LARGE_LV60K").layer_groups()
    assert raw.names == (
        *("feature_extractor", "projection"),
        *(f"block.{index}" for index in range(24)),
    )
    assert wrapped.names == (*raw.names, "norm")
    labelled = plan_of("WAV2VEC2_ASR_LARGE_LV60K_960H").layer_groups()
    assert labelled.names == (*wrapped.names, "head")


# torchaudio.md 1.4: what is left to train, by the class of the bundle
TRAINS: dict[str, tuple[str, ...]] = {
    "Wav2Vec2Bundle": (),
    "Wav2Vec2ASRBundle": ("aux.",),
    "Wav2Vec2FABundle": ("aux.",),
    "Tacotron2TTSBundle": ("decoder.", "postnet."),
    "RNNTBundle": ("predictor.", "joiner."),
    "CONVTASNET_BASE_LIBRI2MIX": ("mask_generator.output_conv.",),
    "HDEMUCS_HIGH_MUSDB": ("freq_decoder.", "time_decoder."),
    "HDEMUCS_HIGH_MUSDB_PLUS": ("freq_decoder.", "time_decoder."),
    "SquimObjectiveBundle": ("branches.",),
    "SquimSubjectiveBundle": ("projector.", "predictor."),
}
FROZEN: dict[str, set[str]] = {  # the first parts of the names of all that is frozen
    "Wav2Vec2Bundle": {"feature_extractor", "encoder"},
    "Wav2Vec2ASRBundle": {"feature_extractor", "encoder"},
    "Wav2Vec2FABundle": {"feature_extractor", "encoder"},
    "Tacotron2TTSBundle": {"embedding", "encoder"},
    "RNNTBundle": {"transcriber"},
    "CONVTASNET_BASE_LIBRI2MIX": {"encoder", "mask_generator", "decoder"},
    "HDEMUCS_HIGH_MUSDB": {"freq_emb", "freq_encoder", "time_encoder"},
    "HDEMUCS_HIGH_MUSDB_PLUS": {"freq_emb", "freq_encoder", "time_encoder"},
    "SquimObjectiveBundle": {"encoder", "dprnn"},
    "SquimSubjectiveBundle": {"ssl_model"},
}


@every
def test_the_default_plan_freezes_the_encoder_and_leaves_the_head(name: str) -> None:
    classes = [cls.__name__ for cls in type(UPSTREAM[name]).__mro__]
    kind = next(key for key in (name, *classes) if key in TRAINS)
    prefix = bundles.get_bundle(name).prefix
    plan = plan_of(name)
    names = [key for key, _ in on_meta(name).named_parameters()]
    heads_ = tuple(prefix + part for part in TRAINS[kind])
    assert plan.trainable == tuple(key for key in names if key.startswith(heads_))
    assert plan.frozen == tuple(key for key in names if not key.startswith(heads_))
    assert {key.removeprefix(prefix).split(".")[0] for key in plan.frozen} == FROZEN[kind]
    assert (plan.policy, str(plan.mode)) == ("Encoder()", "eval")


def depth_of(name: str, bundle: Bundle) -> float:
    """Where a parameter of a speech encoder sits: -1 before the blocks, the block's number, or after them."""
    inner = name.removeprefix(bundle.prefix)
    if inner.startswith("encoder.transformer.layers."):
        return float(inner.split(".")[3])
    ends = ["aux."]
    if bundle.architecture["encoder_layer_norm_first"]:  # then the transformer's norm comes last
        ends.append("encoder.transformer.layer_norm.")
    return float("inf") if inner.startswith(tuple(ends)) else -1


@encoders
@pytest.mark.parametrize(
    ("policy", "takes"),
    [
        ("last:3", lambda name, depth, layers: depth < layers - 3),
        ("first:6", lambda name, depth, layers: depth < 6),
        ("feature_extractor", lambda name, depth, layers: "feature_extractor." in name),
        ("match:*feature_extractor.*", lambda name, depth, layers: "feature_extractor." in name),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_policy_by_depth_or_name_means_the_same_on_every_encoder(
    policy: str, takes: Callable[[str, float, int], bool], name: str
) -> None:
    bundle = bundles.get_bundle(name)
    layers = bundle.architecture["encoder_num_layers"]
    names = [key for key, _ in on_meta(name).named_parameters()]
    wanted = tuple(key for key in names if takes(key, depth_of(key, bundle), layers))
    assert 0 < len(wanted) < len(names)
    assert bundle.plan(freeze=policy).frozen == wanted


def test_the_feature_extractor_of_squim_is_a_group_too() -> None:
    frozen = bundles.SQUIM_SUBJECTIVE.plan(freeze="feature_extractor").frozen
    assert {key.split(".")[1] for key in frozen} == {"feature_extractor"}
    with pytest.raises(bundles.FreezeArgumentError, match="has no layer group 'feature_extractor'; its gro"):
        bundles.SQUIM_OBJECTIVE.plan(freeze="feature_extractor")


@pytest.mark.parametrize("name", ["HUBERT_BASE", "WAV2VEC2_ASR_LARGE_LV60K_960H", "MMS_FA"])
def test_learning_rates_fall_towards_the_input(name: str) -> None:
    model = fresh(shrunken(name), freeze="feature_extractor")
    groups = bundles.param_groups(model, lr=1.0, layer_decay=0.5)
    names = ["projection", "block.0", "block.1", "block.2"]
    rates = [0.125, 0.25, 0.5, 1.0] if name in SSL else [0.0625, 0.125, 0.25, 0.5]
    extra = {} if name in SSL else {"norm": 0.5, "head": 1.0}
    assert {g["name"]: g["lr"] for g in groups} == dict(zip(names, rates, strict=True)) | extra
    assert sum(len(g["params"]) for g in groups) == len(trainable(model))


# --- upstream's own loaders -----------------------------------------------------------------------


@encoders
def test_a_speech_encoder_equals_what_torchaudio_loads(name: str, hub: Hub) -> None:
    theirs = hub.theirs(name).get_model()
    ours = hub.ours(name).get_model()
    assert same(ours, theirs)
    assert isinstance(ours, type(theirs))
    assert type(ours).__name__ == type(theirs).__name__
    assert not any(module.training for module in ours.modules())
    x = audio(1 if name == "MMS_FA" else 2)  # the star of upstream's fails for more
    lengths = None if "WAVLM" in name else torch.tensor([1500, 2000][-len(x) :])
    for made, wanted in zip(ours(x, lengths), theirs(x, lengths), strict=True):
        assert (made is wanted is None) or torch.equal(made, wanted)
    layers: Any = [model.extract_features(x, lengths)[0] for model in (ours, theirs)]
    made, wanted = layers
    assert len(made) == LAYERS
    assert all(map(torch.equal, made, wanted))


@kinds
def test_in_training_without_layer_drop_upstream_and_ours_draw_alike(name: str, hub: Hub) -> None:
    theirs = hub.theirs(name, encoder_layer_drop=0.0).get_model().train()
    ours = hub.ours(name, encoder_layer_drop=0.0).get_model().train()
    x = audio(1)
    assert torch.equal(seeded(ours, x)[0], seeded(theirs, x)[0])


def test_old_names_of_the_weight_norm_load(hub: Hub, tmp_path: Path) -> None:
    bundle = hub.ours("HUBERT_BASE")
    assert bundle.weights is not None
    state = torch.load(bundle.weights.address)
    conv = "encoder.transformer.pos_conv_embed.conv"
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        state[f"{conv}.{old}"] = state.pop(f"{conv}.parametrizations.weight.{new}")
    torch.save(state, tmp_path / "old.pth")
    old_style = replace(bundle, weights=bundles.WeightSource(f"file:{tmp_path / 'old.pth'}"))
    assert same(old_style.get_model(), bundle.get_model())


@pytest.mark.parametrize("name", ["VOXPOPULI_ASR_BASE_10K_DE", "MMS_FA"])
def test_weights_go_into_a_part_of_ones_own_model(name: str, hub: Hub) -> None:
    bundle = hub.ours(name)
    whole = bundle.get_model()
    mine = nn.ModuleDict({"speech": fresh(shrunken(name)), "other": nn.Linear(2, 2)})
    report = bundles.load_into(mine, bundle, prefix=f"speech.{bundle.prefix}", freeze="loaded")
    assert same(mine["speech"], whole)
    assert report.missing == report.unexpected == ()
    assert trainable(mine) == ["other.weight", "other.bias"]


def test_a_file_with_too_few_label_rows_is_not_taken(hub: Hub, tmp_path: Path) -> None:
    bundle = hub.ours("WAV2VEC2_ASR_BASE_960H")
    assert bundle.weights is not None
    state = torch.load(bundle.weights.address)
    state["aux.bias"] = state["aux.bias"][:3]
    torch.save(state, tmp_path / "short.pth")
    short = replace(bundle, weights=bundles.WeightSource(f"file:{tmp_path / 'short.pth'}"))
    with pytest.raises(bundles.WeightsFileError, match=r"aux\.bias of .* has 3 rows.*drops row 3"):
        short.get_model()


@pytest.mark.parametrize(
    ("name", "input_"),
    [
        ("CONVTASNET_BASE_LIBRI2MIX", audio(1, 800)[None]),
        ("SQUIM_OBJECTIVE", audio(1, 1600)),
        pytest.param("HDEMUCS_HIGH_MUSDB", audio(2, 4096)[None], marks=pytest.mark.slow),
        pytest.param("HDEMUCS_HIGH_MUSDB_PLUS", audio(2, 4096)[None], marks=pytest.mark.slow),
        pytest.param("SQUIM_SUBJECTIVE", audio(1, 1600), marks=pytest.mark.slow),
    ],
)
def test_a_model_of_upstreams_making_equals_what_torchaudio_loads(
    name: str, input_: Tensor, hub: Hub
) -> None:
    upstream = UPSTREAM[name]
    place = getattr(upstream, "_model_path", None) or f"models/{upstream._path}"
    factory = script.factory_of(upstream)
    path = hub.put(f"torchaudio/{place}", randomized(factory()).state_dict())
    theirs = upstream.get_model()
    weights = bundles.WeightSource(f"file:{path}")
    ours = replace(bundles.get_bundle(name), weights=weights).get_model(freeze=True).train()
    path.unlink()
    assert same(ours, theirs)
    x = (input_, input_.flip(-1)) if name == "SQUIM_SUBJECTIVE" else (input_,)
    made, wanted = ours.eval()(*x), theirs(*x)
    pairs = zip(made, wanted, strict=True) if isinstance(made, list) else [(made, wanted)]
    assert all(torch.equal(a, b) for a, b in pairs)


# --- nothing to train -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KINDS if name in SSL])
def test_an_encoder_frozen_without_a_head_warns_that_nothing_trains(name: str, hub: Hub) -> None:
    with pytest.warns(NothingTrainableWarning, match="Nothing is left to train"):
        model = hub.ours(name).get_model(freeze=True)
    assert trainable(model) == []
    headed = hub.ours(name).get_model(freeze=True, head=lambda size: nn.Linear(size, 5))
    assert trainable(headed) == ["head.weight", "head.bias"]


@pytest.mark.parametrize("name", [name for name in KINDS if name in WITH_LABELS])
def test_a_model_with_labels_frozen_leaves_them_to_train(name: str, hub: Hub) -> None:
    bundle = hub.ours(name)
    model = bundle.get_model(freeze=True)  # a warning would be an error
    assert trainable(model) == [f"{bundle.prefix}aux.weight", f"{bundle.prefix}aux.bias"]


# --- layer drop -----------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("policy", ["encoder", "last:1"])
def test_a_frozen_encoder_drops_no_layer_in_training(policy: str, name: str) -> None:
    bundle = shrunken(name, encoder_layer_drop=0.9, **NO_DROPOUT)
    free, frozen = fresh(bundle), fresh(bundle, freeze=policy)
    x = audio()
    whole = frozen(x)[0]
    frozen.train()
    assert all(torch.equal(seeded(frozen, x, seed=seed)[0], whole) for seed in range(3))
    whole = free(x)[0]
    free.train()
    assert not all(torch.equal(seeded(free, x, seed=seed)[0], whole) for seed in range(3))


@kinds
def test_a_frozen_encoder_in_training_equals_itself_in_eval(name: str, hub: Hub) -> None:
    model = hub.ours(name, encoder_layer_drop=0.9).get_model(
        freeze="encoder", head=lambda size: nn.Linear(size, 2)
    )
    x, lengths = audio(), torch.tensor([2000, 1200])
    before = [model(x)[0], model(x, lengths)[0]]
    model.train()
    assert all(map(torch.equal, [model(x)[0], model(x, lengths)[0]], before))


@pytest.mark.parametrize("name", ["WAV2VEC2_BASE", "HUBERT_ASR_LARGE", "WAVLM_LARGE"])
def test_a_frozen_encoder_is_exported_in_training_mode(name: str) -> None:
    model = fresh(shrunken(name, encoder_layer_drop=0.5), freeze=True).train()
    x = audio()
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x)[0], model(x)[0])


@pytest.mark.parametrize("normalize", ["batch", "per_utterance"])
def test_an_exported_encoder_takes_other_lengths(normalize: str) -> None:
    model = fresh(shrunken("WAVLM_LARGE", normalize=normalize), freeze=True).train()
    x = audio()
    exported = torch.export.export(model, (x, torch.tensor([2000, 1500]))).module()
    for lengths in (torch.tensor([1800, 900]), torch.tensor([400, 2000])):
        for made, wanted in zip(exported(x, lengths), model(x, lengths), strict=True):
            assert torch.equal(made, wanted)


def shift_position_bias(model: nn.Module) -> None:
    """Move what the first layer of a WavLM hands on to the others, and no other parameter."""
    for name, parameter in model.named_parameters():
        if "rel_attn_embed" in name:
            parameter.add_(torch.linspace(0, 3, parameter.numel()).view_as(parameter))


def seed_that_drops(pattern: list[bool], rate: float) -> int:
    """A seed with which torchaudio's transformer would drop these layers."""
    return next(
        seed
        for seed in range(999)
        if [seeded(torch.rand, 1, seed=seed).item() <= rate, *(torch.rand(1).item() <= rate for _ in "12")]
        == pattern
    )


def test_layer_drop_spares_the_layer_that_makes_the_position_bias(hub: Hub) -> None:
    seed = seed_that_drops([True, False, False], 0.5)
    x = audio(1)
    dropping: dict[str, Any] = {"encoder_layer_drop": 0.5, **NO_DROPOUT}
    theirs = hub.theirs("WAVLM_BASE", **dropping).get_model().train()
    before = seeded(theirs, x, seed=seed)[0]
    shift_position_bias(theirs)
    assert torch.equal(seeded(theirs, x, seed=seed)[0], before)  # no layer sees a position bias
    ours = hub.ours("WAVLM_BASE", **dropping).get_model(freeze="feature_extractor", freeze_mode="weights")
    whole = ours(x)[0]
    ours.train()
    assert torch.equal(seeded(ours, x, seed=seed)[0], whole)  # the first is kept, the others were not drawn
    shift_position_bias(ours)
    assert not torch.equal(seeded(ours, x, seed=seed)[0], whole)


@pytest.mark.parametrize("name", ["WAVLM_BASE", "WAVLM_LARGE"])
def test_layer_drop_of_all_leaves_the_first_layer(name: str, hub: Hub) -> None:
    dropping: dict[str, Any] = {"encoder_layer_drop": 1.0, **NO_DROPOUT}
    bundle = hub.ours(name, **dropping)
    bundle = replace(bundle, architecture={**bundle.architecture, "normalize": "batch"}, prefix="model.")
    head = lambda size: nn.Linear(size, 2)  # noqa: E731
    model = bundle.get_model(freeze="encoder", freeze_mode="regularized", head=head).train()
    x = audio()
    inner: Any = model.get_submodule("encoder.model")
    normal = nn.functional.layer_norm(x, x.shape)
    first = inner.extract_features(normal, num_layers=1)[0][-1]
    if name == "WAVLM_LARGE":  # its norm comes after the layers
        first = inner.encoder.transformer.layer_norm(first)
    assert torch.equal(model(x)[0], model.get_submodule("head")(first))
    theirs = utils._extend_model(hub.theirs(name, **dropping).get_model(), True).train()
    before = theirs(x)[0]
    for key, parameter in theirs.named_parameters():
        if ".layers." in key:
            parameter.zero_()
    assert torch.equal(theirs(x)[0], before)  # of upstream's nothing is left


# --- WavLM with lengths ---------------------------------------------------------------------------

# Batches of another size are summed in another order.
assert_close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("WAVLM_BASE", {"extractor_mode": "layer_norm"}),
        ("WAVLM_LARGE", {"normalize": "per_utterance"}),
    ],
)
def test_a_padded_item_of_wavlm_is_what_it_is_alone(name: str, changes: dict[str, Any]) -> None:
    model = randomized(fresh(shrunken(name, **changes)))
    x, lengths = audio(3, 2000), torch.tensor([2000, 1300, 700])
    padded, frames = model(x, lengths)
    layers: Any = model.extract_features(x, lengths)[0]  # type: ignore[operator]
    assert padded.isfinite().all()
    for item, (length, valid) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
        alone = x[item : item + 1, :length]
        assert_close(padded[item : item + 1, :valid], model(alone)[0])
        for made, wanted in zip(layers, model.extract_features(alone)[0], strict=True):  # type: ignore[operator]
            assert_close(made[item : item + 1, :valid], wanted)
    unmasked = model(x * (torch.arange(2000) < lengths[:, None]))[0]
    assert (unmasked[2, : frames[2]] - padded[2, : frames[2]]).abs().max() > 1e-3


def test_what_pads_an_item_of_wavlm_changes_no_bit() -> None:
    model = randomized(fresh(shrunken("WAVLM_LARGE", normalize="per_utterance")))
    x, lengths = audio(2), torch.tensor([2000, 900])
    noisy = x.clone()
    noisy[1, 900:] = 1e3
    assert torch.equal(model(noisy, lengths)[0], model(x, lengths)[0])


def test_upstreams_wavlm_refuses_lengths(hub: Hub) -> None:
    """The defect that is mended (pytorch/audio #3700): when this fails, the mending can go."""
    theirs = hub.theirs("WAVLM_BASE").get_model()
    with pytest.raises(AssertionError):
        theirs(audio(), torch.tensor([2000, 900]))


def test_wavlm_gives_as_many_layers_as_asked(hub: Hub) -> None:
    theirs, ours = hub.theirs("WAVLM_BASE").get_model(), hub.ours("WAVLM_BASE").get_model()
    for number in range(1, LAYERS + 1):
        made, wanted = (model.extract_features(audio(), None, number)[0] for model in (ours, theirs))  # type: ignore[operator]
        assert len(made) == number
        assert all(map(torch.equal, made, wanted))
    for number in (0, LAYERS + 1):
        with pytest.raises(ValueError, match=rf"`num_layers` must be between \[1, {LAYERS}\]"):
            ours.extract_features(audio(), None, number)  # type: ignore[operator]


# --- normalisation --------------------------------------------------------------------------------

wrapped_kinds = pytest.mark.parametrize("name", [name for name in KINDS if name in WRAPPED])


@wrapped_kinds
def test_a_batch_mate_changes_nothing_with_per_utterance_and_something_without(name: str, hub: Hub) -> None:
    quiet, loud = audio(), audio()
    loud[1] = loud[1] * 50 + 7
    batch, each = hub.ours(name).get_model(), hub.ours(name).get_model(normalize="per_utterance")
    assert not torch.equal(batch(quiet)[0][0], batch(loud)[0][0])
    assert torch.equal(each(quiet)[0][0], each(loud)[0][0])
    for lengths in (None, torch.tensor([2000, 1300])):
        (made, _), (other, _) = each.extract_features(quiet, lengths), each.extract_features(loud, lengths)  # type: ignore[operator]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(made, other, strict=True))


@wrapped_kinds
def test_the_options_give_the_same_module_and_for_one_item_the_same_output(name: str, hub: Hub) -> None:
    theirs = hub.theirs(name).get_model()
    batch = hub.ours(name).get_model(normalize="batch")
    each = hub.ours(name).get_model(normalize="per_utterance")
    assert same(batch, theirs)
    assert same(each, theirs)
    assert type(each).__name__ == type(each).__qualname__ == type(theirs).__name__
    assert isinstance(each, type(theirs))
    x = audio(1)
    assert torch.equal(batch(x)[0], theirs(x)[0])
    assert torch.equal(each(x)[0], theirs(x)[0])


@wrapped_kinds
def test_an_item_is_what_it_is_alone_however_it_is_padded(name: str, hub: Hub) -> None:
    model = hub.ours(name).get_model(normalize="per_utterance")
    x, lengths = audio(3), torch.tensor([2000, 1300, 700])
    padded, frames = model(x, lengths)
    for item, (length, valid) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
        alone = model(x[item : item + 1, :length])[0]
        assert_close(padded[item : item + 1, :valid], alone)


def test_each_waveform_is_normalised_over_its_own_samples() -> None:
    x, lengths = audio(3, 50) * 5 + 2, torch.tensor([50, 20, 1])
    made = normalize_each(x, lengths)
    for item, length in enumerate(lengths.tolist()):
        alone = nn.functional.layer_norm(x[item, :length], (length,))
        assert torch.equal(made[item, :length], alone)
        assert not made[item, length:].any()
    assert torch.equal(normalize_each(x)[0], made[0])
    assert made[1, :20].mean().abs() < 1e-6
    assert (made[1, :20].var(unbiased=False) - 1).abs() < 1e-4


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("HUBERT_LARGE", {"normalise": "batch"}, r"HUBERT_LARGE has no argument 'normalise': .* normalize\."),
        ("HUBERT_LARGE", {"with_star": True}, "HUBERT_LARGE has no argument 'with_star'"),
        ("HUBERT_LARGE", {"encoder_num_layers": 3}, "HUBERT_LARGE has no argument 'encoder_num_layers'"),
        (
            "HUBERT_LARGE",
            {"normalize": "utterance"},
            "normalize= of HUBERT_LARGE: 'utterance' is not one of 'batch', 'per_utterance'",
        ),
        ("HUBERT_LARGE", {"normalize": None}, "normalize= of HUBERT_LARGE: None is not one of 'batch'"),
        ("HUBERT_LARGE", {"normalize": True}, "normalize= of HUBERT_LARGE: True is not one of 'batch'"),
        ("WAV2VEC2_BASE", {"normalize": "per_utterance"}, "WAV2VEC2_BASE has no argument 'normalize'"),
        ("CREPE_TINY", {"normalize": "batch"}, "CREPE_TINY has no argument 'normalize'"),
        ("MMS_FA", {"with_star": "yes"}, "with_star= of MMS_FA: 'yes' is not true or false"),
        ("MMS_FA", {"with_star": 1}, "with_star= of MMS_FA: 1 is not true or false"),
        ("SQUIM_OBJECTIVE", {"training": True}, "SQUIM_OBJECTIVE has no argument 'training'"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_before_anything_is_built(
    name: str, options: dict[str, Any], words: str
) -> None:
    for call in (bundles.get_bundle(name).get_model, lambda **given: bundles.get_model(name, **given)):
        with pytest.raises(BuildArgumentError, match=words) as caught:
            call(**options)
        assert isinstance(caught.value, TypeError)


# --- the star of MMS_FA ---------------------------------------------------------------------------


@pytest.mark.parametrize("with_star", [True, False])
def test_the_star_is_torchaudios_for_one_item(with_star: bool, hub: Hub) -> None:
    theirs = hub.theirs("MMS_FA").get_model(with_star=with_star)
    ours = hub.ours("MMS_FA").get_model(with_star=with_star)
    assert same(ours, theirs)
    made = ours(audio(1))[0]
    assert torch.equal(made, theirs(audio(1))[0])
    assert made.shape[-1] == 28 + with_star


@pytest.mark.parametrize("normalize", ["batch", "per_utterance"])
def test_the_star_fits_a_batch_where_torchaudios_fails(normalize: str, hub: Hub) -> None:
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        hub.theirs("MMS_FA").get_model()(audio(2))
    starred = hub.ours("MMS_FA").get_model(normalize=normalize)(audio(3))[0]
    plain = hub.ours("MMS_FA").get_model(normalize=normalize, with_star=False)(audio(3))[0]
    assert torch.equal(starred[..., :-1], plain)
    assert not starred[..., -1].any()
    assert torch.allclose(plain.exp().sum(-1), torch.ones(plain.shape[:2]))  # log-probabilities


# --- heads ----------------------------------------------------------------------------------------

LENGTHS_HEADS: dict[str, Callable[[int], nn.Module]] = {
    "mean": lambda size: heads.MeanPoolClassifier(size, 5),
    "attentive": lambda size: heads.AttentiveStatisticsClassifier(size, 5),
    "layers": lambda size: heads.WeightedLayers(size, LAYERS, heads.MeanPoolClassifier(size, 5)),
}


@kinds
def test_a_plain_head_takes_the_slot_where_there_is_one(name: str, hub: Hub) -> None:
    bundle = hub.ours(name)
    made: list[nn.Module] = []

    def head(size: int) -> nn.Module:
        made.append(nn.Linear(size, 5))
        return made[-1]

    model = bundle.get_model(head=head, freeze=True).train()
    slot = f"{bundle.prefix}aux" if name in WITH_LABELS else "head"
    assert model.get_submodule(slot) is made[0]
    assert made[0].in_features == WIDTH
    assert isinstance(model, EncoderWithHead) == (name in SSL)
    assert trainable(model) == [f"{slot}.weight", f"{slot}.bias"]
    assert_partition(bundles.layer_groups(model), [key for key, _ in model.named_parameters()])
    out, frames = model(audio(), torch.tensor([2000, 1200]))
    assert out.shape[-1] == 5
    assert not torch.allclose(out.exp().sum(-1), torch.ones(()))  # what follows MMS_FA's own head is gone
    assert frames[0] == out.shape[1] > frames[1]


@kinds
@pytest.mark.parametrize("make", LENGTHS_HEADS.values(), ids=LENGTHS_HEADS)
def test_a_head_that_takes_lengths_follows_the_bare_encoder(
    make: Callable[[int], nn.Module], name: str, hub: Hub
) -> None:
    model = hub.ours(name).get_model(head=make, freeze=True).train()
    names = [key for key, _ in model.named_parameters()]
    assert isinstance(model, EncoderWithHead)
    assert not any("aux" in key for key in names)
    assert trainable(model) == [key for key in names if key.startswith("head.")] != []
    assert_partition(bundles.layer_groups(model), names)
    out = model(audio(), torch.tensor([2000, 1200]))
    assert out.shape == (2, 5)
    assert out.isfinite().all()
    plan = hub.ours(name).plan(head=make)
    assert plan.digest == bundles.freeze_plan(model).digest  # type: ignore[union-attr]


@kinds
def test_a_bare_encoder_gives_the_features_that_the_labels_were_made_of(name: str, hub: Hub) -> None:
    bundle = hub.ours(name)
    features: list[Tensor] = []

    class Keep(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
            features.append(x)
            return x

    bundle.get_model(head=Keep())(audio(1))
    inner: Any = bundle.get_model().get_submodule(bundle.prefix.rstrip("."))
    x = nn.functional.layer_norm(audio(1), audio(1).shape) if name in WRAPPED else audio(1)
    inner.aux = None
    assert torch.equal(features[0], inner(x)[0])


@pytest.mark.parametrize("name", ["WAV2VEC2_ASR_BASE_960H", "MMS_FA"])
def test_depth_policies_count_the_same_blocks_behind_a_new_head(name: str, hub: Hub) -> None:
    model = hub.ours(name).get_model(head=LENGTHS_HEADS["mean"], freeze="last:1")
    kept = {group.name for group in bundles.layer_groups(model) if group.parameters[0] in trainable(model)}
    assert kept == {"block.2", "head"} | ({"norm"} if name == "MMS_FA" else set())


# --- TorchScript ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("WAV2VEC2_ASR_BASE_960H", False),
        ("HUBERT_ASR_LARGE", True),
        ("MMS_FA", False),
        ("WAVLM_BASE", True),
        ("WAVLM_LARGE", False),
    ],
)
def test_a_model_that_torchaudio_scripts_can_be_scripted(name: str, frozen: bool, hub: Hub) -> None:
    theirs, x = hub.theirs(name).get_model(), audio(1)
    wanted = theirs(x)[0]
    assert torch.equal(torch.jit.script(theirs)(x)[0], wanted)
    head = (lambda size: nn.Linear(size, 3)) if frozen and name in WITH_LABELS else None
    ours = fresh(hub.ours(name), freeze=frozen, head=head).train(frozen)
    calls = [(x,), (audio(2),), (audio(2), torch.tensor([2000, 1300]))]
    before = [(ours(*call), ours.extract_features(*call)) for call in calls]  # type: ignore[operator]
    scripted = torch.jit.script(ours)  # which takes the weight norm off the model itself, as upstream
    for call, ((out, frames), (layers, _)) in zip(calls, before, strict=True):
        made, made_frames = scripted(*call)
        assert torch.equal(made, out)
        assert (made_frames is frames is None) or torch.equal(made_frames, frames)
        assert all(map(torch.equal, scripted.extract_features(*call)[0], layers))


# --- Tacotron2 ------------------------------------------------------------------------------------


@pytest.fixture
def tacotron2(hub: Hub) -> Bundle:
    bundle = bundles.get_bundle("TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH")
    bundle = replace(bundle, architecture={**bundle.architecture, **SMALL_TACOTRON2}, weights=None)
    path = hub.put("tacotron2.pth", randomized(fresh(bundle)).state_dict())
    return replace(bundle, weights=bundles.WeightSource(f"file:{path}"))


SPOKEN = (
    torch.arange(12).reshape(2, 6) * 3,
    torch.tensor([6, 4]),
    audio(16, 5).reshape(2, 8, 5),
    torch.tensor([5, 4]),
)
TTS = [name for name in UPSTREAM if name.startswith("TACOTRON2")]


@pytest.mark.filterwarnings("ignore:Reached max decoder steps:UserWarning")
def test_tacotron2_equals_what_torchaudio_loads(hub: Hub, tacotron2: Bundle) -> None:
    upstream = UPSTREAM["TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH"]
    upstream = replace(upstream, _tacotron2_params={**upstream._tacotron2_params, **SMALL_TACOTRON2})
    assert tacotron2.weights is not None
    hub.put(f"checkpoints/{upstream._tacotron2_path}", Path(tacotron2.weights.address).read_bytes())
    theirs, ours = upstream.get_tacotron2(), tacotron2.get_tacotron2()
    assert same(ours, theirs)
    assert type(ours) is type(theirs)
    for made, wanted in zip(seeded(ours, *SPOKEN), seeded(theirs, *SPOKEN), strict=True):
        assert torch.equal(made, wanted)
    for made, wanted in zip(seeded(ours.infer, *SPOKEN[:2]), seeded(theirs.infer, *SPOKEN[:2]), strict=True):
        assert torch.equal(made, wanted)
    assert not torch.equal(seeded(ours, *SPOKEN)[0], ours(*SPOKEN)[0])  # noise in eval(), from the prenet


@pytest.mark.parametrize("name", TTS)
@pytest.mark.parametrize("mode", ["eval", "features", "frontend"])
@pytest.mark.parametrize("policy", ["all", "head", "match:decoder.prenet.layers.1", "last:0"])
def test_a_frozen_prenet_cannot_be_silent(policy: str, mode: str, name: str) -> None:
    bundle = bundles.get_bundle(name)
    if policy == "last:0":  # the blocks and what is before them: not the prenet
        assert bundle.plan(freeze=policy, freeze_mode=mode).frozen
        return
    with pytest.raises(
        InexpressibleModeError,
        match=r"The group prenet draws dropout at every call, in eval\(\), too, .*"
        r"leave it trainable, or take freeze_mode='regularized' or 'weights'",
    ) as caught:
        bundle.plan(freeze=policy, freeze_mode=mode)
    assert caught.value.groups == ("prenet",)
    with pytest.raises(InexpressibleModeError, match="The group prenet draws dropout"):
        bundle.get_model(freeze=policy, freeze_mode=mode)  # before its weights, which are far away


@pytest.mark.parametrize("mode", ["regularized", "weights", "mc"])
def test_modes_that_promise_no_silence_freeze_all_of_tacotron2(mode: str, tacotron2: Bundle) -> None:
    assert plan_of(TTS[0]).trainable
    assert not bundles.get_bundle(TTS[0]).plan(freeze="all", freeze_mode=mode).trainable
    model = fresh(tacotron2, freeze="all", freeze_mode=mode)
    assert trainable(model) == []


def test_statistics_of_the_frozen_encoder_stay_and_those_of_the_postnet_move(tacotron2: Bundle) -> None:
    def moved(model: nn.Module) -> set[str]:
        before = {name: tensor.clone() for name, tensor in model.named_buffers()}
        model.train()
        seeded(model, *SPOKEN)
        return {name for name, tensor in model.named_buffers() if not torch.equal(tensor, before[name])}

    model = tacotron2.get_model(freeze=True)
    encoded = model.get_submodule("encoder")(torch.ones(2, 16, 6), SPOKEN[1])
    names = {name for name, _ in model.named_buffers()}
    assert {name.split(".")[0] for name in names} == {"encoder", "postnet"}
    assert moved(model) == {name for name in names if name.startswith("postnet.")}
    assert torch.equal(model.get_submodule("encoder")(torch.ones(2, 16, 6), SPOKEN[1]), encoded)
    assert moved(tacotron2.get_model()) == names


def test_what_is_always_random_is_said_by_the_groups_the_plan_and_the_command_line(
    tacotron2: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tacotron2.get_model(freeze=True)
    lines = str(bundles.layer_groups(model)).splitlines()
    assert [line for line in lines if "always noise" in line] == [
        "prenet: head, always noise, 2 tensors, decoder.prenet.layers.0.weight ..."
    ]
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert {group.name: group.always for group in plan.groups if group.always} == {"prenet": "noise"}
    again = bundles.FreezePlan.from_json(plan.to_json())
    assert again == plan
    assert [group.always for group in again.layer_groups()] == [group.always for group in plan.groups]
    with pytest.raises(SystemExit, match="0"):
        main(["plan", TTS[0]])
    marked = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "(always noise)" in line]
    assert marked == ["prenet"]


# --- WaveRNN --------------------------------------------------------------------------------------


def test_the_frozen_vocoder_holds_its_statistics() -> None:
    bundle = bundles.WAVERNN_8BITS_LJSPEECH
    full = bundle.plan()
    assert full.trainable == ("fc3.weight", "fc3.bias")
    bundle = replace(bundle, architecture={**bundle.architecture, **SMALL_WAVERNN}, weights=None)
    wave, mel = torch.randn(2, 1, 6), torch.randn(2, 1, 8, 5)

    def moved(model: nn.Module) -> set[str]:
        before = {name: tensor.clone() for name, tensor in model.named_buffers()}
        model.train()
        model(wave, mel)
        return {name for name, tensor in model.named_buffers() if not torch.equal(tensor, before[name])}

    assert moved(fresh(bundle, freeze=True)) == set()
    assert len(moved(fresh(bundle))) > 10
    frozen = fresh(bundle, freeze=True)
    before = frozen(wave, mel)
    assert torch.equal(frozen.train()(wave, mel), before)


# --- into somebody's own model --------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_load_into_takes_the_names_of_the_bundle_s_own_model(name: str, hub: Hub) -> None:
    bundle = hub.ours(name)
    built = bundle.get_model()
    own = nn.ModuleDict({"encoder": replace(bundle, weights=None).get_model(pretrained=False)})
    report = bundles.load_into(own, bundle, prefix="encoder.")
    assert (report.missing, report.unexpected) == ((), ())
    ours = own["encoder"].state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in built.state_dict().items())


@pytest.mark.parametrize("name", ["WAV2VEC2_BASE", "HUBERT_ASR_LARGE", "MMS_FA"])
def test_load_into_takes_the_file_s_names_too_as_an_unwrapped_model_has_them(name: str, hub: Hub) -> None:
    upstream = hub.theirs(name)
    own = utils._get_model(upstream._model_type, upstream._params)
    report = bundles.load_into(own, hub.ours(name))
    assert (report.missing, report.unexpected) == ((), ())
    theirs = upstream.get_model().state_dict()
    prefix = "model." if name in WRAPPED else ""
    assert all(torch.equal(theirs[prefix + key], tensor) for key, tensor in own.state_dict().items())


# --- what cannot be built -------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"encoder_num_heads": 7}, {"extractor_conv_layer_config": [[1, 2]]}])
def test_values_that_do_not_go_together_are_a_build_error(change: dict[str, Any]) -> None:
    bundle = shrunken("HUBERT_BASE", **change)
    with pytest.raises(bundles.BuildError, match=r"The architecture of HUBERT_BASE cannot be built \(\w+: "):
        bundle.plan()


@pytest.mark.parametrize("name", ["SQUIM_OBJECTIVE", "EMFORMER_RNNT_BASE_LIBRISPEECH", "HDEMUCS_HIGH_MUSDB"])
def test_a_head_behind_a_model_without_features_is_refused(name: str) -> None:
    with pytest.raises(bundles.HeadError, match=f"{name} returns no features that a head could follow"):
        bundles.get_bundle(name).plan(head=nn.Linear(3, 1))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning")
def test_per_utterance_normalisation_scripts_and_survives_odd_lengths(hub: Hub) -> None:
    model = hub.ours("HUBERT_ASR_LARGE").get_model(normalize="per_utterance")
    waves, lengths = torch.randn(3, 2000), torch.tensor([2000, 9999, 0])
    with torch.no_grad():
        expected = model(waves, lengths.clamp(max=2000))[0]
        assert torch.equal(model(waves, lengths)[0], expected)
        assert torch.allclose(torch.jit.script(model)(waves, lengths)[0], expected, atol=1e-5)
