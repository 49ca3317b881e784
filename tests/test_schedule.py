"""Unfreeze schedules: values, what they put on a model at any step, warm-up, resuming."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

import bundles
from bundles import (
    Blocks,
    Encoder,
    ExceptLast,
    First,
    FreezeMode,
    FreezePolicy,
    Head,
    Match,
    Nothing,
    UnfreezeSchedule,
)
from bundles.errors import FreezeArgumentError
from toys import TOYS, contents, outputs, step

THREE = UnfreezeSchedule({0: "encoder", 4: "last:1", 8: "none"})


def toy(name: str = "plain") -> nn.Module:
    return TOYS[name].make().train()


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_step(model: nn.Module, x: Tensor, at: int, optimizer: torch.optim.Optimizer) -> None:
    """Take a step with the random numbers of that step."""
    torch.manual_seed(at)
    step(model, x, optimizer)


def moved(before: dict[str, bytes], model: nn.Module) -> set[str]:
    return {name for name, value in contents(model).items() if before[name] != value}


# --- the value ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "policy"),
    [
        (0, Encoder()),
        (3, Encoder()),
        (4, ExceptLast(1)),
        (7, ExceptLast(1)),
        (8, Nothing()),
        (10**9, Nothing()),
    ],
)
def test_a_policy_holds_from_its_milestone_to_the_next(at: int, policy: FreezePolicy) -> None:
    assert THREE.policy_at(at) == policy
    assert THREE.milestone_at(at) == max(m for m in (0, 4, 8) if m <= at)


@pytest.mark.parametrize(
    "schedule",
    [
        THREE,
        UnfreezeSchedule({0: Encoder() & ~Match("*.bias"), 7: Head()}, mode="regularized", warmup=5),
        UnfreezeSchedule({0: "blocks:0-2"}, mode=FreezeMode(noise="follow")),
        UnfreezeSchedule.gradual(4, every=3),
    ],
)
def test_the_repr_of_a_schedule_makes_an_equal_one(schedule: UnfreezeSchedule) -> None:
    again = eval(repr(schedule), vars(bundles))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert repr(again) == repr(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_the_order_and_the_spelling_of_milestones_do_not_count() -> None:
    assert UnfreezeSchedule({8: Nothing(), 0: Encoder(), 4: ExceptLast(1)}) == THREE
    assert UnfreezeSchedule({0: "encoder", 4: "last:1", 8: "none"}, warmup=1) != THREE
    assert UnfreezeSchedule({0: "encoder", 4: "last:1", 8: "none"}, mode="weights") != THREE


def test_gradual_goes_from_the_head_down_and_ends_with_everything() -> None:
    steps = [(at, str(policy)) for at, policy in UnfreezeSchedule.gradual(4, every=10, start=100).milestones]
    assert steps == [
        (0, "ExceptLast(0)"),
        (100, "ExceptLast(1)"),
        (110, "ExceptLast(2)"),
        (120, "ExceptLast(3)"),
        (130, "Nothing()"),
    ]
    assert UnfreezeSchedule.gradual(1, every=5).milestones == ((0, ExceptLast(0)), (5, Nothing()))


@pytest.mark.parametrize(
    "schedule",
    [
        UnfreezeSchedule(
            dict(
                enumerate(["encoder", "head", "all", "none", "loaded", "last:2", "first:3", "blocks:1-3,6"])
            ),
            mode="features",
            warmup=7,
        ),
        UnfreezeSchedule({0: "match:a.*[bc]", 5: "feature_extractor"}, mode=FreezeMode(noise="follow")),
        UnfreezeSchedule({0: Blocks(3, 1), 1: First(1)}),
    ],
)
def test_a_schedule_survives_json(schedule: UnfreezeSchedule) -> None:
    assert UnfreezeSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_a_policy_without_a_string_cannot_be_written() -> None:
    with pytest.raises(FreezeArgumentError, match=r"Encoder\(\) \| Head\(\) has no string.*pickle"):
        UnfreezeSchedule({0: Encoder() | Head()}).to_dict()


@pytest.mark.parametrize(
    "data", [{}, {"milestones": 3, "mode": "eval", "warmup": 0}, {"milestones": [[0, "x"]], "mode": "eval"}]
)
def test_what_is_no_written_schedule_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(FreezeArgumentError, match="is not a schedule written by to_dict"):
        UnfreezeSchedule.from_dict(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnfreezeSchedule({}), "not a mapping from step to policy"),
        (lambda: UnfreezeSchedule("encoder"), "not a mapping from step to policy"),  # type: ignore[arg-type]
        (lambda: UnfreezeSchedule({10: "none"}), "first milestone is 10: say what is frozen from step 0"),
        (lambda: UnfreezeSchedule({0: "encoder", -1: "none"}), "milestone -1 is not a whole number from 0"),
        (lambda: UnfreezeSchedule({0: "encoder", 1.5: "none"}), "milestone 1.5"),  # type: ignore[dict-item]
        (lambda: UnfreezeSchedule({0: "encoder", True: "none"}), "milestone True"),
        (lambda: UnfreezeSchedule({0: "encodr"}), "Freeze policy 'encodr' is not known"),
        (lambda: UnfreezeSchedule({0: "encoder"}, mode="evil"), "Freeze mode 'evil' is not known"),
        (lambda: UnfreezeSchedule({0: "encoder"}, warmup=-1), "warmup -1"),
        (lambda: UnfreezeSchedule.gradual(0), "blocks 0 is not a whole number from 1"),
        (lambda: UnfreezeSchedule.gradual(3, every=0), "every 0"),
        (lambda: UnfreezeSchedule.lp_ft(at=0), "at 0 is not a whole number from 1"),
        (lambda: THREE.policy_at(-1), "step -1 is not a whole number from 0"),
        (lambda: THREE.apply(toy(), 0.5), "step 0.5"),  # type: ignore[arg-type]
    ],
)
def test_what_is_malformed_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FreezeArgumentError, match=message):
        make()


# --- what it puts on a model ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "dropout", "batchnorm1d", "tied", "layerdrop"])
def test_any_order_of_steps_gives_what_a_freeze_of_that_step_gives(name: str) -> None:
    schedule, x = (
        UnfreezeSchedule({0: "encoder", 4: "last:1", 8: "none", 9: "first:1"}),
        TOYS[name].make_input(),
    )
    steps = [random.Random(7).randrange(12) for _ in range(12)]
    model = toy(name)
    for at in steps:
        schedule.apply(model, at)
        fresh = bundles.freeze(toy(name), schedule.policy_at(at))
        assert trainable(model) == trainable(fresh)
        assert bundles.freeze_plan(model) == bundles.freeze_plan(fresh)
        assert outputs(model, x) == outputs(fresh, x)
        assert bundles.freeze_report(model).problems == ()


def test_it_says_whether_the_plan_changed_and_leaves_it_otherwise() -> None:
    model = toy()
    changes = []
    for at in range(10):
        before = bundles.freeze_plan(model)
        changes.append(THREE.apply(model, at))
        assert (bundles.freeze_plan(model) is not before) == changes[-1]
    assert [at for at, changed in enumerate(changes) if changed] == [0, 4, 8]


def test_a_freeze_or_unfreeze_by_hand_does_not_stay() -> None:
    model = toy()
    THREE.apply(model, 0)
    expected = bundles.freeze_plan(model)
    meddlings: list[Callable[[], Any]] = [
        lambda: bundles.unfreeze(model),
        lambda: bundles.unfreeze(model, "blocks:1"),
        lambda: bundles.freeze(model, "head"),
        lambda: bundles.freeze(model, "encoder", "mc"),
    ]
    for meddle in meddlings:
        meddle()
        assert THREE.apply(model, 1)
        assert bundles.freeze_plan(model) == expected
        assert not THREE.apply(model, 2)


def test_copies_and_restarts_need_no_state() -> None:
    model = toy()
    THREE.apply(model, 5)
    twin = copy.deepcopy(model)
    assert not THREE.apply(twin, 6)
    assert UnfreezeSchedule.from_dict(THREE.to_dict()).apply(twin, 9)
    assert trainable(twin) == set(dict(twin.named_parameters()))
    assert trainable(model) != trainable(twin)


def test_the_groups_are_those_of_the_first_freeze() -> None:
    model = toy()
    bundles.freeze(model, "none", groups={"blocks": "encoder.blocks.{i}", "head": ["head"]})
    model.add_module("extra", nn.Linear(8, 8))
    THREE.apply(model, 0)
    assert bundles.layer_groups(model).names == ("block.0", "block.1", "block.2", "head", "unlisted")
    assert trainable(model) == {"head.proj.weight", "head.proj.bias", "extra.weight", "extra.bias"}


def test_a_head_that_came_later_trains_from_the_next_milestone_on() -> None:
    model, x = toy(), torch.randn(4, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    THREE.apply(model, 0, optimizer=optimizer)
    head = model.get_submodule("head")
    head.proj = nn.Linear(8, 5)
    before = contents(model)
    THREE.apply(model, 4, optimizer=optimizer)
    step(model, x, optimizer)
    assert moved(before, model) == {n for n in before if n.startswith(("encoder.blocks.2", "head"))}


# --- optimizers -----------------------------------------------------------------------------------


def test_gradual_unfreezing_trains_one_more_block_each_time() -> None:
    model, x = toy(), torch.randn(4, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    schedule = UnfreezeSchedule.gradual(len(bundles.layer_groups(model).blocks))
    for epoch in range(5):
        schedule.apply(model, epoch, optimizer=optimizer)
        before = contents(model)
        step(model, x, optimizer)
        lowest = max(3 - epoch, 0)
        expected = {f"encoder.blocks.{i}.0" for i in range(lowest, 3)} | {"head.proj"}
        assert {name.rpartition(".")[0] for name in moved(before, model)} == expected


@pytest.mark.parametrize("passed", [True, False])
def test_what_is_frozen_again_stops_at_once_with_its_momentum_and_decay(passed: bool) -> None:
    schedule = UnfreezeSchedule({0: "none", 3: "encoder", 6: "none"})
    model, x = toy(), torch.randn(4, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    encoder = {f"encoder.{name}" for name, _ in model.get_submodule("encoder").named_parameters()}
    for at in range(9):
        schedule.apply(model, at, optimizer=optimizer if passed else None)
        before = contents(model)
        step(model, x, optimizer)
        assert moved(before, model) & encoder == (set() if 3 <= at < 6 else encoder)
        held = {id(parameter) for parameter in optimizer.state}
        gone = {id(model.get_parameter(name)) for name in encoder}
        assert held.isdisjoint(gone) == (passed and 3 <= at < 6)


def test_an_optimizer_of_the_head_alone_gets_what_thaws_also_when_it_is_given_late() -> None:
    model, x = toy(), torch.randn(4, 8)
    THREE.apply(model, 0)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    assert THREE.apply(model, 4)  # without it
    assert not THREE.apply(model, 5, optimizer=optimizer)
    before = contents(model)
    step(model, x, optimizer)
    assert moved(before, model) == trainable(model)
    assert not THREE.apply(model, 6, optimizer=optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


# --- warm-up --------------------------------------------------------------------------------------


def by_block(model: nn.Module) -> list[dict[str, Any]]:
    """One optimizer group per layer group, in the order of the model."""
    return [{key: group[key] for key in ("params", "name")} for group in bundles.param_groups(model, lr=1)]


WARM = UnfreezeSchedule({0: "last:0", 2: "last:1", 4: "last:2", 9: "none"}, warmup=4)
SINCE = {"head": 0, "block.2": 2, "block.1": 4, "block.0": 9}


def factor(group: str, at: int) -> float:
    return 1.0 if group == "head" else min(1.0, (at - SINCE[group] + 1) / 4)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3, fused=True),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_warming_up_equals_setting_the_rate_of_each_block_by_hand(name: str) -> None:
    x, make = torch.randn(4, 8), OPTIMIZERS[name]
    model, by_hand = toy(), toy()
    optimizer = make(list(model.parameters()))
    rate = optimizer.param_groups[0]["lr"]
    other = make(by_block(by_hand))
    for at in range(14):
        WARM.apply(model, at, optimizer=optimizer)
        bundles.freeze(by_hand, WARM.policy_at(at), optimizer=other)
        for group in other.param_groups:
            group["lr"] = rate * factor(group["name"], at)
        train_step(model, x, at, optimizer)
        train_step(by_hand, x, at, other)
        assert contents(model) == contents(by_hand), at
        assert len(optimizer.param_groups) == 1
        assert optimizer.param_groups[0]["lr"] is rate


def test_after_the_warm_up_nothing_is_left_in_the_optimizer() -> None:
    model, x = toy(), torch.randn(4, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hooks = optimizer._optimizer_step_pre_hooks
    counts = []
    for at in range(14):
        WARM.apply(model, at, optimizer=optimizer)
        counts.append(len(hooks))
        step(model, x, optimizer)
    assert counts == [0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0]


def test_an_interrupted_step_leaves_the_optimizer_as_it_was() -> None:
    model = toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    WARM.apply(model, 2, optimizer=optimizer)
    saved = optimizer.state_dict()

    def interrupt() -> float:
        assert len(optimizer.param_groups) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupt)
    assert optimizer.state_dict() == saved
    assert len(optimizer.param_groups) == 1


class Derived(torch.optim.SGD):
    """Its step calls that of its base, so hooks run twice."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_an_optimizer_that_calls_its_base_warms_up_once() -> None:
    x, done = torch.randn(4, 8), []
    for cls in (torch.optim.SGD, Derived):
        model = toy()
        optimizer = cls(model.parameters(), lr=0.1, momentum=0.9)
        for at in range(8):
            WARM.apply(model, at, optimizer=optimizer)
            train_step(model, x, at, optimizer)
        done.append(contents(model))
    assert done[0] == done[1]


def test_a_warm_up_needs_an_optimizer_that_can() -> None:
    model = toy()
    with pytest.raises(FreezeArgumentError, match=r"warmup=4 needs .* type schedule\.apply\("):
        WARM.apply(model, 0)
    lbfgs = torch.optim.LBFGS(model.parameters())
    WARM.apply(model, 0, optimizer=lbfgs)
    with pytest.raises(FreezeArgumentError, match=r"LBFGS goes one length .* warmup=0"):
        WARM.apply(model, 2, optimizer=lbfgs)


# --- resuming -------------------------------------------------------------------------------------


def halving(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda at: 0.5 ** (at // 3))


def one_cycle(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, max_lr=0.05, total_steps=20)


class Run:
    """A training run that can be stopped and started again at any step."""

    def __init__(self, schedule: UnfreezeSchedule, scheduler: Callable[..., LRScheduler]) -> None:
        self.schedule, self.model = schedule, toy()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02, weight_decay=0.3)
        self.scheduler = scheduler(self.optimizer)
        self.at = 0

    def load(self, at: int, saved: dict[str, Any]) -> None:
        last = max(at - 1, 0)  # the state was saved after this step: a milestone may have come since
        self.schedule.apply(self.model, last, optimizer=self.optimizer)
        for name, state in saved.items():
            getattr(self, name).load_state_dict(state)
        self.at = at

    def save(self) -> dict[str, Any]:
        return copy.deepcopy({n: getattr(self, n).state_dict() for n in ("model", "optimizer", "scheduler")})

    def train(self, x: Tensor, until: int) -> None:
        for at in range(self.at, until):
            self.schedule.apply(self.model, at, optimizer=self.optimizer)
            train_step(self.model, x, at, self.optimizer)
            self.scheduler.step()
        self.at = until


@pytest.mark.parametrize("scheduler", [halving, one_cycle])
@pytest.mark.parametrize("warmup", [0, 4])
def test_a_run_resumed_at_any_step_ends_with_the_same_bits(
    scheduler: Callable[..., LRScheduler], warmup: int
) -> None:
    milestones = {0: "last:0", 2: "last:1", 4: "none", 9: "first:1", 11: "none"}
    schedule = UnfreezeSchedule(milestones, warmup=warmup)
    x, whole = torch.randn(4, 8), Run(schedule, scheduler)
    saves = []
    for at in range(14):
        saves.append(whole.save())
        whole.train(x, at + 1)
    for at, saved in enumerate(saves):
        resumed = Run(schedule, scheduler)
        resumed.load(at, saved)
        resumed.train(x, 14)
        assert contents(resumed.model) == contents(whole.model), at
        assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_a_policy_that_only_a_bundle_can_settle_is_refused_when_the_schedule_is_made() -> None:
    with pytest.raises(bundles.FreezeArgumentError, match=r"depends on what fits a bundle"):
        bundles.UnfreezeSchedule({0: "fit:8GB", 5: "none"})
