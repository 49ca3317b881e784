"""Proof that what is frozen did not move, and reports of what is not as planned."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

import bundles
from bundles import FreezeArgumentError, FrozenDriftError, PinError
from bundles.freezing.proof.digests import digests
from bundles.freezing.proof.samples import take
from bundles.freezing.proof.snapshot import Snapshot
from toys import RATE, TOYS, make_optimizers, step


def toy(name: str = "batchnorm1d", which: str = "encoder", mode: str = "eval") -> nn.Module:
    return bundles.freeze(TOYS[name].make(), which, mode)


def big() -> nn.Module:
    """Layers that are hashed in several pieces, the last of them not full, and in one."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1500, 2001), nn.BatchNorm1d(2001), nn.Linear(2001, 2))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# --- digests --------------------------------------------------------------------------------------


def test_digests_do_not_depend_on_the_threads(threads: int) -> None:
    tensors = dict(big().state_dict())
    found = digests(tensors)
    assert found == {name: digests({name: tensor.clone()})[name] for name, tensor in tensors.items()}
    assert len(set(found.values())) == len(tensors) - 2  # two vectors of ones, two of zeros


def test_a_digest_of_several_pieces_is_of_every_byte(threads: int) -> None:
    values = torch.zeros(3 << 20)
    before = digests({"": values})[""]
    assert values.nbytes == 3 * (4 << 20)
    for position in (0, (1 << 20) - 1, 1 << 20, len(values) - 1):
        values[position] = 1
        assert digests({"": values})[""] != before
        values[position] = 0
    assert digests({"": values})[""] == before


def test_pieces_that_change_places_change_the_digest() -> None:
    values = torch.arange(2 << 20, dtype=torch.float32)
    swapped = torch.cat(values.chunk(2)[::-1])
    assert digests({"": values}) != digests({"": swapped})


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1 + 2j, 3 - 1j]).conj(),
        torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(12.0)[::3],
        torch.ones(1).expand(5),
        torch.tensor(3.0),
    ],
    ids=["conjugate", "negative", "transposed", "strided", "expanded", "scalar"],
)
def test_what_is_compared_are_values_however_they_lie_in_memory(values: Tensor) -> None:
    layer = nn.Linear(1, 1).requires_grad_(False)
    layer.register_buffer("extra", values)
    taken = bundles.snapshot(layer)
    layer.extra = torch.tensor(values.tolist(), dtype=values.dtype)
    bundles.verify_frozen(layer, taken)
    bundles.verify_frozen(layer, taken, quick=True)


def test_a_model_without_values_is_refused() -> None:
    model = bundles.freeze(nn.Linear(2, 2, device="meta"), mode="features")
    with pytest.raises(FreezeArgumentError, match="on the meta device and has no values"):
        bundles.snapshot(model)


# --- the quick check ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (1,), (63,), (64,), (65,), (127,), (128,), (1024, 1024), (3, 5, 7)])
def test_a_sample_is_of_up_to_64_elements_spread_over_the_tensor(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    positions = take(torch.arange(size).view(shape))
    assert len(positions) == len(set(positions.tolist())) == min(size, 64)
    assert size < 256 or int(positions.max()) > 0.9 * size


def test_the_layout_in_memory_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(9, 12, 3), nn.Conv2d(12, 5, (40, 20))).requires_grad_(False)
    taken = bundles.snapshot(model)
    model.to(memory_format=torch.channels_last)
    assert not model.get_parameter("1.weight").is_contiguous()
    bundles.verify_frozen(model, taken)
    bundles.verify_frozen(model, taken, quick=True)
    assert bundles.snapshot(model) == taken
    model.get_parameter("1.weight").data.mul_(2)
    assert taken.moved(model) == taken.moved(model, quick=True) == ("1.weight",)


def test_a_sample_of_a_matrix_is_not_of_one_column() -> None:
    columns = take(torch.arange(512).repeat(512, 1))
    assert len(set(columns.tolist())) > 32


@pytest.mark.parametrize("name", TOYS)
def test_a_step_of_an_optimizer_is_seen_in_every_tensor_that_it_moves(name: str) -> None:
    model, x = toy(name), TOYS[name].make_input()
    taken = bundles.snapshot(model)
    step(model.train(), x, *make_optimizers(model))
    bundles.verify_frozen(model, taken, quick=True)
    bundles.unfreeze(model)
    step(model, x, *make_optimizers(model))
    moved = taken.moved(model)
    assert moved
    assert taken.moved(model, quick=True) == moved


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), True),
        (torch.zeros(2), torch.zeros(3), True),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32), True),
        (torch.zeros(0, 3), torch.zeros(0, 3), False),
        (torch.tensor([True, False]), torch.tensor([True, True]), True),
        (torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.complex64), False),
        (torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16), False),
    ],
)
def test_a_sample_is_compared_bit_for_bit(old: Tensor, new: Tensor, moved: bool) -> None:
    layer = nn.Linear(1, 1).requires_grad_(False)
    layer.register_buffer("extra", old)
    taken = pickle.loads(pickle.dumps(bundles.snapshot(layer)))
    layer.extra = new
    assert taken.moved(layer, quick=True) == (("extra",) if moved else ())


def test_a_write_outside_the_sample_takes_the_full_check() -> None:
    model = big().requires_grad_(False)
    taken = bundles.snapshot(model)
    model.get_parameter("0.weight").data[0, 1] += 1
    bundles.verify_frozen(model, taken, quick=True)
    with pytest.raises(FrozenDriftError, match=r"1 of 9 frozen tensors moved: 0\.weight;") as caught:
        bundles.verify_frozen(model, taken)
    assert caught.value.amounts == {"0.weight": 0.0}


def thaw(parameter: nn.Parameter) -> None:
    parameter.requires_grad_(True)


def leave_grad(parameter: nn.Parameter) -> None:
    parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("change", [thaw, leave_grad])
def test_the_quick_check_refuses_what_the_next_step_would_move(
    change: Callable[[nn.Parameter], None],
) -> None:
    model = toy()
    taken = bundles.snapshot(model)
    change(model.get_parameter("encoder.blocks.1.0.bias"))
    bundles.verify_frozen(model, taken)
    with pytest.raises(
        FrozenDriftError, match=r"1 frozen parameters require grad or have a \.grad"
    ) as caught:
        bundles.verify_frozen(model, taken, quick=True)
    assert caught.value.thawed == ("encoder.blocks.1.0.bias",)
    assert caught.value.moved == ()


# --- what is said of drift ------------------------------------------------------------------------


def test_an_error_says_how_far_each_tensor_moved_and_survives_pickling() -> None:
    model = toy()
    taken = bundles.snapshot(model)
    model.get_parameter("encoder.blocks.0.0.bias").data[3] += 0.25
    model.get_parameter("encoder.blocks.2.0.weight").data.sub_(4)
    with pytest.raises(FrozenDriftError, match=r"2 of 21 .*\(encoder.blocks.2.0.weight by 4\)") as caught:
        bundles.verify_frozen(model, taken)
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.moved == ("encoder.blocks.0.0.bias", "encoder.blocks.2.0.weight")
    assert error.amounts == pytest.approx({error.moved[0]: 0.25, error.moved[1]: 4})
    assert str(error) == str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "amount"),
    [
        (torch.tensor([1.0, math.nan]), torch.tensor([1.5, math.nan]), 0.5),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan]), math.inf),
        (torch.tensor([math.inf, 2.0]), torch.tensor([math.inf, 3.0]), 1.0),
        (torch.tensor([math.inf]), torch.tensor([-math.inf]), math.inf),
        (torch.tensor([7]), torch.tensor([9]), 2.0),
        (torch.tensor([True]), torch.tensor([False]), 1.0),
        (torch.tensor([3 + 4j]), torch.tensor([0j]), 5.0),
        (torch.zeros(2), torch.zeros(3), math.inf),
        (torch.zeros(2), None, math.inf),
    ],
)
def test_amounts_are_finite_differences_or_inf(old: Tensor, new: Tensor | None, amount: float) -> None:
    layer = nn.Linear(1, 1).requires_grad_(False)
    layer.register_buffer("extra", old)
    taken = bundles.snapshot(layer)
    layer.register_buffer("extra", new)
    assert taken.amounts(layer, taken.moved(layer)) == {"extra": amount}


def test_a_snapshot_in_json_verifies_but_has_no_sample() -> None:
    model = toy()
    taken = Snapshot.from_json(bundles.snapshot(model).to_json())
    assert taken == bundles.snapshot(model)
    bundles.verify_frozen(model, taken)
    with pytest.raises(FreezeArgumentError, match="holds no samples, so quick=True has nothing to compare"):
        bundles.verify_frozen(model, taken, quick=True)
    model.get_parameter("encoder.blocks.0.0.bias").data.neg_()
    with pytest.raises(FrozenDriftError, match=r"1 of 21 frozen tensors moved: encoder.blocks.0.0.bias;"):
        bundles.verify_frozen(model, taken)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digests": 3}', '{"digests":{},"frozen":[],"masks":1}'])
def test_what_is_no_snapshot_in_json_is_refused(text: str) -> None:
    with pytest.raises(PinError, match="is not a snapshot written by to_json"):
        Snapshot.from_json(text)


# --- guards ---------------------------------------------------------------------------------------


def test_a_guard_verifies_on_exit_and_whenever_asked() -> None:
    model, x = toy(), TOYS["batchnorm1d"].make_input()
    with bundles.guard(model) as watch:
        for _ in range(2):
            step(model.train(), x, *make_optimizers(model))
            watch.check(quick=True)
    model.get_buffer("encoder.blocks.0.1.running_mean").add_(1)
    with pytest.raises(FrozenDriftError, match="1 of 21"):
        watch.check()


@pytest.mark.parametrize("quick", [False, True])
def test_a_guard_raises_on_exit_where_the_habit_drifts(quick: bool) -> None:
    model = TOYS["batchnorm1d"].make()
    model.get_submodule("encoder").requires_grad_(False)
    with pytest.raises(FrozenDriftError, match="running_mean"), bundles.guard(model, quick=quick):
        step(model.train(), TOYS["batchnorm1d"].make_input(), *make_optimizers(model))


def fail_after_moving(model: nn.Module) -> None:
    model.get_buffer("encoder.blocks.0.1.running_mean").add_(1)
    raise KeyError("mine")


def test_a_guard_passes_an_exception_on() -> None:
    model = toy()
    with pytest.raises(KeyError, match="mine"), bundles.guard(model):
        fail_after_moving(model)


def test_a_guard_over_nothing_is_refused() -> None:
    with pytest.raises(FreezeArgumentError, match="Nothing in the model is frozen"), bundles.guard(nn.ReLU()):
        pass


def test_a_copy_verifies_by_the_snapshot_of_the_original() -> None:
    model = toy()
    taken = bundles.snapshot(model)
    twin = copy.deepcopy(model)
    bundles.verify_frozen(twin, taken, quick=True)
    bundles.verify_frozen(torch.optim.swa_utils.AveragedModel(twin), taken)


# --- reports --------------------------------------------------------------------------------------


def test_a_report_tells_what_is_held_by_axis() -> None:
    held = {name: bundles.freeze_report(toy(name)).groups[0].held for name in TOYS}
    assert held["plain"] == ""
    assert {held[name] for name in ("dropout", "functional", "droppath", "rnn", "attention")} == {"noise off"}
    assert {held[n] for n in ("batchnorm1d", "instancenorm", "spectralhook", "spectralparam")} == {
        "stats hold"
    }
    assert held["nonpersistent"] == "noise off, stats hold"


@pytest.mark.parametrize(
    ("mode", "held", "gradient"),
    [
        ("eval", "noise off", "flow"),
        ("features", "noise off", "cut"),
        ("weights", "noise follow", "flow"),
        ("mc", "noise on", "flow"),
    ],
)
def test_a_report_tells_each_mode_apart(mode: str, held: str, gradient: str) -> None:
    *encoder, head = bundles.freeze_report(toy("dropout", "encoder", mode)).groups
    assert {(group.held, group.gradient) for group in encoder} == {(held, gradient)}
    assert (head.held, head.gradient) == ("noise follow", "flow")


def test_a_report_counts_and_predicts() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 1))
    report = bundles.freeze_report(bundles.freeze(model, "encoder"))
    assert [(group.parameters, group.trainable, group.frozen) for group in report.groups] == [
        (16, 0, 16),
        (16, 0, 16),
        (5, 5, 0),
    ]
    assert "37" not in str(report)
    assert report.step_cost == pytest.approx((37 + 5) / (37 * 3 - 16))
    given = bundles.freeze_report(model, costs={"0": 16, "1": 16, "2": 4})
    assert given.step_cost == pytest.approx((36 + 4) / (36 * 3 - 16))
    assert "standing in for operations" in str(report)
    assert "standing in for operations" not in str(given)


def test_a_prediction_is_of_what_is_found_not_of_what_was_planned() -> None:
    model = toy("plain")
    planned = bundles.freeze_report(model).step_cost
    model.get_parameter("encoder.blocks.0.0.weight").requires_grad_(True)
    assert bundles.freeze_report(model).step_cost > planned


def test_a_report_is_data_and_fits_the_page() -> None:
    model = bundles.freeze(bundles.CREPE_TINY.get_model(), "last:2", "features")
    report = bundles.freeze_report(model)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["groups"][0]["gradient"] == "cut"
    assert data["plan"].startswith("ExceptLast(2) in mode features")
    table = str(report).split("plan:")[0]
    assert max(map(len, table.splitlines())) <= 120
    assert all(name in table for name in ("block.0", "head", "stats hold", "loaded"))
    assert "predicted step cost" in report._repr_html_()


# --- what is irregular ----------------------------------------------------------------------------


def test_a_group_lists_its_own_irregularities() -> None:
    model = toy("dropout").train()
    model.get_submodule("encoder.blocks.1.1").training = True
    report = bundles.freeze_report(model)
    assert [len(group.irregular) for group in report.groups] == [0, 1, 0, 0]
    assert report.groups[1].irregular == report.problems
    assert report.groups[1].held == "noise on"


def test_a_gradient_left_on_a_frozen_parameter_is_irregular() -> None:
    model = toy("dropout")
    leave_grad(model.get_parameter("encoder.blocks.1.0.bias"))
    (problem,) = bundles.freeze_report(model).problems
    assert problem.startswith("encoder.blocks.1.0.bias is frozen and has a .grad")


def test_a_part_frozen_by_itself_is_checked_under_its_parent() -> None:
    part = toy("dropout", "all", "features")
    parent = nn.Sequential(part, nn.Linear(3, 2))
    assert bundles.freeze_report(parent).problems == ()
    part.get_submodule("encoder.blocks.0.1").training = True
    report = bundles.freeze_report(parent)
    (problem,) = report.problems
    assert problem.startswith("0: encoder.blocks.0.1 has training=True, held is False")
    assert report.plan is None


def test_a_knob_that_is_overwritten_is_irregular() -> None:
    model = toy("rnn")
    rnn = model.get_submodule("encoder.blocks.0.rnn")
    assert isinstance(rnn, nn.LSTM)
    assert (rnn.training, rnn.dropout) == (True, 0.0)
    rnn.dropout = RATE
    (problem,) = bundles.freeze_report(model).problems
    assert problem == "encoder.blocks.0.rnn has dropout=0.5, held is 0.0: something wrote it"


def test_an_adapter_inside_a_part_that_is_cut_is_irregular() -> None:
    model = toy("dropout", "encoder", "features")
    model.get_submodule("encoder.blocks.0").register_module("adapter", nn.Linear(8, 8))
    problems = bundles.freeze_report(model).problems
    assert {problem for problem in problems if "gradient" in problem} == {
        f"encoder.blocks.0.adapter.{name} requires grad inside a part that records no graph: "
        f"it gets no gradient"
        for name in ("weight", "bias")
    }


def test_reentrant_checkpointing_over_a_frozen_prefix_is_irregular() -> None:
    model = bundles.freeze(nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))), "first:1")
    model[1] = checkpoint_wrapper(model[1], CheckpointImpl.REENTRANT)
    assert any("is reentrant" in problem for problem in bundles.freeze_report(model).problems)
    model[1] = checkpoint_wrapper(nn.Linear(3, 3), CheckpointImpl.NO_REENTRANT)
    assert not any("is reentrant" in problem for problem in bundles.freeze_report(model).problems)


# --- single elements ------------------------------------------------------------------------------


def masked() -> tuple[nn.Sequential, Tensor]:
    """A model with about half of the elements of its first weight frozen, and their mask."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 2))
    mask = torch.rand(40, 30) > 0.5
    return bundles.freeze(model, bundles.Elements({"0.weight": bundles.Mask.of(mask)})), mask


@pytest.mark.parametrize("quick", [False, True])
def test_of_a_masked_tensor_the_masked_elements_count(quick: bool) -> None:
    model, mask = masked()
    taken = pickle.loads(pickle.dumps(bundles.snapshot(model)))
    weight = model.get_parameter("0.weight")
    weight.data[~mask] += 1
    bundles.verify_frozen(model, taken, quick=quick)
    bundles.unfreeze(model)
    bundles.verify_frozen(model, taken, quick=quick)
    weight.data[mask] += 0.5
    with pytest.raises(FrozenDriftError, match=r"1 of 1 frozen tensors moved: 0\.weight") as caught:
        bundles.verify_frozen(model, taken, quick=quick)
    assert caught.value.amounts == pytest.approx({"0.weight": 0.5})


def test_masked_elements_verify_after_steps_and_from_json() -> None:
    model, mask = masked()
    with bundles.guard(model) as watch:
        for _ in range(3):
            step(model, torch.randn(8, 30), *make_optimizers(model))
            watch.check(quick=True)
    taken = Snapshot.from_json(watch.taken.to_json())
    assert taken == watch.taken
    bundles.verify_frozen(model, taken)
    model.get_parameter("0.weight").data[mask] *= 1.5
    assert taken.moved(model) == ("0.weight",)


def test_a_report_counts_masked_elements_as_frozen() -> None:
    model, mask = masked()
    report = bundles.freeze_report(model)
    count = int(mask.sum())
    first, head = report.groups
    assert (first.masked, first.frozen, first.trainable) == (count, count, 40 * 31 - count)
    assert (first.state, head.state, head.masked) == ("mixed", "trainable", 0)
    assert "masked" in str(report)
    assert report.problems == ()


def test_a_masked_tensor_of_another_shape_has_moved() -> None:
    model, _ = masked()
    taken = bundles.snapshot(model)
    model[0] = nn.Linear(30, 41)
    assert taken.moved(model) == taken.moved(model, quick=True) == ("0.weight",)
    assert taken.amounts(model, ["0.weight"]) == {"0.weight": math.inf}


def test_a_tied_tensor_is_counted_once_and_the_state_is_that_of_every_name() -> None:
    model = bundles.freeze(TOYS["tied"].make(), "encoder")
    report = bundles.freeze_report(model)
    assert sum(group.parameters for group in report.groups) == sum(p.numel() for p in model.parameters())
    named = dict(model.named_parameters(remove_duplicate=False))
    assert len(named) > len(list(model.parameters()))
    for group, own in zip(report.groups, bundles.layer_groups(model), strict=True):
        trains = {named[name].requires_grad for name in own.parameters}
        expected = {frozenset({True}): "trainable", frozenset({False}): "frozen"}
        assert group.state == expected.get(frozenset(trains), "mixed")
