"""Scores: what each method measures, that the model is lent and given back, and what scores are good for."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import bundles
from bundles import Scores, importance
from toys import TOYS, as_bytes, contents, fingerprint

ROOT = Path(__file__).parent.parent
METHODS = ("grad_norm", "rgn", "snr", "fisher", "magnitude", "lrp")


def scaled(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


# --- what the methods measure: numbers worked out on paper, all of them exact in binary -----------

ONE, ZERO = torch.ones(1, 1), torch.zeros(1, 1)


@pytest.mark.parametrize(
    ("method", "score"),
    [("grad_norm", 3.0), ("rgn", 1.5), ("snr", 3.0), ("fisher", 10.0), ("magnitude", 2.0)],
)
def test_a_weight_of_two_whose_gradients_are_two_and_four(method: str, score: float) -> None:
    batches = [(ONE, ONE), (ONE, ZERO)]  # (2 - 1)^2 and (2 - 0)^2
    assert importance(scaled([[2.0]]), batches, method=method).values == {"weight": score}


def test_fisher_squares_before_it_averages_over_the_examples_of_a_batch() -> None:
    batch = (torch.cat([ONE, ONE]), torch.cat([ONE, ZERO]))
    assert importance(scaled([[2.0]]), [batch], method="fisher").values == {"weight": 10.0}
    assert importance(scaled([[2.0]]), [batch], method="grad_norm").values == {"weight": 3.0}


# Output (1, 1) against (0, -1): the gradient is (1, 2) at the outputs and (1, 1), (2, 2) at the weights.
SQUARE = (torch.ones(1, 2), torch.tensor([[0.0, -1.0]]))


@pytest.mark.parametrize(
    ("method", "units", "tensor"),
    [
        ("grad_norm", (math.sqrt(2), math.sqrt(8)), math.sqrt(10)),
        ("fisher", (1.0, 4.0), 2.5),
        ("magnitude", (0.5, 0.5), 0.5),
    ],
)
def test_units_are_rows(method: str, units: tuple[float, ...], tensor: float) -> None:
    model = scaled([[1.0, 0.0], [0.0, 1.0]])
    assert importance(model, [SQUARE], method=method, per="unit").values == {"weight": units}
    assert importance(model, [SQUARE], method=method, per="tensor").values == {"weight": tensor}


def test_groups_count_each_element_and_each_tied_tensor_once() -> None:
    first, second = scaled([[1.0, 0.0], [0.0, 1.0]]), scaled([[4.0, 4.0]])
    model = nn.Sequential(first, second, first, scaled([[3.0], [3.0]]))
    model[3].weight = nn.Parameter(torch.full((2, 2), 3.0))
    groups = bundles.layer_groups(model)
    assert [len(group.parameters) for group in groups] == [1, 1, 1, 1]
    scores = importance(model, method="magnitude", per="group").values
    assert scores == {"block.0": 0.5, "block.1": 4.0, "head": 3.0}


def test_gradients_that_never_vary_have_no_noise_to_compare_with() -> None:
    assert importance(scaled([[2.0]]), [(ONE, ONE)] * 3, method="snr").values == {"weight": 0.0}


def test_a_weight_of_zero_has_no_relative_gradient() -> None:
    assert importance(scaled([[0.0]]), [(ONE, ONE)], method="rgn").values == {"weight": 0.0}
    assert importance(scaled([[0.0]]), [(ONE, ONE)], method="grad_norm").values == {"weight": 2.0}


def test_half_precision_is_added_up_in_single() -> None:
    model = scaled([[2.0**-70]]).to(torch.bfloat16)
    scores = importance(model, [(ONE.bfloat16(), ONE.bfloat16() * 2.0**-20)], method="fisher")
    assert scores.values == {"weight": 2.0**-38}


def test_weights_whose_squares_vanish_in_half_precision() -> None:
    model, data = scaled([[2.0**-13]]).half(), [(ONE.half(), -ONE.half())]
    assert importance(model, data, method="rgn").values == {"weight": 2.0**14}


def test_sparse_gradients_and_parameters_out_of_reach() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(3, 2, sparse=True), "idle": scaled([[1.0]])})
    scores = importance(
        model,
        [torch.tensor([1, 1])],
        method="grad_norm",
        per="unit",
        loss=lambda m, batch: m.get_submodule("words")(batch).sum(),
    )
    assert scores.values == {"words.weight": (0.0, math.sqrt(8), 0.0), "idle.weight": (0.0,)}


def test_integer_targets_mean_cross_entropy() -> None:
    model, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    usual = importance(model, [(x, y)], method="grad_norm")
    assert usual == importance(
        model, [(x, y)], method="grad_norm", loss=lambda m, b: F.cross_entropy(m(b[0]), b[1])
    )


class Telling(nn.Linear):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return SimpleNamespace(loss=super().forward(x).sub(0 if y is None else y).square().mean())


def test_a_mapping_is_a_models_own_arguments() -> None:
    model = Telling(2, 2)
    told = importance(model, [{"x": SQUARE[0], "y": SQUARE[1]}], method="fisher")
    assert told == importance(model, [SQUARE], method="fisher", loss=lambda m, b: m(*b).loss)


# --- relevance ------------------------------------------------------------------------------------


def relu_net() -> nn.Sequential:
    sizes = ((6, 8), (8, 5), (5, 3))
    layers = [layer for size in sizes for layer in (nn.Linear(*size, bias=False), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def test_relevance_of_a_relu_net_is_activation_times_gradient_and_adds_up_to_one() -> None:
    pytest.importorskip("zennit")
    model, x, y = relu_net(), torch.randn(1, 6), torch.tensor([1])
    scores = importance(model, [(x, y)], method="lrp", per="unit").values
    hidden = [model[:1](x), model[:3](x)]
    for start, name, at in ((1, "0.weight", hidden[0]), (3, "2.weight", hidden[1])):
        at = at.detach().requires_grad_()
        output = model[start:](at)[0, 1]
        (gradient,) = torch.autograd.grad(output, at)
        share = (at * gradient / output).detach()[0]
        torch.testing.assert_close(torch.tensor(scores[name]), share.abs(), rtol=1e-3, atol=1e-4)
        assert share.sum().item() == pytest.approx(1, rel=1e-4)
    assert scores["4.weight"] == (0.0, 1.0, 0.0)


def test_relevance_is_per_channel_and_averaged_over_examples() -> None:
    pytest.importorskip("zennit")
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * 36, 2)
    ).double()
    batch = torch.rand(4, 1, 8, 8).double(), torch.tensor([0, 1, 1, 0])
    scores = importance(model, [batch], method="lrp", per="unit").values
    singles = [[(batch[0][i : i + 1], batch[1][i : i + 1])] for i in range(4)]
    alone = [importance(model, single, method="lrp", per="unit") for single in singles]
    assert {name: len(values) for name, values in scores.items() if isinstance(values, tuple)} == {
        **dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), 3),
        **dict.fromkeys(("4.weight", "4.bias"), 2),
    }
    for unit in range(3):
        each = [one.values["0.weight"][unit] for one in alone]  # type: ignore[index]
        assert scores["0.weight"][unit] == pytest.approx(sum(each) / 4, rel=1e-9)  # type: ignore[index]
    assert len(importance(model, [batch], method="lrp", per="group")) == 3


def test_relevance_of_a_linear_layer_over_time_is_per_feature() -> None:
    pytest.importorskip("zennit")
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 5, 2)).double()
    x = torch.rand(1, 2, 3).double()
    scores = importance(model, [(x, torch.tensor([0]))], method="lrp", per="unit").values
    hidden = model[:2](x)
    weights = model.get_parameter("3.weight")[0].reshape(2, 5)
    share = (hidden[0] * weights).sum(0) / (model[3](hidden.flatten(1))[0, 0])
    assert scores["0.weight"] == pytest.approx(share.abs().tolist(), rel=1e-4)


def test_without_zennit_the_line_to_type_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zennit.composites", None)
    with pytest.raises(bundles.MissingDependencyError, match=r"`pip install zennit`"):
        importance(relu_net(), [(torch.randn(1, 6), torch.tensor([1]))], method="lrp")


# --- the model is lent ----------------------------------------------------------------------------


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch)[-1].square().mean()  # type: ignore[no-any-return]


def seen(model: nn.Module) -> dict[str, Any]:
    """All that can be told of a model; bookkeeping of a freeze by value, other attributes by identity."""
    return {
        **fingerprint(model),
        **contents(model),
        "attributes": [{key: told(key, value) for key, value in vars(m).items()} for m in model.modules()],
        "grads": [(id(p.grad), p.grad is not None and as_bytes(p.grad)) for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "random": (torch.get_rng_state().tolist(), random.getstate()),
    }


def told(key: str, value: Any) -> Any:
    if key in ("train", "forward") or isinstance(value, Tensor):
        return type(value)
    if not key.startswith("_bundles"):
        return value if key == "training" else id(value)
    return type(value) if key == "_bundles_kept" else value


def with_grads(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.rand_like(parameter)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", ["eval", "features", "mc"])
@pytest.mark.parametrize("name", TOYS)
def test_the_model_is_given_back_bit_for_bit(name: str, mode: str, training: bool) -> None:
    toy = TOYS[name]
    model, x = toy.make(), toy.make_input()
    mean_square(model.eval(), x)  # old hooks leave a tensor behind at the first forward
    with_grads(bundles.freeze(model, "match:encoder", mode)).train()
    before = seen(model)
    importance(model, [x, x.flip(0)], method="snr", loss=mean_square, training=training)
    assert seen(model) == before


class Replacing(nn.Linear):
    """Puts another tensor in the place of its buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return super().forward(x)


def test_what_others_wrote_into_a_frozen_model_stays_too() -> None:
    model = bundles.freeze(nn.Sequential(Replacing(), nn.Linear(4, 4)), "encoder").train()
    assert not model[0].training
    model[0].training = True
    model[0].weight.grad = torch.ones(4, 4)
    before = seen(model)
    importance(model, [(torch.ones(2, 4), torch.zeros(2, 4))], batches=1)
    assert seen(model) == before
    assert model[0].get_buffer("seen") == 0


@pytest.mark.parametrize("when", ["in forward", "between batches"])
def test_also_after_an_exception(when: str) -> None:
    toy = TOYS["batchnorm1d"]
    model = with_grads(bundles.freeze(toy.make(), "match:encoder")).train()

    def loss(lent: nn.Module, batch: Tensor) -> Tensor:
        found = mean_square(lent, batch) + random.random() + torch.rand(())
        if when == "in forward":
            raise KeyboardInterrupt
        return found

    def data() -> Any:
        yield toy.make_input()
        raise KeyboardInterrupt

    before = seen(model)
    with pytest.raises(KeyboardInterrupt):
        importance(model, data(), loss=loss, training=True)
    assert seen(model) == before


def test_relevance_gives_the_model_back_too() -> None:
    pytest.importorskip("zennit")
    model = with_grads(bundles.freeze(relu_net(), "last:1")).train()
    batch = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    before = seen(model)
    importance(model, [batch], method="lrp")
    assert seen(model) == before


@pytest.mark.parametrize("mode", ["eval", "features", "mc", "weights"])
@pytest.mark.parametrize("which", ["all", "match:encoder"])
@pytest.mark.filterwarnings("ignore::bundles.NothingTrainableWarning")
def test_frozen_or_not_the_scores_are_the_same(which: str, mode: str) -> None:
    toy = TOYS["dropout"]
    free = importance(toy.make(), [toy.make_input()], loss=mean_square)
    frozen = bundles.freeze(toy.make(), which, mode).train()
    assert importance(frozen, [toy.make_input()], loss=mean_square) == free
    assert len(free) == len(list(frozen.parameters()))


def test_groups_are_those_of_the_freeze_or_those_given() -> None:
    model = nn.Sequential(scaled([[1.0]]), scaled([[2.0]]), scaled([[3.0]]))
    bundles.freeze(model, "first:0", groups={"stem": ["0", "1"], "head": "2"})
    assert importance(model, method="magnitude", per="group").values == {"stem": 1.5, "head": 3.0}
    given = importance(model, method="magnitude", per="group", groups={"stem": "0", "head": ["1", "2"]})
    assert given.values == {"stem": 1.0, "head": 2.5}


def test_without_grad_mode_and_with_complex_weights() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.complex64)
    with torch.inference_mode():
        scores = importance(model, [ONE], method="grad_norm", loss=lambda m, b: m(b + 0j).imag.sum())
    assert scores.values == {"weight": 1.0}


def test_what_did_not_train_before_a_freeze_has_no_score() -> None:
    model = nn.Sequential(scaled([[1.0]]), scaled([[1.0]])).requires_grad_(False)
    model[1].requires_grad_(True)
    bundles.freeze(model, "match:1", "features")
    assert list(importance(model, method="magnitude").values) == ["1.weight"]


def test_what_is_random_is_repeated_in_train_mode_and_off_otherwise() -> None:
    toy = TOYS["dropout"]
    model, data = toy.make().train(), [toy.make_input()]
    quiet = importance(model, data, loss=mean_square)
    torch.manual_seed(5)
    noisy = importance(model, data, loss=mean_square, training=True)
    torch.manual_seed(5)
    assert importance(model, data, loss=mean_square, training=True) == noisy != quiet
    torch.manual_seed(6)
    assert importance(model, data, loss=mean_square) == quiet


def test_a_tied_tensor_is_scored_once() -> None:
    toy = TOYS["tied"]
    model = toy.make()
    scores = importance(model, [toy.make_input()], loss=mean_square)
    assert list(scores.values) == [name for name, _ in model.named_parameters()]


def test_wrappers_are_looked_through() -> None:
    model = nn.Sequential(scaled([[2.0]]), scaled([[1.0]]))
    data = [(ONE, ZERO)]
    averaged = torch.optim.swa_utils.AveragedModel(copy.deepcopy(model))
    assert importance(averaged, data) == importance(nn.DataParallel(model), data) == importance(model, data)


def test_so_many_batches_and_no_more() -> None:
    def data() -> Any:
        yield ONE, ONE
        yield ONE, ZERO
        raise AssertionError("a third batch was asked for")

    assert importance(scaled([[2.0]]), data(), method="grad_norm", batches=2).values == {"weight": 3.0}


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(x),)


ELSE = scaled([[1.0]])


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        (Other(), {"method": "hessian"}, r"method='hessian'.*grad_norm, rgn, snr"),
        (Other(), {"per": "layer"}, r"per='layer'.*tensor, group, unit"),
        (Other(), {"batches": 0}, r"batches=0 is not a number of batches from 1"),
        (Other(), {"data": []}, r"data= gave no batch"),
        (Other(), {}, r"output does not tell a loss: give loss="),
        (Other(), {"data": [ONE]}, r"A batch is 'Tensor', expected is \(inputs, targets\)"),
        (Other(), {"data": [{"x": ONE}]}, r"output does not tell a loss: give loss="),
        (Other(), {"loss": lambda m, b: m(b[0])[0].mean().item()}, r"The loss is .*expected is one number"),
        (Other(), {"loss": lambda m, b: ELSE(b[0]).mean()}, r"The loss reaches no parameter"),
        (nn.LazyLinear(1), {}, r"weight, bias have no shape yet: run one batch"),
        (ELSE, {"method": "snr"}, r"compares batches and was given one: give at least 2"),
        (ELSE, {"method": "fisher", "data": [(torch.ones(2, 1), ONE)]}, r"\[1, 2\] as dimension 0"),
        (ELSE, {"method": "lrp"}, r"explains outputs of shape \(examples, classes\)"),
        (copy.deepcopy(ELSE).requires_grad_(False), {}, r"model\.requires_grad_\(True\)"),
        (ELSE, {"loss": lambda m, b: m(b[0]).mean() * math.inf}, r"The score of 'weight' is inf"),
    ],
)
def test_what_cannot_be_scored_is_said(model: nn.Module, arguments: dict[str, Any], told: str) -> None:
    if arguments.get("method") == "lrp":
        pytest.importorskip("zennit")
    arguments = {"data": [(ONE, ONE)], **arguments}
    with pytest.raises(bundles.FreezeArgumentError, match=told):
        importance(model, arguments.pop("data"), **arguments)


# --- the value ------------------------------------------------------------------------------------

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.text(max_size=5), NUMBERS), st.sampled_from(["tensor", "group"]))
def test_json_keeps_every_bit(values: dict[str, float], per: Literal["tensor", "group"]) -> None:
    scores = Scores("any", per, values)
    again = Scores.from_json(scores.to_json())
    assert again == scores
    assert hash(again) == hash(scores)
    assert [each.hex() for each in again.values.values()] == [each.hex() for each in values.values()]  # type: ignore[union-attr]


@given(st.lists(NUMBERS, max_size=8), st.booleans())
def test_ranking_is_sorting(values: list[float], smallest: bool) -> None:
    scores = Scores("any", "unit", {"a": tuple(values), "b": (0.0,)})
    ranked = scores.ranked(smallest=smallest)
    assert [score.value for score in ranked] == sorted([*values, 0.0], reverse=not smallest)
    assert sorted(ranked, key=lambda score: (score.name, score.unit)) == list(scores)
    assert scores.top(2, smallest=smallest) == ranked[:2]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    first = Scores("rgn", "unit", {"a.weight": (0.1, 2.0)})
    first.save(path)
    assert Scores.load(path) == first
    with pytest.raises(OSError, match=r"scores\.json"):
        first.save(path / "below")
    Scores("rgn", "tensor", {"b": 1.0}).save(path)
    assert Scores.load(path).values == {"b": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"method": "rgn", "per": "tensor", "values": {"a": NaN}}',
        b'{"method": "rgn", "per": "tensor", "values": {"a": "1"}}',
        b'{"method": "rgn", "per": "tensor", "values": {"a": [1]}}',
        b'{"method": "rgn", "per": "tensor", "values": {"a": 1' + b"0" * 400 + b"}}",
        b'{"method": "rgn", "per": "unit", "values": {"a": 1}}',
        b'{"method": "rgn", "per": "layer", "values": {}}',
        b'{"method": "rgn", "per": "tensor", "values": {}, "more": 1}',
        b"[" * 100_000,
    ],
)
def test_a_file_of_anything_else_is_refused_by_name(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(text)
    with pytest.raises(bundles.FreezeArgumentError, match=r"scores\.json does not hold scores"):
        Scores.load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None, (1.0,)])
def test_a_score_is_a_finite_number(value: Any) -> None:
    with pytest.raises(bundles.FreezeArgumentError, match=r"The score of 'a' is"):
        Scores("rgn", "tensor", {"a": value})


def test_scores_may_be_given_as_tensors_and_arrays() -> None:
    own = Scores("any", "unit", {"a": (0.5, 2.0)})
    assert Scores("any", "unit", {"a": torch.tensor([0.5, 2.0])}) == own  # type: ignore[dict-item]
    assert Scores("any", "unit", {"a": torch.tensor([0.5, 2.0]).numpy()}) == own  # type: ignore[dict-item]
    assert Scores("any", "tensor", {"a": torch.tensor(0.5)}).values == {"a": 0.5}  # type: ignore[dict-item]


def test_scores_cannot_change_and_print_short() -> None:
    values = {f"layer.{index}": float(index) for index in range(20)}
    scores = Scores("rgn", "tensor", values)
    values["layer.0"] = 9.0
    assert scores.values["layer.0"] == 0.0
    assert repr(scores).startswith("<Scores rgn per tensor: 20 scores, sha256:")
    lines = str(scores).splitlines()
    assert (lines[0], lines[1], lines[-1], len(lines)) == (
        "rgn per tensor, highest of 20",
        "layer.19  19",
        "and 8 more",
        14,
    )


# --- what they are for ----------------------------------------------------------------------------


def test_the_most_important_tensors_are_frozen_and_the_rest_trains() -> None:
    model = nn.Sequential(scaled([[3.0]]), scaled([[1.0]]), scaled([[2.0]]))
    scores = importance(model, method="magnitude")
    bundles.freeze(model, bundles.TopScores(scores, 1 / 3))
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True]
    bundles.freeze(model, bundles.TopScores(importance(model, method="magnitude"), 1 / 3, smallest=True))
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, True]


def test_units_that_matter_to_an_old_task_stay_while_a_new_one_is_learnt() -> None:
    model, data = relu_net(), [(torch.randn(20, 6), torch.randint(3, (20,)))]
    scores = importance(model, data, method="fisher", per="unit")
    bundles.freeze(model, bundles.TopScores(scores, 0.25))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][0]), data[0][1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    kept = {(score.name, score.unit) for score in scores.top(4)}
    for name, parameter in model.named_parameters():
        for unit, row in enumerate(parameter.detach()):
            assert torch.equal(row, before[name][unit]) == ((name, unit) in kept)


def test_relative_gradient_norms_scale_the_learning_rates() -> None:
    model = nn.Sequential(scaled([[2.0]]), scaled([[1.0]]))
    scores = importance(model, [(ONE, ZERO)], method="rgn", per="group")
    groups = bundles.param_groups(model, lr=0.5, scores=scores)
    assert scores.values == {"block.0": 2.0, "head": 8.0}
    assert [(group["name"], group["lr"]) for group in groups] == [("block.0", 0.125), ("head", 0.5)]


# --- the experiments of docs/strategies.md --------------------------------------------------------


def load(name: str) -> Any:
    path = ROOT / "benchmarks" / "strategies" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"strategies_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_page_are_those_of_the_stored_results() -> None:
    results = json.loads((ROOT / "benchmarks/strategies/results.json").read_text())
    page = (ROOT / "docs/strategies.md").read_text()
    assert load("tables").replaced(page, results) == page
    assert results["made with"]["seeds"] >= 5
    parts = (results[part] for part in ("digits", "theory", "surgical", "budget"))
    numbers = [values for part in parts for row in part.values() for values in row.values()]
    assert {len(values) for values in numbers} == {results["made with"]["seeds"]}


@pytest.mark.slow
def test_every_experiment_runs_for_a_seed() -> None:
    pytest.importorskip("sklearn")
    command = [sys.executable, "benchmarks/strategies/run.py", "--seeds", "1", "--epochs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made_with, *tables = done.stdout.strip().split("\n\n")
    assert json.loads(made_with)["seeds"] == 1
    stored = load("tables").tables(json.loads((ROOT / "benchmarks/strategies/results.json").read_text()))
    assert [table.splitlines()[0] for table in tables] == [table.splitlines()[0] for table in stored.values()]


@pytest.mark.parametrize("data", [None, torch.ones(2, 4)])
def test_data_that_is_no_iterable_of_batches_is_named(data: Any) -> None:
    with pytest.raises(bundles.FreezeArgumentError, match=r"data= is a \w+: give an iterable of batches"):
        bundles.importance(nn.Linear(4, 2), data)


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(bundles.FreezeArgumentError, match=r"on the meta device .*, weight first: load"):
        bundles.importance(nn.Linear(4, 2, device="meta"), [(torch.ones(2, 4), torch.zeros(2).long())])
