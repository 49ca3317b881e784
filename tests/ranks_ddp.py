"""Checks of freezing under ``DistributedDataParallel``, each run on two ranks at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import bundles
from bundles import Elements, FreezeArgumentError, UnfreezeSchedule
from ranks import agree, batches, contents, moved
from toys import TOYS

SHAPE = TOYS["batchnorm1d"].shape
BLOCK = "encoder.blocks.{}.0.weight"


def frozen_before_the_wrap_stays_and_the_head_trains_alike(folder: Path) -> None:
    model = bundles.freeze(_toy(), "encoder")
    _check_training(model, DistributedDataParallel(model), {"head.proj.weight", "head.proj.bias"})


def frozen_after_a_wrap_that_finds_unused_parameters_stays_too(folder: Path) -> None:
    model = _toy()
    wrap = DistributedDataParallel(model, find_unused_parameters=True)
    assert bundles.freeze(wrap, "encoder") is wrap
    _check_training(model, wrap, {"head.proj.weight", "head.proj.bias"})


def freezing_under_another_wrap_is_refused_and_changes_nothing(folder: Path) -> None:
    model = _toy()
    wrap = DistributedDataParallel(model)
    _check_refused(lambda: bundles.freeze(wrap, "encoder"), "find_unused_parameters=True")
    assert all(parameter.requires_grad for parameter in model.parameters())
    _check_training(model, wrap, {name for name, _ in model.named_parameters()})


def thawing_what_the_wrap_found_frozen_is_refused_and_changes_nothing(folder: Path) -> None:
    model = bundles.freeze(_toy(), "encoder")
    wrap = DistributedDataParallel(model, find_unused_parameters=True)
    plan = bundles.freeze_plan(model)
    _check_refused(lambda: bundles.unfreeze(wrap), "wrap it again")
    _check_refused(lambda: bundles.freeze(wrap, "last:1"), "wrap it again")
    assert bundles.freeze_plan(model) == plan
    _check_training(model, wrap, {"head.proj.weight", "head.proj.bias"})


def a_schedule_that_thaws_what_the_wrap_saw_training_keeps_ranks_alike(folder: Path) -> None:
    model = _toy()
    wrap = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    schedule = UnfreezeSchedule({0: "encoder", 2: "last:1", 4: "none"}, warmup=2)
    before, thawed = contents(model), []
    for step, x in enumerate(batches(SHAPE, 6)):
        schedule.apply(wrap, step, optimizer=optimizer)
        _step(wrap, x, optimizer)
        assert agree(_parameters(model)), step
        thawed.append([BLOCK.format(block) in moved(model, before) for block in range(3)])
    assert thawed == [[False] * 3] * 2 + [[False, False, True]] * 2 + [[True] * 3] * 2


def layers_dropped_on_one_rank_only_need_no_search_when_they_are_held(folder: Path) -> None:
    model = bundles.freeze(TOYS["layerdrop"].make(), "last:1")
    wrap = DistributedDataParallel(model)
    before = contents(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(dist.get_rank())  # so that each rank would drop other layers
    for x in batches(SHAPE, 6):
        _step(wrap, x, optimizer)
    assert agree(contents(model))
    assert "encoder.blocks.0.weight" not in moved(model, before)
    assert "encoder.blocks.2.weight" in moved(model, before)


def statistics_are_equal_on_all_ranks_where_they_are_held_and_only_there(folder: Path) -> None:
    buffer = "encoder.blocks.{}.1.running_mean"
    model = bundles.freeze(_toy(), "last:1")
    before = contents(model)
    wrap = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x in batches(SHAPE, 3):
        _step(wrap, x, optimizer)
    now = contents(model)
    assert agree([now[buffer.format(block)] for block in (0, 1)])
    assert [now[buffer.format(block)] == before[buffer.format(block)] for block in (0, 1)] == [True, True]
    assert not agree(now[buffer.format(2)])  # the data differ, and it follows them


def frozen_elements_stay_on_every_rank_despite_old_momentum(folder: Path) -> None:
    model = _toy()
    wrap = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    for x in batches(SHAPE, 2):
        _step(wrap, x, optimizer)
    weight = model.get_parameter("head.proj.weight")
    mask: Any = torch.arange(weight.numel()).reshape(weight.shape) % 3 == 0
    bundles.freeze(wrap, Elements({"head.proj.weight": mask}))
    before = weight.detach().clone()
    for x in batches(SHAPE, 3):
        _step(wrap, x, optimizer)
    assert torch.equal(weight[mask], before[mask])
    assert not (weight == before)[~mask].any()
    assert agree(_parameters(model))


def elements_frozen_before_the_wrap_stay_too(folder: Path) -> None:
    mask: Any = torch.arange(24).reshape(3, 8) % 3 == 0
    model = bundles.freeze(_toy(), Elements({"head.proj.weight": mask}))
    weight = model.get_parameter("head.proj.weight")
    before = weight.detach().clone()
    wrap = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    for x in batches(SHAPE, 3):
        _step(wrap, x, optimizer)
    assert torch.equal(weight == before, mask)
    assert agree(_parameters(model))


def a_schedule_that_would_thaw_what_the_wrap_found_frozen_is_refused_at_once(folder: Path) -> None:
    model = bundles.freeze(_toy(), "encoder")
    wrap = DistributedDataParallel(model, find_unused_parameters=True)
    schedule = UnfreezeSchedule({0: "encoder", 100: "none"})
    _check_refused(lambda: schedule.apply(wrap, 0), "wrap it again")


def _toy() -> nn.Module:
    return TOYS["batchnorm1d"].make()


def _step(wrap: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)
    wrap.train()(x)[-1].square().sum().backward()
    optimizer.step()


def _check_training(model: nn.Module, wrap: nn.Module, trained: set[str]) -> None:
    """Train on data that differ, and check what moved, and that the ranks still agree."""
    before = contents(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    for x in batches(SHAPE, 4):
        _step(wrap, x, optimizer)
    changed = moved(model, before)
    assert changed.intersection(_parameters(model)) == trained
    assert changed == trained or trained == _parameters(model).keys()  # the statistics of what is frozen
    assert agree(_parameters(model))


def _parameters(model: nn.Module) -> dict[str, bytes]:
    names = dict(model.named_parameters())
    return {name: value for name, value in contents(model).items() if name in names}


def _check_refused(act: Callable[[], object], hint: str) -> None:
    try:
        act()
    except FreezeArgumentError as error:
        message = str(error)
    assert hint in message
