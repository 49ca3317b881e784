"""What a hold must see beside layer types: hooks, helpers, overrides, and modules without parameters."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bundles

X = torch.randn(6, 4)


def layers(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, 2))


def is_steady(module: nn.Module, *inputs: Tensor) -> bool:
    torch.manual_seed(1)
    first = module(*inputs or (X,))
    torch.manual_seed(2)
    return torch.equal(first, module(*inputs or (X,)))


def test_a_hook_that_reads_the_flag_is_held() -> None:
    model = layers()
    model[0].register_forward_pre_hook(
        lambda module, inputs: (inputs[0] + torch.randn_like(inputs[0]),) if module.training else None
    )
    assert not is_steady(model.train()[0])
    bundles.freeze(model, "encoder").train()
    assert is_steady(model[0])


def test_statistics_after_a_frozen_layer_are_held_without_parameters_of_their_own() -> None:
    model = bundles.freeze(layers(nn.BatchNorm1d(4, affine=False)), "encoder").train()
    before = bundles.snapshot(model)
    model(X)
    assert "1.running_mean" in before.digests
    bundles.verify_frozen(model, before)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.c2(self.drop(self.c1(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.features(x)))  # type: ignore[no-any-return]


def test_a_dropout_beside_frozen_layers_is_held_and_reported_as_assumed() -> None:
    model = bundles.freeze(Flat(), "encoder").train()
    assert torch.equal(model.features(X), model.features(X))
    assert bundles.freeze_report(model).assumed == ("drop",)
    assert "assumed: drop" in str(bundles.freeze_report(model))


def test_groups_say_whose_a_dropout_is() -> None:
    groups = {"blocks": "c{i}", "head": ["drop", "fc"]}
    model = bundles.freeze(Flat(), "encoder", groups=groups).train()
    assert model.drop.training
    assert bundles.freeze_report(model).assumed == ()


def test_a_dropout_behind_a_frozen_model_belongs_to_the_head() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert, self.dropout, self.classifier = layers(), nn.Dropout(0.5), nn.Linear(2, 2)

    model = bundles.freeze(Classifier(), "encoder").train()
    assert model.dropout.training
    assert bundles.freeze(layers(nn.Dropout(0.5)), "encoder").train()[1].training


class OwnFlag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.noisy = nn.Linear(4, 4), False

    def train(self, mode: bool = True) -> OwnFlag:
        super().train(mode)
        self.noisy = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + torch.randn_like(x) * self.noisy)  # type: ignore[no-any-return]


def test_a_class_that_keeps_a_flag_of_its_own_is_told_the_mode_that_holds() -> None:
    model = bundles.freeze(nn.Sequential(OwnFlag(), nn.Linear(4, 2)), "encoder").train()
    assert is_steady(model[0])
    model[0].adapter = nn.Dropout(0.5)
    assert model.train()[0].get_submodule("adapter").training
    bundles.unfreeze(model)
    assert model.train()[0].noisy


@pytest.mark.parametrize("mode", ["eval", "features"])
def test_a_train_of_the_instances_own_is_wrapped_and_given_back(mode: str) -> None:
    model = layers(OwnFlag())
    own = MethodType(lambda module, mode=True: nn.Module.train(module, mode), model[1])
    model[1].train = own  # type: ignore[method-assign]
    bundles.freeze(model, "encoder", mode).train()
    assert not model[1].training
    twin = copy.deepcopy(model).train()
    assert not twin[1].training
    bundles.unfreeze(model)
    assert vars(model[1])["train"] is own
    assert model.train()[1].training


class Whisperlike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.layerdrop = nn.Linear(4, 4), 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, self.training)
        return x if self.training and torch.rand(()) < self.layerdrop else self.fc(x)


def test_noise_in_a_module_with_layer_drop_is_off_although_its_structure_follows() -> None:
    mode = bundles.FreezeMode(noise="off", structure="follow")
    model = bundles.freeze(nn.Sequential(Whisperlike(), nn.Linear(4, 2)), "encoder", mode).train()
    assert is_steady(model[0])
    assert bundles.freeze_report(model).assumed == ("0",)


class Methods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def embed(self, x: Tensor) -> Tensor:
        return F.dropout(self.encoder(x), 0.5, self.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))  # type: ignore[no-any-return]


def test_a_method_beside_forward_counts() -> None:
    model = bundles.freeze(Methods(), "encoder").train()
    assert torch.equal(model.embed(X), model.embed(X))
    assert model.head.training


def test_a_graph_module_keeps_its_class_and_recompiles() -> None:
    graph = torch.fx.symbolic_trace(layers(nn.Dropout(0.5)))
    kind = type(graph)
    bundles.freeze(graph, "match:0").train()
    graph.recompile()
    assert type(graph) is kind
    assert graph(X).shape == (6, 2)
    assert not any(p.requires_grad for p in graph.get_submodule("0").parameters())


def test_the_default_head_is_not_most_of_the_model() -> None:
    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.feature_extractor, self.encoder = (
                layers(),
                nn.Sequential(*(nn.Linear(9, 9) for _ in range(3))),
            )

    class Translation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = layers(), layers()

    for make in (Speech, Translation):
        assert "head" not in bundles.layer_groups(make()).names


OPTIMIZERS = [
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS"),
    *("Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
]


def test_the_list_of_optimizers_is_whole() -> None:
    classes = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    assert classes - {"Optimizer", "SparseAdam"} == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_of_torch_moves_what_is_frozen(name: str) -> None:
    decay: dict[str, Any] = {} if name in ("LBFGS", "Rprop") else {"weight_decay": 0.3}
    model = nn.Sequential(
        nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 4, bias=False)
    )
    model.train()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, **decay)

    def closure() -> float:
        optimizer.zero_grad(set_to_none=False)
        loss: Tensor = model(X).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # momentum of the time before
    history = optimizer if name == "LBFGS" else None  # it steps along a direction of the time before
    bundles.freeze(model, "encoder", optimizer=history).train()
    head = model.get_parameter("2.weight").detach().clone()
    before = bundles.snapshot(model)
    for _ in range(3):
        optimizer.step(closure)
    bundles.verify_frozen(model, before)
    assert not torch.equal(head, model.get_parameter("2.weight"))
    assert len(before) == 4


def test_thawing_a_part_puts_its_parameters_back_into_the_optimizer() -> None:
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bundles.freeze(model, "encoder", optimizer=optimizer)
    bundles.unfreeze(model[0], optimizer=optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_a_partial_thaw_keeps_the_groups_that_were_given() -> None:
    model = layers(nn.Linear(4, 4))
    bundles.freeze(model, "all", "mc", groups={"stem": "0", "norm": "1", "head": "2"})
    bundles.unfreeze(model, "match:1.bias")
    assert bundles.layer_groups(model).names == ("stem", "norm", "head")
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert plan.policy == "All() & ~Match('1.bias')"


def test_thawing_the_last_blocks_is_said_with_freeze() -> None:
    model = bundles.freeze(layers(nn.Linear(4, 4)), "encoder")
    with pytest.raises(bundles.FreezeArgumentError, match=r"type bundles\.freeze\(model, 'last:1'\)"):
        bundles.unfreeze(model, "last:1")


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"stem": "encodr", "head": "2"}, "patterns encodr of groups= match nothing"),
        (["encoder"], "neither a LayerGroups nor a mapping"),
    ],
)
def test_groups_that_fit_nothing_are_refused(groups: Any, words: str) -> None:
    model = layers(nn.ReLU())
    with pytest.raises(bundles.FreezeArgumentError, match=words):
        bundles.freeze(model, "head", groups=groups)
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_no_optimizer_no_snapshot_no_model_is_named() -> None:
    model = layers()
    with pytest.raises(bundles.FreezeArgumentError, match="optimizer=3 is not a torch"):
        bundles.freeze(model, "encoder", optimizer=3)  # type: ignore[arg-type]
    with pytest.raises(bundles.FreezeArgumentError, match="A Sequential is no Snapshot"):
        bundles.verify_frozen(model, model)  # type: ignore[arg-type]
    with pytest.raises(bundles.FreezeArgumentError, match=r"A Bundle is no nn\.Module"):
        bundles.freeze(bundles.CREPE_TINY, "encoder")
    with pytest.raises(bundles.NothingSelectedError, match="has no parameters"):
        bundles.freeze(nn.ReLU())
    taken = bundles.snapshot(bundles.freeze(layers(), "encoder"))
    with pytest.raises(bundles.FrozenDriftError, match="of another model"):
        bundles.verify_frozen(nn.Conv1d(1, 1, 1), taken)
