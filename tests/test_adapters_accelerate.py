"""accelerate: what is frozen stays so, and a saved and loaded run ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import bundles
from adapter_checks import (
    BATCH,
    BUFFERS,
    EPOCHS,
    FROZEN,
    GOOD,
    MOVED,
    NOISE,
    RESUME,
    Model,
    Watch,
    frozen_by_hand,
    make_data,
    make_model,
    same_contents,
    schedule,
    seed,
    trial,
)
from bundles.errors import FreezeArgumentError, FrozenDriftError, NothingTrainableWarning, PinError

accelerate = pytest.importorskip("accelerate")

STEPS = 6  # of an epoch


class Run:
    """A loop as the examples of accelerate have it: shuffled data, momentum, a learning-rate scheduler."""

    def __init__(
        self,
        model: nn.Module,
        freezing: Callable[..., Any] | None = None,
        *,
        over_all: bool = True,
        **options: Any,
    ) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True)
        trained = [p for p in model.parameters() if p.requires_grad or over_all]
        optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.1)
        self.model, self.optimizer, self.data, self.rate = self.accelerator.prepare(
            model,
            optimizer,
            DataLoader(make_data(), BATCH, shuffle=True),
            torch.optim.lr_scheduler.StepLR(optimizer, STEPS, gamma=0.7),
        )
        self.state = (
            None if freezing is None else freezing(self.accelerator, self.model, self.optimizer, **options)
        )
        self.epoch = 0
        self.seen: list[list[int]] = []

    def train(self, epochs: int, folder: Path, *, resume: bool = False) -> Run:
        if resume:
            self.accelerator.load_state(str(folder))
            self.epoch = int((folder / "epoch").read_text()) if self.state is None else self.state.step + 1
        for epoch in range(self.epoch, epochs):
            if self.state is not None:
                self.state.advance(epoch)
            self.seen.append([len(group["params"]) for group in self.optimizer.param_groups])
            self.model.train()
            for x, y in self.data:
                self.optimizer.zero_grad()
                self.accelerator.backward(F.cross_entropy(self.model(x), y))
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.rate.step()
            if self.state is not None:
                self.state.check()
        self.accelerator.save_state(str(folder))
        (folder / "epoch").write_text(str(epochs))
        return self


def ours(model: Model, epochs: int, folder: Path, *, resume: bool, **options: Any) -> None:
    """The object in the loop."""
    from bundles.adapters.accelerate import FrozenState

    Run(model, FrozenState, freeze="encoder", **options).train(epochs, folder, resume=resume)


def by_hand(model: Model, epochs: int, folder: Path, *, resume: bool) -> None:
    """``requires_grad_(False)`` and nothing else."""
    frozen_by_hand(model)
    Run(model).train(epochs, folder, resume=resume)


def test_what_is_frozen_stays_so_and_a_loaded_state_goes_on_exactly(tmp_path: Path) -> None:
    assert trial(ours, tmp_path, head_dropout=0.5) == GOOD


def test_what_the_same_loop_does_without_the_object(tmp_path: Path) -> None:
    """The checks can fail."""
    expected = {FROZEN: True, BUFFERS: False, MOVED: True, NOISE: False, RESUME: True}
    assert trial(by_hand, tmp_path, head_dropout=0.5) == expected


@pytest.mark.parametrize("over_all", [True, False])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_schedule_is_followed_and_goes_on_exactly(tmp_path: Path, first: int, over_all: bool) -> None:
    """Also where the optimizer was made over what trains at first."""
    from bundles.adapters.accelerate import FrozenState

    def run(epochs: int, folder: Path, *, resume: bool = False) -> tuple[Model, Run]:
        seed(99 if resume else 0)
        model = make_model(head_dropout=0.5)
        if not over_all:
            bundles.freeze(model, "encoder")
        made = Run(model, FrozenState, over_all=over_all, schedule=schedule())
        return model, made.train(epochs, folder, resume=resume)

    whole, its = run(EPOCHS, tmp_path / "whole")
    assert [sum(groups) for groups in its.seen] == [2, 6, 6, 14]
    run(first, tmp_path / "part")
    again, later = run(EPOCHS, tmp_path / "part", resume=True)
    assert later.seen == its.seen[first:]
    assert same_contents(again, whole)


def test_a_run_may_go_back_to_an_earlier_state(tmp_path: Path) -> None:
    from bundles.adapters.accelerate import FrozenState

    model = make_model(head_dropout=0.5)
    run = Run(model, FrozenState, schedule=schedule()).train(2, tmp_path)
    run.epoch = 2
    run.train(EPOCHS, tmp_path / "whole")
    once = {name: value.clone() for name, value in model.state_dict().items()}
    run.train(EPOCHS, tmp_path, resume=True)
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())


def test_a_delta_lies_beside_the_state(tmp_path: Path) -> None:
    ours(model := make_model(), 1, tmp_path, resume=False, delta=True)
    again = make_model()
    bundles.load_delta(tmp_path / "delta.safetensors", again)
    assert same_contents(again, model)
    assert bundles.freeze_plan(again) == bundles.freeze_plan(model)


def test_another_model_may_train_through_one_that_is_frozen_whole() -> None:
    """A generator through its discriminator, of whose optimizer alone the object knows."""
    from bundles.adapters.accelerate import FrozenState

    accelerator = accelerate.Accelerator(cpu=True)
    ours, other = make_model(), nn.Linear(8, 8)
    made = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (ours, other)]
    model, through, optimizer, its = accelerator.prepare(ours, other, *made)
    watch, others = Watch(ours), Watch(other)
    plan = bundles.UnfreezeSchedule({0: "all", 1: "none"})
    with pytest.warns(NothingTrainableWarning, match="Nothing is left to train|leaves the SGD"):
        state = FrozenState(accelerator, model, optimizer, schedule=plan)
    moved = []
    for epoch in range(2):
        state.advance(epoch)
        accelerator.backward(model(through(make_data().tensors[0])).square().sum())
        for each in (optimizer, its):
            each.step()
        state.check()
        moved.append((len(watch.moved()), len(others.moved())))
    assert moved == [(0, 2), (len(watch.before), 2)]


def test_drift_is_named(tmp_path: Path) -> None:
    from bundles.adapters.accelerate import FrozenState

    model: Any = make_model()
    run = Run(model, FrozenState, freeze="encoder")
    with torch.no_grad():
        model.encoder.blocks[0].norm.running_mean.add_(1)
    with pytest.raises(FrozenDriftError, match=r"encoder\.blocks\.0\.norm\.running_mean"):
        run.train(1, tmp_path)


def test_another_freeze_and_a_state_of_others_are_refused(tmp_path: Path) -> None:
    from bundles.adapters.accelerate import FrozenState

    ours(make_model(), 1, tmp_path / "ours", resume=False)
    with pytest.raises(FreezeArgumentError, match=r"saved with Encoder\(\).*goes on with UnfreezeSchedule"):
        Run(make_model(), FrozenState, schedule=schedule()).train(2, tmp_path / "ours", resume=True)
    by_hand(make_model(), 1, tmp_path / "theirs", resume=False)
    with pytest.raises(PinError, match=r"bundles_freeze\.json cannot be read.*saved with a FrozenState"):
        ours(make_model(), 2, tmp_path / "theirs", resume=True)


def test_other_weights_are_named_after_loading(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    ours(make_model(), 1, tmp_path, resume=False)
    state = load_file(tmp_path / "model.safetensors")
    state["encoder.blocks.1.linear.bias"] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(FrozenDriftError, match=r"1 of \d+ .* encoder\.blocks\.1\.linear\.bias"):
        ours(make_model(), 2, tmp_path, resume=True)
