"""Delta checkpoints: what they hold, that they give the model back bit for bit, and what they refuse."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import bundles
from bundles import Elements, Match, UnfreezeSchedule, heads, load_delta, save_delta
from bundles.assemble.built import Built, built_of
from bundles.cli.main import main
from bundles.delta import diff, merge, read_delta
from bundles.errors import (
    BundlesWarning,
    CacheError,
    DeltaBaseError,
    FreezeArgumentError,
    HeadError,
    PinError,
    StateDictMismatchError,
    WeightsFileError,
)
from bundles.freezing.behaviour.hold import held
from bundles.heads.recipes import make_head, recipe_of
from toys import TOYS, contents, outputs, step
from zoo import Hub

MODES = ["eval", "features", "regularized", "frontend", "weights", "mc"]
POLICIES = ["encoder", "head", "all", "none", "last:1", "last:2", "first:1", "blocks:0,2", "match:*.bias"]


def seen(model: nn.Module) -> dict[str, Any]:
    """Everything that the law speaks of."""
    return {
        "contents": contents(model),
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)},
        "held": {name: held(module) for name, module in model.named_modules()},
        "plan": bundles.freeze_plan(model),
    }


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    assert seen(ours) == seen(theirs)
    bundles.verify_frozen(ours, bundles.snapshot(theirs))


def stored(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub")


@pytest.fixture
def speech(hub: Hub, default: Any) -> bundles.Bundle:
    """A small speech encoder with random weights in a file, in the registry, and a slot for a head."""
    bundle = replace(hub.ours("WAV2VEC2_ASR_BASE_960H"), name="SMALL_ASR", origin="Python")
    default.add(bundle)
    return bundle


# --- the law --------------------------------------------------------------------------------------


def frozen_at_random(model: nn.Module, fresh: nn.Module, x: Tensor, rng: random.Random) -> dict[str, Any]:
    """Freeze and train a model in one of many ways, and return what save_delta is to be told of it."""
    mode = rng.choice(MODES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    kind = rng.choice(["freeze", "twice", "schedule", "elements", "none"])
    model.train()
    if kind == "schedule":
        policies = rng.sample(POLICIES, 3)
        schedule = UnfreezeSchedule(dict(enumerate(policies)), mode=mode)
        last = rng.randrange(3)
        for at in range(last + 1):
            schedule.apply(model, at, optimizer=optimizer)
            step(model, x, optimizer)
        return {"schedule": schedule, "step": last}
    if kind == "elements":
        bundles.freeze(model, masks_of(model, rng), mode)
    elif kind != "none":
        if kind == "twice":
            bundles.freeze(model, rng.choice(POLICIES), rng.choice(MODES[:1] + MODES[2:]))
            step(model, x, optimizer)
        bundles.freeze(model, rng.choice(POLICIES), mode)
    step(model, x, optimizer)
    return {"base": fresh if kind == "twice" else None}


def masks_of(model: nn.Module, rng: random.Random) -> Any:
    """Half the elements of a few tensors, and sometimes what a policy names beside them."""
    names = [name for name, parameter in model.named_parameters() if parameter.ndim]
    chosen = rng.sample(names, min(3, len(names)))
    made = {n: torch.rand(model.get_parameter(n).shape) < rng.random() for n in chosen}
    policy: Any = Elements(made)
    return policy | Match("*.bias") if rng.random() < 0.3 else policy


def expressible(make: Callable[[], Any]) -> Any:
    """What a combination gives, ``None`` where the library refuses it."""
    try:
        return make()
    except bundles.InexpressibleModeError:
        return None


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::bundles.BundlesWarning")
def test_any_combination_of_policy_mode_and_schedule_keeps_the_law(count: int, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    fresh = {name: toy.make() for name, toy in TOYS.items() if name != "syncbatchnorm"}
    rng, kept = random.Random(count), 0
    while kept < count:
        name = rng.choice(list(fresh))
        model = copy.deepcopy(fresh[name])
        x = TOYS[name].make_input()
        how = expressible(partial(frozen_at_random, model, fresh[name], x, rng))
        if how is None:
            continue
        save_delta(model, path, **how)
        again = load_delta(path, copy.deepcopy(fresh[name]))
        assert_same(again, model)
        kept += 1


def test_a_frozen_model_of_ones_own_stores_what_trains_and_nothing_else(tmp_path: Path) -> None:
    model = bundles.freeze(TOYS["batchnorm1d"].make(), "last:1")
    path = save_delta(model, tmp_path / "run.safetensors")
    assert {name.partition(".2.")[0] for name in stored(path)} == {
        *("encoder.blocks", "head.proj.weight", "head.proj.bias")
    }
    assert {name for name in stored(path) if "running" in name} == {
        *("encoder.blocks.2.1.running_mean", "encoder.blocks.2.1.running_var")
    }


def test_of_a_masked_tensor_the_elements_that_may_move_are_stored(tmp_path: Path) -> None:
    model, x = TOYS["plain"].make(), TOYS["plain"].make_input()
    mask = torch.rand(8, 8) < 0.7
    bundles.freeze(model, Elements({"encoder.blocks.0.0.weight": mask}) | Match("head.*"))
    step(model, x, torch.optim.SGD(model.parameters(), lr=0.1))
    path = save_delta(model, tmp_path / "run.safetensors")
    with safe_open(path, framework="pt") as file:
        packed = file.get_tensor("packed:encoder.blocks.0.0.weight")
    assert torch.equal(packed, model.get_parameter("encoder.blocks.0.0.weight")[~mask])
    assert "encoder.blocks.0.0.weight" not in stored(path)
    assert_same(load_delta(path, TOYS["plain"].make()), model)


def test_what_trained_earlier_and_is_frozen_now_comes_back(tmp_path: Path) -> None:
    model, x = TOYS["plain"].make(), TOYS["plain"].make_input()
    schedule = UnfreezeSchedule({0: "head", 1: "encoder"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for at in (0, 1):
        schedule.apply(model, at, optimizer=optimizer)
        step(model, x, optimizer)
    ways: list[dict[str, Any]] = [{"schedule": schedule, "step": 1}, {"base": TOYS["plain"].make()}]
    for number, how in enumerate(ways):
        path = save_delta(model, tmp_path / f"{number}.safetensors", **how)
        assert_same(load_delta(path, TOYS["plain"].make()), model)
    with pytest.raises(DeltaBaseError, match=r"another base.*encoder\.blocks.*digest"):
        load_delta(save_delta(model, tmp_path / "neither.safetensors"), TOYS["plain"].make())


def test_requires_grad_of_before_and_beside_the_freeze_comes_back(tmp_path: Path) -> None:
    model = TOYS["plain"].make()
    model.get_parameter("encoder.blocks.1.0.bias").requires_grad_(False)
    bundles.freeze(model, "first:1")
    model.get_parameter("head.proj.bias").requires_grad_(False)
    model.get_parameter("encoder.blocks.0.0.bias").requires_grad_(True)
    again = load_delta(save_delta(model, tmp_path / "run.safetensors"), TOYS["plain"].make())
    assert_same(again, model)
    assert seen(bundles.unfreeze(again)) == seen(bundles.unfreeze(model))


def test_plans_on_parts_of_a_model_come_back(tmp_path: Path) -> None:
    model = bundles.freeze(TOYS["batchnorm1d"].make(), "first:1")
    bundles.freeze(model.get_submodule("encoder"), "match:blocks.2", "frontend")
    again = load_delta(save_delta(model, tmp_path / "run.safetensors"), TOYS["batchnorm1d"].make())
    assert_same(again, model)
    assert bundles.freeze_plan(again.get_submodule("encoder")) == bundles.freeze_plan(
        model.get_submodule("encoder")
    )


# --- bundles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "freeze"),
    [
        (lambda n: nn.Linear(n, 3), True),
        (lambda n: heads.CTCHead(n, 5, 0.1), "last:1"),
        (lambda n: heads.MeanPoolClassifier(n, 4), "feature_extractor"),
        (lambda n: heads.WeightedLayers(n, 3, heads.MeanPoolClassifier(n, 2)), "encoder"),
        (None, "last:2"),
        (None, False),
    ],
    ids=["linear", "ctc", "pooled", "layers", "own", "unfrozen"],
)
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=str)
def test_a_model_is_rebuilt_from_its_bundle(
    head: Any, freeze: Any, dtype: Any, speech: bundles.Bundle, tmp_path: Path
) -> None:
    model = speech.get_model(freeze=freeze, head=head, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * parameter.requires_grad)
    path = save_delta(model, tmp_path / "run.safetensors")
    before = torch.get_rng_state()
    again = load_delta(path)
    assert torch.equal(before, torch.get_rng_state())
    assert_same(again, model)
    assert not again.training
    if dtype is None:
        x = torch.randn(1, 2000)
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    torch.manual_seed(9)
    given = speech.get_model(head=head, dtype=dtype).train()
    assert load_delta(path, given) is given
    assert seen(given.eval()) == seen(model)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (
        (path.stat().st_size < whole / 2) or frozen < 1000 or freeze in (False, "last:2", "feature_extractor")
    )


def test_whatever_is_not_as_in_the_files_is_stored(speech: bundles.Bundle, tmp_path: Path) -> None:
    head = lambda n: nn.Linear(n, 3)  # noqa: E731
    with pytest.warns(bundles.FreezeWithoutWeightsWarning), pytest.warns(bundles.NothingTrainableWarning):
        model = speech.get_model(freeze="all", head=head)
    name = next(n for n, p in model.named_parameters() if n.endswith("layers.0.attention.k_proj.weight"))
    model.get_parameter(name).data[0, 0] = -0.0
    model.get_parameter(name).data[0, 1] = float("nan")
    path = save_delta(model, tmp_path / "run.safetensors")
    assert stored(path) == {name, "aux.weight", "aux.bias"}
    assert_same(load_delta(path), model)


def test_a_model_built_with_options_or_without_weights_is_rebuilt(
    hub: Hub, speech: bundles.Bundle, default: Any, tmp_path: Path
) -> None:
    bare = speech.get_model(pretrained=False, head=lambda n: nn.Linear(n, 3))
    assert_same(load_delta(save_delta(bare, tmp_path / "bare.safetensors")), bare)
    normed = replace(hub.ours("WAV2VEC2_LARGE_LV60K"), name="NORMED")
    default.add(normed)
    path = tmp_path / "normed.safetensors"
    model = normed.get_model(normalize="per_utterance", freeze="last:1")
    again = load_delta(save_delta(model, path))
    built = built_of(again)
    assert built is not None
    assert built.bundle.architecture["normalize"] == "per_utterance"
    assert_same(again, model)


def test_frozen_tensors_in_lower_precision_come_back(speech: bundles.Bundle, tmp_path: Path) -> None:
    model = speech.get_model(freeze="last:1", frozen_dtype=torch.bfloat16)
    path = save_delta(model, tmp_path / "run.safetensors")
    again = load_delta(path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16, torch.float32}
    assert {n: p.dtype for n, p in again.named_parameters()} == {
        n: p.dtype for n, p in model.named_parameters()
    }
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert bundles.freeze_plan(again) == bundles.freeze_plan(model)
    assert not any("layers.0" in name for name in stored(path))


class OwnHead(nn.Module):
    """A head for which there is no recipe."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(size))

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        scaled: Tensor = features * self.scale
        return scaled


def test_a_head_of_ones_own_has_to_be_given_again(speech: bundles.Bundle, tmp_path: Path) -> None:
    model = speech.get_model(freeze=True, head=OwnHead)
    path = save_delta(model, tmp_path / "run.safetensors")
    with pytest.raises(HeadError, match=r"OwnHead, which no recipe describes: type load_delta\(path, head="):
        load_delta(path)
    assert_same(load_delta(path, head=OwnHead), model)
    assert_same(load_delta(path, speech.get_model(head=OwnHead)), model)
    whole = merge(path, tmp_path / "whole.safetensors")
    assert stored(whole) == set(model.state_dict())


def test_where_the_base_is_gone_everything_is_stored(speech: bundles.Bundle, tmp_path: Path) -> None:
    model = speech.get_model(freeze="last:1")
    weights = speech.weights
    assert weights is not None
    Path(weights.address).unlink()
    with pytest.warns(
        BundlesWarning, match="SMALL_ASR, cannot be had any more, so the whole model is stored"
    ):
        path = save_delta(model, tmp_path / "run.safetensors")
    assert_same(load_delta(path), model)


def test_a_base_that_moved_is_refused_with_both_digests(
    hub: Hub, speech: bundles.Bundle, default: Any, tmp_path: Path
) -> None:
    model = speech.get_model(freeze=True)
    path = save_delta(model, tmp_path / "run.safetensors")
    header = read_delta(path)
    assert speech.weights is not None
    [digest] = header.base["files"].values()
    file = Path(speech.weights.address)
    torch.save({n: t + 1 for n, t in torch.load(file).items()}, file)
    with pytest.raises(DeltaBaseError, match="The base of the delta moved") as caught:
        load_delta(path)
    told = vars(caught.value)
    assert digest in told["expected"]
    assert told["found"] not in (digest, told["expected"])
    with pytest.raises(DeltaBaseError, match=f"moved.*{digest}"):
        load_delta(path, speech.get_model())
    default.add(replace(speech, metadata={**speech.metadata, "sample_rate": 8000}), override=True)
    with pytest.raises(DeltaBaseError, match=f"card has sha256:.*{header.base['card']}"):
        load_delta(path)


def test_a_model_that_is_not_the_base_is_refused_and_left_alone(
    speech: bundles.Bundle, tmp_path: Path
) -> None:
    path = save_delta(speech.get_model(freeze="last:1"), tmp_path / "run.safetensors")
    other = speech.get_model(freeze=True)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    before = seen(other)
    with pytest.raises(DeltaBaseError, match="another base than this model: 1 of the tensors of SMALL_ASR"):
        load_delta(path, other)
    assert seen(other) == before
    smaller = speech.get_model(head=lambda n: nn.Linear(n, 3))
    before = seen(smaller)
    with pytest.raises(StateDictMismatchError, match=r"aux\.weight"):
        load_delta(path, smaller)
    assert seen(smaller) == before


# --- resuming -------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1, amsgrad=True),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, nesterov=True),
    "groups": lambda m: torch.optim.AdamW(bundles.param_groups(m, lr=0.01, layer_decay=0.5)),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.01, max_iter=2),
}


def run(
    model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any, steps: range, *, told: bool = True
) -> None:
    x = TOYS["dropout"].make_input()

    def closure() -> Any:
        optimizer.zero_grad()
        loss: Any = model(x)[-1].square().mean()
        loss.backward()
        return loss

    for at in steps:
        schedule.apply(model, at, optimizer=optimizer if told else None)
        torch.manual_seed(at)
        optimizer.step(closure)


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, at: int, told: bool, tmp_path: Path) -> None:
    warmup = 2 if told and kind != "lbfgs" else 0
    schedule = UnfreezeSchedule({0: "encoder", 2: "last:1", 4: "none"}, warmup=warmup)
    make = OPTIMIZERS[kind]
    model = TOYS["dropout"].make().train()
    optimizer = make(model)
    run(model, optimizer, schedule, range(at + 1), told=told)
    path = save_delta(model, tmp_path / "run.safetensors", optimizer=optimizer, schedule=schedule, step=at)
    run(model, optimizer, schedule, range(at + 1, 8), told=told)

    again = TOYS["dropout"].make().train()
    its = make(again)
    load_delta(path, again, optimizer=its)
    header = read_delta(path)
    assert (header.unfreeze_schedule(), header.step) == (schedule, at)
    run(again, its, header.unfreeze_schedule(), range(at + 1, 8), told=told)
    assert_same(again, model)
    assert outputs(again, TOYS["dropout"].make_input()) == outputs(model, TOYS["dropout"].make_input())


def test_a_resumed_run_of_a_bundle_equals_an_uninterrupted_one(
    speech: bundles.Bundle, tmp_path: Path
) -> None:
    x, schedule = torch.randn(2, 1600), UnfreezeSchedule({0: "encoder", 3: "last:1"})

    def train(model: nn.Module, optimizer: Any, steps: range) -> None:
        for at in steps:
            schedule.apply(model.train(), at, optimizer=optimizer)
            torch.manual_seed(at)
            optimizer.zero_grad()
            model(x)[0].square().mean().backward()
            optimizer.step()

    model = speech.get_model(head=lambda n: heads.CTCHead(n, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, range(3))
    path = save_delta(model, tmp_path / "a.safetensors", optimizer=optimizer, schedule=schedule, step=2)
    train(model, optimizer, range(3, 6))
    again = load_delta(path)  # without a model to give the optimizer to, the weights; with it, both
    its = torch.optim.AdamW(again.parameters(), lr=0.01)
    load_delta(path, again, optimizer=its)
    train(again, its, range(3, 6))
    assert_same(again, model)


def test_optimizers_that_do_not_fit_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    model = bundles.freeze(TOYS["plain"].make(), "last:1")
    adam = torch.optim.AdamW(model.parameters())
    step(model, TOYS["plain"].make_input(), adam)
    path = save_delta(model, tmp_path / "run.safetensors", optimizer=adam)
    fresh = TOYS["plain"].make()
    before = seen(fresh)
    wrong: list[tuple[Any, str]] = [
        (torch.optim.SGD(fresh.parameters(), lr=0.1), "state of a AdamW and a SGD was given"),
        ([torch.optim.AdamW(fresh.parameters())] * 2, "state of 1 optimizers and 2 were given"),
        (torch.optim.AdamW([{"params": [p]} for p in fresh.parameters()]), "has 1 groups of parameters"),
        (torch.optim.AdamW([*fresh.parameters()][:2]), "Group 0 of the AdamW holds other parameters"),
    ]
    for optimizer, message in wrong:
        with pytest.raises(FreezeArgumentError, match=message):
            load_delta(path, fresh, optimizer=optimizer)
        assert seen(fresh) == before
    with pytest.raises(FreezeArgumentError, match="steps a parameter that the model does not have"):
        save_delta(model, path, optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1))
    with pytest.raises(HeadError, match="build the model, give its parameters to the optimizer"):
        load_delta(path, optimizer=adam)
    with pytest.raises(FreezeArgumentError, match="A schedule without a step"):
        save_delta(model, path, schedule=UnfreezeSchedule({0: "encoder"}))
    with pytest.raises(FreezeArgumentError, match="The step 'last' is not a whole number"):
        save_delta(model, path, step="last")  # type: ignore[arg-type]


# --- the file -------------------------------------------------------------------------------------


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    return save_delta(bundles.CREPE_TINY.get_model(freeze="last:1"), tmp_path / "run.safetensors")


def test_the_same_model_gives_the_same_bytes(delta: Path, tmp_path: Path) -> None:
    again = save_delta(bundles.CREPE_TINY.get_model(freeze="last:1"), tmp_path / "again.safetensors")
    assert again.read_bytes() == delta.read_bytes()


def with_header(path: Path, change: str | Callable[[dict[str, Any]], Any]) -> Path:
    """The file with another header, its tensors as they were."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in stored(path)}
        header = json.loads(file.metadata()["bundles_delta"])
    if not isinstance(change, str):
        change(header)
    text = change if isinstance(change, str) else json.dumps(header)
    save_file(tensors, path, {"bundles_delta": text})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(version=2), "format version 2 and this version of bundles reads 1.*pip install"),
        (lambda h: h.pop("version"), "format version None"),
        (lambda h: h.update(names=[]), "malformed: names is"),
        (lambda h: h["names"].update({"classifier.bias": [-1]}), "a name has no shape"),
        (lambda h: h.update(step="7"), "step is '7'"),
        (lambda h: h.pop("freeze"), "freeze is None"),
        (lambda h: h["freeze"].pop("plans"), "malformed: (its freeze cannot be read|KeyError 'plans')"),
        (lambda h: h["freeze"].update(untrained=["nobody"]), "names parameters that the model lacks"),
        (lambda h: h["freeze"]["plans"][0]["masked"].update({"conv1.weight": [2]}), "malformed"),
        (lambda h: h["freeze"]["plans"][0]["groups"][0].update(match=["*" * 30]), "patterns"),
        (lambda h: h["base"].pop("card"), "base.card is None"),
        (lambda h: h.update(dtype="float12"), "dtype is 'float12'"),
        ("no JSON", "is no JSON"),
        ("[" * 99_999, "is no JSON"),
    ],
)
def test_a_malformed_header_is_named(delta: Path, change: Any, message: str) -> None:
    with_header(delta, change)
    model = bundles.CREPE_TINY.get_model()
    before = seen(model)
    with pytest.raises(PinError, match=message):
        load_delta(delta)
    with pytest.raises(PinError, match=message):
        load_delta(delta, model)
    assert seen(model) == before


def test_a_header_that_freezes_less_than_it_says_is_refused(delta: Path) -> None:
    with_header(delta, lambda h: h["freeze"]["plans"][0]["frozen"].pop())
    with pytest.raises(
        DeltaBaseError, match=r"another plan for this model: it has sha256:.* recorded is sha256"
    ):
        load_delta(delta)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(delta: Path, share: float) -> None:
    whole = delta.read_bytes()
    delta.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(
        WeightsFileError, match=r"run.safetensors is (damaged|empty|of no known format|.*damaged)"
    ):
        load_delta(delta)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(WeightsFileError, match=r"is no delta checkpoint.*load_into"):
        load_delta(path)
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(WeightsFileError, match=r"is a zip archive, as torch\.save writes it"):
        load_delta(path)
    with pytest.raises(FileNotFoundError, match="There is no delta file"):
        load_delta(tmp_path / "none.safetensors")


def test_what_cannot_be_written_leaves_what_was_there(delta: Path, tmp_path: Path) -> None:
    before = delta.read_bytes()
    with pytest.raises(CacheError, match="cannot be written"):
        save_delta(bundles.CREPE_TINY.get_model(), delta / "below.safetensors")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    with pytest.raises(CacheError, match="cannot be written"):
        save_delta(bundles.CREPE_TINY.get_model(), folder)
    with pytest.raises(CacheError, match=r"'.*a\\x00b' cannot be one of a file"):
        save_delta(bundles.CREPE_TINY.get_model(), f"{tmp_path}/a\0b")
    with pytest.raises(bundles.BuildError, match="A file cannot hold"):
        save_delta(bundles.CREPE_TINY.get_model(pretrained=False, device="meta"), delta)
    assert delta.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.safetensors", "run.safetensors"]


def test_a_kill_at_any_point_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    """The process is killed at each of its writes, syncs and renames in turn."""
    path = tmp_path / "run.safetensors"
    code = """
        import os, sys, torch, bundles
        from safetensors import safe_open
        torch.set_num_threads(1)
        path = sys.argv[1]
        model = bundles.freeze(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), "encoder")
        def save(value):
            torch.nn.init.constant_(model[1].weight, value)
            bundles.save_delta(model, path)
        def saved():
            with safe_open(path, framework="pt") as file:
                return file.get_tensor("1.weight").unique().tolist()
        save(1)
        found = []
        for point in range(9):
            if os.fork() == 0:
                seen = [0]
                def watch(event, arguments):
                    if event in ("open", "os.rename", "os.mkdir", "os.remove"):
                        seen[0] += 1
                        if seen[0] > point:
                            os.kill(os.getpid(), 9)
                sys.addaudithook(watch)
                save(2)
                os._exit(0)
            found.append((os.wait()[1], saved()))
        assert all(value in ([1.0], [2.0]) for _, value in found), found
        assert found[0] == (9, [1.0]) and found[-1] == (0, [2.0]), found
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})


# --- diff and merge -------------------------------------------------------------------------------


def test_diff_says_what_moved_and_how_far(
    delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = bundles.CREPE_TINY.get_model(freeze="last:1")
    with torch.no_grad():
        model.get_parameter("classifier.bias")[3] += 0.5
    path = save_delta(model, tmp_path / "moved.safetensors")
    for found in (diff(path), diff(path, delta)):
        moved = {entry.name: entry for entry in found if entry.moved}
        assert set(moved) == {"classifier.bias"}
        assert moved["classifier.bias"].moved == 1
        assert moved["classifier.bias"].largest == pytest.approx(0.5)
    with pytest.raises(SystemExit) as caught:
        main(["delta", "diff", str(path)])
    assert caught.value.code == 0
    captured = capsys.readouterr()
    row = next(line for line in captured.out.splitlines() if "classifier.bias" in line)
    assert "360" in row
    assert "0.5" in row
    assert f"1 of {len(stored(path))} stored tensors differ" in captured.err


def test_diff_of_masked_tensors_and_of_deltas_on_different_bases(
    delta: Path, speech: bundles.Bundle, tmp_path: Path
) -> None:
    model = bundles.CREPE_TINY.get_model()
    mask = torch.ones(360, dtype=torch.bool)
    mask[7] = False
    bundles.freeze(model, Elements({"classifier.bias": mask}) | ~Match("classifier.bias"))
    model.get_parameter("classifier.bias").data[7] += 1
    [entry] = diff(save_delta(model, tmp_path / "masked.safetensors"))
    assert (entry.name, entry.count, entry.moved, entry.largest) == ("classifier.bias", 360, 1, 1.0)
    other = save_delta(speech.get_model(freeze=True), tmp_path / "speech.safetensors")
    with pytest.raises(DeltaBaseError, match=r"different bases, CREPE_TINY .* and SMALL_ASR"):
        diff(delta, other)
    own = save_delta(bundles.freeze(TOYS["plain"].make(), "encoder"), tmp_path / "own.safetensors")
    assert [entry.moved for entry in diff(own, own)] == [0, 0]
    with pytest.raises(DeltaBaseError, match="written over a Model, which no bundle built"):
        diff(own)


def test_merge_makes_what_the_upstream_class_loads(speech: bundles.Bundle, hub: Hub, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = speech.get_model(freeze="last:1")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * parameter.requires_grad)
    path = save_delta(model, tmp_path / "run.safetensors")
    whole = merge(path, tmp_path / "whole.safetensors")
    theirs = hub.theirs("WAV2VEC2_ASR_BASE_960H")
    from torchaudio.pipelines._wav2vec2 import utils

    upstream = utils._get_model(theirs._model_type, theirs._params).eval()
    upstream.load_state_dict(load_file(whole), strict=True)
    x = torch.randn(1, 2000)
    assert torch.equal(upstream(x)[0], model(x)[0])

    pooled = speech.get_model(freeze=True, head=lambda n: heads.MeanPoolClassifier(n, 4))
    path = save_delta(pooled, tmp_path / "pooled.safetensors")
    with pytest.raises(SystemExit) as caught:
        main(["delta", "merge", str(path), "--to", str(tmp_path / "head.safetensors"), "--part", "head"])
    assert caught.value.code == 0
    pooled.get_submodule("head").load_state_dict(load_file(tmp_path / "head.safetensors"))
    with pytest.raises(WeightsFileError, match="nothing in 'tail': its parts are encoder, head"):
        merge(path, tmp_path / "tail.safetensors", part="tail")
    with pytest.raises(SystemExit) as caught:
        main(["delta", "merge", str(path), "--to", str(whole)])
    assert caught.value.code == 2


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(8, 3, bias=False),
        heads.CTCHead(8, 5, 0.2),
        heads.MeanPool(8),
        heads.MeanPoolClassifier(8, 2, 0.1),
        heads.AttentiveStatisticsPool(8, 4, channelwise=True),
        heads.AttentiveStatisticsClassifier(8, 2, attention_features=4),
        heads.TextClassifier(8, 2, hidden=5, activation="gelu"),
        heads.WeightedLayers(8, 3, heads.CTCHead(8, 5), normalize=True),
    ],
    ids=lambda head: type(head).__name__,
)
def test_a_recipe_makes_the_head_that_it_was_made_of(head: nn.Module) -> None:
    recipe = recipe_of(head)
    assert recipe is not None
    again = make_head(json.loads(json.dumps(recipe)), 8)
    assert repr(again) == repr(head)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in head.state_dict().items()
    }
    if list(head.parameters()):
        assert recipe_of(bundles.freeze(head, mode="features")) == recipe


def test_what_no_recipe_makes_has_none() -> None:
    changed = heads.MeanPoolClassifier(8, 2)
    changed.linear = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))  # type: ignore[assignment]
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 2))
    within = heads.WeightedLayers(8, 3, nn.Conv1d(8, 2, 1))
    assert [recipe_of(head) for head in (changed, normed, within, nn.Conv1d(8, 2, 1))] == [None] * 4


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "type = None is none of AttentiveStatisticsClassifier, .*Linear"),
        ({"type": "os.system"}, "type = 'os.system' is none of"),
        ({"type": "Linear", "num_classes": 3}, "takes out_features, bias and no 'num_classes'; Linear needs"),
        ({"type": "CTCHead", "num_labels": True}, "num_labels = True of CTCHead is not a number from 1"),
        ({"type": "CTCHead", "num_labels": 3, "dropout": 1.5}, "dropout = 1.5 of CTCHead is not a rate"),
        ({"type": "Linear", "out_features": 3, "bias": 1}, "bias = 1 of Linear is not a bool"),
        ({"type": "TextClassifier", "num_classes": 3, "activation": "elu"}, "activation = 'elu'"),
        (
            {"type": "WeightedLayers", "num_layers": 3, "head": {"type": "Line"}},
            "head of WeightedLayers: type",
        ),
        ([], "type = None is none of"),
    ],
)
def test_recipes_that_cannot_be_made(recipe: Any, message: str) -> None:
    with pytest.raises(HeadError, match=message):
        make_head(recipe, 8)


def test_what_a_model_was_built_of_survives_copies_and_pickles() -> None:
    import pickle

    model = bundles.CREPE_TINY.get_model(head=lambda n: nn.Linear(n, 3))
    assert built_of(model) == Built(bundles.CREPE_TINY, head="classifier")
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert built_of(again) == built_of(model)
        assert "_bundles_built" not in str(again.state_dict().keys())
    assert built_of(nn.Linear(2, 2)) is None
