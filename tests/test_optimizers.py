"""Optimizers, scalers, schedulers, averages and DDP beside a model that is frozen and thawed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import bundles
from bundles import NothingTrainableWarning, Scores, UnfreezeSchedule
from bundles.errors import FreezeArgumentError
from toys import TOYS, as_bytes, contents, step

ENCODER = {f"encoder.blocks.{i}.0.{kind}" for i in range(3) for kind in ("weight", "bias")}
GROUPS = ("block.0", "block.1", "block.2", "head")
HEAD = {"head.proj.weight", "head.proj.bias"}


def toy(name: str = "plain") -> nn.Module:
    return TOYS[name].make().train()


def moved(before: dict[str, bytes], model: nn.Module) -> set[str]:
    return {name for name, value in contents(model).items() if before[name] != value}


def names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of an optimizer's parameters, group by group."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


# --- nothing frozen moves, under any optimizer ----------------------------------------------------

EVERY: dict[str, Callable[..., torch.optim.Optimizer]] = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in ("Optimizer", "SparseAdam", "LBFGS")
}


def build(name: str, parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """The optimizer of that name; where it takes matrices alone, with another for the rest."""
    momentum = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    decay = {} if name == "Rprop" else {"weight_decay": 0.1}
    if name == "Muon":
        matrices, rest = ([p for p in parameters if (p.ndim == 2) == flag] for flag in (True, False))
        return [EVERY[name](matrices, lr=0.01, **decay), torch.optim.SGD(rest, lr=0.01, momentum=0.9)]
    return [EVERY[name](parameters, lr=0.01, **momentum, **decay)]


@pytest.mark.parametrize("name", EVERY)
def test_what_is_frozen_stays_and_what_thaws_trains_again(name: str) -> None:
    model, x = toy(), torch.randn(4, 8)
    optimizers = build(name, list(model.parameters()))
    step(model, x, *optimizers)
    step(model, x, *optimizers)
    model(x)[-1].sum().backward()  # a gradient that the freeze finds
    bundles.freeze(model, "encoder", optimizer=optimizers)
    for _ in range(3):
        before = contents(model)
        step(model, x, *optimizers)
        assert moved(before, model) == HEAD
    bundles.unfreeze(model, optimizer=optimizers)
    before = contents(model)
    step(model, x, *optimizers)
    assert moved(before, model) == ENCODER | HEAD


def test_lbfgs_forgets_its_direction_only_when_what_trains_changes() -> None:
    model, x = toy(), torch.randn(4, 8)
    optimizer: Any = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model.eval()(x)[-1].square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    optimizer.step(closure)
    bundles.freeze(model, "encoder", optimizer=optimizer)
    before = contents(model)
    optimizer.step(closure)
    assert moved(before, model) == HEAD
    saved = copy.deepcopy(optimizer.state_dict()["state"])
    bundles.freeze(model, "encoder", optimizer=optimizer)
    assert saved[0]["n_iter"] == optimizer.state_dict()["state"][0]["n_iter"] > 0
    bundles.unfreeze(model, optimizer=optimizer)
    assert not optimizer.state_dict()["state"]
    before = contents(model)
    optimizer.step(closure)
    assert moved(before, model) == ENCODER | HEAD


# --- several optimizers ---------------------------------------------------------------------------


def test_each_of_several_optimizers_gets_back_its_own() -> None:
    model, x = toy(), torch.randn(4, 8)
    blocks = model.get_submodule("encoder")
    low = torch.optim.SGD(blocks.parameters(), lr=0.1)
    high = torch.optim.Adam(model.get_submodule("head").parameters(), lr=0.1)
    before = names(model, low), names(model, high)
    bundles.freeze(model, "last:1", optimizer=[high, low])
    assert names(model, low) == [["encoder.blocks.2.0.weight", "encoder.blocks.2.0.bias"]]
    bundles.unfreeze(model, optimizer=[high, low])
    assert (names(model, low), names(model, high)) == before
    start = contents(model)
    step(model, x, low, high)
    assert moved(start, model) == ENCODER | HEAD


def test_what_no_optimizer_has_had_goes_to_the_first() -> None:
    model = bundles.freeze(toy(), "last:1")
    blocks = torch.optim.SGD(model.get_submodule("encoder.blocks.2").parameters(), lr=0.1)
    head = torch.optim.SGD(model.get_submodule("head").parameters(), lr=0.1)
    bundles.unfreeze(model, "blocks:1", optimizer=[blocks, head])
    assert names(model, blocks)[1] == ["encoder.blocks.1.0.weight", "encoder.blocks.1.0.bias"]
    assert names(model, head) == [["head.proj.weight", "head.proj.bias"]]


@pytest.mark.parametrize("wrong", ["adam", 3, {"a": 1}, [torch.nn.Linear(1, 1)]])
def test_what_is_no_optimizer_is_refused_before_anything_changes(wrong: Any) -> None:
    model = toy()
    for call in (
        lambda: bundles.freeze(model, "encoder", optimizer=wrong),
        lambda: bundles.unfreeze(model, optimizer=wrong),
        lambda: UnfreezeSchedule({0: "encoder"}).apply(model, 0, optimizer=wrong),
    ):
        with pytest.raises(FreezeArgumentError, match=r"is not a torch\.optim\.Optimizer"):
            call()
    assert bundles.freeze_plan(model) is None


def test_the_wrapper_of_a_trainer_is_looked_through() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, x = toy(), torch.randn(4, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    wrapped = accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)
    schedule = UnfreezeSchedule({0: "encoder", 1: "none"}, warmup=2)
    for at, expected in enumerate([HEAD, ENCODER | HEAD]):
        schedule.apply(model, at, optimizer=wrapped)
        before = contents(model)
        step(model, x, wrapped)
        assert moved(before, model) == expected
        assert set(names(model, optimizer)[0]) == expected


# --- gradient scalers (P7) ------------------------------------------------------------------------


def test_an_optimizer_without_parameters_is_told_of_once_and_the_line_to_type_works() -> None:
    model, x = toy(), torch.randn(4, 8)
    low = torch.optim.SGD(model.get_submodule("encoder").parameters(), lr=0.1)
    high = torch.optim.SGD(model.get_submodule("head").parameters(), lr=0.1)
    with pytest.warns(NothingTrainableWarning, match=r"leaves the SGD .* any\(group\['params'\]"):
        bundles.freeze(model, "encoder", optimizer=[low, high])
    bundles.freeze(model, "encoder", optimizer=[low, high])
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(x)[-1].sum()).backward()
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(low)
    before = contents(model)
    for optimizer in (low, high):
        if any(group["params"] for group in optimizer.param_groups):
            scaler.step(optimizer)
    scaler.update()
    assert moved(before, model) == HEAD


def test_a_scaler_goes_on_with_one_optimizer_over_both_parts() -> None:
    model, x = toy(), torch.randn(4, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    for policy, expected in (("none", ENCODER | HEAD), ("encoder", HEAD), ("none", ENCODER | HEAD)):
        bundles.freeze(model, policy, optimizer=optimizer)
        before = contents(model)
        optimizer.zero_grad()
        scaler.scale(model(x)[-1].square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert moved(before, model) == expected


# --- optimizer checkpoints (P6) -------------------------------------------------------------------


def trained(model: nn.Module, steps: int = 2) -> torch.optim.Optimizer:
    groups = [{"params": module.parameters()} for module in model.children()]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)
    for _ in range(steps):
        step(model, torch.ones(4, 8), optimizer)
    return optimizer


def test_a_state_saved_before_the_freeze_loads_after_it() -> None:
    model = toy()
    optimizer = trained(model)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = {id(p): as_bytes(optimizer.state[p]["exp_avg"]) for p in model.parameters()}
    bundles.freeze(model, "last:1", optimizer=optimizer)
    step(model, torch.ones(4, 8), optimizer)
    optimizer.load_state_dict(saved)
    left = {id(p): as_bytes(state["exp_avg"]) for p, state in optimizer.state.items()}
    assert left == {id(p): kept[id(p)] for p in model.parameters() if p.requires_grad}
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
    step(model, torch.ones(4, 8), optimizer)


def test_a_state_saved_under_a_freeze_loads_into_a_fresh_optimizer_frozen_alike() -> None:
    model = toy()
    optimizer = trained(model)
    bundles.freeze(model, "last:1", optimizer=optimizer)
    step(model, torch.ones(4, 8), optimizer)
    other = copy.deepcopy(bundles.unfreeze(copy.deepcopy(model)))
    fresh = trained(other, steps=0)
    bundles.freeze(other, "last:1", optimizer=fresh)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (other, fresh)):
        torch.manual_seed(0)
        step(each, torch.ones(4, 8), its)
    assert contents(other) == contents(model)


def test_a_state_that_lacks_what_trains_now_is_refused_with_what_to_do() -> None:
    model = toy()
    optimizer = trained(model)
    bundles.freeze(model, "last:1", optimizer=optimizer)
    saved = optimizer.state_dict()
    bundles.unfreeze(model, optimizer=optimizer)
    with pytest.raises(FreezeArgumentError, match=r"\[2, 2\] parameters .* has \[6, 2\]: freeze what was"):
        optimizer.load_state_dict(saved)


# --- learning-rate schedulers ---------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda at: 0.5**at),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_when_parameters_come_that_the_optimizer_never_had(name: str) -> None:
    model, x = bundles.freeze(toy(), "encoder"), torch.randn(4, 8)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    alone = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    reference = SCHEDULERS[name](alone)
    for policy in ("encoder", "last:1", "none", "encoder", "none"):
        bundles.freeze(model, policy, optimizer=optimizer)
        before = contents(model)
        step(model, x, optimizer)
        assert moved(before, model) == {n for n, p in model.named_parameters() if p.requires_grad}
        alone.step()
        for each in (scheduler, reference):
            each.step(*([1.0] if name == "plateau" else []))
        rates = {group["lr"] for group in optimizer.param_groups}
        assert rates == ({alone.param_groups[0]["lr"]} if name != "plateau" else rates)


# --- averages (P9) --------------------------------------------------------------------------------


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.999)])  # type: ignore[no-untyped-call]
def test_an_average_keeps_frozen_tensors_bit_for_bit(buffers: bool, average: Any) -> None:
    model = bundles.freeze(toy("batchnorm1d"), "encoder").train()
    x = torch.randn(6, 8)
    frozen = {n: v for n, v in contents(model).items() if n.startswith("encoder")}
    mean = AveragedModel(model, multi_avg_fn=average, use_buffers=buffers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(300):
        step(model, x, optimizer)
        mean.update_parameters(model)
    copies = contents(mean.module)
    assert {name: copies[name] for name in frozen} == frozen
    assert copies["head.proj.weight"] != contents(model)["head.proj.weight"]
    assert bundles.freeze_report(mean.module).problems == ()


# --- weight decay and scores in param_groups ------------------------------------------------------


def decays(model: nn.Module, **options: Any) -> dict[str, float]:
    """What each parameter decays by."""
    groups = bundles.param_groups(model, lr=1.0, weight_decay=0.1, **options)
    assert len({group["name"] for group in groups}) == len(groups)
    torch.optim.AdamW(groups)
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {known[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}


def test_norms_and_biases_may_be_left_out_of_the_decay() -> None:
    model = toy("transformer")
    found = decays(model, no_decay="norms_and_biases")
    assert set(found) == set(dict(model.named_parameters()))
    assert {name for name, decay in found.items() if decay} == {
        name for name, parameter in model.named_parameters() if parameter.ndim > 1
    }
    assert set(decays(model).values()) == {0.1}


def test_globs_name_what_takes_no_decay() -> None:
    model = toy("transformer")
    found = decays(model, no_decay=("encoder.blocks.0", "*.norm?", "head"))
    spared = {n for n in found if n.startswith(("encoder.blocks.0.", "head.")) or ".norm" in n}
    assert {name for name, decay in found.items() if not decay} == spared


def test_a_tied_weight_is_spared_under_either_name() -> None:
    model = toy("tied")
    assert decays(model, no_decay=("encoder.embedding",))["encoder.embedding.weight"] == 0


@pytest.mark.parametrize(
    ("no_decay", "message"),
    [
        ("norms", r"no_decay='norms' is neither 'norms_and_biases' nor a tuple of globs"),
        (("*.bias", "nrom*"), r"nrom\* matches no parameter; the first are encoder\.blocks\.0"),
        (("",), "needs a pattern"),
    ],
)
def test_a_malformed_no_decay_is_refused(no_decay: Any, message: str) -> None:
    with pytest.raises(FreezeArgumentError, match=message):
        decays(toy(), no_decay=no_decay)


def test_rates_follow_scores_per_group() -> None:
    model = toy()
    scores = Scores("rgn", "group", {"block.0": 1.0, "block.1": 4.0, "block.2": 0.0, "head": 2.0})
    groups = bundles.param_groups(model, lr=0.5, layer_decay=0.5, scores=scores)
    assert {group["name"]: group["lr"] for group in groups} == {
        "block.0": 0.5 * 0.125 * 0.25,
        "block.1": 0.5 * 0.25,
        "block.2": 0.0,
        "head": 0.5 * 0.5,
    }


def test_rates_follow_scores_per_tensor_and_what_is_frozen_sets_no_scale() -> None:
    model = bundles.freeze(toy(), "last:1")
    values = {name: float(index) for index, (name, _) in enumerate(reversed(list(model.named_parameters())))}
    groups = bundles.param_groups(
        model, lr=1.0, weight_decay=0.1, no_decay=("*.bias",), scores=Scores("rgn", "tensor", values)
    )
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in groups} == {
        "encoder.blocks.2.0.weight": (1.0, 0.1),
        "encoder.blocks.2.0.bias/no_decay": (2 / 3, 0.0),
        "head.proj.weight": (1 / 3, 0.1),
        "head.proj.bias/no_decay": (0.0, 0.0),
    }


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (Scores("rgn", "group", {"head": 1.0}), r"lack block\.0, block\.1, block\.2, which trains"),
        (Scores("snr", "group", dict.fromkeys(["block.0", "block.1", "block.2", "head"], 0.0)), "not all 0"),
        (
            Scores("x", "group", {**dict.fromkeys(["block.0", "block.1", "block.2"], 1.0), "head": -1.0}),
            "-1.0 to",
        ),
        (Scores("lrp", "unit", {"head.proj.weight": (1.0,)}), "per group or tensor"),
        ({"head": 1.0}, "per group or tensor"),
    ],
)
def test_scores_that_give_no_rates_are_refused(scores: Any, message: str) -> None:
    with pytest.raises(FreezeArgumentError, match=message):
        bundles.param_groups(toy(), lr=1.0, scores=scores)


# --- DistributedDataParallel ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


FINDS = {"find_unused_parameters": True}


def ddp_step(wrapped: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """Take a step through the wrap and return what moved."""
    before = contents(wrapped.module)  # type: ignore[arg-type]
    optimizer.zero_grad()
    wrapped(torch.ones(4, 8))[-1].square().mean().backward()
    optimizer.step()
    return moved(before, wrapped.module)  # type: ignore[arg-type]


@pytest.mark.usefixtures("process_group")
def test_thawing_what_did_not_train_when_it_was_wrapped_is_refused() -> None:
    model = bundles.freeze(toy(), "last:1")
    wrapped = DistributedDataParallel(model, **FINDS)  # type: ignore[arg-type]
    plan, flags = bundles.freeze_plan(model), [p.requires_grad for p in model.parameters()]
    schedule = UnfreezeSchedule({0: "last:1", 5: "none"})
    compiled: Any = torch.compile(wrapped)
    calls: list[Callable[[], Any]] = [
        lambda: bundles.unfreeze(wrapped),
        lambda: bundles.unfreeze(wrapped, "blocks:0"),
        lambda: bundles.freeze(wrapped, "first:1"),
        lambda: schedule.apply(wrapped, 5),
        lambda: bundles.frozen(wrapped, "first:1").__enter__(),
        lambda: bundles.unfreeze(compiled),
    ]
    for call in calls:
        with pytest.raises(FreezeArgumentError, match=r"built while encoder\.blocks\.[01].* did not train"):
            call()
        assert bundles.freeze_plan(model) is plan
        assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.usefixtures("process_group")
def test_a_schedule_is_refused_at_its_first_step_for_what_it_does_at_its_last() -> None:
    wrapped = DistributedDataParallel(bundles.freeze(toy(), "encoder"), **FINDS)  # type: ignore[arg-type]
    bundles.freeze(wrapped, "encoder", "weights")
    with pytest.raises(FreezeArgumentError, match="wrap a model in which everything that will ever train"):
        UnfreezeSchedule.lp_ft(at=1000).apply(wrapped, 0)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("options", [{}, {"static_graph": True}])
def test_freezing_under_a_wrap_that_waits_for_every_gradient_is_refused(options: dict[str, bool]) -> None:
    model = toy()
    wrapped = DistributedDataParallel(model, **options)  # type: ignore[arg-type]
    with pytest.raises(FreezeArgumentError, match=r"waits for gradients of .* find_unused_parameters=True"):
        bundles.freeze(wrapped, "encoder")
    assert bundles.freeze_plan(model) is None
    bundles.freeze(wrapped, "none")


@pytest.mark.usefixtures("process_group")
def test_a_wrap_of_what_was_frozen_before_may_freeze_the_same_again() -> None:
    wrapped = DistributedDataParallel(bundles.freeze(toy(), "encoder"))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for mode in ("eval", "weights"):
        bundles.freeze(wrapped, "encoder", mode, optimizer=optimizer)
        assert ddp_step(wrapped, optimizer) == HEAD


@pytest.mark.usefixtures("process_group")
def test_a_schedule_freezes_and_thaws_under_a_wrap_in_which_everything_trained() -> None:
    wrapped = DistributedDataParallel(toy(), **FINDS)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.01, weight_decay=0.3)
    schedule = UnfreezeSchedule({0: "encoder", 2: "last:1", 4: "none", 6: "encoder"}, warmup=2)
    last = {name for name in ENCODER if ".2." in name} | HEAD
    for at, expected in enumerate([HEAD, HEAD, last, last, ENCODER | HEAD, ENCODER | HEAD, HEAD, HEAD]):
        assert schedule.apply(wrapped, at, optimizer=optimizer) == (at % 2 == 0)
        assert ddp_step(wrapped, optimizer) == expected


@pytest.mark.usefixtures("process_group")
def test_parameters_that_the_wrap_shall_ignore_are_freely_frozen_and_thawed() -> None:
    model = toy()
    ignored = [name for name, _ in model.named_parameters() if "blocks.0" in name]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)  # type: ignore[no-untyped-call]
    wrapped = DistributedDataParallel(model)
    bundles.freeze(wrapped, "first:1")
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ignored
    bundles.unfreeze(wrapped)
    assert all(parameter.requires_grad for parameter in model.parameters())
