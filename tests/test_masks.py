"""Single elements stay frozen: masks as values, policies over elements, and what optimizers may not do."""

from __future__ import annotations

import copy
import gc
import io
import json
import math
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bundles
from bundles import Elements, Encoder, FreezeArgumentError, FreezePlan, Head, Mask, Match, TopScores
from bundles.freezing.api import plan_for
from bundles.freezing.optimizer.masks import masked_elements
from bundles.spec.scores import Scores
from test_hold import OPTIMIZERS
from toys import as_bytes, fingerprint, identity

X = torch.randn(6, 4)
HALF = torch.tensor([[True, False, True, False]]).expand(4, 4).contiguous()


def net() -> nn.Sequential:
    """Three layers; the encoder is the first two."""
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def weight(model: nn.Module, name: str = "0.weight") -> nn.Parameter:
    return model.get_parameter(name)


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 3) -> None:
    """Take steps with a closure, gradients zeroed and not cleared."""
    for optimizer in optimizers * steps:

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> float:
            optimizer.zero_grad(set_to_none=False)
            loss: Tensor = model(X).square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        optimizer.step(closure)


def assert_held(before: Tensor, after: Tensor, mask: Tensor) -> None:
    """Masked elements are the same, bit for bit, and every other element moved."""
    first, last = (tensor.detach()[mask].view(torch.uint8) for tensor in (before, after))
    assert torch.equal(first, last)
    assert not torch.any((before == after.detach())[~mask])


# --- masks as values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [[True, False, True], [False, False, True]],
        ((1, 0, 1), (0, 0, 1)),
        [(True, 0, 1), [0, False, True]],
        np.array([[1, 0, 1], [0, 0, 1]], dtype=bool),
        np.asfortranarray(np.array([[1, 0, 1], [0, 0, 1]])),
        torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.uint8),
        torch.tensor([[True, False], [False, False], [True, True]]).T,
    ],
    ids=["bools", "tuples", "mixed", "numpy", "fortran", "uint8", "strided"],
)
def test_every_spelling_of_a_mask_is_the_same_value(values: Any) -> None:
    mask = Mask.of(values)
    assert mask == Mask((2, 3), bytes([0b100101]))
    assert hash(mask) == hash(Mask((2, 3), bytes([0b100101])))
    assert (mask.count, mask.size, mask.any, mask.all) == (3, 6, True, False)
    assert repr(mask) == f"<Mask (2, 3): 3 of 6, {mask.digest[:15]}>"
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert Mask.of(mask) is mask


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.0], r"\[0.5, 1.0\] is no mask: expected is an array of True"),
        (torch.tensor([0.0, 1.0]), "is no mask"),
        ([1, 2], r"\[1, 2\] is no mask"),
        ([-1, 0], "is no mask"),
        ("101", "'101' is no mask"),
        (None, "None is no mask"),
        ([[1], [1, 0]], r"have lengths \[1, 2\]"),
        ([[1], 0], "is no mask"),
    ],
)
def test_what_is_no_mask_is_refused(values: Any, message: str) -> None:
    with pytest.raises(FreezeArgumentError, match=message):
        Mask.of(values)


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def arrays(shape: tuple[int, ...], count: int) -> st.SearchStrategy[list[Any]]:
    flat = st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape))
    one = flat.map(lambda bits: np.array(bits, dtype=bool).reshape(shape))
    return st.lists(one, min_size=count, max_size=count)


@given(SHAPES.flatmap(lambda shape: arrays(shape, 2)))
def test_masks_combine_as_arrays_do(pair: list[Any]) -> None:
    a, b = pair
    assert Mask.of(a) & Mask.of(b) == Mask.of(a & b)
    assert Mask.of(a) | Mask.of(b) == Mask.of(a | b)
    assert ~Mask.of(a) == Mask.of(~a)
    assert Mask.of(a).count == int(a.sum())
    assert Mask.from_text(a.shape, Mask.of(a).to_text()) == Mask.of(a)
    assert Mask.of(a).spread((*a.shape, 2)) == Mask.of(np.repeat(a[..., None], 2, axis=-1))


def test_masks_of_other_shapes_and_damaged_texts_are_refused() -> None:
    mask = Mask.of([True, False])
    with pytest.raises(FreezeArgumentError, match=r"shapes \(2,\) and \(2, 1\) cannot be combined"):
        mask | Mask.of([[True], [False]])
    with pytest.raises(FreezeArgumentError, match="is no mask written by to_text"):
        Mask.from_text((2,), "nonsense")
    with pytest.raises(FreezeArgumentError, match="bits beyond its last element"):
        Mask.from_text((1,), Mask.of([True, True]).to_text())
    with pytest.raises(FreezeArgumentError, match="expected are 1"):
        Mask.from_text((8,), Mask.full((80_000,)).to_text())


# --- policies over elements -----------------------------------------------------------------------


def test_a_policy_of_masks_is_a_value_with_a_short_repr() -> None:
    policy = Elements({"0.weight": HALF, "2.bias": [1, 0, 0, 0]})
    assert policy == Elements({"2.bias": (True, False, False, False), "0.weight": HALF.tolist()})
    assert hash(policy) == hash(pickle.loads(pickle.dumps(policy)))
    assert repr(policy) == f"Elements({{'0.weight': {Mask.of(HALF)!r}, '2.bias': {Mask.of([1, 0, 0, 0])!r}}})"
    assert policy != Elements({"0.weight": ~HALF})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Elements([("0.weight", HALF)]), "needs a mapping from parameter names to masks"),  # type: ignore[arg-type]
        (lambda: Elements({0: HALF}), "needs a mapping from parameter names"),  # type: ignore[dict-item]
        (
            lambda: bundles.freeze(net(), Elements({"0.wieght": HALF})),
            "names '0.wieght'.*nearest are 0.weight",
        ),
        (
            lambda: bundles.freeze(net(), Elements({"0.weight": [True] * 3})),
            r"0.weight: A mask of shape \(3,\) does not fit a tensor of shape \(4, 4\)",
        ),
        (lambda: bundles.freeze(net(), Elements({"0.bias": HALF})), r"\(4, 4\) does not fit .* \(4,\)"),
    ],
)
def test_masks_that_fit_nothing_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FreezeArgumentError, match=message):
        make()


def test_a_mask_of_leading_dimensions_freezes_channels() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 5), nn.ReLU(), nn.Conv1d(3, 1, 1))
    bundles.freeze(model, Elements({"0.weight": [True, False, True]}))
    expected = torch.tensor([True, False, True])[:, None, None].expand(3, 2, 5)
    assert torch.equal(masked_elements(model)["0.weight"], expected)


NAMES = tuple(name for name, _ in net().named_parameters())
LEAVES: dict[bundles.FreezePolicy, Callable[[str, tuple[int, ...]], Any]] = {
    Encoder(): lambda name, shape: np.full(shape, not name.startswith("4")),
    Head(): lambda name, shape: np.full(shape, name.startswith("4")),
    Match("*.bias"): lambda name, shape: np.full(shape, name.endswith("bias")),
    Elements({"0.weight": HALF, "2.bias": [1, 0, 0, 1]}): lambda name, shape: {
        "0.weight": HALF.numpy(),
        "2.bias": np.array([1, 0, 0, 1], dtype=bool),
    }.get(name, np.zeros(shape, dtype=bool)),
    Elements({"0.weight": [0, 1, 1, 0], "4.weight": [1, 1]}): lambda name, shape: {
        "0.weight": np.array([[0], [1], [1], [0]], dtype=bool).repeat(4, axis=1),
        "4.weight": np.ones(shape, dtype=bool),
    }.get(name, np.zeros(shape, dtype=bool)),
}
Pair = tuple[bundles.FreezePolicy, Callable[[str, tuple[int, ...]], Any]]
POLICIES: st.SearchStrategy[Pair] = st.recursive(
    st.sampled_from(list(LEAVES.items())),
    lambda inner: st.one_of(
        st.builds(lambda a, b: (a[0] | b[0], lambda *at: a[1](*at) | b[1](*at)), inner, inner),
        st.builds(lambda a, b: (a[0] & b[0], lambda *at: a[1](*at) & b[1](*at)), inner, inner),
        st.builds(lambda a: (~a[0], lambda *at: ~a[1](*at)), inner),
    ),
    max_leaves=6,
)


@given(POLICIES)
@settings(deadline=None)
def test_policies_combine_element_by_element(pair: Pair) -> None:
    policy, truth = pair
    model = net()
    expected = {name: truth(name, tuple(p.shape)) for name, p in model.named_parameters()}
    if not any(mask.any() for mask in expected.values()):
        with pytest.raises(bundles.NothingSelectedError):
            bundles.freeze(model, policy, "weights")
        return
    plan = plan_for(model, policy, bundles.FreezeMode())
    for tensor in plan.tensors:
        truly = expected[tensor.name]
        state = "frozen" if truly.all() else "masked" if truly.any() else "trainable"
        assert tensor.state == state
        assert tensor.mask == (Mask.of(truly) if state == "masked" else None)
        assert tensor.frozen_count == truly.sum()


def test_scores_of_tensors_and_groups_choose_the_highest() -> None:
    model = net()
    scores = {name: float(rank) for rank, name in enumerate(NAMES)}

    def chosen(policy: bundles.FreezePolicy) -> tuple[str, ...]:
        return plan_for(model, policy, bundles.FreezeMode()).frozen

    assert chosen(TopScores(scores, 1 / 3)) == NAMES[4:]
    assert chosen(TopScores(scores, 1 / 3, smallest=True)) == NAMES[:2]
    assert chosen(TopScores(Scores("rgn", "tensor", scores), 1)) == NAMES
    assert chosen(TopScores(dict.fromkeys(NAMES, 1.0), 0.5)) == NAMES[:3]
    assert chosen(TopScores(scores, 0.001)) == NAMES[5:]
    assert chosen(TopScores({"block.0": 1.0, "block.1": 3.0, "head": 2.0}, 0.6)) == NAMES[2:]
    assert chosen(TopScores(Scores("rgn", "group", {"head": 1.0}), 1)) == NAMES[4:]


def test_scores_of_units_choose_rows_over_all_tensors() -> None:
    model = net()
    units = {"0.weight": (4.0, 0.0, 9.0, 1.0), "4.weight": (8.0, 2.0), "2.bias": (9.0, 9.0, 9.0, 9.0)}
    policy = TopScores(Scores("lrp", "unit", units), 0.6)
    plan = plan_for(model, policy, bundles.FreezeMode())
    assert plan.frozen == ("2.bias",)
    assert plan.masks == {"4.weight": Mask.of([[1] * 4, [0] * 4])} | {
        "0.weight": Mask.of([[0] * 4, [0] * 4, [1] * 4, [0] * 4])
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopScores({"0.weight": 1.0}, 0), "fraction=0 is not above 0 and up to 1"),
        (lambda: TopScores({"0.weight": 1.0}, True), "fraction=True is not"),
        (lambda: TopScores({}, 0.5), "needs at least one score"),
        (lambda: TopScores({"0.weight": math.nan}, 0.5), "expected is a finite number"),
        (lambda: bundles.freeze(net(), TopScores({"0.w": 1.0}, 1)), "TopScores names '0.w'.* no parameter"),
        (
            lambda: bundles.freeze(net(), TopScores(Scores("x", "group", {"neck": 1.0}), 1)),
            "names 'neck'.* no layer group",
        ),
        (
            lambda: bundles.freeze(net(), TopScores(Scores("x", "unit", {"0.weight": (1.0,) * 3}), 0.5)),
            r"A mask of shape \(3,\) does not fit a tensor of shape \(4, 4\)",
        ),
    ],
)
def test_scores_that_fit_nothing_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FreezeArgumentError, match=message):
        make()


def test_policies_of_scores_are_values() -> None:
    policy = TopScores({"0.weight": 1.0, "2.weight": 2.0}, 0.5, smallest=True)
    assert policy == pickle.loads(pickle.dumps(policy))
    assert hash(policy) == hash(TopScores({"0.weight": 1, "2.weight": 2}, 0.5, smallest=True))
    assert policy != TopScores({"0.weight": 1.0, "2.weight": 2.0}, 0.5)
    assert repr(policy).endswith(", 0.5, smallest=True)")


# --- plans ----------------------------------------------------------------------------------------


def masked_plan() -> FreezePlan:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}) | Match("0.bias"))
    plan = bundles.freeze_plan(model)
    assert plan is not None
    return plan


def test_a_plan_with_masks_survives_json_and_its_digest_counts_them() -> None:
    plan = masked_plan()
    assert FreezePlan.from_json(plan.to_json()) == plan
    other = plan_for(net(), Elements({"0.weight": ~HALF}) | Match("0.bias"), bundles.FreezeMode())
    assert other.digest != plan.digest
    assert (plan.frozen, plan.masked) == (("0.bias",), ("0.weight",))
    assert plan.trainable == NAMES[2:]
    assert plan.trained == ("0.weight", *NAMES[2:])
    assert "12 parameters frozen, 38 trainable" in str(plan)


@pytest.mark.parametrize("change", [{"mask": Mask.of(~HALF).to_text()}, {"mask": "x"}, {"state": "frozen"}])
def test_a_plan_whose_mask_was_changed_is_refused(change: dict[str, str]) -> None:
    data = json.loads(masked_plan().to_json())
    data["tensors"][0] |= change
    with pytest.raises(bundles.PinError, match=r"changed after it was written|is not a freeze plan"):
        FreezePlan.from_json(json.dumps(data))


def test_full_and_empty_masks_are_plain() -> None:
    model = bundles.freeze(net(), Elements({"0.weight": [True] * 4, "2.weight": [False] * 4}))
    assert not weight(model).requires_grad
    assert weight(model, "2.weight").requires_grad
    assert masked_elements(model) == {}
    with pytest.raises(bundles.NothingSelectedError, match="selects no parameter"):
        bundles.freeze(net(), Elements({"0.weight": [False] * 4}))


def test_a_parameter_that_did_not_train_before_stays_as_it_was() -> None:
    model = net()
    weight(model).requires_grad_(False)
    bundles.freeze(model, Elements({"0.weight": HALF, "2.weight": HALF}))
    assert not weight(model).requires_grad
    assert masked_elements(model).keys() == {"2.weight"}


def test_a_mask_on_one_name_counts_for_all_names_of_a_tied_tensor() -> None:
    model = net()
    model[2].weight = model[0].weight
    rows = torch.tensor([True, False, False, False])
    bundles.freeze(model, Elements({"0.weight": HALF}) | Elements({"2.weight": rows}))
    union = HALF | rows[:, None]
    assert all(torch.equal(mask, union) for mask in masked_elements(model).values())
    assert masked_elements(model).keys() == {"0.weight", "2.weight"}
    before = weight(model).detach().clone()
    train(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3))
    assert_held(before, weight(model), union)


def test_masked_parameters_count_as_training() -> None:
    model = bundles.freeze(net(), ~Elements({"4.bias": [True, False]}))  # a warning would be an error
    assert bundles.freeze_plan(model).trained == ("4.bias",)  # type: ignore[union-attr]
    assert sum(p.requires_grad for p in model.parameters()) == 1


# --- no optimizer step moves them -----------------------------------------------------------------


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim == 2 or name != "Muon"]
    options: dict[str, Any] = {} if name in ("LBFGS", "Rprop") else {"weight_decay": 0.3}
    if name in ("SGD", "RMSprop"):
        options["momentum"] = 0.9
    made: torch.optim.Optimizer = getattr(torch.optim, name)(matrices, lr=0.05, **options)
    return made


@pytest.mark.parametrize("when", ["old state", "new optimizer"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_of_torch_moves_a_masked_element(name: str, when: str) -> None:
    model = net()
    optimizer = make_optimizer(name, model)
    if when == "old state":
        train(model, optimizer)
    bundles.freeze(model, Elements({"0.weight": HALF}))
    if when == "new optimizer":
        optimizer = make_optimizer(name, model)
    before = weight(model).detach().clone()
    train(model, optimizer)
    assert_held(before, weight(model), HALF)


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"maximize": True}]
)
def test_every_implementation_of_a_step_is_covered(options: dict[str, Any]) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3, **options)
    train(model, optimizer)
    bundles.freeze(model, Elements({"0.weight": HALF, "4.weight": HALF[:2]}))
    before = copy.deepcopy(model)
    train(model, optimizer)
    assert_held(weight(before), weight(model), HALF)
    assert_held(weight(before, "4.weight"), weight(model, "4.weight"), HALF[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_masks_hold_in_every_width(dtype: torch.dtype) -> None:
    parameters = nn.ParameterDict({"w": torch.randn(3, 5, dtype=dtype).T})  # neither contiguous nor square
    mask = torch.rand(5, 3) > 0.5
    optimizer = torch.optim.SGD(parameters.parameters(), lr=0.1, momentum=0.9, weight_decay=0.3)
    before = parameters["w"].detach().clone()
    for frozen in (False, True):
        if frozen:
            bundles.freeze(parameters, Elements({"w": mask}))
            before = parameters["w"].detach().clone()
        optimizer.zero_grad(set_to_none=False)
        (parameters["w"] * parameters["w"].conj()).real.sum().backward()
        optimizer.step()
    assert_held(before, parameters["w"], mask)


@pytest.mark.parametrize("name", ["SparseAdam", "SGD"])
def test_sparse_gradients_are_masked_too(name: str) -> None:
    model = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Linear(4, 1))
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[1], mask[2, 1:] = True, True
    optimizer = getattr(torch.optim, name)([weight(model)], lr=0.1)
    words = torch.tensor([1, 2, 3, 2])
    for step in range(6):
        if step == 3:
            bundles.freeze(model, Elements({"0.weight": mask}))
            before = weight(model).detach().clone()
        optimizer.zero_grad()
        model(words).square().sum().backward()
        optimizer.step()
    assert as_bytes(before[mask]) == as_bytes(weight(model)[mask])
    assert not torch.any((before == weight(model))[2:4][~mask[2:4]])


def test_a_step_in_the_middle_of_backward_is_covered() -> None:
    model = net()
    optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.3) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())  # type: ignore[no-untyped-call]
    model(X).square().sum().backward()
    bundles.freeze(model, Elements({"0.weight": HALF}))
    before = weight(model).detach().clone()
    model(X).square().sum().backward()
    assert_held(before, weight(model), HALF)


def test_a_gradient_scaler_steps_through_the_same_gate() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    scaler = torch.amp.GradScaler("cpu")
    bundles.freeze(model, Elements({"0.weight": HALF}))
    before = weight(model).detach().clone()
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        scaler.scale(model(X).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_held(before, weight(model), HALF)


def test_the_norm_of_the_gradient_does_not_count_masked_elements() -> None:
    model, plain = net(), net()
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        each(X).square().sum().backward()
    bundles.freeze(model, Elements({"0.weight": HALF}))  # the gradient of the time before counts no longer
    for each in (model, copy.deepcopy(model)):
        each(X).square().sum().backward()
        grad = weight(each).grad
        assert grad is not None
        assert not torch.any(grad[HALF])
        assert torch.all(grad[~HALF] != 0)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_masked_gradient_that_is_not_finite_does_no_harm(bad: float) -> None:
    model = net()
    bundles.freeze(model, Elements({"0.weight": HALF}))
    weight(model).register_hook(lambda grad: grad.masked_fill(HALF, bad))  # type: ignore[no-untyped-call]
    before = weight(model).detach().clone()
    train(model, torch.optim.AdamW(model.parameters(), lr=0.1), steps=1)
    assert_held(before, weight(model), HALF)
    assert torch.isfinite(weight(model)).all()


def test_masked_values_that_are_nan_or_negative_zero_keep_their_bits() -> None:
    model = net()
    with torch.no_grad():
        weight(model, "4.bias").copy_(torch.tensor([-0.0, 1.0]))
        weight(model, "2.weight")[0, 0] = math.nan
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = True
    bundles.freeze(model, Elements({"4.bias": [True, False], "2.weight": mask}))
    before = {name: as_bytes(weight(model, name)) for name in ("4.bias", "2.weight")}
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3))
    assert as_bytes(weight(model, "4.bias"))[:4] == before["4.bias"][:4]
    assert as_bytes(weight(model, "2.weight"))[:4] == before["2.weight"][:4]


def test_compiled_training_works_and_leaves_masked_elements() -> None:
    model = net()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    bundles.freeze(compiled, Elements({"0.weight": HALF}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    before = weight(model).detach().clone()
    train(compiled, optimizer)
    assert_held(before, weight(model), HALF)


@pytest.mark.slow
def test_a_compiled_optimizer_step_leaves_masked_elements_and_thaws() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    model(X).square().sum().backward()
    step()
    bundles.freeze(model, Elements({"0.weight": HALF}))
    before = weight(model).detach().clone()
    step()
    assert_held(before, weight(model), HALF)
    bundles.unfreeze(model)
    step()
    assert not torch.any(before == weight(model))


# --- copies, checkpoints, undo --------------------------------------------------------------------


def test_nothing_that_a_checkpoint_or_a_caller_sees_changes() -> None:
    model = net()
    before = identity(model)
    bundles.freeze(model, Elements({"0.weight": HALF}))
    assert identity(model) == before
    assert all(p.requires_grad for p in model.parameters())


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("twin_of", [copy.deepcopy, pickled, copy.copy])
def test_a_copy_has_masks_of_its_own(twin_of: Callable[[nn.Module], nn.Module]) -> None:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}))
    twin = twin_of(model)
    del model
    before = weight(twin).detach().clone()
    train(twin, torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.3))
    assert_held(before, weight(twin), HALF)


def test_a_copy_and_its_original_thaw_apart() -> None:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}))
    twin = copy.deepcopy(model)
    bundles.unfreeze(model)
    before = weight(twin).detach().clone()
    for each in (model, twin):
        train(each, torch.optim.AdamW(each.parameters(), lr=0.1, weight_decay=0.3))
    assert_held(before, weight(twin), HALF)
    assert not torch.any(before == weight(model))


FRESH = """
import sys, torch
model, x, optimizer_state, held = torch.load(sys.argv[1], weights_only=False)
held = torch.nn.SyncBatchNorm.convert_sync_batchnorm(held).train()
assert type(held[0]).__name__ == "SyncBatchNorm" and not held[0].training
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
optimizer.load_state_dict(optimizer_state)
for _ in range(3):
    optimizer.zero_grad(set_to_none=False)
    model(x).square().sum().backward()
    optimizer.step()
torch.save(model.state_dict(), sys.argv[1])
"""


def test_a_fresh_process_that_does_not_know_the_library_keeps_masks_and_holds(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    train(model, optimizer)
    bundles.freeze(model, Elements({"0.weight": HALF}) | Match("2.*"))
    held = bundles.freeze(nn.Sequential(nn.BatchNorm1d(4)), mode="features")
    torch.save((model, X, optimizer.state_dict(), held), tmp_path / "model.pt")
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "model.pt")], check=True)
    after = torch.load(tmp_path / "model.pt")
    assert_held(weight(model), after["0.weight"], HALF)
    assert torch.equal(weight(model, "2.weight"), after["2.weight"])


@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_resumes_in_a_model_that_was_frozen_again(assign: bool) -> None:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    train(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer)

    again = bundles.freeze(net(), Elements({"0.weight": HALF}))
    again.load_state_dict(saved[0], assign=assign)
    resumed = torch.optim.AdamW(again.parameters(), lr=0.1, weight_decay=0.3)
    resumed.load_state_dict(saved[1])
    train(again, resumed)
    assert [as_bytes(p) for p in again.parameters()] == [as_bytes(p) for p in model.parameters()]


def test_values_written_between_steps_stay() -> None:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    train(model, optimizer)
    with torch.no_grad():
        weight(model).fill_(0.5)
    train(model, optimizer)
    assert torch.all(weight(model)[HALF] == 0.5)
    model.double()
    before = weight(model).detach().clone()
    model.zero_grad()
    model(X.double()).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert_held(before, weight(model), HALF)


def test_an_average_of_the_weights_keeps_masked_elements() -> None:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}))
    average = torch.optim.swa_utils.AveragedModel(
        model,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9),  # type: ignore[no-untyped-call]
    )
    before = weight(model).detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    for _ in range(5):
        train(model, optimizer, steps=1)
        average.update_parameters(model)
    assert_held(before, weight(average.module), HALF)


def test_unfreeze_gives_back_every_attribute_and_the_elements_train() -> None:
    model = net()
    before = fingerprint(model)
    bundles.freeze(model, Elements({"0.weight": HALF}) | Head())
    bundles.unfreeze(model)
    assert fingerprint(model) == before
    old = weight(model).detach().clone()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert not torch.any(old == weight(model))
    assert not weight(model)._post_accumulate_grad_hooks


def test_a_frozen_model_is_freed_as_soon_as_it_is_let_go_of() -> None:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}) | Match("2.*"), "weights")
    gone = [weakref.ref(weight(model)), weakref.ref(weight(model, "2.weight"))]
    gc.disable()
    try:
        del model
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_freezing_twice_equals_freezing_once_and_the_last_freeze_counts() -> None:
    policy = Elements({"0.weight": HALF})
    once, twice = bundles.freeze(net(), policy), bundles.freeze(bundles.freeze(net(), policy), policy)
    assert bundles.freeze_plan(once) == bundles.freeze_plan(twice)
    assert identity(once) == identity(twice)
    bundles.freeze(once, Elements({"0.weight": ~HALF}))
    before = weight(once).detach().clone()
    train(once, torch.optim.SGD(once.parameters(), lr=0.1))
    assert_held(before, weight(once), ~HALF)


def test_thawing_elements_leaves_the_rest_frozen() -> None:
    model = bundles.freeze(net(), "encoder")
    bundles.unfreeze(model, Elements({"0.weight": HALF}))
    assert torch.equal(masked_elements(model)["0.weight"], ~HALF)
    bundles.unfreeze(model, Elements({"0.weight": [False, True, True, True]}))
    rest = ~HALF & torch.tensor([[True], [False], [False], [False]])
    assert torch.equal(masked_elements(model)["0.weight"], rest)
    before = copy.deepcopy(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert_held(weight(before), weight(model), rest)
    assert torch.equal(weight(before, "2.weight"), weight(model, "2.weight"))
    bundles.unfreeze(model, "match:0.weight")
    assert masked_elements(model) == {}


def test_a_context_sets_masks_aside_and_puts_them_back() -> None:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bundles.frozen(model, Elements({"0.weight": ~HALF})):
        before = weight(model).detach().clone()
        train(model, optimizer)
        assert_held(before, weight(model), ~HALF)
    before = weight(model).detach().clone()
    train(model, optimizer)
    assert_held(before, weight(model), HALF)


def test_a_parameter_of_another_shape_is_named_before_the_step() -> None:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}))
    model[0].weight = nn.Parameter(torch.zeros(16))
    optimizer = torch.optim.SGD([model[0].weight], lr=0.1)
    with pytest.raises(bundles.FreezeError, match=r"'weight' of shape \(16,\) was frozen .* shape \(4, 4\)"):
        optimizer.step()


def test_a_snapshot_covers_masked_elements_and_only_those() -> None:
    model = bundles.freeze(net(), Elements({"0.weight": HALF}))
    taken = bundles.snapshot(model)
    train(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3))
    bundles.verify_frozen(model, taken)
    with torch.no_grad():
        weight(model)[0, 0] += 1
    with pytest.raises(bundles.FrozenDriftError, match=r"0\.weight"):
        bundles.verify_frozen(model, taken)


def test_a_bundle_is_built_with_masks_and_trains_without_touching_its_file() -> None:
    filters = [index % 2 == 0 for index in range(128)]
    policy = Elements({"conv1.weight": filters})
    model = bundles.CREPE_TINY.get_model(freeze=policy).train()
    before = weight(model, "conv1.weight").detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    model(torch.randn(2, 1024)).sum().backward()
    optimizer.step()
    rows = torch.tensor(filters)[:, None, None, None].expand_as(before)
    assert as_bytes(before[rows]) == as_bytes(weight(model, "conv1.weight")[rows])
    again = bundles.CREPE_TINY.get_model()
    assert torch.equal(weight(again, "conv1.weight"), before)


# --- frozen tensors under optimizers that move what has no gradient -------------------------------


def test_the_history_of_lbfgs_moves_nothing_frozen_not_even_within_a_step() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, line_search_fn="strong_wolfe")
    train(model, optimizer, steps=1)
    bundles.freeze(model, "encoder", "weights")
    seen, head = set[bytes](), weight(model, "4.weight").detach().clone()

    def closure() -> float:
        seen.add(as_bytes(weight(model)))
        optimizer.zero_grad()
        loss = model(X).square().sum()
        loss.backward()
        return float(loss.detach())

    for _ in range(2):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert seen == {as_bytes(weight(model))}
    assert not torch.equal(head, weight(model, "4.weight"))


class Decays(torch.optim.Optimizer):
    """Decays what has no gradient, too, and warms its rate up from zero."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1 - group["lr"])
            group["lr"] += 0.1


class Hoards(Decays):
    """Keeps its own list of parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters)
        self.all = list(self.param_groups[0]["params"])

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.all:
            parameter.data.mul_(0.9)


@pytest.mark.parametrize("cls", [Decays, Hoards])
def test_an_optimizer_from_elsewhere_moves_nothing_frozen(cls: type[Decays]) -> None:
    model = bundles.freeze(net(), Match("0.*") | Elements({"2.weight": HALF}), "weights")
    optimizer = cls(model.parameters())
    before, count = copy.deepcopy(model), len(optimizer.param_groups[0]["params"])
    for _ in range(4):
        optimizer.step()
    assert torch.equal(weight(before), weight(model))
    assert_held(weight(before, "2.weight"), weight(model, "2.weight"), HALF)
    assert not torch.equal(weight(before, "4.weight"), weight(model, "4.weight"))
    assert len(optimizer.param_groups[0]["params"]) == count
    bundles.unfreeze(model)
    optimizer.step()
    assert not torch.any(weight(before) == weight(model))


def test_what_was_never_frozen_by_a_plan_is_left_to_its_optimizer() -> None:
    model, other = bundles.freeze(net(), "encoder"), nn.Linear(2, 2).requires_grad_(False)
    optimizer = Decays([*model.parameters(), *other.parameters()])
    before = other.weight.clone()
    for _ in range(2):
        optimizer.step()
    assert not torch.any(before == other.weight)


def test_a_step_that_fails_gives_its_parameters_back() -> None:
    model = bundles.freeze(net(), "encoder")
    optimizer = Decays(model.parameters())

    def closure() -> float:
        raise MemoryError

    with pytest.raises(MemoryError):
        optimizer.step(closure)
    assert len(optimizer.param_groups[0]["params"]) == 6


class DecaysTwice(Decays):
    """Calls the step of its base, which has hooks of its own, and goes on."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        super().step(closure)


def test_a_step_within_a_step_is_covered_to_its_end() -> None:
    Decays([nn.Parameter(torch.zeros(1))])  # gives the base its hooks
    model = bundles.freeze(net(), Match("0.*") | Elements({"2.weight": HALF}), "weights")
    before, optimizer = copy.deepcopy(model), DecaysTwice(model.parameters())
    optimizer.step()
    assert torch.equal(weight(before), weight(model))
    assert_held(weight(before, "2.weight"), weight(model, "2.weight"), HALF)
    assert len(optimizer.param_groups[0]["params"]) == 6


@pytest.mark.parametrize("array", [torch.ones(4, dtype=torch.bool, device="meta"), torch.eye(4).to_sparse()])
def test_an_array_without_plain_values_is_refused_with_what_to_type(array: torch.Tensor) -> None:
    with pytest.raises(bundles.FreezeArgumentError, match=r"without plain values .* mask.to_dense\(\)"):
        bundles.Elements({"weight": array})


def test_a_plan_gives_its_masks_back_as_a_policy() -> None:
    model, again = nn.Linear(4, 4), nn.Linear(4, 4)
    bundles.freeze(model, bundles.Elements({"weight": [True, False, True, False]}))
    text = bundles.freeze_plan(model).to_json()  # type: ignore[union-attr]
    bundles.freeze(again, bundles.Elements(bundles.FreezePlan.from_json(text).masks))
    assert bundles.freeze_plan(again).digest == bundles.freeze_plan(model).digest  # type: ignore[union-attr]
