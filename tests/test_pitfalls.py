"""Twenty-eight ways in which freezing goes wrong in practice, each with what happens here instead."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn.utils import parametrizations, remove_weight_norm, weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

import bundles
from real_models import REAL, run, same
from toys import contents

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD, decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
}


class Model(nn.Module):
    """An encoder with what is asked for in its middle, and a head with dropout."""

    encoder: Any
    head: Any

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, 4))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.encoder(x))
        return made


HEAD = {"head.1.weight", "head.1.bias"}
STATISTICS = {"encoder.1.running_mean", "encoder.1.running_var", "encoder.1.num_batches_tracked"}


def encode(model: Model, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    made: Tensor = model.encoder(X)
    return made


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3, *, none: bool = True) -> None:
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=none)
        model(X).square().sum().backward()
        optimizer.step()


def moved(model: nn.Module, before: dict[str, bytes]) -> set[str]:
    return {name for name, now in contents(model).items() if before[name] != now}


def test_p01_batch_norm_statistics_of_a_frozen_part_stand_still() -> None:
    model = bundles.freeze(Model(nn.BatchNorm1d(4)), "encoder").train()
    before = contents(model)
    model(X + 3)
    assert moved(model, before) == set()
    bundles.unfreeze(model).train()(X + 3)
    assert moved(model, before) == STATISTICS


def test_p02_a_sample_does_not_depend_on_its_batch() -> None:
    norm = nn.BatchNorm1d(4)
    norm(X + 1)
    model = bundles.freeze(nn.Sequential(norm, nn.Linear(4, 2)), "encoder").train()
    assert torch.equal(model[0](X)[:3], model[0](X[:3]))
    assert torch.equal(model[0](X), copy.deepcopy(norm).eval()(X))


def test_p03_train_brings_no_dropout_back() -> None:
    model = bundles.freeze(Model(nn.Dropout(0.5)), "encoder").train().train()
    assert torch.equal(encode(model, seed=1), encode(model, seed=2))
    assert model.head.training
    assert model.head[0].training


@pytest.mark.parametrize("given", [False, True], ids=["unaware", "given"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_p04_a_zero_gradient_moves_nothing(make: Callable[..., torch.optim.Optimizer], given: bool) -> None:
    model = Model()
    optimizer = make(model.parameters())
    train(model, optimizer)
    bundles.freeze(model, "encoder", optimizer=optimizer if given else None)
    before = contents(model)
    train(model, optimizer, none=False)
    assert moved(model, before) == HEAD


class DecaysWithoutGradient(torch.optim.Optimizer):
    """As some optimizers outside torch do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.9)


@pytest.mark.parametrize("given", [False, True], ids=["unaware", "given"])
def test_p04_an_optimizer_that_decays_without_a_gradient_moves_nothing(given: bool) -> None:
    model = Model()
    optimizer = DecaysWithoutGradient(model.parameters())
    bundles.freeze(model, "encoder", optimizer=optimizer if given else None)
    before = contents(model)
    train(model, optimizer)
    assert moved(model, before) == HEAD


def test_p05_a_gradient_of_the_time_before_is_not_applied() -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    before = contents(model)
    bundles.freeze(model, "encoder")
    optimizer.step()
    assert moved(model, before) == HEAD


def test_p06_what_thaws_trains_although_the_optimizer_never_knew_it() -> None:
    model = bundles.freeze(Model(nn.LayerNorm(4)), "encoder")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    nn.init.zeros_(model.encoder[0].bias)
    nn.init.zeros_(model.head[1].bias)  # equal by value to two that thaw: identity decides
    bundles.unfreeze(model, optimizer=optimizer)
    before = contents(model)
    train(model, optimizer, steps=1)
    assert moved(model, before) == set(before)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_p07_everything_frozen_is_said_when_freezing_and_not_by_a_scaler() -> None:
    model = Model()
    with pytest.warns(bundles.NothingTrainableWarning, match="Nothing is left to train"):
        bundles.freeze(model, "all")
    with pytest.raises(bundles.FreezeArgumentError, match="No parameter of the model trains"):
        bundles.param_groups(model, lr=0.1)


def test_p07_an_optimizer_that_is_left_empty_is_named() -> None:
    model = Model()
    encoder = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    with pytest.warns(bundles.BundlesWarning, match="optimizer"):
        bundles.freeze(model, "encoder", optimizer=encoder)


def test_p08_freezing_one_of_two_tied_weights_names_both() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    with pytest.warns(bundles.NothingTrainableWarning):
        bundles.freeze(model, "match:embedding")
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert plan.frozen == ("embedding.weight", "head.weight")


def test_p09_an_average_of_frozen_weights_does_not_drift() -> None:
    model = bundles.freeze(Model(), "encoder")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))  # type: ignore[no-untyped-call]
    before = contents(average.module)
    for _ in range(2000):
        with torch.no_grad():
            model.head[1].bias.add_(0.01)
        average.update_parameters(model)
    assert moved(average.module, before) == {"head.1.bias"}


def test_p10_reentrant_checkpointing_over_a_frozen_prefix_is_refused() -> None:
    def checkpointed(kind: CheckpointImpl) -> nn.Sequential:
        blocks = [checkpoint_wrapper(nn.Linear(4, 4), checkpoint_impl=kind) for _ in range(2)]
        return nn.Sequential(*blocks, nn.Linear(4, 2)).train()

    with pytest.raises(bundles.FreezeError, match="use_reentrant=False"):
        bundles.freeze(checkpointed(CheckpointImpl.REENTRANT), "first:1")
    model = bundles.freeze(checkpointed(CheckpointImpl.NO_REENTRANT), "first:1")
    model(X).sum().backward()
    assert [parameter.grad is not None for parameter in model.parameters()] == [False] * 2 + [True] * 4


def test_p11_masking_of_time_is_off() -> None:
    real = REAL["Wav2Vec2"]
    untouched = real.make()
    assert not same(run(untouched, real.make_input(), 1), run(untouched, real.make_input(), 2))
    model: Any = bundles.freeze(real.make(), "all", "features").train()
    assert not model.masked_spec_embed.requires_grad
    assert same(run(model, real.make_input(), 1), run(model, real.make_input(), 2))


@pytest.mark.parametrize("mode", ["eval", "regularized"])
def test_p12_no_graph_is_built_where_nothing_upstream_needs_one(mode: str) -> None:
    encoder = REAL["Wav2Vec2"].make()
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(32, 2)})
    bundles.freeze(model, "encoder", mode).train()
    assert not encoder(*REAL["Wav2Vec2"].make_input()).last_hidden_state.requires_grad


def test_p13_a_model_with_layer_drop_exports_in_train_mode() -> None:
    real = REAL["hubert"]
    model, x = bundles.freeze(real.make(), "all", "features").train(), real.make_input()
    exported = torch.export.export(model, x).module()
    assert torch.equal(exported(*x)[0], real.make().eval()(*x)[0])


@pytest.mark.parametrize("kind", ["hook", "parametrization"])
def test_p14_a_weight_whose_norm_is_removed_stays_a_frozen_parameter(kind: str) -> None:
    wrap = weight_norm if kind == "hook" else parametrizations.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = bundles.freeze(Model(wrap(nn.Linear(4, 4))), "encoder").train()
        if kind == "hook":
            remove_weight_norm(model.encoder[1])
        else:
            nn.utils.parametrize.remove_parametrizations(model.encoder[1], "weight")
    assert bundles.freeze_report(model).problems == ()  # which looks where frozen tensors are by now
    assert isinstance(model.encoder[1].weight, nn.Parameter)
    assert not model.encoder[1].weight.requires_grad
    bundles.unfreeze(model)
    assert model.encoder[1].weight.requires_grad


def test_p15_a_head_trains_on_features() -> None:
    model = bundles.freeze(Model(), "encoder", "features").train()
    features = encode(model)
    assert not features.is_inference()
    assert not features.requires_grad
    model.head(features).sum().backward()
    assert model.head[1].weight.grad is not None


def test_p16_power_iteration_stands_still() -> None:
    model = bundles.freeze(Model(parametrizations.spectral_norm(nn.Linear(4, 4))), "encoder").train()
    before = contents(model)
    assert torch.equal(encode(model), encode(model))
    assert moved(model, before) == set()


class Codebook(nn.Module):
    """Moves its codes towards what it sees, as vector quantisers do."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("codes", torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            self.codes.index_add_(0, nearest, 0.1 * (x.detach() - self.codes[nearest]))
        return self.codes[nearest] * self.scale


def test_p17_a_codebook_stands_still() -> None:
    model = bundles.freeze(Model(Codebook()), "encoder").train()
    before = contents(model)
    assert torch.equal(encode(model), encode(model))
    assert moved(model, before) == set()


def test_p18_gradient_flows_through_a_frozen_recurrent_network() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rnn = nn.LSTM(4, 4, num_layers=2, dropout=0.5)
    model = nn.Sequential(nn.Linear(4, 4), rnn).to(device)
    bundles.freeze(model, "match:1").train()
    for module in (model, model.eval()):
        assert rnn.training  # which cuDNN asks for in the backward pass
        assert rnn.dropout == 0
        x = torch.ones(3, 2, 4, device=device)
        assert torch.equal(module(x)[0], module(x)[0])
        module(x)[0].sum().backward()
    assert model[0].weight.grad is not None
    bundles.unfreeze(model)
    assert rnn.dropout == 0.5


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("nested", [True, False])
def test_p19_padded_rows_are_those_of_eval_and_zero_only_where_torch_nests(nested: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    padding = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])
    call: Any = functools.partial(encoder, torch.stack([X, X]), src_key_padding_mask=padding)
    with torch.no_grad():
        encoder.eval()
        wanted = call()
    bundles.freeze(nn.ModuleDict({"encoder": encoder, "head": nn.Linear(4, 2)}), "encoder").train()
    assert torch.equal(call(), wanted)
    assert (call()[padding] == 0).all() == nested


class CountCasts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a tensor is copied to another type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.casts = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.casts += function is torch.ops.aten._to_copy.default
        return function(*args, **(kwargs or {}))


def test_p20_autocast_casts_no_frozen_weight_that_is_stored_in_its_type() -> None:
    counts = []
    for kept in ({}, {"frozen_dtype": torch.bfloat16}):
        model = bundles.get_model("CREPE_TINY", freeze="encoder", **kept).train()  # type: ignore[arg-type]
        counter = CountCasts()
        with torch.autocast("cpu", torch.bfloat16), counter:
            for _ in range(2):
                model(torch.zeros(2, 1024))
        counts.append(counter.casts)
        assert model.get_parameter("classifier.weight").dtype == torch.float32
    assert counts[1] < counts[0] / 2


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "a deep copy"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_p21_masked_elements_hold_under_decay_and_momentum(
    make: Callable[..., torch.optim.Optimizer], copied: bool
) -> None:
    model = Model()
    optimizer = make(model.parameters())
    train(model, optimizer)
    mask: Any = torch.rand(4, 4) < 0.5
    bundles.freeze(model, bundles.Elements({"encoder.0.weight": mask}))
    if copied:
        model = copy.deepcopy(model)
        optimizer = make(model.parameters())
    before = model.encoder[0].weight.detach().clone()
    train(model, optimizer, none=False)
    assert torch.equal(model.encoder[0].weight[mask], before[mask])
    assert (model.encoder[0].weight != before)[~mask].all()


def test_p22_a_frozen_model_pickles_and_its_copies_are_their_own() -> None:
    model = bundles.freeze(Model(nn.Dropout(0.5)), "encoder")
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        twin.train()
        assert [part.training for part in (twin.encoder[1], twin.head, model.head)] == [False, True, True]
        bundles.unfreeze(twin)
        assert twin.encoder[0].weight.requires_grad
        assert not model.encoder[0].weight.requires_grad
    shallow = copy.copy(model.eval()).train()
    assert shallow.training
    assert not model.training


def test_p23_an_adapter_that_is_injected_later_follows_train() -> None:
    model = bundles.freeze(Model(nn.Dropout(0.5)), "encoder").train()
    inject_adapter_in_model(LoraConfig(target_modules=["encoder.0"], lora_dropout=0.5), model)
    lora = model.encoder[0].get_submodule("lora_dropout.default")
    assert [part.training for part in (model.train().encoder[1], lora)] == [False, True]
    assert [part.training for part in (model.eval().encoder[1], lora)] == [False, False]


def test_p24_monte_carlo_dropout_is_a_mode() -> None:
    model = bundles.freeze(Model(nn.Dropout(0.5), nn.BatchNorm1d(4)), "encoder", "mc").eval()
    before = contents(model)
    assert not torch.equal(encode(model, seed=1), encode(model, seed=2))
    assert moved(model, before) == set()


def test_p25_what_moved_is_told_by_value_and_not_by_version() -> None:
    model = bundles.freeze(Model(nn.BatchNorm1d(4)), "encoder")
    before = bundles.snapshot(model)
    model.load_state_dict(model.state_dict())  # counts as a write, and changes nothing
    bundles.verify_frozen(model, before)
    version = model.encoder[0].weight._version
    model.encoder[0].weight.data.add_(1)  # changes something, and does not count
    assert model.encoder[0].weight._version == version
    with pytest.raises(bundles.FrozenDriftError) as caught:
        bundles.verify_frozen(model, before)
    assert caught.value.moved == ("encoder.0.weight",)


def test_p26_code_that_reads_a_dropouts_rate_goes_on_working() -> None:
    real = REAL["BERT"]
    model = bundles.freeze(real.make(), "all", "features").train()
    assert isinstance(model, hf.BertModel)
    rates = [part.p for part in model.modules() if isinstance(part, nn.Dropout)]
    assert set(rates) == {0.1}
    assert same(run(model, real.make_input(), 1), run(model, real.make_input(), 2))


def test_p27_a_plan_beside_the_checkpoint_freezes_again() -> None:
    model = bundles.freeze(Model(nn.Dropout(0.5)), "encoder")
    plan = bundles.freeze_plan(model)
    assert plan is not None
    stored, text = model.state_dict(), plan.to_json()
    resumed = Model(nn.Dropout(0.5))
    resumed.load_state_dict(stored)
    schedule = bundles.UnfreezeSchedule({0: "encoder", 10: "none"})
    assert [schedule.apply(resumed, 5) for _ in range(2)] == [True, False]
    assert bundles.freeze_plan(resumed) == bundles.FreezePlan.from_json(text)
    assert schedule.apply(resumed, 10)
    assert all(parameter.requires_grad for parameter in resumed.parameters())


def test_p28_what_moves_is_what_trains_and_the_buffers_that_follow() -> None:
    model = bundles.freeze(Model(nn.BatchNorm1d(4)), "encoder", "frontend").train()
    before, kept = contents(model), bundles.snapshot(model)
    train(model, torch.optim.AdamW(model.parameters(), weight_decay=0.3))
    assert moved(model, before) == HEAD | STATISTICS
    assert set(kept.digests) == set(before) - moved(model, before)
