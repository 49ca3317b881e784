"""What a step costs, predicted without computing it; frozen tensors in lower precision; what fits."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import bundles
import toys
from bundles.errors import FreezeArgumentError
from bundles.freezing.behaviour.lowered import lowered_names
from bundles.freezing.cost.flops import module_flops
from bundles.spec.cost import step_cost
from bundles.spec.fit import Fit
from bundles.spec.inputs import input_shape
from bundles.spec.policy import Encoder, ExceptLast, Match, Nothing, parse_policy

WIDTH = 64
LAYERS = {"stem": "stem", "blocks": "blocks.{i}", "head": "head"}
BF16 = torch.bfloat16


class Block(nn.Module):
    """Attention and a feed-forward, both with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out: Tensor = x + self.drop(self.down(nn.functional.gelu(self.up(self.norm(x)))))
        return out


class Encoder4(nn.Module):
    """A grouped convolution, four blocks with layer drop, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(8, WIDTH, 5, stride=2, groups=4)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.layer_drop = 0.5
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mT
        for block in self.blocks:
            if not (self.training and torch.rand(1).item() < self.layer_drop):
                x = block(x)
        out: Tensor = self.head(x)
        return out


SHAPE = (4, 8, 131)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    save_file(Encoder4().state_dict(), path)
    path.chmod(0o444)
    return path


@pytest.fixture
def bundle(weights: Path) -> bundles.Bundle:
    source = bundles.WeightSource(f"file:{weights}")
    given: dict[str, Any] = {"layers": LAYERS, "head_slot": "head", "num_features": WIDTH}
    return bundles.Bundle("MINE", Encoder4, weights=source, metadata={"input_shape": SHAPE}, **given)


def without_layer_drop(model: nn.Module) -> nn.Module:
    model.train()
    model.layer_drop = 0.0  # type: ignore[assignment]
    return model


# --- the prediction is what a real step does ------------------------------------------------------


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """What forward really keeps for backward, parameters and input left out."""
    own = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)  # so that no address is used twice
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        model(x)
    return sum(kept.values())


@pytest.mark.parametrize("policy", ["none", "last:2", "last:1", "encoder", "first:2", "match:*.bias"])
@pytest.mark.parametrize("mode", ["eval", "weights"])
def test_saved_activations_are_exactly_those_of_a_real_forward(policy: str, mode: str) -> None:
    model = bundles.freeze(Encoder4(), policy, mode, groups=LAYERS)
    cost = bundles.predict(model, inputs=SHAPE)
    assert cost.saved_activations == saved_bytes(without_layer_drop(model), torch.randn(SHAPE)) > 0


@pytest.mark.parametrize("policy", ["none", "match:0", "match:[02]"])
def test_operations_are_those_of_a_real_step_where_torch_counts_them(policy: str) -> None:
    model = nn.Sequential(nn.Conv1d(8, 16, 3), nn.Flatten(), nn.Linear(16 * 129, 32), nn.Linear(32, 4))
    bundles.freeze(model, policy)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(SHAPE)).sum().backward()
    assert bundles.predict(model, inputs=SHAPE).operations == counter.get_total_flops() > 0


def test_grouped_convolutions_count_their_own_channels_in_both_directions() -> None:
    forward = 2 * 4 * 64 * WIDTH * (8 // 4) * 5  # 4 items, 64 places, WIDTH outputs of 2 channels and 5 taps
    conv = nn.Conv1d(8, WIDTH, 5, stride=2, groups=4)
    assert module_flops(conv, SHAPE) == {"": forward}
    assert bundles.predict(conv, inputs=SHAPE).operations == 2 * forward
    assert bundles.predict(nn.Sequential(nn.Conv1d(8, 8, 1), conv), inputs=SHAPE).operations == (
        3 * forward + 2 * (2 * 4 * 131 * 8 * 8)
    )


def test_module_flops_count_what_runs_in_a_module_list_once() -> None:
    flops = module_flops(Encoder4(), SHAPE)
    assert "" not in flops  # the root itself multiplies nothing
    assert {name for name in flops if name.startswith("blocks.0")} == {
        *("blocks.0", "blocks.0.qkv", "blocks.0.up", "blocks.0.down")
    }
    assert flops["blocks.0.up"] == 2 * 4 * 64 * WIDTH * 4 * WIDTH
    assert flops["blocks.0"] == 2 * 2 * 4 * 64 * 64 * WIDTH  # attention: two products


def test_the_peak_counts_weights_gradients_moments_and_what_is_alive() -> None:
    linear = nn.Linear(1000, 1000, bias=False)
    size = 1000 * 1000 * 4
    cost = bundles.predict(linear, inputs=(2, 1000))
    assert (cost.weights, cost.gradients, cost.optimizer) == (size, size, 2 * size)
    assert cost.peak_memory == 5 * size  # AdamW makes one tensor of the parameter's size
    frozen = bundles.predict(bundles.freeze(linear, mode="features"), inputs=(2, 1000))
    assert (frozen.gradients, frozen.optimizer, frozen.saved_activations) == (0, 0, 0)
    assert frozen.peak_memory == size + 2 * (2 * 1000 * 4)  # input and output
    assert frozen.relative < cost.relative == 1


def test_less_training_costs_less_of_everything() -> None:
    costs = [
        bundles.predict(bundles.freeze(Encoder4(), policy, groups=LAYERS), inputs=SHAPE)
        for policy in ("none", "last:2", "encoder")
    ]
    for name in ("relative", "operations", "saved_activations", "peak_memory", "gradients"):
        values = [getattr(cost, name) for cost in costs]
        assert values == sorted(set(values), reverse=True), name


def test_gradient_that_flows_through_costs_more_than_none_and_less_than_all() -> None:
    model = nn.Sequential(nn.Conv1d(8, 8, 1), Encoder4())
    through = bundles.predict(model, inputs=SHAPE, freeze="match:1")
    alone = bundles.predict(model, inputs=SHAPE, freeze=~Match("1.head"))
    assert alone.relative < through.relative < 1
    assert alone.saved_activations < through.saved_activations


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls in which a tensor of the model is given another dtype."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.own = {parameter.data_ptr() for parameter in model.parameters() if not parameter.requires_grad}
        self.casts = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.own:
            self.casts += 1
        return func(*args, **(kwargs or {}))


def test_predicting_changes_nothing_and_draws_no_random_number(bundle: bundles.Bundle) -> None:
    model = bundles.freeze(Encoder4().eval(), "last:2", groups=LAYERS)
    contents, head = toys.contents(model), nn.Linear(WIDTH, 2)
    before, state = toys.fingerprint(model), torch.get_rng_state()
    bundles.predict(model, inputs=SHAPE, freeze="encoder")
    bundles.predict(bundle, freeze="fit:1GB", head=head)
    assert toys.fingerprint(model) == before
    assert toys.contents(model) == contents
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", list(toys.TOYS))
def test_every_kind_of_model_is_followed(name: str) -> None:
    toy = toys.TOYS[name]
    model = bundles.freeze(toy.make(), "match:encoder")
    cost = bundles.predict(model, inputs=toy.make_input())
    assert 0 < cost.relative <= 1
    assert cost.weights < cost.peak_memory
    assert cost.gradients == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_masked_tensor_costs_what_a_trained_one_costs() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    mask = torch.eye(8, dtype=torch.bool)
    part = bundles.predict(model, inputs=(2, 8), freeze=bundles.Elements({"0.weight": mask}))
    assert part == bundles.predict(model, inputs=(2, 8))
    plan = bundles.freeze_plan(bundles.freeze(model, bundles.Elements({"0.weight": mask})))
    assert plan is not None
    assert step_cost(plan, module_flops(model, (2, 8))) == 1


# --- of a bundle, before any download -------------------------------------------------------------


def test_a_bundle_is_predicted_without_its_file() -> None:
    source = bundles.WeightSource("file:/nowhere/at-all.safetensors")
    absent = bundles.Bundle(
        "ABSENT", Encoder4, weights=source, layers=LAYERS, metadata={"input_shape": SHAPE}
    )
    cost = bundles.predict(absent, freeze="last:2", batch=4)
    assert cost == bundles.predict(bundles.freeze(Encoder4(), "last:2", groups=LAYERS), inputs=SHAPE)
    assert cost.shape == SHAPE
    assert bundles.predict(absent, freeze="last:2", batch=8).saved_activations == 2 * cost.saved_activations


def test_seconds_say_how_long_waveforms_are() -> None:
    assert input_shape(bundles.WAV2VEC2_NANO_DIGITS, 2, 1.5) == (2, 24_000)
    assert bundles.predict("WAV2VEC2_NANO_DIGITS", batch=2, seconds=1).shape == (2, 16_000)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"model": "CREPE_TINY", "seconds": 2}, "leave seconds=2 out"),
        ({"model": "WAV2VEC2_BASE", "batch": 0}, "must be above zero"),
        ({"model": "TACOTRON2_WAVERNN_CHAR_LJSPEECH"}, "does not say what its input looks like"),
        ({"model": nn.Linear(2, 2)}, "give inputs="),
        ({"model": nn.Linear(2, 2), "batch": 2}, "are of bundles"),
        ({"model": nn.Linear(2, 2), "inputs": (3, 5)}, "cannot be followed on the inputs"),
        ({"model": "CREPE_TINY", "freeze": False, "frozen_dtype": BF16}, "without freeze"),
    ],
)
def test_what_cannot_be_predicted_is_said(how: dict[str, Any], words: str) -> None:
    with pytest.raises(FreezeArgumentError, match=words):
        bundles.predict(**how)


# --- freeze="fit:8GB" -----------------------------------------------------------------------------


def test_a_fit_is_the_deepest_training_that_fits(bundle: bundles.Bundle) -> None:
    peaks = {
        policy: bundles.predict(bundle, freeze=policy).peak_memory
        for policy in (Nothing(), ExceptLast(3), ExceptLast(1), Encoder())
    }
    for policy, peak in peaks.items():
        needed = peak / 0.85 / 1e6
        assert bundle.plan(freeze=f"fit:{needed + 0.0001:.4f}MB").policy == repr(policy)
    model = bundle.get_model(freeze=Fit(f"{needed + 0.0001:.4f}MB"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias"}


def test_where_not_even_the_head_fits_the_error_says_what_would(bundle: bundles.Bundle) -> None:
    with pytest.raises(FreezeArgumentError, match=r"does not fit into 0\.1MB: .* with Encoder\(\) takes"):
        bundle.get_model(freeze="fit:0.1MB")


def test_a_fit_that_asks_for_more_items_trains_less(bundle: bundles.Bundle) -> None:
    small, large = (len(bundle.plan(freeze=f"fit:8MB:{batch}").trained) for batch in (1, 8))
    assert small > large


def test_the_head_of_a_fitted_model_is_drawn_as_ever(bundle: bundles.Bundle) -> None:
    weights = []
    for freeze in ("encoder", "fit:1GB"):
        torch.manual_seed(5)
        model = bundle.get_model(freeze=freeze, head=lambda size: nn.Linear(size, 2))
        weights.append(toys.as_bytes(model.get_parameter("head.weight")))
    assert weights[0] == weights[1]


def test_fit_strings_are_values() -> None:
    assert parse_policy("fit:8GB") == Fit("8GB")
    assert parse_policy("fit:7.5GiB:16x10s") == Fit("7.5GiB", batch=16, seconds=10)
    assert Fit("7.5GiB").bytes == 7.5 * 2**30
    assert pickle.loads(pickle.dumps(Fit("8GB", 4))) == Fit("8GB", 4)


@pytest.mark.parametrize("text", ["fit:8", "fit:GB", "fit:0GB", "fit:8GB:x5s", "fit:8GB:0", "fit:8GB:-1"])
def test_a_fit_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(FreezeArgumentError):
        parse_policy(text)


def test_a_fit_where_no_input_is_known_says_where_it_works() -> None:
    with pytest.raises(FreezeArgumentError, match=r"freeze this one by 'last:N'"):
        bundles.freeze(nn.Linear(2, 2), "fit:8GB")
    with pytest.raises(FreezeArgumentError, match=r"stands alone"):
        bundles.CREPE_TINY.plan(freeze=Fit("8GB") | Match("x"))


# --- frozen_dtype ---------------------------------------------------------------------------------


def test_under_autocast_outputs_are_bit_for_bit_those_of_the_float32_model(bundle: bundles.Bundle) -> None:
    plain = bundle.get_model(freeze="last:1")
    lowered = bundle.get_model(freeze="last:1", frozen_dtype=BF16)
    x = torch.randn(SHAPE)
    with torch.autocast("cpu", BF16):
        assert torch.equal(plain(x), lowered(x))
        plain(x).float().sum().backward()
        lowered(x).float().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), lowered.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            assert torch.equal(one.grad, other.grad), name


def test_only_what_autocast_casts_is_lowered(bundle: bundles.Bundle) -> None:
    model = bundle.get_model(freeze="last:1", frozen_dtype=BF16)
    low = {name for name, parameter in model.named_parameters() if parameter.dtype == BF16}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert low == {name for name in frozen if "norm" not in name} == set(lowered_names(model))
    assert {p.dtype for name, p in model.named_parameters() if name not in low} == {torch.float32}
    assert list(model.state_dict()) == list(Encoder4().state_dict())


def test_p20_autocast_casts_no_frozen_weight(bundle: bundles.Bundle) -> None:
    casts = {}
    for dtype in (None, BF16):
        model = bundle.get_model(freeze="encoder", frozen_dtype=dtype)
        with torch.autocast("cpu", BF16), Watch(model) as watch:
            for _ in range(3):
                model(torch.randn(SHAPE))
        casts[dtype] = watch.casts
    assert casts == {None: 3 * 2 * (1 + 4 * 3), BF16: 0}  # weight and bias of the stem and of 4 blocks' three


def test_fused_parametrized_and_other_layers_stay_float32() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 8)
            self.fused = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
            self.batch = nn.BatchNorm1d(5)
            self.plain = nn.Linear(8, 8)
            self.tied = nn.Linear(8, 5, bias=False)
            self.tied.weight = self.words.weight

        def forward(self, words: Tensor) -> Tensor:
            out: Tensor = self.tied(self.plain(self.batch(self.normed(self.fused(self.words(words))))))
            return out

    made = bundles.Bundle("MIXED", Mixed)
    with pytest.warns(bundles.BundlesWarning):
        model = made.get_model(freeze="all", pretrained=False, frozen_dtype=BF16)
    assert lowered_names(model) == ("plain.weight", "plain.bias")
    with torch.no_grad(), torch.autocast("cpu", BF16):
        assert model(torch.tensor([[0, 1, 2, 3, 4]])).shape == (1, 5, 5)


def test_a_file_in_that_dtype_is_mapped_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.to(BF16) for name, tensor in Encoder4().state_dict().items()}, path)
    path.chmod(0o444)
    source = bundles.WeightSource(f"file:{path}")
    made = bundles.Bundle("HALF", Encoder4, weights=source, layers=LAYERS)
    model = made.get_model(freeze="encoder", frozen_dtype=BF16)
    with Path("/proc/self/maps").open() as maps:
        places = [line.split("-", 1) for line in maps if str(path) in line]
    spans = [(int(start, 16), int(rest.split()[0], 16)) for start, rest in places]
    for name, parameter in model.named_parameters():
        is_mapped = any(start <= parameter.data_ptr() < stop for start, stop in spans)
        assert is_mapped == (name in lowered_names(model)), name
    assert lowered_names(model)


def test_outside_autocast_the_error_says_what_to_type(bundle: bundles.Bundle) -> None:
    model = bundle.get_model(freeze="encoder", frozen_dtype=BF16)
    with pytest.raises(FreezeArgumentError, match=r"with torch\.autocast\('cpu', torch\.bfloat16\):"):
        model(torch.randn(SHAPE))


def test_unfrozen_tensors_train_in_float32(bundle: bundles.Bundle) -> None:
    model = bundle.get_model(freeze="encoder", frozen_dtype=BF16)
    kept = dict(model.named_parameters())
    rounded = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    bundles.unfreeze(model, "blocks:3")
    assert {n for n in kept if n not in lowered_names(model)} == {
        n for n in kept if n.startswith(("blocks.3", "head")) or "norm" in n
    }
    bundles.unfreeze(model)
    assert lowered_names(model) == ()
    for name, parameter in model.named_parameters():
        assert parameter is kept[name]
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, rounded[name])
    assert (hooks, sum(len(module._forward_pre_hooks) for module in model.modules())) == (13, 0)
    model(torch.randn(SHAPE)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_another_freeze_keeps_lowered_what_stays_frozen(bundle: bundles.Bundle) -> None:
    model = bundle.get_model(freeze="encoder", frozen_dtype=BF16)
    before = set(lowered_names(model))
    bundles.freeze(model, "last:1", groups=LAYERS)
    assert set(lowered_names(model)) == {name for name in before if not name.startswith("blocks.3")}
    with bundles.frozen(model, "all"):
        pass
    assert set(lowered_names(model)) == {name for name in before if not name.startswith("blocks.3")}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_lowered_and_thaw_on_their_own(bundle: bundles.Bundle, copied: Any) -> None:
    model = bundle.get_model(freeze="encoder", frozen_dtype=BF16)
    twin = copied(model)
    bundles.unfreeze(twin)
    assert lowered_names(twin) == ()
    assert lowered_names(model)
    x = torch.randn(SHAPE)
    assert twin(x).dtype == torch.float32
    with pytest.raises(FreezeArgumentError):
        model(x)


def test_lowered_tensors_do_not_drift_and_are_reported(bundle: bundles.Bundle) -> None:
    model = bundle.get_model(freeze="last:1", frozen_dtype=BF16).train()
    taken = bundles.snapshot(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    with torch.autocast("cpu", BF16):
        model(torch.randn(SHAPE)).float().sum().backward()
    optimizer.step()
    bundles.verify_frozen(model, taken)
    assert bundles.freeze_report(model).problems == ()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"frozen_dtype": BF16}, "without freeze"),
        ({"freeze": True, "frozen_dtype": torch.int8}, "not one that autocast"),
        ({"freeze": True, "frozen_dtype": "bfloat16"}, "not one that autocast"),
        ({"freeze": True, "frozen_dtype": BF16, "dtype": torch.float32}, "give one of the two"),
    ],
)
def test_a_frozen_dtype_that_cannot_be_is_refused(
    bundle: bundles.Bundle, how: dict[str, Any], words: str
) -> None:
    with pytest.raises(FreezeArgumentError, match=words):
        bundle.get_model(**how)


def test_the_prediction_knows_of_lower_precision(bundle: bundles.Bundle) -> None:
    plain = bundles.predict(bundle, freeze="encoder")
    low = bundles.predict(bundle, freeze="encoder", frozen_dtype=BF16)
    model = bundle.get_model(freeze="encoder", frozen_dtype=BF16)
    assert low.weights == sum(p.numel() * p.element_size() for p in model.parameters()) < plain.weights


# --- nothing of this is paid for where it is not used ---------------------------------------------


@pytest.fixture
def modules_of_a_plain_load() -> set[str]:
    import subprocess
    import sys

    code = "import sys, bundles; bundles.get_model('CREPE_TINY', freeze=True); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_get_model_imports_nothing_of_it(modules_of_a_plain_load: set[str]) -> None:
    unused = {
        *("bundles.spec.fit", "bundles.spec.inputs", "bundles.assemble.fit", "bundles.assemble.predict"),
        *("bundles.freezing.cost.predict", "bundles.freezing.cost.meter", "bundles.freezing.cost.ghosts"),
    }
    assert modules_of_a_plain_load.isdisjoint(unused)


# --- what a new user ran into ---------------------------------------------------------------------


@pytest.mark.parametrize("head", [None, lambda dim: nn.Linear(dim, 3)])
def test_fit_works_where_the_blocks_begin_at_the_input(head: Any) -> None:
    assert bundles.CREPE_TINY.plan(freeze="fit:8GB:4", head=head).policy == "Nothing()"
    least = bundles.CREPE_TINY.plan(freeze="fit:0.03GB:64", head=head).policy
    assert least.startswith("ExceptLast(")


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, *, x: Tensor, scale: float = 1.0) -> Tensor:
        out: Tensor = self.head(self.body(x)) * scale
        return out


def test_inputs_may_be_given_by_name() -> None:
    cost = bundles.predict(ByName(), inputs={"x": torch.randn(4, 6), "scale": 2.0}, freeze="encoder")
    assert cost.relative < 1
    assert cost.gradients == 4 * (6 * 2 + 2)


class Careless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)

    def forward(self, x: Any) -> Any:
        return self.body(x["input"])


def test_whatever_a_forward_raises_is_named_with_the_inputs() -> None:
    with pytest.raises(bundles.FreezeArgumentError, match=r"Careless cannot be followed on the inputs"):
        bundles.predict(Careless(), inputs=(torch.randn(2, 6),))
    with pytest.raises(bundles.FreezeArgumentError, match=r"inputs= is a float: give a shape"):
        bundles.predict(Careless(), inputs=0.5)  # type: ignore[arg-type]
