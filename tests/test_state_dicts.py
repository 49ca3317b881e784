"""Loading follows torch's own rules: extra state, older files, buffers made from constants, live files."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import bundles


def bundle(make: Any, tensors: dict[str, Tensor], folder: Path) -> bundles.Bundle:
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return bundles.Bundle("MINE", builder=make, weights=bundles.WeightSource(f"file:{path}"))


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Extra(nn.Linear):
    k = torch.ones(1)

    def __init__(self) -> None:
        super().__init__(2, 2)

    def get_extra_state(self) -> Tensor:
        return self.k

    def set_extra_state(self, state: Tensor) -> None:
        self.k = state


def test_extra_state_is_given_to_the_module(tmp_path: Path) -> None:
    source = Extra()
    source.k = torch.full((1,), 3.0)
    model = bundle(Extra, copied(source), tmp_path).get_model()
    assert model.get_extra_state().item() == 3
    assert "_extra_state" not in vars(model)


def test_a_batch_norm_of_before_the_counter_loads_as_in_torch(tmp_path: Path) -> None:
    tensors = copied(nn.BatchNorm1d(3))
    del tensors["num_batches_tracked"]
    model = bundle(lambda: nn.BatchNorm1d(3), tensors, tmp_path).get_model()
    assert model.get_buffer("num_batches_tracked").item() == 0


def test_weight_norm_of_the_old_names_loads_as_in_torch(tmp_path: Path) -> None:
    new = weight_norm(nn.Linear(3, 2))
    tensors = copied(new)
    old = {
        "weight_g": tensors["parametrizations.weight.original0"],
        "weight_v": tensors["parametrizations.weight.original1"],
        "bias": tensors["bias"],
    }
    model = bundle(lambda: weight_norm(nn.Linear(3, 2)), old, tmp_path).get_model()
    assert torch.equal(model(torch.ones(1, 3)), new(torch.ones(1, 3)))


class FromConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(2))
        nn.init.constant_(self.w, 2.0)
        self.register_buffer("k", self.w.detach() * 3, persistent=False)


def test_a_buffer_made_from_a_constant_is_right_although_it_is_not_in_the_file(tmp_path: Path) -> None:
    model = bundle(FromConstant, {"w": torch.zeros(2)}, tmp_path).get_model()
    assert model.get_buffer("k").tolist() == [6.0, 6.0]


def test_a_file_that_is_rewritten_under_a_model_does_not_move_it(tmp_path: Path) -> None:
    model = bundle(lambda: nn.Linear(100, 100), copied(nn.Linear(100, 100)), tmp_path).get_model(
        freeze="all", freeze_mode="features"
    )
    before = bundles.snapshot(model)
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    bundles.verify_frozen(model, before)


def test_a_file_that_is_cut_short_under_a_model_does_not_kill_the_process(tmp_path: Path) -> None:
    save_file(copied(nn.Linear(100, 100)), tmp_path / "w.safetensors")
    code = f"""
        import torch, bundles
        path = {str(tmp_path / "w.safetensors")!r}
        source = bundles.WeightSource("file:" + path)
        model = bundles.Bundle("M", builder=lambda: torch.nn.Linear(100, 100), weights=source).get_model()
        open(path, "wb").close()
        print(model(torch.ones(1, 100)).shape)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "torch.Size([1, 100])"


def test_a_builder_that_looks_at_values_can_be_planned() -> None:
    class Looks(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.scale = float(self.weight.detach().abs().max())

    assert bundles.Bundle("LOOKS", builder=Looks).plan(freeze="all").frozen == ("weight", "bias")


def test_a_head_that_came_frozen_trains() -> None:
    head = nn.Linear(256, 3).requires_grad_(False)
    model = bundles.CREPE_TINY.get_model(head=head, freeze=True)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"dtype": "float16"}, bundles.BuildError, "a dtype as torch.float16"),
        ({"device": "gpu"}, bundles.BuildError, "a device as 'cpu' or 'cuda:0'"),
        ({"head": nn.Linear}, bundles.HeadError, "as head=lambda n"),
    ],
)
def test_wrong_arguments_are_answered_in_a_sentence(
    arguments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        bundles.CREPE_TINY.get_model(**arguments)


def test_what_is_no_bundle_and_no_source_is_named() -> None:
    with pytest.raises(bundles.RegistryError, match="A int is neither a Bundle nor the name of one"):
        bundles.get_model(3)  # type: ignore[arg-type]
    with pytest.raises(bundles.SourceNotFoundError, match="has the unknown scheme 'https'"):
        bundles.load_into(nn.Linear(1, 1), "https://example.org/a.pth")
    with pytest.raises(bundles.RegistryError, match="A str is no Bundle"):
        bundles.register("CREPE_TINY")  # type: ignore[arg-type]
    with pytest.raises(bundles.RegistryError, match="A int is no glob on names"):
        bundles.list_bundles(3)  # type: ignore[arg-type]
    with pytest.raises(bundles.WeightsFileError, match="A dict is no weight source"):
        bundles.load_into(nn.Linear(1, 1), {})  # type: ignore[arg-type]


def test_what_was_loaded_by_hand_is_no_longer_called_fresh(recwarn: pytest.WarningsRecorder) -> None:
    checkpoint = bundles.CREPE_TINY.get_model().state_dict()
    model = bundles.CREPE_TINY.get_model(pretrained=False)
    assert {group.weights for group in bundles.freeze_report(model).groups} == {"fresh"}
    copy.deepcopy(model).load_state_dict(checkpoint)
    assert {group.weights for group in bundles.freeze_report(model).groups} == {"fresh"}
    model.load_state_dict(checkpoint)
    bundles.freeze(model, "encoder")
    assert {group.weights for group in bundles.freeze_report(model).groups} == {"unknown"}
    assert list(recwarn) == []


def test_a_partial_load_by_hand_keeps_the_records() -> None:
    model = bundles.CREPE_TINY.get_model(pretrained=False)
    model.load_state_dict({"classifier.bias": torch.zeros(360)}, strict=False)
    with pytest.warns(bundles.FreezeWithoutWeightsWarning, match=r"in block\.0"):
        bundles.freeze(model, "encoder")


def test_the_hook_survives_pickling(tmp_path: Path) -> None:
    model = bundles.CREPE_TINY.get_model(pretrained=False)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    again.load_state_dict(model.state_dict())
    assert {group.weights for group in bundles.freeze_report(again).groups} == {"unknown"}
