"""What is put in the place of frozen modules, by others, after the freeze."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import bundles

X = torch.randn(6, 4)


def layers(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, 2))


def normed() -> nn.Sequential:
    return layers(nn.BatchNorm1d(4)).train()


def frozen_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def train(model: nn.Module) -> None:
    """Take a step that moves what trains, and statistics that are not held."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    model.train()(X).square().sum().backward()
    optimizer.step()


def converted(model: nn.Sequential) -> nn.Sequential:
    made: nn.Sequential = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return made


@pytest.mark.parametrize(
    ("affine", "mode"), [(True, "eval"), (True, "features"), (True, "weights"), (False, "eval")]
)
def test_a_norm_that_is_converted_after_the_freeze_stays_as_it_was(affine: bool, mode: str) -> None:
    """What ``SyncBatchNorm.convert_sync_batchnorm`` puts in its place has its tensors."""
    plain, model = (
        bundles.freeze(layers(nn.BatchNorm1d(4, affine=affine)).train(), "encoder", mode) for _ in range(2)
    )
    model = converted(model)
    before = bundles.snapshot(model)
    model.train()(X)
    assert type(model[1]).__name__ == "SyncBatchNorm"
    assert [module.training for module in model] == [module.training for module in plain.train()]
    bundles.verify_frozen(model, before)
    assert bundles.freeze_report(model).problems == ()
    bundles.unfreeze(model)
    assert model[1].training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert type(model[1]) is nn.SyncBatchNorm


def test_elements_of_a_norm_that_is_converted_stay() -> None:
    model = layers(nn.BatchNorm1d(4))
    bundles.freeze(model, bundles.Elements({"1.weight": [True, True, False, False]}))
    model = converted(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    model.train()(X).square().sum().backward()
    optimizer.step()
    assert [value == 1 for value in model.get_parameter("1.weight").tolist()] == [True, True, False, False]


def test_another_module_in_the_place_of_a_held_one_is_another() -> None:
    """A norm that trains is put where a norm was converted, and the report names it."""
    model = converted(bundles.freeze(layers(nn.BatchNorm1d(4)), "encoder"))
    assert not model.train()[1].training
    model[1] = nn.BatchNorm1d(4)
    assert model.train()[1].training
    assert "1 is not held: freeze again to cover it" in bundles.freeze_report(model).problems


# --- under other names, by other ways ---------------------------------------------------------------------


class Scale(nn.Module):
    """A norm that has the tensors of another under names of its own."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.gamma, self.beta = norm.weight, norm.bias
        self.register_buffer("mean", norm.running_mean)
        self.register_buffer("var", norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.get_buffer("mean"), self.get_buffer("var")
        return F.batch_norm(x, mean, var, self.gamma, self.beta, self.training)


def test_under_other_names_they_are_frozen_and_thaw() -> None:
    model = bundles.freeze(normed(), "encoder")
    model[1] = Scale(model[1])
    before = bundles.snapshot(model)
    assert {"1.gamma", "1.beta", "1.mean", "1.var"} < set(before.digests)
    train(model)
    bundles.verify_frozen(model, before)
    assert bundles.freeze_report(model).problems == ()
    bundles.unfreeze(model, "match:0")
    assert frozen_names(model) == ["1.gamma", "1.beta"]
    bundles.unfreeze(model)
    assert frozen_names(model) == []
    assert model[1].training


def test_names_that_are_swapped_stay_with_their_tensors() -> None:
    """A bias that trained, under the name of a weight that did not."""
    model = normed()
    model.get_parameter("1.weight").requires_grad_(False)
    bundles.freeze(model, "encoder")
    old, new = model[1], nn.BatchNorm1d(4)
    new.weight, new.bias = old.bias, old.weight  # type: ignore[assignment]
    new.running_mean, new.running_var, new.num_batches_tracked = None, None, None
    model[1] = new
    bundles.unfreeze(model)
    assert frozen_names(model) == ["1.bias"]


class MyNorm(nn.BatchNorm1d): ...


def test_a_module_that_was_given_the_dict_of_a_held_one_is_held() -> None:
    for same in (False, True):
        model = bundles.freeze(normed(), "encoder")
        new = MyNorm(4)
        if same:
            new.__dict__ = model[1].__dict__
        else:
            new.__dict__.update(model[1].__dict__)
        model[1] = new
        before = bundles.snapshot(model)
        train(model)
        bundles.verify_frozen(model, before)
        assert not new.training
        bundles.unfreeze(model)
        assert type(new) is MyNorm
        assert new.train().training


def test_what_was_built_with_a_held_dropout_gets_the_one_before_back() -> None:
    model = nn.ModuleDict({"lstm": nn.LSTM(4, 4, 2, dropout=0.5), "head": nn.Linear(4, 2)})
    old = bundles.freeze(model, "match:lstm")["lstm"]
    new = nn.LSTM(4, 4, 2, dropout=old.dropout)
    for name, parameter in old.named_parameters():
        setattr(new, name, parameter)
    model["lstm"] = new
    assert new.dropout == 0.0
    assert bundles.unfreeze(model)["lstm"].dropout == 0.5


def test_a_module_that_is_put_back_after_a_thaw_is_thawed() -> None:
    model = bundles.freeze(normed(), "encoder")
    old = model[1]
    model = bundles.unfreeze(converted(model))
    model[1] = old
    assert model.train()[1].training
    assert type(old) is nn.BatchNorm1d


def test_a_module_that_was_frozen_itself_before_it_is_put_in_stays_frozen() -> None:
    model = normed()
    model[1] = bundles.freeze(converted(nn.Sequential(model[1]))[0], mode="features")
    assert not model.train()[1].training
    assert frozen_names(model) == ["1.weight", "1.bias"]


def test_what_is_converted_within_a_block_is_afterwards_as_it_was_before() -> None:
    model = bundles.freeze(normed(), "encoder")
    with bundles.frozen(model):
        model = converted(model)
    before = bundles.snapshot(model)
    train(model)
    bundles.verify_frozen(model, before)
    assert bundles.freeze_report(model).problems == ()
    bundles.unfreeze(model)
    assert frozen_names(model) == []
    assert model[1].training


def test_what_is_converted_within_a_block_alone_trains_afterwards() -> None:
    model = normed()
    with bundles.frozen(model):
        model = converted(model)
    assert frozen_names(model) == []
    assert model[1].training


def test_another_module_put_in_within_a_block_is_another() -> None:
    model = bundles.freeze(normed(), "encoder")
    with bundles.frozen(model):
        model[1] = nn.BatchNorm1d(4)
    assert model.train()[1].training
    assert frozen_names(model) == ["0.weight", "0.bias"]


def test_a_weight_norm_that_is_removed_within_a_block_leaves_a_frozen_weight() -> None:
    model = normed()
    parametrizations.weight_norm(model[0])
    bundles.freeze(model, "encoder")
    with bundles.frozen(model):
        parametrize.remove_parametrizations(model[0], "weight")
    assert frozen_names(model) == ["0.bias", "0.weight", "1.weight", "1.bias"]


FRESH = """
import sys, torch, bundles
model = torch.load(sys.argv[1], weights_only=False)
model = bundles.unfreeze(torch.nn.SyncBatchNorm.convert_sync_batchnorm(model))
assert all(parameter.requires_grad for parameter in model.parameters())
"""


def test_a_norm_is_handed_on_in_a_process_that_only_loaded_the_model(tmp_path: Path) -> None:
    torch.save(bundles.freeze(normed(), "encoder", "weights"), tmp_path / "model.pt")
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "model.pt")], check=True)


# --- unseen ------------------------------------------------------------------------------------------------


def prepared(model: nn.Sequential) -> nn.Sequential:
    """Return what ``prepare_qat`` makes: it writes other modules past torch's hook."""
    model.qconfig = get_default_qat_qconfig("fbgemm")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao's own
        made: nn.Sequential = prepare_qat(model, inplace=True)  # type: ignore[no-untyped-call]
    assert type(made[0]) is not nn.Linear
    return made


def test_what_prepare_qat_makes_of_frozen_layers_thaws() -> None:
    model = prepared(bundles.freeze(normed(), "encoder"))
    bundles.unfreeze(model, "match:1")
    assert frozen_names(model) == ["0.weight", "0.bias"]
    bundles.unfreeze(model)
    assert frozen_names(model) == []


def test_a_schedule_thaws_what_prepare_qat_makes_of_frozen_layers() -> None:
    model, schedule = normed(), bundles.UnfreezeSchedule({0: "encoder", 1: "none"})
    schedule.apply(model, 0)
    prepared(model)
    schedule.apply(model, 1)
    assert frozen_names(model) == []
