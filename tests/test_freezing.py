"""The laws of freezing on any module: what freeze, unfreeze and their kin promise, one claim per test."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import spectral_norm as spectral_norm_hook

import bundles
import toys
from bundles import (
    All,
    Blocks,
    Encoder,
    ExceptLast,
    First,
    FreezeArgumentError,
    FreezeMode,
    FreezePlan,
    FreezePolicy,
    FrozenDriftError,
    Head,
    InexpressibleModeError,
    Loaded,
    Match,
    Nothing,
    NothingSelectedError,
    NothingTrainableWarning,
    PinError,
)
from bundles.freezing.behaviour.reads import reads_training
from bundles.spec.mode import PRESETS, parse_mode
from bundles.spec.policy import parse_policy
from toys import TOYS, contents, fingerprint, make_optimizers, outputs, step


def toy(name: str = "batchnorm1d") -> nn.Module:
    return TOYS[name].make()


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def part(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def linears(count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(count)))


# --- policies and modes as values -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("encoder", Encoder()),
        ("head", Head()),
        ("all", All()),
        ("none", Nothing()),
        ("loaded", Loaded()),
        ("last:2", ExceptLast(2)),
        ("first:6", First(6)),
        ("blocks:0-3,6", Blocks(0, 1, 2, 3, 6)),
        ("match:encoder.*.attention", Match("encoder.*.attention")),
    ],
)
def test_each_policy_string_stands_for_one_object(text: str, policy: FreezePolicy) -> None:
    assert parse_policy(text) == policy
    assert parse_policy(policy) is policy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "encodr",
        "Encoder",
        "last",
        "last:",
        "last:x",
        "last:-1",
        "blocks:1-",
        "blocks:,",
        "match:",
        "first:1.5",
    ],
)
def test_an_unknown_policy_is_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(FreezeArgumentError, match=r"is not known: give one of .*'blocks:0-3,6'.*or a "):
        bundles.freeze(linears(2), text)


def test_the_closest_policy_comes_first() -> None:
    with pytest.raises(FreezeArgumentError, match=r"'encodr' is not known: give one of 'encoder'"):
        parse_policy("encodr")
    with pytest.raises(FreezeArgumentError, match=r"give one of 'last:2'"):
        parse_policy("last 2")


@pytest.mark.parametrize("value", [None, 3, True, ["encoder"]])
def test_a_policy_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(FreezeArgumentError, match="is not known"):
        parse_policy(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExceptLast(-1), r"ExceptLast\(-1\) needs a number of blocks, as in ExceptLast\(2\)"),
        (lambda: First(True), r"First\(True\) needs a number of blocks"),
        (lambda: Blocks(), r"is not a list of block numbers from 0"),
        (lambda: Blocks(-1), r"is not a list of block numbers from 0"),
        (lambda: Match(""), r"needs a pattern"),
        (lambda: parse_policy("blocks:3-1"), r"'blocks:3-1' counts backwards"),
    ],
)
def test_a_malformed_policy_is_refused_when_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FreezeArgumentError, match=message):
        make()


LEAVES = st.sampled_from(
    [Encoder(), Head(), All(), Nothing(), Loaded(), ExceptLast(1), First(2), Blocks(0, 2), Match("*.bias")]
)
POLICIES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=6,
)


@given(POLICIES)
def test_the_repr_of_a_policy_makes_an_equal_one(policy: FreezePolicy) -> None:
    again = eval(repr(policy), {"bundles": bundles, **vars(bundles)})
    assert again == policy
    assert hash(again) == hash(policy)
    assert repr(again) == repr(policy)
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_different_policies_are_not_equal() -> None:
    policies = [Encoder(), Head(), First(1), First(2), ExceptLast(1), ~Encoder()]
    policies += [Encoder() | Head(), Encoder() & Head(), Head() | Encoder()]
    assert len({*policies, "encoder"}) == 10


def test_policies_combine_only_with_policies() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        Encoder() | "head"  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        Encoder() & 3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("policy", "left_to_train"),
    [
        (Encoder() | Match("3.bias"), {"3.weight"}),
        (All() & ~Match("*.bias"), {"0.bias", "1.bias", "2.bias", "3.bias"}),
        (~Head(), {"3.weight", "3.bias"}),
        (Blocks(0, 2), {"1.weight", "1.bias", "3.weight", "3.bias"}),
        (First(0) | Head(), {f"{block}.{kind}" for block in range(3) for kind in ("weight", "bias")}),
        (ExceptLast(0), {"3.weight", "3.bias"}),
        (Match("[02]"), {"1.weight", "1.bias", "3.weight", "3.bias"}),
    ],
)
def test_combined_policies_select_as_sets_do(policy: FreezePolicy, left_to_train: set[str]) -> None:
    assert trainable(bundles.freeze(linears(4), policy)) == left_to_train


def test_a_glob_matches_a_name_or_any_dotted_prefix_but_no_part_of_a_word() -> None:
    model = toy()
    assert trainable(bundles.freeze(model, "match:encoder.blocks.?.0")) >= {"encoder.blocks.0.1.weight"}
    assert "encoder.blocks.0.0.weight" not in trainable(model)
    with pytest.raises(NothingSelectedError, match="selects no parameter"):
        bundles.freeze(model, "match:enc")


@pytest.mark.parametrize("policy", ["last:4", "first:4", "blocks:0,3"])
def test_more_blocks_than_there_are_is_an_error_that_counts_them(policy: str) -> None:
    with pytest.raises(FreezeArgumentError, match=r"needs 4 blocks and the model has 3.*block\.0.*head"):
        bundles.freeze(linears(4), policy)


@pytest.mark.parametrize("mode", ["", "evl", "Eval", None, 1])
def test_an_unknown_mode_is_refused_with_what_is_accepted(mode: Any) -> None:
    with pytest.raises(
        FreezeArgumentError, match=r"is not known: give one of .*'regularized'.*or FreezeMode\(noise="
    ):
        bundles.freeze(linears(2), "encoder", mode)


def test_the_closest_mode_comes_first() -> None:
    with pytest.raises(FreezeArgumentError, match="'feature' is not known: give one of 'features'"):
        parse_mode("feature")


@pytest.mark.parametrize(
    ("axis", "value"),
    [("noise", "hold"), ("stats", "off"), ("structure", "on"), ("grad", "stop"), ("noise", True)],
)
def test_an_axis_of_a_mode_takes_only_its_own_values(axis: str, value: Any) -> None:
    with pytest.raises(
        FreezeArgumentError, match=rf"FreezeMode\({axis}={value!r}\) is not known: give one of"
    ):
        FreezeMode(**{axis: value})


@pytest.mark.parametrize("mode", [*PRESETS.values(), FreezeMode(noise="on", stats="follow")])
def test_the_repr_of_a_mode_makes_an_equal_one(mode: FreezeMode) -> None:
    assert eval(repr(mode), {"FreezeMode": FreezeMode}) == mode


def test_a_preset_is_the_mode_of_its_axes() -> None:
    by_name = bundles.freeze_plan(bundles.freeze(toy(), "encoder", "mc"))
    by_axes = bundles.freeze_plan(bundles.freeze(toy(), "encoder", FreezeMode(noise="on")))
    assert by_name == by_axes


# --- refusals change nothing ----------------------------------------------------------------------


def test_a_policy_that_selects_nothing_names_the_groups_that_exist() -> None:
    with pytest.raises(NothingSelectedError, match=r"the groups are block\.0, block\.1, head") as caught:
        bundles.freeze(linears(3), "match:decoder")
    assert caught.value.groups == ("block.0", "block.1", "head")
    assert isinstance(caught.value, ValueError)


def test_loaded_selects_nothing_in_a_model_of_unknown_origin() -> None:
    with pytest.raises(NothingSelectedError, match=r"Loaded\(\) selects no parameter"):
        bundles.freeze(linears(2), "loaded")


def test_nothing_is_the_one_policy_that_may_select_nothing() -> None:
    model = linears(2)
    assert bundles.freeze(model, "none") is model
    assert len(trainable(model)) == 4
    bundles.freeze(model, "encoder")
    assert bundles.unfreeze(model, "none") is model
    assert trainable(model) == {"1.weight", "1.bias"}


class Hooked(nn.Module):
    """One module with dropout and power iteration on one flag."""

    def __init__(self, inner: nn.Module, weight: str) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([spectral_norm_hook(inner, weight), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)


ONE_FLAG: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Hooked(nn.LSTM(4, 4, 2, dropout=0.5), "weight_hh_l0"),
    "attention": lambda: Hooked(nn.MultiheadAttention(4, 2, dropout=0.5), "in_proj_weight"),
}


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        *itertools.product(ONE_FLAG, ["regularized", "mc", FreezeMode(noise="on", stats="follow")]),
        ("attention", "frontend"),  # an LSTM's dropout has a knob beside the flag
    ],
)
def test_two_behaviours_on_one_flag_are_refused_and_nothing_changes(
    model: str, mode: str | FreezeMode
) -> None:
    made = ONE_FLAG[model]()
    before = fingerprint(made)
    with pytest.raises(InexpressibleModeError, match=r"hang on one flag in encoder\.0: choose") as caught:
        bundles.freeze(made, "encoder", mode)
    assert caught.value.modules == ("encoder.0",)
    assert fingerprint(made) == before


@pytest.mark.parametrize("model", ONE_FLAG)
@pytest.mark.parametrize("mode", ["eval", "features", "weights"])
def test_modes_that_agree_on_the_flag_are_accepted_there(model: str, mode: str) -> None:
    made = bundles.freeze(ONE_FLAG[model](), "encoder", mode)
    assert made.train().get_submodule("encoder.0").training == (mode == "weights")


@pytest.mark.parametrize(
    ("which", "mode", "groups"),
    [("match:no", "eval", None), ("encoder", "no", None), ("no", "eval", None), ("all", "eval", {"stem": 3})],
)
def test_a_refused_freeze_leaves_an_earlier_one_as_it_is(which: str, mode: str, groups: Any) -> None:
    model = bundles.freeze(toy(), "first:1", "features").train()
    before, plan = fingerprint(model), bundles.freeze_plan(model)
    with pytest.raises(bundles.FreezeError):
        bundles.freeze(model, which, mode, groups=groups)
    assert fingerprint(model) == before
    assert bundles.freeze_plan(model) is plan


# --- plans ----------------------------------------------------------------------------------------


def plan_of(
    which: str | FreezePolicy = "encoder", mode: str = "eval", model: nn.Module | None = None
) -> FreezePlan:
    plan = bundles.freeze_plan(bundles.freeze(toy("dropout") if model is None else model, which, mode))
    assert plan is not None
    return plan


@pytest.mark.parametrize("name", TOYS)
def test_a_plan_survives_json_and_pickle(name: str) -> None:
    plan = plan_of("last:1", "features", toy(name))
    assert FreezePlan.from_json(plan.to_json()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert FreezePlan.from_json(plan.to_json()).digest == plan.digest


def test_the_digest_is_that_of_what_happens_not_of_its_wording() -> None:
    assert plan_of("encoder").digest == plan_of(All() & ~Head()).digest == plan_of("blocks:0-2").digest
    assert plan_of("encoder").digest != plan_of("last:1").digest
    assert plan_of("encoder").digest != plan_of("encoder", "features").digest
    assert plan_of("encoder").digest != plan_of("encoder", "weights").digest


def test_the_digest_is_the_same_in_every_process_and_release() -> None:
    plan = plan_of("encoder", model=nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 1)))
    assert plan.digest == "sha256:48bf457e29086c09b3fdbcc3bfd74eb5e9dbc7175f3452b3022b189ca10450df"


def test_a_plan_says_what_is_frozen_trainable_and_fixed() -> None:
    model = linears(3)
    model[1].bias.requires_grad_(False)
    plan = plan_of("first:1", model=model)
    assert plan.frozen == ("0.weight", "0.bias")
    assert plan.trainable == ("1.weight", "2.weight", "2.bias")
    assert {tensor.name for tensor in plan.tensors if tensor.state == "fixed"} == {"1.bias"}
    assert str(plan).startswith("First(1) in mode eval: 6 parameters frozen, 10 trainable")


def tampered(change: Callable[[dict[str, Any]], Any]) -> str:
    data = json.loads(plan_of().to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            lambda: tampered(lambda d: d["tensors"][0].update(state="trainable")),
            "changed after it was written",
        ),
        (lambda: tampered(lambda d: d["holds"].pop()), "changed after it was written"),
        (lambda: tampered(lambda d: d.update(digest="sha256:0")), "recorded is sha256:0"),
        (lambda: tampered(lambda d: d.pop("digest")), "is not a freeze plan"),
        (lambda: tampered(lambda d: d.pop("holds")), "is not a freeze plan"),
        (lambda: tampered(lambda d: d["mode"].update(noise="loud")), "is not a freeze plan"),
        (lambda: tampered(lambda d: d["tensors"][0].update(extra=1)), "is not a freeze plan"),
        (lambda: "", "is not a freeze plan"),
        (lambda: "[]", "is not a freeze plan"),
        (lambda: "null", "is not a freeze plan"),
        (lambda: plan_of().to_json()[:-10], "is not a freeze plan"),
    ],
)
def test_a_plan_that_was_changed_or_is_none_is_refused(text: Callable[[], str], message: str) -> None:
    with pytest.raises(PinError, match=message):
        FreezePlan.from_json(text())


def test_a_model_without_a_freeze_has_no_plan() -> None:
    model = toy()
    assert bundles.freeze_plan(model) is None
    assert bundles.freeze_plan(bundles.unfreeze(bundles.freeze(model, "encoder"))) is None


# --- warnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PRESETS)
def test_nothing_left_to_train_warns_where_training_is_meant(mode: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bundles.freeze(toy(), "all", mode)
    expected = [] if mode in ("features", "mc") else [NothingTrainableWarning]
    assert [warning.category for warning in caught] == expected
    assert all(warning.filename == __file__ for warning in caught)


def test_the_warning_says_what_to_do() -> None:
    with pytest.warns(NothingTrainableWarning, match=r"head=.*freeze='encoder'.*mode 'features'"):
        bundles.freeze(toy())


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(9, 4), nn.ModuleList([nn.Linear(4, 4)])
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight


def test_the_warning_names_a_tie_that_froze_the_head() -> None:
    tied = r"embedding.weight and head.weight are one tensor, frozen under every name: .* 'last:1'"
    with pytest.warns(bundles.NothingTrainableWarning, match=tied):
        bundles.freeze(TiedHead(), "encoder")
    plan = bundles.freeze_plan(bundles.freeze(TiedHead(), "last:1"))
    assert plan is not None
    assert "36 parameters frozen, 20 trainable" in str(plan)  # each once, under however many names
    assert bundles.FreezePlan.from_json(plan.to_json()) == plan


def test_parameters_fixed_before_count_as_nothing_to_train() -> None:
    model = linears(2)
    model[1].requires_grad_(False)
    with pytest.warns(NothingTrainableWarning, match=r"Nothing is left to train: .*\(freeze='last:1'\)"):
        bundles.freeze(model, "encoder")


@pytest.mark.parametrize("which", ["encoder", "head", "last:1", "match:*.bias"])
def test_a_model_of_unknown_origin_never_warns(which: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundles.freeze(toy(), which)


# --- freeze and unfreeze --------------------------------------------------------------------------


def test_freeze_returns_the_model_it_was_given_and_so_does_unfreeze() -> None:
    model = toy()
    assert bundles.freeze(model, "encoder") is model
    assert bundles.unfreeze(model) is model


@pytest.mark.parametrize("name", TOYS)
def test_freezing_twice_equals_freezing_once(name: str) -> None:
    model = toy(name)
    before = fingerprint(model)
    once = fingerprint(bundles.freeze(model, "encoder"))
    plan = bundles.freeze_plan(model)
    twice = fingerprint(bundles.freeze(model, "encoder"))
    assert {**twice, "attributes": 0} == {**once, "attributes": 0}
    assert bundles.freeze_plan(model) == plan
    assert fingerprint(bundles.unfreeze(model)) == before


@pytest.mark.parametrize("name", TOYS)
def test_another_freeze_replaces_the_first_and_undo_still_leads_to_the_start(name: str) -> None:
    model = toy(name)
    before = fingerprint(model)
    bundles.freeze(model, "all", "mc")
    bundles.freeze(model, "first:1", "features")
    fresh = bundles.freeze(toy(name), "first:1", "features")
    assert trainable(model) == trainable(fresh)
    assert bundles.freeze_plan(model) == bundles.freeze_plan(fresh)
    assert [m.training for m in model.train().modules()] == [m.training for m in fresh.train().modules()]
    assert fingerprint(bundles.unfreeze(model)) == before


def test_what_did_not_train_before_stays_so_through_freeze_and_unfreeze() -> None:
    model = linears(3)
    model[0].bias.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    bundles.freeze(model, "encoder")
    assert trainable(model) == {"2.weight"}
    bundles.freeze(model, "head")
    assert trainable(model) == {"0.weight", "1.weight", "1.bias"}
    assert trainable(bundles.unfreeze(model)) == {"0.weight", "1.weight", "1.bias", "2.weight"}


def test_freezing_clears_gradients_and_does_not_give_them_back() -> None:
    model, x = toy(), torch.randn(4, 8)
    model(x)[-1].sum().backward()
    bundles.freeze(model, "encoder")
    assert all((p.grad is None) == (not p.requires_grad) for p in model.parameters())
    bundles.unfreeze(model)
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith("encoder"))


def test_unfreezing_what_was_never_frozen_changes_nothing() -> None:
    model = toy()
    before = fingerprint(model)
    assert fingerprint(bundles.unfreeze(model)) == before


def test_a_partial_unfreeze_leaves_the_rest_frozen_as_if_only_that_had_been_asked() -> None:
    model = toy("transformer")
    before = fingerprint(model)
    bundles.freeze(model, "encoder", "features")
    bundles.unfreeze(model, "match:encoder.blocks.2")
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert plan.digest == plan_of("last:1", "features", toy("transformer")).digest
    assert plan.mode == PRESETS["features"]
    assert bundles.freeze_report(model).problems == ()
    assert fingerprint(bundles.unfreeze(model)) == before


def test_partial_unfreezes_add_up_to_a_whole_one() -> None:
    model = toy("rnn")
    before = fingerprint(model)
    bundles.freeze(model, "encoder")
    for block in range(3):
        bundles.unfreeze(model, f"blocks:{block}")
    assert fingerprint(model) == before
    assert bundles.freeze_plan(model) is None


def test_a_partial_unfreeze_that_selects_nothing_is_an_error() -> None:
    model = bundles.freeze(linears(3), "encoder")
    with pytest.raises(NothingSelectedError, match=r"selects no parameter; the groups are block\.0"):
        bundles.unfreeze(model, "match:decoder")
    assert trainable(model) == {"2.weight", "2.bias"}


def test_the_policy_of_a_partly_thawed_plan_can_be_read_back() -> None:
    model = bundles.freeze(linears(4), "encoder")
    bundles.unfreeze(model, "blocks:0")
    plan = bundles.freeze_plan(model)
    assert plan is not None
    policy = eval(plan.policy, vars(bundles))
    assert plan_of(policy, model=linears(4)).digest == plan.digest


def test_requires_grad_written_by_hand_does_not_spoil_undo() -> None:
    model = toy()
    before = fingerprint(model)
    bundles.freeze(model, "encoder")
    model.requires_grad_(True)
    assert fingerprint(bundles.unfreeze(model)) == before


# --- freezes of parts -----------------------------------------------------------------------------


def test_a_frozen_part_stays_frozen_whatever_calls_train_above_it() -> None:
    model, x = toy("dropout"), torch.randn(3, 8)
    with pytest.warns(NothingTrainableWarning, match="Nothing is left"):
        bundles.freeze(model.get_submodule("encoder"))
    nn.ModuleDict({"outer": model}).train()
    assert outputs(model, x)[:3] == outputs(toy("dropout").eval(), x)[:3]
    assert bundles.freeze_plan(model) is None
    assert bundles.freeze_plan(model.get_submodule("encoder")) is not None


def test_freezing_the_whole_replaces_the_freeze_of_a_part() -> None:
    model = toy()
    before = fingerprint(model)
    bundles.freeze(model.get_submodule("encoder"), "first:1")
    bundles.freeze(model, "head")
    assert {name.partition(".")[0] for name in trainable(model)} == {"encoder"}
    assert bundles.freeze_plan(model.get_submodule("encoder")) is None
    assert fingerprint(bundles.unfreeze(model)) == before


def test_a_part_can_be_frozen_beside_a_frozen_part_and_thawed_alone() -> None:
    model = toy()
    before = fingerprint(model)
    bundles.freeze(model, "encoder")
    with pytest.warns(NothingTrainableWarning, match="Nothing is left"):
        bundles.freeze(model.get_submodule("head"))
    assert trainable(model) == set()
    bundles.unfreeze(model.get_submodule("head"))
    assert trainable(model) == {"head.proj.weight", "head.proj.bias"}
    assert not model.train().get_submodule("encoder.blocks.0.1").training
    assert fingerprint(bundles.unfreeze(model)) == before


def test_a_frozen_part_moved_to_another_model_stays_frozen() -> None:
    model, x = toy("dropout"), torch.randn(3, 8)
    bundles.freeze(model, "encoder")
    other = toys.Model(model.get_submodule("encoder"), toys.Head()).train()
    assert outputs(other, x)[:3] == outputs(toy("dropout").eval(), x)[:3]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(toy())
    assert bundles.layer_groups(model).names == bundles.layer_groups(toy()).names
    assert bundles.freeze(model, "encoder") is model
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert plan.frozen[0].startswith("encoder.")
    assert bundles.freeze_report(model).problems == ()
    bundles.verify_frozen(model, bundles.snapshot(model))
    assert len(trainable(bundles.unfreeze(model))) == len(list(model.parameters()))


# --- the context manager --------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("earlier", [None, ("encoder", "eval"), ("last:1", "features"), ("head", "mc")])
def test_leaving_a_frozen_block_puts_back_what_was_before(name: str, earlier: tuple[str, str] | None) -> None:
    model = toy(name).train()
    start = fingerprint(model)
    if earlier:
        bundles.freeze(model, *earlier)
    before, plan = fingerprint(model), bundles.freeze_plan(model)
    with bundles.frozen(model, "all", "features") as inside:
        assert inside is model
        assert trainable(model) == set()
    after = fingerprint(model)
    assert {**after, "attributes": 0} == {**before, "attributes": 0}
    assert bundles.freeze_plan(model) == plan
    assert fingerprint(bundles.unfreeze(model)) == start


def test_leaving_by_an_exception_restores_as_well() -> None:
    model = toy()
    before = fingerprint(model)
    with pytest.raises(ZeroDivisionError, match="inside"), bundles.frozen(model, "encoder"):
        raise ZeroDivisionError("inside")
    assert fingerprint(model) == before


def test_a_refused_frozen_block_changes_nothing() -> None:
    model = bundles.freeze(toy(), "encoder")
    before = fingerprint(model)
    with pytest.raises(NothingSelectedError, match="selects no parameter"), bundles.frozen(model, "match:no"):
        pytest.fail("entered")
    assert fingerprint(model) == before


@pytest.mark.parametrize("part", ["encoder", "encoder.blocks.0", "encoder.blocks.1.1", "head"])
def test_a_frozen_block_inside_a_parents_freeze_restores_that(part: str) -> None:
    model = toy("batchnorm1d").train()
    start = fingerprint(model)
    bundles.freeze(model, "encoder")
    before, plan = fingerprint(model), bundles.freeze_plan(model)
    with bundles.frozen(model.get_submodule(part), "all", "weights"):
        assert not any(p.requires_grad for p in model.get_submodule(part).parameters())
    after = fingerprint(model)
    assert {**after, "attributes": 0} == {**before, "attributes": 0}
    assert bundles.freeze_plan(model) is plan
    assert fingerprint(bundles.unfreeze(model)) == start


def test_the_mode_requested_inside_a_frozen_block_remains_requested() -> None:
    model = toy().train()
    with bundles.frozen(model, "encoder"):
        model.eval()
    assert not any(module.training for module in model.modules())


def test_frozen_blocks_nest() -> None:
    model = toy()
    before = fingerprint(model)
    with bundles.frozen(model, "encoder"):
        with bundles.frozen(model, "head"):
            assert trainable(model) == {n for n, _ in model.named_parameters() if n.startswith("encoder")}
        assert trainable(model) == {"head.proj.weight", "head.proj.bias"}
    assert fingerprint(model) == before


# --- the mixin ------------------------------------------------------------------------------------


class Mixed(bundles.FreezeMixin, toys.Model):
    """A model that freezes itself."""


def mixed() -> Mixed:
    plain = toy()
    return Mixed(plain.get_submodule("encoder"), plain.get_submodule("head"))


def test_the_mixin_does_what_the_functions_do() -> None:
    model = mixed()
    before = fingerprint(model)
    assert model.freeze("last:1", "features") is model
    assert bundles.freeze_plan(model) == plan_of("last:1", "features", toy())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert model.unfreeze("first:1", optimizer=optimizer) is model
    assert model.unfreeze() is model
    assert fingerprint(model) == before
    assert list(model.state_dict()) == list(toy().state_dict())


def test_a_frozen_model_with_the_mixin_survives_pickle() -> None:
    model = pickle.loads(pickle.dumps(mixed().freeze("encoder")))
    assert isinstance(model, Mixed)
    assert trainable(model) == {"head.proj.weight", "head.proj.bias"}
    assert type(model.unfreeze()) is Mixed


def test_the_mixin_belongs_on_modules() -> None:
    class Other(bundles.FreezeMixin):
        pass

    with pytest.raises(TypeError, match=r"belongs on an nn\.Module class, not on Other"):
        Other().freeze()


# --- optimizers -----------------------------------------------------------------------------------


def members(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]


def test_frozen_parameters_leave_the_optimizer_with_their_state() -> None:
    model, x = toy(), torch.randn(4, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    step(model, x, optimizer)
    bundles.freeze(model, "encoder", optimizer=optimizer)
    left = {id(p) for p in model.parameters() if p.requires_grad}
    assert set(members(optimizer)[0]) == left
    assert {id(parameter) for parameter in optimizer.state} == left


def test_thawed_parameters_return_to_their_place_in_their_group() -> None:
    model = toy()
    encoder, head = model.get_submodule("encoder"), model.get_submodule("head")
    optimizer = torch.optim.SGD(
        [{"params": encoder.parameters(), "lr": 0.1}, {"params": head.parameters(), "lr": 1.0}], momentum=0.9
    )
    before = members(optimizer)
    bundles.freeze(model, "last:1", optimizer=optimizer)
    assert [len(group) for group in members(optimizer)] == [4, 2]
    bundles.freeze(model, "head", optimizer=optimizer)
    assert [len(group) for group in members(optimizer)] == [12, 0]
    bundles.unfreeze(model, optimizer=optimizer)
    assert members(optimizer) == before
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]


def test_an_optimizer_that_never_had_them_gets_one_new_group() -> None:
    model, x = bundles.freeze(toy(), "encoder"), torch.randn(4, 8)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    bundles.unfreeze(model, "blocks:2", optimizer=optimizer)
    bundles.unfreeze(model, "blocks:2", optimizer=optimizer)
    assert [len(group) for group in members(optimizer)] == [2, 4]
    before = contents(model)
    step(model, x, optimizer)
    moved = {name for name, value in contents(model).items() if before[name] != value}
    assert moved & set(dict(model.named_parameters())) == trainable(model)


def test_parameters_are_told_apart_by_identity_not_by_value() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4), nn.LayerNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bundles.freeze(model, "first:1", optimizer=optimizer)
    assert members(optimizer) == [[id(p) for p in (*model[1].parameters(), *model[2].parameters())]]
    bundles.unfreeze(model, optimizer=optimizer)
    assert sorted(members(optimizer)[0]) == sorted(id(p) for p in model.parameters())


def test_what_never_trained_is_not_added_to_an_optimizer() -> None:
    model = linears(2)
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    bundles.freeze(model, "encoder", optimizer=optimizer)
    bundles.unfreeze(model, optimizer=optimizer)
    assert [len(group) for group in members(optimizer)] == [2, 1]
    assert members(optimizer)[1] == [id(model[0].weight)]


def test_parameters_of_another_model_stay_in_the_optimizer() -> None:
    model, other = linears(2), linears(2)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    bundles.freeze(model, "encoder", optimizer=optimizer)
    assert {id(p) for p in other.parameters()} <= set(members(optimizer)[0])


# --- tied and shared ------------------------------------------------------------------------------


def test_freezing_one_name_of_a_tied_weight_freezes_all_and_the_plan_says_so() -> None:
    model = bundles.freeze(toy("tied"), "head")
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert {"encoder.embedding.weight", "head.proj.weight"} <= set(plan.frozen)
    assert trainable(bundles.unfreeze(model)) == trainable(toy("tied"))


def test_a_tied_weight_fixed_before_stays_fixed() -> None:
    model = toy("tied")
    model.get_submodule("encoder.embedding").requires_grad_(False)
    before = trainable(model)
    bundles.freeze(model, "blocks:0")
    assert "head.proj.weight" not in trainable(model)
    assert trainable(bundles.unfreeze(model)) == before


def test_a_partial_unfreeze_thaws_a_tied_weight_under_every_name() -> None:
    model = bundles.freeze(toy("tied"), "encoder")
    bundles.unfreeze(model, "match:head")
    assert {"encoder.embedding.weight", "head.proj.weight"} <= trainable(model)
    assert bundles.freeze_report(model).problems == ()


class Twice(nn.Module):
    """One block and one dropout, mounted both in the encoder and in the head."""

    def __init__(self) -> None:
        super().__init__()
        block, dropout = nn.Linear(4, 4), nn.Dropout(0.5)
        self.encoder = nn.Sequential(block, nn.BatchNorm1d(4), dropout)
        self.head = nn.Sequential(block, dropout, nn.Linear(4, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.encoder(x)
        return made, self.head(made)


def test_a_module_mounted_twice_is_held_under_both_names_and_undone_once() -> None:
    model, x = Twice(), torch.randn(5, 4)
    before = fingerprint(model)
    expected = outputs(copy.deepcopy(model).eval(), x)
    bundles.freeze(model, "encoder").train()
    assert outputs(model, x) == expected
    assert trainable(model) == {"head.2.weight", "head.2.bias"}
    assert model.head[1] is model.encoder[2]
    assert fingerprint(bundles.unfreeze(model)) == before


# --- optimizer groups -----------------------------------------------------------------------------


def rates(model: nn.Module, layer_decay: float = 1.0) -> dict[str, float]:
    groups = bundles.param_groups(model, lr=1.0, layer_decay=layer_decay)
    return {group["name"]: group["lr"] for group in groups}


def test_rates_decay_from_the_head_towards_the_input() -> None:
    expected = {"stem": 0.0625, "block.0": 0.125, "block.1": 0.25, "block.2": 0.5, "head": 1.0}
    assert rates(toy("tied"), layer_decay=0.5) == expected
    assert set(rates(toy("tied")).values()) == {1.0}


def test_a_final_norm_goes_with_the_last_block() -> None:
    found = rates(VisionLike(), layer_decay=0.5)
    assert found["norm"] == found["block.3"] == 0.5


def test_rates_do_not_depend_on_what_is_frozen_and_what_is_frozen_is_absent() -> None:
    model = toy()
    full = rates(model, layer_decay=0.5)
    bundles.freeze(model, "first:1")
    assert rates(model, layer_decay=0.5) == {name: full[name] for name in ("block.1", "block.2", "head")}


def test_each_parameter_that_trains_is_in_one_group_also_where_tied() -> None:
    model = toy("tied")
    groups = bundles.param_groups(model, lr=0.1, weight_decay=0.2)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["weight_decay"] for group in groups} == {0.2}
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(FreezeArgumentError, match=r"layer_decay=.* is not above 0 and up to 1"):
        bundles.param_groups(toy(), lr=0.1, layer_decay=decay)


def test_groups_of_a_model_that_does_not_train_are_refused() -> None:
    with pytest.raises(FreezeArgumentError, match="No parameter of the model trains: thaw something first"):
        bundles.param_groups(bundles.freeze(toy(), "all", "features"), lr=0.1)


# --- layer groups ---------------------------------------------------------------------------------


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))


class ResidualLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), block()
        self.fc = nn.Linear(8, 2)


class VisionLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.patch_embed = nn.Conv2d(3, 8, 2)
        self.blocks = nn.Sequential(*(block() for _ in range(4)))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)


class TextLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bert = nn.Module()
        self.bert.embeddings = nn.Embedding(9, 8)
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList(block() for _ in range(3))
        self.bert.pooler = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, 2)


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


SHAPES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "residual": (ResidualLike, [f"block.{i}" for i in range(4)] + ["head"]),
    "vision": (VisionLike, ["stem", *(f"block.{i}" for i in range(4)), "norm", "head"]),
    "text": (TextLike, ["stem", "block.0", "block.1", "block.2", "norm", "head"]),
    "sequential": (lambda: linears(3), ["block.0", "block.1", "head"]),
    "wrapped": (lambda: Wrapper(linears(3)), ["block.0", "block.1", "block.2"]),
    "one layer": (lambda: nn.Linear(2, 2), ["stem"]),
    "no parameters": (nn.ReLU, []),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_groups_are_derived_from_children_and_rows_of_layers(shape: str) -> None:
    make, names = SHAPES[shape]
    assert list(bundles.layer_groups(make()).names) == names


@pytest.mark.parametrize("make", [*(make for make, _ in SHAPES.values()), *(t.make for t in TOYS.values())])
def test_groups_partition_the_parameters(make: Callable[[], nn.Module]) -> None:
    model = make()
    found = [name for group in bundles.layer_groups(model) for name in group.parameters]
    assert sorted(found) == sorted(name for name, _ in model.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("make", [VisionLike, TextLike])
def test_a_wrapper_with_one_child_has_the_groups_of_the_child(make: Callable[[], nn.Module]) -> None:
    wrapped = bundles.layer_groups(Wrapper(make()))
    assert wrapped.names == bundles.layer_groups(make()).names
    assert [group.role for group in wrapped][-1] == "head"


def test_the_groups_of_a_model_do_not_change_when_it_is_frozen() -> None:
    model = VisionLike()
    before = bundles.layer_groups(model)
    assert bundles.layer_groups(bundles.freeze(model, "last:2")) == before


RULES: dict[str, Any] = {"stem": "0", "first": {"match": "1.weight", "kind": "norm"}, "head": "3"}


def test_given_groups_are_used_and_what_they_leave_out_is_a_head() -> None:
    groups = bundles.layer_groups(linears(4), RULES)
    assert groups.names == ("stem", "first", "head", "unlisted")
    assert trainable(bundles.freeze(linears(4), "encoder", groups=RULES)) == {
        *("1.bias", "2.weight", "2.bias", "3.weight", "3.bias"),
    }
    assert trainable(bundles.freeze(linears(4), "encoder", groups=groups)) == trainable(
        bundles.freeze(linears(4), "encoder", groups=RULES)
    )


def test_given_groups_are_those_of_report_rates_and_thawing_too() -> None:
    model = bundles.freeze(linears(4), "encoder", groups=RULES)
    assert [group.name for group in bundles.freeze_report(model).groups] == [*RULES, "unlisted"]
    assert set(rates(model)) == {"head", "unlisted"}
    bundles.unfreeze(model, "head")
    assert not model[0].weight.requires_grad
    bundles.unfreeze(model)
    assert bundles.layer_groups(model).names == bundles.layer_groups(linears(4)).names


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"stem": 3}, "is not a pattern"),
        ({"blocks": "layer"}, r"must contain \{i\}"),
        ({"mine": "0"}, "with a kind of"),
        ({"stem": {"match": "0", "extra": 1}}, "is not a pattern"),
        ({"stem": "0", "head": "*"}, "in several"),
    ],
)
def test_malformed_groups_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(FreezeArgumentError, match=message):
        bundles.freeze(linears(2), "encoder", groups=groups)


# --- reports --------------------------------------------------------------------------------------


def test_a_report_prints_one_row_per_group_and_the_plan() -> None:
    report = bundles.freeze_report(bundles.freeze(toy("layerdrop"), "last:1"))
    assert [(group.name, group.state) for group in report.groups] == [
        ("block.0", "frozen"),
        ("block.1", "frozen"),
        ("block.2", "trainable"),
        ("head", "trainable"),
    ]
    assert report.problems == ()
    assert report.across == ("encoder",)
    text = str(report)
    assert all(
        word in text for word in ("block.0", "frozen", "plan: ExceptLast(1)", "held across groups: encoder")
    )
    assert report._repr_html_().startswith("<table")


def test_a_report_names_what_could_only_be_assumed() -> None:
    report = bundles.freeze_report(bundles.freeze(toy("nonpersistent"), "encoder"))
    assert "encoder.blocks.0" in report.assumed
    assert bundles.freeze_report(bundles.freeze(toy("batchnorm1d"), "encoder")).assumed == ()


def test_a_report_on_a_model_without_a_plan_observes_it() -> None:
    model = linears(3)
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    report = bundles.freeze_report(model)
    assert [group.state for group in report.groups] == ["frozen", "mixed", "trainable"]
    assert (report.plan, report.problems) == (None, ())
    assert "plan: none" in str(report)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("mode", PRESETS)
def test_nothing_is_irregular_after_training_as_usual(name: str, mode: str) -> None:
    model = bundles.freeze(toy(name), "last:1", mode)
    for _ in range(2):
        step(model.train(), TOYS[name].make_input(), *make_optimizers(model))
        model.eval()
        assert bundles.freeze_report(model).problems == ()


def rogue_flag(model: nn.Module) -> None:
    model.get_submodule("encoder.blocks.0.1").training = True


def rogue_grad(model: nn.Module) -> None:
    model.get_parameter("encoder.blocks.0.0.bias").requires_grad_(True)


def rogue_freeze(model: nn.Module) -> None:
    model.get_parameter("head.proj.bias").requires_grad_(False)


def rogue_module(model: nn.Module) -> None:
    part(model, "encoder.blocks.1").append(nn.Dropout())


def rogue_layer(model: nn.Module) -> None:
    part(model, "encoder.blocks.1").append(nn.Linear(8, 8))


def rogue_removal(model: nn.Module) -> None:
    part(model, "encoder.blocks.1.0").bias = None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (rogue_flag, "encoder.blocks.0.1 has training=True, held is False: something wrote the flag"),
        (rogue_grad, "encoder.blocks.0.0.bias is planned frozen and has requires_grad=True"),
        (rogue_freeze, "head.proj.bias is planned trainable and has requires_grad=False"),
        (rogue_module, "encoder.blocks.1.2 is not held: freeze again to cover it"),
        (rogue_layer, "encoder.blocks.1.2.weight was added after the freeze"),
        (rogue_removal, "encoder.blocks.1.0.bias is in the plan and no longer in the model"),
    ],
)
def test_a_report_names_what_is_not_as_planned(change: Callable[[nn.Module], None], problem: str) -> None:
    model = bundles.freeze(toy("dropout"), "encoder").train()
    change(model)
    report = bundles.freeze_report(model)
    assert problem in report.problems
    assert f"irregular: {problem}" in str(report)


def test_freezing_again_covers_what_was_added() -> None:
    model = bundles.freeze(toy("dropout"), "encoder")
    rogue_layer(model)
    rogue_module(model)
    bundles.freeze(model.train(), "encoder")
    assert bundles.freeze_report(model).problems == ()
    assert not model.train().get_submodule("encoder.blocks.1.3").training


# --- snapshots ------------------------------------------------------------------------------------


def test_a_snapshot_covers_frozen_parameters_and_held_buffers() -> None:
    snapshot = bundles.snapshot(bundles.freeze(toy(), "first:1"))
    assert set(snapshot.digests) == {
        *(f"encoder.blocks.0.0.{name}" for name in ("weight", "bias")),
        *(f"encoder.blocks.0.1.{name}" for name in ("weight", "bias")),
        *(f"encoder.blocks.0.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
    }
    assert len(snapshot) == 7


@pytest.mark.parametrize("mode", ["weights", "frontend"])
def test_a_snapshot_leaves_out_statistics_that_may_follow(mode: str) -> None:
    snapshot = bundles.snapshot(bundles.freeze(toy(), "first:1", mode))
    assert len(snapshot) == 4


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("mode", PRESETS)
def test_training_a_frozen_model_never_drifts(name: str, mode: str) -> None:
    model = bundles.freeze(toy(name), "last:1", mode)
    taken = bundles.snapshot(model)
    for _ in range(2):
        step(model.train(), TOYS[name].make_input(), *make_optimizers(model))
    assert taken.moved(model) == ()
    bundles.verify_frozen(model, taken)


def test_the_common_habit_drifts_and_every_buffer_is_named() -> None:
    model = toy()
    model.get_submodule("encoder").requires_grad_(False)
    taken = bundles.snapshot(model)
    step(model.train(), torch.randn(6, 8), *make_optimizers(model))
    with pytest.raises(FrozenDriftError, match=r"9 of 21 frozen tensors moved: .*running_mean") as caught:
        bundles.verify_frozen(model, taken)
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert set(caught.value.moved) == {
        f"encoder.blocks.{block}.1.{kind}" for block in range(3) for kind in kinds
    }


def test_a_parameter_that_moved_or_is_gone_is_named() -> None:
    model = bundles.freeze(linears(3), "encoder")
    taken = bundles.snapshot(model)
    part(model, "0").weight.data[0, 0] += 1
    del model[1].bias
    with pytest.raises(FrozenDriftError, match=r"2 of 4 frozen tensors moved: 0\.weight, 1\.bias"):
        bundles.verify_frozen(model, taken)


def test_drift_is_a_matter_of_values_not_of_writes() -> None:
    model = bundles.freeze(toy(), "encoder")
    taken = bundles.snapshot(model)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(tensor.clone())
    bundles.verify_frozen(model, taken)
    model.get_parameter("encoder.blocks.0.0.bias").data.neg_()  # bumps no version
    assert taken.moved(model) == ("encoder.blocks.0.0.bias",)


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), True),
        (torch.zeros(2, 3), torch.zeros(3, 2), True),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32), True),
        (torch.zeros(0, 3), torch.zeros(0, 3), False),
        (torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16), False),
        (torch.arange(6.0).view(2, 3).t(), torch.arange(6.0).view(2, 3).t().contiguous(), False),
    ],
)
def test_a_digest_is_over_dtype_shape_and_bytes(old: Tensor, new: Tensor, moved: bool) -> None:
    model = linears(2)
    model[0].register_buffer("extra", old)
    bundles.freeze(model, "encoder")
    taken = pickle.loads(pickle.dumps(bundles.snapshot(model)))
    model[0].extra = new
    assert taken.moved(model) == (("0.extra",) if moved else ())


# --- who reads the flag ---------------------------------------------------------------------------


class Reader(nn.Module):
    """Has a child with parameters, so that it is held only if its code is seen to read the flag."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 8)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.noise(self.encoder(x)),)

    def noise(self, x: Tensor) -> Tensor:
        return x


class ByMethod(Reader):
    def noise(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class ByInheritance(ByMethod):
    """Its own body is empty."""


class BySuper(ByMethod):
    def noise(self, x: Tensor) -> Tensor:
        return super().noise(x)


class ByProperty(Reader):
    @property
    def rate(self) -> float:
        return 0.5 if self.training else 0.0

    def noise(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate)


class ByCachedName(Reader):
    def noise(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, getattr(self, "training"))  # noqa: B009


def gated(module: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, module.training)


class ByHelper(Reader):
    def noise(self, x: Tensor) -> Tensor:
        return gated(self, x)


class ByHelperOfAModule(Reader):
    def noise(self, x: Tensor) -> Tensor:
        return toys.noise_of(self, x)


class ByStaticMethod(Reader):
    @staticmethod
    def drop(module: nn.Module, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, module.training)

    def noise(self, x: Tensor) -> Tensor:
        return self.drop(self, x)


class ByLambda(Reader):
    def noise(self, x: Tensor) -> Tensor:
        return torch.stack([(lambda row: F.dropout(row, 0.5, self.training))(row) for row in x])


def logged(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return inner


def unnamed(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: method(*args)


class ByDecorated(Reader):
    @logged
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (F.dropout(self.encoder(x), 0.5, self.training),)


class ByDecoratedWithoutWraps(Reader):
    @unnamed
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (F.dropout(self.encoder(x), 0.5, self.training),)


class ByCall(Reader):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(F.dropout(x, 0.5, self.training))


READERS = [
    ByMethod,
    ByInheritance,
    BySuper,
    ByProperty,
    ByCachedName,
    ByHelper,
    ByHelperOfAModule,
    ByStaticMethod,
    ByLambda,
    ByDecorated,
    ByDecoratedWithoutWraps,
    ByCall,
]


@pytest.mark.parametrize("cls", READERS)
def test_a_flag_that_is_read_by_a_detour_is_held_too(cls: type[Reader]) -> None:
    model, x = cls(), torch.randn(4, 8)
    assert reads_training(model)
    expected = outputs(model.eval(), x)
    assert outputs(bundles.freeze(model, "encoder").train(), x) == expected
    assert reads_training(model)


def test_a_patched_forward_is_read_as_well() -> None:
    model, x = Reader(), torch.randn(4, 8)
    assert not reads_training(model)
    model.forward = lambda x: (F.dropout(model.encoder(x), 0.5, model.training),)  # type: ignore[method-assign]
    assert reads_training(model)
    expected = outputs(model.eval(), x)
    assert outputs(bundles.freeze(model, "encoder").train(), x) == expected


class SetsOnly(Reader):
    def train(self, mode: bool = True) -> SetsOnly:
        self.before = self.training
        super().train(mode)
        return self


@pytest.mark.parametrize("make", [Reader, SetsOnly, lambda: linears(2), lambda: nn.LayerNorm(2), nn.GELU])
def test_a_module_that_does_not_read_the_flag_answers_train(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert not reads_training(model)
    if isinstance(model, Reader):
        assert bundles.freeze(model.eval(), "encoder").train().training


def test_code_that_cannot_be_read_counts_as_reading() -> None:
    class Opaque(nn.Module):
        forward = torch.nn.functional.linear

    assert reads_training(Opaque())


# --- adapters, patches, parametrizations ----------------------------------------------------------


class Adapted(nn.Module):
    """LoRA as libraries inject it: around a layer, with dropout and parameters of its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.dropout = nn.Dropout(0.5)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.base(x) + self.up(self.down(self.dropout(x)))
        return made


@pytest.mark.parametrize("mode", ["eval", "regularized", "weights", "mc"])
def test_an_adapter_injected_after_the_freeze_follows_train(mode: str) -> None:
    model = bundles.freeze(toy("transformer"), "encoder", mode)
    layer = part(model, "encoder.blocks.0")
    adapter = Adapted(layer.linear1)
    adapter.up, adapter.base = nn.Linear(2, 16, bias=False), layer.linear1
    layer.linear1 = adapter
    for requested in (True, False, True):
        model.train(requested)
        assert adapter.training is adapter.dropout.training is requested
    if mode == "eval":
        assert not layer.training
        assert not layer.dropout.training
    assert adapter.up.weight.requires_grad
    assert not adapter.base.weight.requires_grad


def test_an_adapter_trains_inside_a_frozen_encoder_and_the_base_does_not_move() -> None:
    model, x = bundles.freeze(toy("dropout"), "encoder"), torch.randn(4, 8)
    taken = bundles.snapshot(model)
    block = model.get_submodule("encoder.blocks.0")
    adapter = Adapted(block.get_submodule("0"))
    block.register_module("0", adapter)
    before = contents(adapter)
    step(model.train(), x, *make_optimizers(model))
    after = contents(adapter)
    assert {name for name in before if before[name] != after[name]} == {"down.weight", "up.weight"}
    assert set(taken.moved(model)) == {"encoder.blocks.0.0.weight", "encoder.blocks.0.0.bias"}  # renamed


def test_a_patched_forward_is_cut_too_and_given_back() -> None:
    model, x = toy("dropout"), torch.randn(3, 8, requires_grad=True)
    encoder = model.get_submodule("encoder")
    original = encoder.forward
    encoder.forward = lambda x: original(x)
    before = fingerprint(model)
    bundles.freeze(model, "encoder", "features")
    with pytest.warns(bundles.BundlesWarning, match="input of a frozen Encoder requires grad"):
        assert not model.train()(x)[2].requires_grad
    assert fingerprint(bundles.unfreeze(model)) == before


def test_a_class_that_overrides_train_is_still_asked() -> None:
    asked = []

    class Asked(nn.Linear):
        def train(self, mode: bool = True) -> Asked:
            asked.append(mode)
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.5, self.training)

    model = bundles.freeze(nn.Sequential(Asked(2, 2), nn.Linear(2, 2)), "encoder")
    model.train().eval()
    assert asked == [False, False, False]  # the mode that holds, whatever is requested
    assert not model[0].training


def test_undo_is_exact_where_a_parametrization_came_after_the_freeze() -> None:
    model = toy("functional")
    before = fingerprint(model)
    bundles.freeze(model, "encoder")
    linear = model.get_submodule("encoder.blocks.0.linear")
    parametrize.register_parametrization(linear, "weight", nn.Dropout(0.5))
    model.train()
    assert linear.get_submodule("parametrizations.weight.0").training
    parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
    bundles.unfreeze(model)
    assert [type(m) for m in model.modules()] == before["classes"]
    assert trainable(model) == set(before["requires_grad"])


def test_parametrizations_can_be_removed_from_a_frozen_module() -> None:
    model = bundles.freeze(toy("spectralparam"), "encoder", "features")
    linear = model.get_submodule("encoder.blocks.0")
    parametrize.remove_parametrizations(linear, "weight")
    assert type(linear) is nn.Linear


# --- laws, on random sequences --------------------------------------------------------------------

FROZEN = st.sampled_from(["encoder", "last:1", "first:1", "head", "match:*.bias"])
THAWED = st.sampled_from(["all", "encoder", "head", "blocks:0", "match:*.weight*"])
MOVES = st.one_of(
    st.tuples(st.just("train"), st.booleans()),
    st.tuples(st.just("train part"), st.integers(0, 20)),
    st.tuples(st.just("eval part"), st.integers(0, 20)),
    st.tuples(st.just("step"), st.none()),
    st.tuples(st.just("freeze"), st.tuples(FROZEN, st.sampled_from(list(PRESETS)))),
    st.tuples(st.just("unfreeze"), THAWED),
    st.tuples(st.just("copy"), st.none()),
)


def play(model: nn.Module, x: Tensor, move: str, value: Any) -> nn.Module:
    modules = list(model.modules())
    if move == "train":
        model.train(value)
    elif move in ("train part", "eval part"):
        modules[value % len(modules)].train(move == "train part")
    elif move == "step":
        step(model, x, *make_optimizers(model))
    elif move == "freeze":
        bundles.freeze(model, *value)
    elif move == "unfreeze":
        bundles.unfreeze(model, value)
    else:
        return copy.deepcopy(model)
    return model


def check_laws(model: nn.Module, x: Tensor) -> None:
    plan = bundles.freeze_plan(model)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert trainable(model) == (set(plan.trainable) if plan else names)
    assert bundles.freeze_report(model).problems == ()
    still = plan is not None and plan.mode in (PRESETS["eval"], PRESETS["features"])
    if still and not any(name.startswith("encoder.") for name in trainable(model)):
        twin = copy.deepcopy(model)
        assert outputs(model, x)[:3] == outputs(twin.eval(), x)[:3] == outputs(twin.train(), x)[:3]


@pytest.mark.filterwarnings("ignore:The input of a frozen:bundles.BundlesWarning")
@pytest.mark.parametrize(
    "name", ["batchnorm1d", "layerdrop", "tied", "nonpersistent", "transformer", "spectralparam"]
)
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(moves=st.lists(MOVES, max_size=8))
def test_the_laws_hold_after_any_sequence_of_calls(name: str, moves: list[tuple[str, Any]]) -> None:
    model, x = toy(name), TOYS[name].make_input()
    plain = fingerprint(model)
    for move, value in moves:
        frozen, before = bundles.snapshot(model), contents(model)
        with contextlib.suppress(
            InexpressibleModeError
        ):  # "features" with biases that train: nothing changes
            model = play(model, x, move, value)
        assert frozen.moved(model) == ()
        assert move == "step" or contents(model) == before
        check_laws(model, x)
    bundles.unfreeze(model.train())
    after = fingerprint(model)
    for same in ("classes", "training", "keys", "names", "signatures", "extras"):
        assert after[same] == plain[same]
    assert all(parameter.requires_grad for parameter in model.parameters())
