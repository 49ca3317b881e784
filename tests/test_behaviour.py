"""How frozen parts behave beyond one flag: knobs, cut gradients, removed parametrizations, checkpointing."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.spectral_norm import remove_spectral_norm, spectral_norm
from torch.nn.utils.weight_norm import remove_weight_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import bundles
from bundles import BundlesWarning, FreezeError, FreezeMode, FreezePlan, InexpressibleModeError
from bundles.freezing.behaviour.checkpointing import checkpointing_problems
from toys import TOYS, contents, fingerprint, make_optimizers, outputs, step

RNNS: dict[str, Callable[[], nn.RNNBase]] = {
    "rnn": lambda: nn.RNN(4, 4, 2, dropout=0.5),
    "lstm": lambda: nn.LSTM(4, 4, 2, dropout=0.5, bidirectional=True),
    "gru": lambda: nn.GRU(4, 4, 3, dropout=0.5),
}


def frozen(model: nn.Module, which: Any = "encoder", mode: Any = "eval") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bundles.NothingTrainableWarning)
        return bundles.freeze(model, which, mode).train()


def plan_of(model: nn.Module) -> FreezePlan:
    plan = bundles.freeze_plan(model)
    assert plan is not None
    return plan


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def part(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def steady(module: Callable[..., Tensor], *inputs: Tensor) -> bool:
    torch.manual_seed(1)
    first = module(*inputs)
    torch.manual_seed(2)
    return torch.equal(first, module(*inputs))


# --- knobs: recurrent layers, whose backward on cuDNN exists in training mode only --------------------


@pytest.mark.parametrize("mode", ["eval", "frontend"])
@pytest.mark.parametrize("kind", RNNS)
def test_gradient_flows_through_a_frozen_rnn_in_training_mode_without_dropout(kind: str, mode: str) -> None:
    rnn, x = RNNS[kind](), torch.randn(5, 3, 4, requires_grad=True)
    expected = rnn.eval()(x)[0]
    frozen(rnn, "all", mode)
    assert (rnn.training, rnn.dropout) == (True, 0.0)
    for requested in (False, True):
        made = rnn.train(requested)(x)[0]
        assert rnn.training
        assert torch.equal(made, expected)
    made.sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert bundles.freeze_report(rnn).problems == ()
    bundles.unfreeze(rnn.train())
    assert (rnn.training, rnn.dropout) == (True, 0.5)
    assert not torch.equal(rnn(x)[0], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN needs a GPU")
@pytest.mark.parametrize("kind", RNNS)
def test_gradient_flows_through_a_frozen_rnn_on_cudnn(kind: str) -> None:
    rnn, x = RNNS[kind]().cuda(), torch.randn(5, 3, 4, device="cuda", requires_grad=True)
    expected = rnn.eval()(x)[0]
    with pytest.raises(RuntimeError, match="cudnn RNN backward can only be called in training mode"):
        expected.sum().backward()
    made = frozen(rnn, "all")(x)[0]
    assert torch.equal(made, expected)
    made.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("mode", "training", "dropout"),
    [
        ("features", False, 0.5),
        ("regularized", None, 0.5),
        ("weights", None, 0.5),
        ("mc", True, 0.5),
        (FreezeMode(noise="off", structure="follow", grad="cut"), False, 0.5),
    ],
)
def test_an_rnn_is_left_its_dropout_where_no_gradient_flows_or_dropout_is_wanted(
    mode: str | FreezeMode, training: bool | None, dropout: float
) -> None:
    rnn = frozen(RNNS["lstm"](), "all", mode)
    for requested in (True, False):
        assert rnn.train(requested).training is (requested if training is None else training)
        assert rnn.dropout == dropout


def test_what_stands_beside_the_flag_survives_copies_pickles_and_a_second_freeze() -> None:
    rnn = frozen(RNNS["gru"](), "all")
    for twin in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn)), bundles.freeze(rnn, "match:*_l0")):
        assert (twin.train().training, twin.dropout) == (True, 0.0)
        bundles.unfreeze(twin)
        assert twin.dropout == 0.5


def test_a_knob_is_in_the_plan_its_json_and_its_digest() -> None:
    plan = plan_of(frozen(RNNS["lstm"](), "all"))
    assert [hold.knobs for hold in plan.holds] == [(("dropout", 0.0),)]
    assert '"dropout",\n     0.0' in plan.to_json()
    assert FreezePlan.from_json(plan.to_json()) == plan
    with pytest.raises(bundles.PinError, match="changed after it was written"):
        FreezePlan.from_json(plan.to_json().replace('"dropout",\n     0.0', '"dropout",\n     0.5'))


def test_a_write_to_a_knob_is_irregular_and_undone() -> None:
    rnn = frozen(RNNS["lstm"](), "all")
    rnn.dropout = 0.3
    (problem,) = bundles.freeze_report(rnn).problems
    assert "dropout=0.3, held is 0.0" in problem
    assert bundles.unfreeze(rnn).dropout == 0.5


class NoisyLSTM(nn.LSTM):
    """Reads the flag for more than the dropout between its layers."""

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(F.dropout(x, 0.5, self.training))


def test_an_rnn_with_noise_of_its_own_is_held_by_its_flag() -> None:
    hooked = RNNS["lstm"]()
    hooked.register_forward_hook(
        lambda module, _, made: (made[0] + torch.randn_like(made[0]) * module.training, made[1])
    )
    x = torch.randn(5, 3, 4)
    for rnn in (NoisyLSTM(4, 4), hooked):
        frozen(rnn, "all")
        assert not rnn.training
        assert steady(lambda x, rnn=rnn: rnn(x)[0], x)


# --- knobs: layer drop ------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Dropout and layer drop on one flag, as in Whisper's encoder."""

    def __init__(self, layerdrop: float = 1.0) -> None:
        super().__init__()
        self.fc, self.layerdrop = nn.Linear(4, 4), layerdrop

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, self.training)
        return x if self.training and torch.rand(1).item() <= self.layerdrop else self.fc(x)


NO_DROP = FreezeMode(noise="follow", structure="off")


@pytest.mark.parametrize("mode", [NO_DROP, "mc"])
def test_layer_drop_goes_off_by_its_rate_where_the_flag_stays_on_for_dropout(mode: str | FreezeMode) -> None:
    model, x = nn.Sequential(Dropping(), nn.Linear(4, 2)), torch.ones(64, 4)
    before = fingerprint(model)
    frozen(model, "encoder", mode)
    made = part(model, "0")(x)
    assert len(made.unique(dim=0)) > 1  # dropout is on
    assert not torch.isin(made, torch.tensor([0.0, 2.0])).any()  # what a dropped layer gives is its input
    assert part(model, "0").layerdrop < 0  # a draw of exactly 0 is not below 0 either
    assert bundles.freeze_report(model).problems == ()
    assert bundles.freeze_report(model).assumed == (("0",) if mode == "mc" else ())
    bundles.unfreeze(model)
    assert fingerprint(model) == before


def test_layer_drop_of_torchaudio_goes_off_by_its_rate() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    model = torchaudio.models.wav2vec2_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=[(8, 10, 5)],
        extractor_conv_bias=False,
        encoder_embed_dim=16,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=4,
        encoder_pos_conv_groups=2,
        encoder_num_layers=3,
        encoder_num_heads=2,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=16,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=False,
        encoder_layer_drop=1.0,
        aux_num_out=None,
    )
    x = torch.randn(1, 200)
    expected = model.eval()(x)[0]
    assert not torch.equal(model.train()(x)[0], expected)
    frozen(model, "all", NO_DROP)
    assert model.encoder.transformer.training
    assert torch.equal(model(x)[0], expected)


class FromConfig(nn.Module):
    """Reads its rate in a config that other modules read, too, as most models of transformers do."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc, self.config = nn.Linear(4, 4), config

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and torch.rand(()) < self.config.layerdrop else self.fc(x)


def test_a_rate_in_a_config_is_never_written_and_the_flag_is_held() -> None:
    config = type("Config", (), {"layerdrop": 0.5})()
    model = frozen(nn.Sequential(FromConfig(config), nn.Linear(4, 2)), "encoder", NO_DROP)
    assert config.layerdrop == 0.5
    assert not model[0].training
    assert plan_of(model).holds[0].knobs == ()
    assert bundles.freeze_report(model).assumed == ("0",)


# --- knobs: audio models that have the waveform require grad ----------------------------------------


class WaveformEncoder(nn.Module):
    """As transformers' audio models: the input is made to require grad, frozen or not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self._requires_grad = nn.Conv1d(1, 4, 3), True

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        if self._requires_grad and self.training:
            x.requires_grad = True
        return self.conv(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["eval", "regularized", "weights", "mc"])
def test_a_frozen_audio_encoder_builds_no_graph_of_its_own_accord(mode: str) -> None:
    model, x = nn.Sequential(WaveformEncoder(), nn.Conv1d(4, 2, 1)), torch.randn(2, 50)
    frozen(model, "encoder", mode)
    assert not model[0](x).requires_grad
    front = torch.ones((), requires_grad=True)
    model[0](x * front).sum().backward()
    assert front.grad is not None
    bundles.unfreeze(model)
    assert part(model, "0")._requires_grad is True


def tiny_wav2vec2() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    convs = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    position = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = transformers.Wav2Vec2Config(
        **sizes, **convs, **position, layerdrop=0.0, mask_time_prob=0.0, mask_feature_prob=0.0
    )
    return transformers.Wav2Vec2Model(config)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "regularized", "weights"])
def test_a_frozen_wav2vec2_of_transformers_builds_no_graph(mode: str) -> None:
    model, x = tiny_wav2vec2(), torch.randn(1, 800)
    assert model.train().feature_extractor(x).requires_grad
    frozen(model, "match:feature_extractor", mode)
    assert not model.feature_extractor(x).requires_grad


# --- the fast path of nn.TransformerEncoder -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_frozen_transformer_encoder_zeroes_padding_as_it_does_in_eval() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        expected = model.eval()(x, src_key_padding_mask=padding)
    frozen(model, "all")
    for requested in (True, False):
        assert torch.equal(model.train(requested)(x, src_key_padding_mask=padding), expected)
        assert not expected[1, 3:].any()
        flowing = model(x.clone().requires_grad_(), src_key_padding_mask=padding)
        assert flowing[1, 3:].any()  # torch leaves its fast path where the input requires grad
        torch.testing.assert_close(flowing[:, :3], expected[:, :3])


# --- cut gradients ----------------------------------------------------------------------------------


class Lora(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(0.5)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(self.dropout(x)))  # type: ignore[no-any-return]


def with_lora(name: str = "dropout") -> nn.Module:
    model = TOYS[name].make()
    for index in range(3):
        block = model.get_submodule(f"encoder.blocks.{index}")
        block.register_module("0", Lora(block.get_submodule("0")))
    return model


BASE = bundles.Encoder() & ~bundles.Match("*.down") & ~bundles.Match("*.up")


def test_features_refuses_adapters_inside_and_names_them() -> None:
    model = with_lora()
    before = fingerprint(model)
    with pytest.raises(InexpressibleModeError) as caught:
        bundles.freeze(model, BASE, "features")
    assert str(caught.value) == (
        "The mode features records no graph in what is frozen, so encoder.blocks.0.0.down.weight, "
        "encoder.blocks.0.0.up.weight, encoder.blocks.1.0.down.weight and 3 more inside encoder.blocks.0, "
        "encoder.blocks.1, encoder.blocks.2 would get no gradient: take freeze_mode='eval', which lets it "
        "flow, freeze whole groups, or give groups= that tell the two apart."
    )
    assert caught.value.modules == ("encoder.blocks.0", "encoder.blocks.1", "encoder.blocks.2")
    assert caught.value.groups == ("block.0", "block.1", "block.2")
    assert fingerprint(model) == before


def test_features_takes_a_head_beside_and_whole_blocks_after() -> None:
    for which in ("encoder", "last:1", "first:1"):
        for name in ("dropout", "layerdrop", "tied"):
            model, x = TOYS[name].make(), TOYS[name].make_input()
            step(frozen(model, which, "features"), x, *make_optimizers(model))
            assert {n for n, p in model.named_parameters() if p.grad is not None} == trainable(model)


def test_thawing_something_inside_features_is_refused_and_changes_nothing() -> None:
    model = frozen(TOYS["dropout"].make(), "encoder", "features")
    before = fingerprint(model)
    with pytest.raises(
        InexpressibleModeError, match=r"encoder\.blocks\.0\.0\.bias inside encoder\.blocks\.0"
    ):
        bundles.unfreeze(model, "match:encoder.blocks.0.*.bias")
    assert fingerprint(model) == before


def test_an_adapter_injected_into_features_later_is_irregular() -> None:
    model = frozen(TOYS["dropout"].make(), "encoder", "features")
    block = model.get_submodule("encoder.blocks.1")
    block.register_module("0", Lora(block.get_submodule("0")))
    assert any("records no graph" in problem for problem in bundles.freeze_report(model).problems)


@pytest.mark.filterwarnings("error")
def test_an_input_that_waits_for_gradient_is_named_once() -> None:
    model, x = frozen(TOYS["plain"].make(), "encoder", "features"), TOYS["plain"].make_input()
    model(x)
    with torch.no_grad():
        model(x.clone().requires_grad_())
    with pytest.warns(
        BundlesWarning, match=r"input of a frozen Encoder requires grad.*mode 'eval', or detach"
    ):
        model(x.clone().requires_grad_())
    model(x.clone().requires_grad_())
    bundles.freeze(model, "encoder", "features")
    with pytest.warns(BundlesWarning, match="input of a frozen Encoder"):
        model.encoder(x=x.clone().requires_grad_())


@pytest.mark.filterwarnings("error")
def test_compiled_and_exported_features_do_not_warn() -> None:
    model, x = frozen(TOYS["plain"].make(), "all", "features"), TOYS["plain"].make_input().requires_grad_()
    torch.compiler.reset()
    made = torch.compile(model, fullgraph=True, backend="eager")(x)  # type: ignore[no-untyped-call]
    assert not made[-1].requires_grad
    torch.export.export(model, (x,))


def test_features_can_be_saved_for_backward() -> None:
    model, x = frozen(TOYS["dropout"].make(), "encoder", "features"), TOYS["dropout"].make_input()
    kept = model.encoder(x)[-1]
    assert not kept.is_inference()
    model.head(kept * kept.new_ones(1, requires_grad=True)).sum().backward()


class Towers(nn.Module):
    """An encoder with the ways in that libraries give theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.fc(x)  # type: ignore[no-any-return]

    forward = extract_features = encode_image = get_text_features = encode = forward_features

    def score(self, x: Tensor) -> Tensor:
        return self.fc(x)  # type: ignore[no-any-return]

    @staticmethod
    def encode_length(length: int) -> int:
        return length // 2


CUT = ["__call__", "forward_features", "extract_features", "encode_image", "get_text_features", "encode"]


@pytest.mark.filterwarnings("ignore:The input of a frozen:bundles.BundlesWarning")
@pytest.mark.parametrize("way", CUT)
def test_every_usual_way_into_a_module_is_cut(way: str) -> None:
    model, x = nn.Sequential(Towers(), nn.Linear(4, 2)), torch.randn(2, 4, requires_grad=True)
    assert getattr(frozen(model, "encoder", "eval")[0], way)(x).requires_grad
    assert not getattr(frozen(model, "encoder", "features")[0], way)(x).requires_grad
    towers = part(model, "0")
    assert towers.encode_length(8) == 4
    assert towers.score(x).requires_grad  # a method of any other name is not known as a way in
    assert not towers.score(x.detach()).requires_grad


# --- what takes the place of a frozen tensor ----------------------------------------------------------

REMOVED: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any]]] = {
    "parametrized weight norm": (
        parametrizations.weight_norm,
        lambda module: parametrize.remove_parametrizations(module, "weight"),
    ),
    "parametrized spectral norm": (
        parametrizations.spectral_norm,
        lambda module: parametrize.remove_parametrizations(module, "weight"),
    ),
    "weight norm by hook": (weight_norm, remove_weight_norm),
    "spectral norm by hook": (spectral_norm, remove_spectral_norm),
    "pruning": (
        lambda module: prune.l1_unstructured(module, "weight", 0.5),  # type: ignore[no-untyped-call]
        lambda module: prune.remove(module, "weight"),  # type: ignore[no-untyped-call]
    ),
}


def sequence() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))


each_removed = pytest.mark.parametrize(("put", "remove"), REMOVED.values(), ids=list(REMOVED))


@each_removed
def test_what_is_removed_from_a_frozen_module_leaves_a_frozen_parameter(put: Any, remove: Any) -> None:
    model = sequence()
    put(model[0])
    frozen(model, "encoder")
    remove(model[0])
    assert bundles.freeze_report(model).problems == ()
    assert trainable(model) == {"2.weight", "2.bias"}
    assert isinstance(model[0].weight, nn.Parameter)
    assert "0.weight" in plan_of(model).frozen
    before = contents(model)
    step_linear(model)
    assert {name for name, value in contents(model).items() if value != before[name]} == {
        "2.weight",
        "2.bias",
    }
    bundles.unfreeze(model, "match:1")
    assert trainable(model) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    bundles.unfreeze(model)
    assert trainable(model) == {f"{index}.{name}" for index in range(3) for name in ("weight", "bias")}


def step_linear(model: nn.Module) -> None:
    for optimizer in make_optimizers(model):
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()


@each_removed
def test_what_is_removed_is_thawed_without_a_report_between(put: Any, remove: Any) -> None:
    model = sequence()
    put(model[0])
    frozen(model, "encoder")
    remove(model[0])
    bundles.unfreeze(model)
    assert trainable(model) == {f"{index}.{name}" for index in range(3) for name in ("weight", "bias")}
    assert [name for name, _ in model.named_buffers()] == []


@each_removed
def test_what_is_removed_is_thawed_by_thawing_the_part(put: Any, remove: Any) -> None:
    model = sequence()
    put(model[0])
    frozen(model, "encoder")
    remove(model[0])
    bundles.unfreeze(model[0])
    assert {"0.weight", "0.bias"} <= trainable(model)


@each_removed
def test_what_is_put_on_a_frozen_module_is_frozen_and_thawed_in_its_place(put: Any, remove: Any) -> None:
    model = frozen(sequence(), "encoder")
    put(model[0])
    problems = bundles.freeze_report(model).problems  # power iteration is new behaviour, and is not held yet
    assert all("is not held: freeze again" in problem for problem in problems)
    assert trainable(model) == {"2.weight", "2.bias"}
    assert bundles.freeze_report(bundles.freeze(model, "encoder")).problems == ()
    bundles.unfreeze(model)
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    remove(model[0])
    assert trainable(bundles.unfreeze(model)) >= {"0.bias", "1.weight"}


def test_a_bare_tensor_in_the_place_of_weight_norm_is_a_parameter_again() -> None:
    model = sequence()
    layer: Any = weight_norm(model[0])
    frozen(model, "encoder")
    layer._forward_pre_hooks.clear()  # as inference engines take it off
    for name in ("weight_g", "weight_v"):
        del layer._parameters[name]
    layer.weight = layer.weight.detach()
    assert bundles.freeze_report(model).problems == ()
    assert "0.weight" in dict(model.named_parameters())
    assert "0.weight" in trainable(bundles.unfreeze(model))


def test_what_did_not_train_before_the_freeze_does_not_after_a_removal() -> None:
    model = sequence()
    parametrizations.weight_norm(model[0])
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    frozen(model, "encoder")
    parametrize.remove_parametrizations(model[0], "weight")
    assert trainable(bundles.unfreeze(model)) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert isinstance(model[0].weight, nn.Parameter)


# --- gradient checkpointing ---------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """As the models of transformers: the model is told how, its layers do it in training mode."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)
        self.gradient_checkpointing = True
        self._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=reentrant)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = self._gradient_checkpointing_func(layer, x) if self.training else layer(x)
        return self.head(x)  # type: ignore[no-any-return]


GROUPS = {"stem": "embed", "blocks": "layers.{i}", "head": "head"}


def without_gradient(model: nn.Module, x: Tensor) -> set[str]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        model(x).sum().backward()
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    }


def test_reentrant_checkpointing_over_a_frozen_prefix_is_refused_with_the_line_to_type() -> None:
    model, x = Checkpointed(reentrant=True), torch.randn(2, 4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("layers.2", "head")))
    assert without_gradient(model, x) == {"layers.2.weight", "layers.2.bias"}  # what torch does
    model.requires_grad_(True)
    before = fingerprint(model)
    with pytest.raises(FreezeError) as caught:
        bundles.freeze(model, "last:1", "weights", groups=GROUPS)
    assert str(caught.value) == (
        "The gradient checkpointing of layers.2 is reentrant and all before it is frozen, so layers.2.weight "
        "would get no gradient: switch to use_reentrant=False, for a transformers model by "
        "model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})."
    )
    assert fingerprint(model) == before


def test_non_reentrant_checkpointing_loses_nothing() -> None:
    model, x = Checkpointed(reentrant=False), torch.randn(2, 4)
    bundles.freeze(model, "last:1", "weights", groups=GROUPS).train()
    assert bundles.freeze_report(model).problems == ()
    assert without_gradient(model, x) == set()
    assert trainable(model) == {"layers.2.weight", "layers.2.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("which", "change"),
    [
        ("encoder", lambda model: None),  # the head is outside of every checkpoint
        ("head", lambda model: None),  # nothing is frozen before the first layer
        ("last:1", lambda model: setattr(model, "gradient_checkpointing", False)),
        ("last:1", lambda model: setattr(model, "_require_grads_hook", object())),  # the input is marked
    ],
)
def test_reentrant_checkpointing_is_left_alone_where_it_works(
    which: str, change: Callable[[nn.Module], None]
) -> None:
    model = Checkpointed(reentrant=True)
    change(model)
    bundles.freeze(model, which, "weights", groups=GROUPS)
    assert checkpointing_problems(model) == []


def test_reentrant_checkpointing_switched_on_after_the_freeze_is_irregular() -> None:
    model = Checkpointed(reentrant=False)
    bundles.freeze(model, "last:1", "weights", groups=GROUPS)
    model._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=True)
    (problem,) = bundles.freeze_report(model).problems
    assert problem.startswith("The gradient checkpointing of layers.2 is reentrant")


def test_a_reentrant_checkpoint_wrapper_of_torch_is_found() -> None:
    for impl, found in ((CheckpointImpl.REENTRANT, 1), (CheckpointImpl.NO_REENTRANT, 0)):
        model = nn.Sequential(nn.Linear(4, 4), checkpoint_wrapper(nn.Linear(4, 4), impl), nn.Linear(4, 2))
        model[0].requires_grad_(False)
        assert len(without_gradient(model, torch.randn(2, 4))) == 2 * found
        assert len(checkpointing_problems(model)) == found


@pytest.mark.slow
def test_reentrant_checkpointing_of_transformers_is_refused_where_nothing_marks_the_input() -> None:
    model = tiny_wav2vec2()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(
        FreezeError, match=r"layers\.1 is reentrant.*model\.activation_checkpointing_enable\("
    ):
        bundles.freeze(model, "last:1")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    bundles.freeze(model, "last:1").train()
    model(torch.randn(1, 800)).last_hidden_state.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable(model)
    assert any(name.startswith("encoder.layers.1.") for name in trainable(model))


@pytest.mark.slow
def test_reentrant_checkpointing_of_transformers_is_left_alone_where_it_marks_the_input() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=30, **sizes), add_pooling_layer=False)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    bundles.freeze(model, "last:1").train()
    model(torch.randint(30, (2, 5))).last_hidden_state.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable(model)


# --- classes with a flag of their own -----------------------------------------------------------------


class OwnFlag(nn.Module):
    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.fc, self.noisy = nn.Linear(4, 4), True
        self.inner = nn.Identity() if inner is None else inner

    def train(self, mode: bool = True) -> OwnFlag:
        super().train(mode)
        self.noisy = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.fc(x + torch.randn_like(x) * self.noisy))  # type: ignore[no-any-return]


@pytest.mark.parametrize("instance", [False, True])
def test_a_flag_of_a_classs_own_is_held_and_given_back_at_once(instance: bool) -> None:
    model = nn.Sequential(OwnFlag(), nn.Linear(4, 2)).train()
    own = part(model, "0")
    if instance:
        own.train = functools.partial(OwnFlag.train, own)
    before = fingerprint(model)
    bundles.freeze(model, "encoder")
    assert not own.noisy
    assert steady(own, torch.randn(3, 4))
    bundles.unfreeze(model)
    assert own.noisy
    assert fingerprint(model) == before


def test_a_flag_of_a_classs_own_is_held_above_what_trains_too() -> None:
    model = nn.Sequential(OwnFlag(nn.Linear(4, 4)), nn.Linear(4, 2))
    frozen(model, "match:0.fc")
    assert steady(model[0], torch.randn(3, 4))
    assert part(model, "0.inner").training
    assert trainable(model) == {"0.inner.weight", "0.inner.bias", "1.weight", "1.bias"}


def test_giving_a_flag_back_does_not_reach_what_is_below() -> None:
    inner = OwnFlag(nn.Dropout(0.5))
    outer = OwnFlag(inner)
    model = nn.Sequential(outer, nn.Linear(4, 2)).train()
    inner.eval()
    bundles.freeze(model, "encoder")
    assert (outer.noisy, outer.training) == (False, False)
    bundles.unfreeze(model)
    assert (outer.noisy, outer.training) == (True, True)
    assert (inner.noisy, inner.training, inner.inner.training) == (False, False, False)


# --- adapters -----------------------------------------------------------------------------------------


def test_adapters_injected_before_the_freeze_follow_train_and_the_base_is_still() -> None:
    model, x = frozen(with_lora(), BASE), TOYS["dropout"].make_input()
    lora = model.get_submodule("encoder.blocks.1.0")
    for requested in (True, False, True):
        model.train(requested)
        assert lora.dropout.training is requested
        assert not model.get_submodule("encoder.blocks.1.1").training
    assert not steady(lora, x)
    for block in model.encoder.blocks:
        nn.init.zeros_(block[0].up.weight)
    assert outputs(model, x)[:3] == outputs(TOYS["dropout"].make().eval(), x)[:3]
    taken = bundles.snapshot(model)
    step(model, x, *make_optimizers(model))
    bundles.verify_frozen(model, taken)
    assert bundles.freeze_report(model).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["freeze, then inject", "inject, then freeze"])
def test_peft_adapters_follow_train_and_the_base_is_still(order: str) -> None:
    peft = pytest.importorskip("peft")
    model, x = TOYS["transformer"].make(), TOYS["transformer"].make_input()
    config = peft.LoraConfig(target_modules=r".*self_attn\.out_proj|.*linear1", lora_dropout=0.5)
    if order == "freeze, then inject":
        bundles.freeze(model, "encoder")
    peft.inject_adapter_in_model(config, model)
    if order == "inject, then freeze":
        bundles.freeze(model, bundles.Encoder() & ~bundles.Match("*.lora_*"))
    drops = [m for name, m in model.named_modules() if "lora_dropout" in name and isinstance(m, nn.Dropout)]
    assert len(drops) == 6
    still = outputs(model.eval(), x)[:3]
    assert not any(drop.training for drop in drops)
    assert outputs(model.train(), x)[:3] == still  # B is zero at first: only the base's noise could show
    assert all(drop.training for drop in drops)
    assert all("lora_" in name or name.startswith("head.") for name in trainable(model))


def adapted_layer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.5, batch_first=True)
    layer.linear1 = Weighted(layer.linear1)  # type: ignore[assignment]
    return layer


class Weighted(Lora):
    """With the attributes of the layer inside, as PEFT's."""

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("padded", [False, True])
def test_adapters_inside_torchs_fused_layer_are_called(padded: bool) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2)
    model = nn.Sequential(encoder)
    for index in range(2):
        encoder.layers[index] = adapted_layer()
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    before = fingerprint(model)
    policy = bundles.All() & ~bundles.Match("*.down") & ~bundles.Match("*.up")
    frozen(model, policy)
    encoder(x, src_key_padding_mask=padding if padded else None).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable(model)
    assert len(trainable(model)) == 4
    assert bundles.freeze_report(model).problems == ()
    bundles.unfreeze(model)
    assert fingerprint(model) == before


def test_an_adapter_put_into_a_fused_layer_later_is_irregular_until_the_next_freeze() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    model = frozen(nn.Sequential(layer, nn.Linear(8, 2)))
    layer.linear1 = Weighted(layer.linear1)  # type: ignore[assignment]
    problems = bundles.freeze_report(model).problems
    assert any("activation_relu_or_gelu" in problem for problem in problems)
    frozen(model, bundles.Match("0") & ~bundles.Match("*.down") & ~bundles.Match("*.up"))
    assert bundles.freeze_report(model).problems == ()
    layer(torch.randn(2, 5, 8)).sum().backward()
    assert layer.get_parameter("linear1.up.weight").grad is not None
