"""What adapters share: the session of a run, and the page that says what was measured."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bundles
from adapter_checks import make_data, make_model, same_contents, schedule
from bundles.adapters import Session
from bundles.errors import DeltaBaseError, FreezeArgumentError, FrozenDriftError, PinError

ROOT = Path(__file__).parent.parent


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def train(session: Session, model: Any, optimizer: torch.optim.Optimizer, epochs: range) -> None:
    x, y = make_data().tensors
    for epoch in epochs:
        session.advance(model, epoch, optimizer)
        torch.manual_seed(epoch)
        model.train()
        optimizer.zero_grad()
        loss: Any = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        session.check(model)


def started(**options: Any) -> tuple[Session, Any, torch.optim.Optimizer]:
    session, model = Session(**options), make_model()
    session.prepare(model)
    optimizer = optimizer_of(model)
    session.start(model, optimizer)
    return session, model, optimizer


# --- the session ----------------------------------------------------------------------------------


def test_what_never_trains_is_frozen_before_there_is_an_optimizer() -> None:
    model = make_model()
    plan = bundles.UnfreezeSchedule({0: "encoder", 3: "last:1"})
    Session(schedule=plan).prepare(model)
    trained = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"encoder.blocks.2.linear", "encoder.blocks.2.norm", "head.1"}
    bundles.freeze(model, "encoder")
    Session(schedule=schedule()).prepare(model)  # all of it trains at some time
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_state_is_json_and_goes_on_exactly() -> None:
    whole_session, whole, its = started(schedule=schedule())
    train(whole_session, whole, its, range(2))
    weights = {name: value.clone() for name, value in whole.state_dict().items()}
    state, momentum = json.loads(json.dumps(whole_session.state_dict())), copy.deepcopy(its.state_dict())
    train(whole_session, whole, its, range(2, 5))
    session, again = Session(schedule=schedule()), make_model()
    session.prepare(again)
    optimizer = optimizer_of(again)
    session.load_state_dict(state)
    again.load_state_dict(weights)
    session.start(again, optimizer, session.step)
    optimizer.load_state_dict(momentum)
    train(session, again, optimizer, range(session.step + 1, 5))
    assert same_contents(again, whole)


def test_a_state_of_other_values_is_refused_as_long_as_they_differ() -> None:
    session, _, _ = started(freeze="encoder")
    state = session.state_dict()
    other: Any = make_model()
    with torch.no_grad():
        other.encoder.blocks[0].linear.bias.add_(1)
    later = Session(freeze="encoder")
    later.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(FrozenDriftError, match=r"encoder\.blocks\.0\.linear\.bias"):
            later.start(other)
    later.start(make_model())
    later.start(other)  # another run
    unverified = Session(freeze="encoder", verify=False)
    unverified.load_state_dict(state)
    unverified.start(other)


def test_the_groups_of_a_resumed_run_are_those_of_one_that_was_not_interrupted() -> None:
    """Also where the optimizer was made over what trains at first: each thaw adds a group."""
    plan = bundles.UnfreezeSchedule({0: "encoder", 1: "match:encoder.blocks.[01].*", 2: "none"})

    def groups(resumed: bool) -> list[list[str]]:
        model = bundles.freeze(make_model(), "encoder")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        session = Session(schedule=plan)
        session.start(model, optimizer, 2 if resumed else 0)
        for epoch in range(3 if not resumed else 0):
            session.advance(model, epoch, optimizer)
        return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]

    assert [len(group) for group in groups(resumed=True)] == [2, 4, 8]
    assert groups(resumed=True) == groups(resumed=False)


def test_another_freeze_is_refused_before_it_is_put_on_the_model() -> None:
    state = started(freeze="encoder")[0].state_dict()
    model = make_model()
    optimizer = optimizer_of(model)
    with pytest.raises(FreezeArgumentError, match=r"saved with Encoder\(\).*goes on with ExceptLast\(1\)"):
        Session(freeze="last:1").fit(model, optimizer, state)
    assert bundles.freeze_plan(model) is None
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_a_models_own_parameters_are_no_others_that_train() -> None:
    """They require grad until the freeze is put on the model."""
    model = make_model()
    with pytest.raises(FreezeArgumentError, match=r"Nothing trains with All\(\): freeze less"):
        Session(freeze="all").check_optimizers(model, optimizer_of(model))
    through = nn.Linear(2, 2)
    both = [optimizer_of(model), optimizer_of(through)]
    Session(freeze="all").check_optimizers(model, both)


def test_what_moved_is_found_before_it_thaws() -> None:
    session, model, optimizer = started(schedule=schedule())
    with torch.no_grad():
        model.encoder.blocks[2].linear.bias.add_(1)
    with pytest.raises(FrozenDriftError, match=r"encoder\.blocks\.2\.linear\.bias"):
        session.advance(model, 1, optimizer)


def test_deltas_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    session, model, optimizer = started(freeze="encoder")
    assert session.save(model, tmp_path / "no.safetensors", 0, optimizer) is None
    session, model, optimizer = started(schedule=schedule(), delta=True)
    train(session, model, optimizer, range(1))
    path = session.save(model, tmp_path / "run.safetensors", optimizer=optimizer)
    assert path is not None
    header = bundles.delta.read_delta(path)
    assert (header.step, header.unfreeze_schedule()) == (0, schedule())
    again = make_model()
    bundles.load_delta(path, again, optimizer=optimizer_of(again))
    assert same_contents(again, model)


@pytest.mark.parametrize("state", [{}, {"step": "3", "freeze": None, "frozen": None}, {"step": 3}])
def test_a_state_of_something_else_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(PinError, match="is not the state of a freeze"):
        Session().load_state_dict(state)


def test_a_frozen_record_of_something_else_is_refused() -> None:
    from bundles.adapters.partial import complete

    with pytest.raises(DeltaBaseError, match="does not say what the checkpoint leaves out"):
        complete({"state_dict": {}, "bundles": 3}, make_model())


def test_two_answers_to_one_question_are_refused() -> None:
    with pytest.raises(FreezeArgumentError, match="Both schedule= and freeze='encoder'"):
        Session(schedule=schedule(), freeze="encoder")


def test_a_mode_beside_a_schedule_is_that_of_the_schedule() -> None:
    schedule = bundles.UnfreezeSchedule({0: "encoder"}, mode="weights")
    Session(schedule=schedule, freeze_mode="weights")
    with pytest.raises(FreezeArgumentError, match=r"'frontend' is not that of the schedule.*mode='frontend'"):
        Session(schedule=schedule, freeze_mode="frontend")


def test_an_adapter_that_is_none_is_named() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ignite'; it has accelerate, fastai"):
        bundles.adapters.ignite  # noqa: B018


# --- the page -------------------------------------------------------------------------------------


def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("marked")


def test_the_page_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = tables(monkeypatch)
    table = marked.stored("trainers")
    assert marked.printed("trainers") == table
    ours = [line for line in table.splitlines() if re.search("`(Freeze|Frozen|freeze)", line)]
    ours = [line for line in ours if ": its" not in line]
    assert len(ours) >= 4
    assert not any("| no |" in line for line in ours)


@pytest.mark.slow
def test_measuring_again_gives_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "trainers.py")]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert tables(monkeypatch).stored("trainers") in told.stdout
