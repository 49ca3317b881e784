"""The traps of mapping a file instead of reading it, and of not initialising what is to be loaded.

Those that concern one function are with it, in ``test_weights.py`` (other float types, ties, buffers and
attributes on the meta device, a write to a mapped tensor) and ``test_state_dicts.py`` (extra state, older
files, files rewritten or cut short under a model). Here are those that show in a model, or in a process.
"""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import bundles
from bundles.builders.construct import on_meta, without_init
from bundles.builders.load import assign
from bundles.spec.source import WeightSource

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class Net(nn.Module):
    """An encoder with weight norm, a tied pair, a counter, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = weight_norm(nn.Conv1d(64, 64, 9))
        self.norm = nn.BatchNorm1d(64)
        self.inner = nn.Linear(64, 64, bias=False)
        self.outer = nn.Linear(64, 64, bias=False)
        self.outer.weight = self.inner.weight
        self.head = nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.encoder(x)).mean(-1)
        output: torch.Tensor = self.head(self.outer(self.inner(hidden)))
        return output


LAYERS = {
    "encoder": {"match": ["encoder", "norm"], "kind": "stem"},
    "middle": {"match": ["inner", "outer"], "kind": "stem"},
    "head": "head",
}
INPUT = torch.linspace(-1, 1, 2 * 64 * 20).reshape(2, 64, 20)


@pytest.fixture
def original() -> Net:
    torch.manual_seed(1)
    net = Net()
    net(INPUT)
    return net.eval()


@pytest.fixture
def path(original: Net, tmp_path: Path) -> Path:
    """A file as the cache holds them: read-only."""
    place = tmp_path / "net.safetensors"
    save_file({name: tensor.clone() for name, tensor in original.state_dict().items()}, place)
    place.chmod(0o444)
    return place


@pytest.fixture
def bundle(path: Path) -> bundles.Bundle:
    return bundles.Bundle("NET", Net, weights=WeightSource(f"file:{path}"), layers=LAYERS)


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mappings(path: Path) -> Iterator[tuple[int, int, dict[str, int]]]:
    """Start, end and figures in kB of each map of a file in this process."""
    start = end = 0
    figures: dict[str, int] | None = None
    for line in [*Path("/proc/self/smaps").read_text().splitlines(), "0-0 end"]:
        first, *rest = line.split()
        if not first.endswith(":"):
            if figures is not None:
                yield start, end, figures
            start, end = (int(text, 16) for text in first.split("-"))
            figures = {} if rest[-1:] == [str(path)] else None
        elif figures is not None and rest[-1:] == ["kB"]:
            figures[first[:-1]] = int(rest[0])


def mapped_names(model: nn.Module, path: Path) -> set[str]:
    spans = [(start, end) for start, end, _ in mappings(path)]
    state = model.state_dict(keep_vars=True)
    return {n for n, t in state.items() if any(low <= t.data_ptr() < high for low, high in spans)}


# --- what is mapped, what is owned ----------------------------------------------------------------


@on_linux
@pytest.mark.parametrize(
    ("freeze", "owned"),
    [
        (False, set()),
        ("all", set()),
        ("encoder", {"head.weight", "head.bias"}),
        ("match:[enh]*", {"inner.weight", "outer.weight"}),
    ],
)
@pytest.mark.filterwarnings("ignore::bundles.NothingTrainableWarning")
def test_what_a_freeze_trains_is_owned_and_all_else_is_mapped(
    freeze: Any, owned: set[str], bundle: bundles.Bundle, path: Path
) -> None:
    model = bundle.get_model(freeze=freeze)
    assert set(model.state_dict()) - mapped_names(model, path) == owned


@on_linux
def test_a_forward_copies_no_page_of_the_map(bundle: bundles.Bundle, path: Path) -> None:
    model = bundle.get_model()
    with torch.inference_mode():
        model(INPUT)
    (figures,) = (figures for _, _, figures in mappings(path))
    assert figures["Rss"] > 0
    assert figures["Anonymous"] == 0


def test_outputs_are_those_of_the_original_to_the_last_bit(bundle: bundles.Bundle, original: Net) -> None:
    assert torch.equal(bundle.get_model()(INPUT), original(INPUT))
    assert torch.equal(bundle.get_model(freeze="encoder")(INPUT), original(INPUT))


def test_training_a_mapped_model_equals_training_a_normal_one(
    bundle: bundles.Bundle, path: Path, original: Net
) -> None:
    before = path.read_bytes()
    model, normal = bundle.get_model(), copy.deepcopy(original)
    for net in (model, normal):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        for _ in range(3):
            net(INPUT).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in normal.state_dict().items())
    assert path.read_bytes() == before
    assert torch.equal(bundle.get_model()(INPUT), original(INPUT))


def test_a_tie_is_stepped_once(bundle: bundles.Bundle) -> None:
    model = bundle.get_model()
    assert model.get_parameter("inner.weight") is model.get_parameter("outer.weight")
    start = model.get_parameter("inner.weight").detach().clone()
    model.get_parameter("inner.weight").grad = torch.ones(64, 64)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert torch.equal(model.get_parameter("outer.weight"), start - 1)


def test_two_models_of_one_file_do_not_see_each_other(bundle: bundles.Bundle, original: Net) -> None:
    first, second = bundle.get_model(), bundle.get_model()
    with torch.no_grad():
        for tensor in first.state_dict().values():
            tensor.zero_()
    assert torch.equal(second(INPUT), original(INPUT))


def test_an_optimizer_made_earlier_trains_what_was_loaded(path: Path, original: Net) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    bundles.load_into(model, path)
    assert torch.equal(model.head.bias, original.head.bias)
    model.head.bias.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(model.head.bias, original.head.bias - 1)


# --- what people do with a model ------------------------------------------------------------------


def test_saving_a_tensor_does_not_write_the_whole_file(bundle: bundles.Bundle, path: Path) -> None:
    for name, tensor in bundle.get_model().state_dict().items():
        file = io.BytesIO()
        torch.save(tensor, file)
        assert len(file.getvalue()) < tensor.nbytes + 4000, name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_saved_models_come_back_equal(bundle: bundles.Bundle, original: Net) -> None:
    file = io.BytesIO()
    torch.save(bundle.get_model().state_dict(), file)
    normal = sum(tensor.nbytes for tensor in original.state_dict().values())
    assert len(file.getvalue()) < normal + 10_000
    file.seek(0)
    other = Net()
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.eval()(INPUT), original(INPUT))


USES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "share_memory": lambda model: model.share_memory(),
    "half and back": lambda model: model.half().float(),
    "double": lambda model: model.double().float(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_mapped_model_can_be_used_as_any_other(
    use: Callable[[nn.Module], nn.Module], bundle: bundles.Bundle, original: Net, path: Path
) -> None:
    before = path.read_bytes()
    used, expected = use(bundle.get_model()), use(copy.deepcopy(original))
    assert torch.equal(used(INPUT), expected(INPUT))
    with torch.no_grad():
        used.get_parameter("head.weight").add_(1)
    assert path.read_bytes() == before


def test_a_model_can_be_had_in_inference_mode(bundle: bundles.Bundle, original: Net) -> None:
    with torch.inference_mode():
        assert torch.equal(bundle.get_model()(INPUT), original(INPUT))


def test_a_file_that_is_replaced_under_a_model_does_not_move_it(
    bundle: bundles.Bundle, path: Path, original: Net
) -> None:
    model = bundle.get_model()
    new = path.with_name("new")
    new.write_bytes(b"other")
    os.replace(new, path)
    assert torch.equal(model(INPUT), original(INPUT))
    path.unlink()
    assert torch.equal(model(INPUT), original(INPUT))


@on_linux
def test_a_forked_child_has_weights_of_its_own(path: Path) -> None:
    code = """
        import os, sys, torch, bundles
        torch.set_num_threads(1)
        make = lambda: torch.nn.Linear(64, 64, bias=False)
        bundle = bundles.Bundle("NET", make, weights="file:" + sys.argv[1])
        model = bundle.get_model(freeze="all", freeze_mode="features")
        before = model.weight.sum().item()
        child = os.fork()
        if not child:
            same = model.weight.sum().item() == before
            model.weight.zero_()
            os._exit(0 if same and model.weight.sum().item() == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert model.weight.sum().item() == before != 0
    """
    place = path.with_name("linear.safetensors")
    save_file({"weight": torch.rand(64, 64)}, place)
    place.chmod(0o444)
    before = place.read_bytes()
    run(code, place)
    assert place.read_bytes() == before


# --- modules that load in their own way -----------------------------------------------------------


class Doubling(nn.Linear):
    """Has a say in its loading although every name is there."""

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2
        super()._load_from_state_dict(state, prefix, *rest)


class Hooked(nn.Linear):
    def __init__(self, *, before: bool) -> None:
        super().__init__(2, 2)
        if before:
            self.register_load_state_dict_pre_hook(double)  # type: ignore[no-untyped-call]
        else:
            self.register_load_state_dict_post_hook(double_after)  # type: ignore[no-untyped-call]


def double(module: nn.Module, state: dict[str, torch.Tensor], *_: Any) -> None:
    state["weight"] = state["weight"] * 2


def double_after(module: nn.Module, _: Any) -> None:
    module.get_parameter("weight").data.mul_(2)


class Whole(nn.Linear):
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        return super().load_state_dict({**state_dict, "weight": state_dict["weight"] * 2}, strict, assign)


@pytest.mark.parametrize(
    "make",
    [lambda: Doubling(2, 2), lambda: Hooked(before=True), lambda: Hooked(before=False), lambda: Whole(2, 2)],
    ids=["method", "pre-hook", "post-hook", "whole"],
)
def test_a_module_that_has_a_say_in_its_loading_is_heard(make: Callable[[], nn.Module]) -> None:
    model = without_init(make)
    assign(model, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, "file:x")
    assert model.get_parameter("weight").tolist() == [[2, 2], [2, 2]]


def test_what_a_module_holds_beside_its_parameters_is_loaded_too() -> None:
    normal, loaded = nn.LSTM(3, 4, num_layers=2), without_init(lambda: nn.LSTM(3, 4, num_layers=2))
    assign(loaded, {name: tensor.clone() for name, tensor in normal.state_dict().items()}, "file:x")
    assert [id(w) for w in loaded._flat_weights] == [id(p) for p in loaded.parameters()]  # type: ignore[union-attr]
    assert torch.equal(loaded(torch.ones(1, 1, 3))[0], normal(torch.ones(1, 1, 3))[0])


# --- construction ---------------------------------------------------------------------------------


def test_weight_norm_of_the_old_names_is_loaded(path: Path, original: Net, tmp_path: Path) -> None:
    new = "parametrizations.weight.original"
    names = {f"encoder.{new}0": "encoder.weight_g", f"encoder.{new}1": "encoder.weight_v"}
    old = {names.get(name, name): tensor.clone() for name, tensor in original.state_dict().items()}
    save_file(old, tmp_path / "old.safetensors")
    bundle = bundles.Bundle("OLD", Net, weights=WeightSource(f"file:{tmp_path / 'old.safetensors'}"))
    assert torch.equal(bundle.get_model()(INPUT), original(INPUT))


@pytest.mark.parametrize("pretrained", [True, False])
def test_random_numbers_are_drawn_only_without_weights(pretrained: bool, bundle: bundles.Bundle) -> None:
    state = torch.get_rng_state()
    bundle.get_model(pretrained=pretrained)
    assert torch.equal(torch.get_rng_state(), state) == pretrained


class Constants(nn.Module):
    """Its unsaved buffers are computed from parameters that were set, in ways that look like initialising."""

    def __init__(self) -> None:
        super().__init__()
        self.set = nn.Parameter(torch.empty(3))
        nn.init.constant_(self.set, 2)
        self.set.data.mul_(3)
        self.drawn = nn.Parameter(torch.empty(3))
        nn.init.normal_(self.drawn)
        self.drawn.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
        self.drawn.data /= 2
        self.register_buffer("six", self.set.detach().clone(), persistent=False)
        self.register_buffer("halves", self.drawn.detach() * 1, persistent=False)
        self.register_buffer("spread", self.drawn.std(), persistent=False)


def test_arithmetic_on_parameters_that_were_set_is_done() -> None:
    model = without_init(Constants)
    assert model.six.tolist() == [6, 6, 6]  # type: ignore[operator]
    assert model.halves.tolist() == [0.5, 1, 1.5]  # type: ignore[operator]
    assert model.spread.item() == 0.5  # type: ignore[operator]


class Swapped(nn.Module):
    """Gives up the memory of parameters that were to be drawn, and makes unsaved buffers after that."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(7, 7, bias=False) for _ in range(50))
        for index, layer in enumerate(self.layers):
            layer.get_parameter("weight").data = torch.ones(7, 7)
            self.register_buffer(f"six{index}", torch.full((7, 7), 3.0).mul_(2), persistent=False)
        self.register_buffer("sparse", torch.eye(3).to_sparse().clone().mul_(2), persistent=False)


def test_memory_that_was_a_parameters_is_nobody_elses() -> None:
    model = without_init(Swapped)
    assert all(set(buffer.to_dense().flatten().tolist()) in ({6}, {0, 2}) for buffer in model.buffers())


class OneOf(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        layer = nn.Linear(20_000, 5_000)  # 400 MB if it is touched
        if how == "weight norm":
            layer = weight_norm(layer)
        elif how == "data":
            layer.weight.data.normal_(0, 0.02).mul_(2)
        elif how == "rescaled":
            layer.weight.data /= layer.weight.std().detach()
        elif how == "copied":
            layer = copy.deepcopy(layer)
        elif how != "plain":
            getattr(nn.init, how)(layer.weight)
        self.layer = layer


@on_linux
@pytest.mark.parametrize("make", ["without_init", "on_meta"])
def test_construction_touches_no_memory(make: str) -> None:
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from bundles.builders.construct import {make}
        from test_loading_traps import OneOf
        hows = ("plain", "weight norm", "data", "rescaled", "copied", "xavier_uniform_", "xavier_normal_",
                "kaiming_normal_", "trunc_normal_", "uniform_", "normal_")
        def peak():
            return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
        {make}(lambda: OneOf("plain"))
        before = peak()
        for how in hows:
            {make}(lambda: OneOf(how))
            assert peak() - before < 100, (how, peak() - before)
        assert "sympy" not in sys.modules
    """
    run(code)


SPEECH: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(32, 10, 5), (32, 3, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 64,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.1,
}
MASKS: dict[str, Any] = {
    **dict.fromkeys(("mask_prob", "mask_channel_prob"), 0.1),
    **dict.fromkeys(("mask_selection", "mask_channel_selection"), "static"),
    **dict.fromkeys(("mask_other", "mask_channel_other"), 0.0),
    **dict.fromkeys(("mask_length", "mask_channel_length", "mask_min_space", "mask_channel_min_space"), 1),
    **dict.fromkeys(("no_mask_overlap", "no_mask_channel_overlap", "skip_masked", "skip_nomask"), False),
}


def width(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, 16)


TACOTRON = width("encoder_embedding_dim", "symbol_embedding_dim", "attention_rnn_dim", "decoder_rnn_dim")
WAVERNN = width("n_rnn", "n_fc", "n_freq", "n_hidden", "n_output")
TASNET = width("enc_num_feats", "msk_num_feats", "msk_num_hidden_feats")
SQUIM = width("feat_dim", "win_len", "d_model", "hidden_dim", "chunk_size")
MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "wav2vec2": lambda m: m.wav2vec2_model(**SPEECH, aux_num_out=5),
    "wavlm": lambda m: m.wavlm_model(
        **SPEECH, encoder_num_buckets=8, encoder_max_distance=20, aux_num_out=None
    ),
    "hubert_pretrain": lambda m: m.hubert_pretrain_model(
        **SPEECH, **MASKS, num_classes=5, final_dim=8, feature_grad_mult=0.1
    ),
    "tacotron2": lambda m: m.Tacotron2(**TACOTRON),
    "wavernn": lambda m: m.WaveRNN(upsample_scales=[5, 5], n_classes=8, hop_length=25, **WAVERNN),
    "conv_tasnet": lambda m: m.ConvTasNet(**TASNET, msk_num_layers=2, msk_num_stacks=1),
    "hdemucs": lambda m: m.HDemucs(sources=["a", "b"], channels=8, nfft=512, depth=4),
    "squim_objective": lambda m: m.squim_objective_model(**SQUIM, nhead=2, num_blocks=1, rnn_type="LSTM"),
    "rnnt": lambda m: m.emformer_rnnt_base(num_symbols=9),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("construct", [without_init, on_meta], ids=["empty", "meta"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_constructed_cheaply_and_loaded_is_upstreams(
    name: str, construct: Callable[..., nn.Module]
) -> None:
    import torchaudio.models

    def make() -> nn.Module:
        return MODELS[name](torchaudio.models)

    upstream = make()
    state = {key: tensor.clone() for key, tensor in upstream.state_dict().items()}
    try:
        model = construct(make)
    except (RuntimeError, NotImplementedError):
        assert construct is on_meta  # for which planning has a way out
        assert name in ("hdemucs", "hubert_pretrain")
        return
    assign(model, state, "file:x")
    assert [n for n, _ in model.named_modules()] == [n for n, _ in upstream.named_modules()]
    assert [type(m).__name__ for m in model.modules()] == [type(m).__name__ for m in upstream.modules()]
    for (key, ours), (other, theirs) in zip(tensors_of(model), tensors_of(upstream), strict=True):
        assert key == other
        assert (ours.dtype, ours.requires_grad) == (theirs.dtype, theirs.requires_grad)
        assert torch.equal(ours, theirs), key


def tensors_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor: parameters, buffers saved or not, and those in plain attributes."""
    for prefix, module in model.named_modules():
        for own in (module._parameters, module._buffers, module.__dict__):
            for name, value in own.items():
                if isinstance(value, torch.Tensor):
                    yield f"{prefix}.{name}", value
