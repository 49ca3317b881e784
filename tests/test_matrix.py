"""The matrix: every toy, frozen by every policy in every mode, in every situation. Bytes, not tolerances."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import bundles
import toys
from bundles import Encoder, First, FreezeMode, FreezePolicy, Head, Match
from bundles.spec.mode import PRESETS
from toys import TOYS, as_bytes, contents, fingerprint, identity, make_optimizers, outputs, step, trial

POLICIES: dict[str, str | FreezePolicy] = {
    "encoder": "encoder",
    "last:1": "last:1",
    "first:1": "first:1",
    "all": "all",
    "head": "head",
    "match": "match:encoder.blocks.1",
    "weights": Encoder() & ~Match("*.bias"),
    "ends": First(1) | Head(),
}

# The same in plain words: which names each selects, ties aside.
SELECTED: dict[str, Callable[[str], bool]] = {
    "encoder": lambda name: name.startswith("encoder."),
    "last:1": lambda name: name.startswith("encoder.") and not name.startswith("encoder.blocks.2."),
    "first:1": lambda name: name.startswith(("encoder.embedding.", "encoder.blocks.0.")),
    "all": lambda name: True,
    "head": lambda name: name.startswith("head."),
    "match": lambda name: name.startswith("encoder.blocks.1."),
    "weights": lambda name: name.startswith("encoder.") and not name.endswith(".bias"),
    "ends": lambda name: name.startswith(("encoder.embedding.", "encoder.blocks.0.", "head.")),
}

# How many blocks, from the first, are frozen altogether.
WHOLE_BLOCKS = {"encoder": 3, "last:1": 2, "first:1": 1, "all": 3, "ends": 1}

MODES: dict[str, FreezeMode] = {
    **PRESETS,
    "noisy-stats": FreezeMode(noise="on", stats="follow"),
    "cut-structure": FreezeMode(structure="follow", grad="cut"),
}


# Where a front-end or an earlier block trains, "features" says that it gets no gradient.
pytestmark = pytest.mark.filterwarnings("ignore:The input of a frozen:bundles.BundlesWarning")


def accepts(policy: str, mode: str) -> bool:
    """Whether the mode can be had: not where biases train inside what records no graph."""
    return policy != "weights" or MODES[mode].grad == "flow"


def pair(modes: list[str], policies: list[str]) -> list[Any]:
    """Pair each toy with each policy, and the toys together with every mode for each policy."""
    accepted = {policy: [mode for mode in modes if accepts(policy, mode)] for policy in policies}
    return [
        cell(toy, policy, accepted[policy][(row + column) % len(accepted[policy])])
        for row, toy in enumerate(TOYS)
        for column, policy in enumerate(policies)
    ]


def cell(toy: str, policy: str, mode: str, *, slow: bool = False) -> Any:
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(toy, policy, mode, id=f"{toy}-{policy}-{mode}", marks=marks)


AXES = ("toy", "policy", "mode")
STILL = [name for name, m in MODES.items() if (m.noise, m.stats, m.structure) == ("off", "hold", "off")]
CALM = [name for name, m in MODES.items() if m.structure == "off"]
# Every other cell of the cube waits for --slow: each toy still meets each policy in half of the modes.
each_cell = pytest.mark.parametrize(
    AXES,
    [
        cell(toy, policy, mode, slow=(row + column + layer) % 2 == 1)
        for row, toy in enumerate(TOYS)
        for column, policy in enumerate(POLICIES)
        for layer, mode in enumerate(MODES)
        if accepts(policy, mode)
    ],
)
each_pair = pytest.mark.parametrize(AXES, pair(list(MODES), list(POLICIES)))
each_encoder = pytest.mark.parametrize(
    AXES, [cell(toy, policy, mode) for toy in TOYS for policy in ("encoder", "all") for mode in MODES]
)
CALM_PAIRS = pair(CALM, ["encoder", "last:1", "all", "head", "weights"])
each_calm_pair = pytest.mark.parametrize(AXES, CALM_PAIRS)


def freeze(model: nn.Module, policy: str, mode: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bundles.NothingTrainableWarning)
        return bundles.freeze(model, POLICIES[policy], MODES[mode])


def frozen_toy(toy: str, policy: str, mode: str) -> tuple[nn.Module, Tensor]:
    return freeze(TOYS[toy].make(), policy, mode), TOYS[toy].make_input()


def selected(model: nn.Module, policy: str) -> set[str]:
    """Every name that the policy freezes, those that are tied to one included."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = {id(parameter) for name, parameter in parameters.items() if SELECTED[policy](name)}
    return {name for name, parameter in parameters.items() if id(parameter) in chosen}


def buffers_near(model: nn.Module, frozen: set[str]) -> set[str]:
    """Buffers of modules with a frozen parameter; without any parameter, the module above decides."""

    def owner_prefix(module: str) -> str:
        prefix = f"{module}." if module else ""
        if any(name.startswith(prefix) for name, _ in model.named_parameters(remove_duplicate=False)):
            return prefix
        return owner_prefix(module.rpartition(".")[0])

    return {
        name
        for name, _ in model.named_buffers(remove_duplicate=False)
        if any(other.startswith(owner_prefix(name.rpartition(".")[0])) for other in frozen)
    }


def trains(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.requires_grad for parameter in parameters)


def head_outputs(model: nn.Module) -> bytes:
    return as_bytes(model.get_submodule("head")(torch.linspace(-1, 1, 16).reshape(2, 8)))


def reference(toy: str, mode: str) -> bool | None:
    """Whether frozen blocks behave as the plain model's in ``train()``; ``None``: that is left open."""
    made, asked = TOYS[toy], MODES[mode]
    if made.assumed and asked not in (PRESETS["eval"], PRESETS["features"], PRESETS["weights"]):
        return None
    value = getattr(asked, made.effect) if made.effect else "off"
    return value in ("follow", "on")


@pytest.mark.parametrize("mode", ["features", "cut-structure"])
@pytest.mark.parametrize("toy", [toy for toy in TOYS if toy != "rnn"])  # whose biases have other names
def test_biases_cannot_train_inside_what_records_no_graph(toy: str, mode: str) -> None:
    model = TOYS[toy].make()
    before = fingerprint(model)
    with pytest.raises(bundles.InexpressibleModeError, match=r"records no graph .*\bbias\b"):
        freeze(model, "weights", mode)
    assert fingerprint(model) == before


# --- the full product -----------------------------------------------------------------------------


@each_cell
def test_training_moves_what_trains_and_nothing_else(toy: str, policy: str, mode: str) -> None:
    model, x = TOYS[toy].make(), TOYS[toy].make_input()
    optimizers = make_optimizers(model)
    step(model.train(), x, *optimizers)  # leaves momentum and gradients behind for every parameter
    freeze(model, policy, mode)
    expected, before = selected(model, policy), contents(model)
    model.train()
    for module in model.modules():
        module.train()
    for _ in range(3):
        step(model, x, *optimizers)

    after = contents(model)
    moved = {name for name in before if before[name] != after[name]}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert moved & parameters == parameters - expected
    near = buffers_near(model, expected)
    if MODES[mode].stats == "hold":
        assert not moved & near
    elif TOYS[toy].effect == "stats" and reference(toy, mode) and policy in WHOLE_BLOCKS:
        assert moved & near


@each_cell
def test_undo_gives_back_everything_and_the_mode_last_requested(toy: str, policy: str, mode: str) -> None:
    model, x = TOYS[toy].make().train(), TOYS[toy].make_input()
    before, kind = fingerprint(model), identity(model)
    optimizers = make_optimizers(model)
    freeze(model, policy, mode)
    assert identity(model) == kind
    assert all(isinstance(m, cls) for m, cls in zip(model.modules(), before["classes"], strict=True))
    step(model.eval().train(), x, *optimizers)
    bundles.unfreeze(model.eval())

    assert not any(module.training for module in model.modules())
    assert fingerprint(model.train()) == before
    values = contents(model)
    step(model, x, *optimizers)
    after = contents(model)
    assert all(values[name] != after[name] for name, _ in model.named_parameters())


@each_cell
def test_frozen_parts_behave_as_the_mode_says_and_the_rest_follows(toy: str, policy: str, mode: str) -> None:
    model, x = frozen_toy(toy, policy, mode)
    depth, as_training = WHOLE_BLOCKS.get(policy, 0), reference(toy, mode)
    always_on = TOYS[toy].effect == "noise" and MODES[mode].noise == "on"
    free = [module for module in model.modules() if trains(module)]
    with torch.no_grad():
        if as_training is not None:
            plain = TOYS[toy].make().train(always_on)
            assert outputs(model.train().eval(), x)[:depth] == outputs(plain, x)[:depth]
            assert not any(module.training for module in free)
        for module in model.train().modules():
            module.train()
        if as_training is not None:
            plain = TOYS[toy].make().train(as_training)
            assert outputs(model, x)[:depth] == outputs(plain, x)[:depth]
        assert all(module.training for module in free)
        if policy in ("all", "head", "ends") and MODES[mode].noise == "off":
            assert head_outputs(model) == head_outputs(TOYS[toy].make().eval())


@each_cell
def test_a_deepcopy_is_frozen_alike_and_independent(toy: str, policy: str, mode: str) -> None:
    model, x = frozen_toy(toy, policy, mode)
    twin = copy.deepcopy(model.train())
    before, flags = contents(model), [module.training for module in model.modules()]
    seen = trial(twin, x)
    bundles.unfreeze(twin.eval())
    assert all(parameter.requires_grad for parameter in twin.parameters())
    assert contents(model) == before
    assert [module.training for module in model.modules()] == flags
    assert seen == trial(model, x)


# --- outputs with a graph -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", STILL)
@pytest.mark.parametrize("policy", WHOLE_BLOCKS)
@pytest.mark.parametrize("toy", TOYS)
def test_with_gradients_too_train_equals_eval_bit_for_bit(toy: str, policy: str, mode: str) -> None:
    depth = WHOLE_BLOCKS[policy] + (policy == "all")
    model, x = frozen_toy(toy, policy, mode)
    still = outputs(model.eval(), x)[:depth]
    assert outputs(model.train(), x)[:depth] == still
    assert outputs(model.train(), x, seed=4)[:depth] == still


@each_encoder
def test_gradient_flows_through_what_is_frozen_unless_it_is_cut(toy: str, policy: str, mode: str) -> None:
    model, x = frozen_toy(toy, policy, mode)
    front = nn.Linear(x.shape[-1], x.shape[-1]) if x.is_floating_point() else nn.Identity()
    features = model.train()(front(x))[2]
    flows = x.is_floating_point() and MODES[mode].grad == "flow"
    assert features.requires_grad == flows
    if flows and toy != "layerdrop":
        features.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in front.parameters())


# --- copies ---------------------------------------------------------------------------------------


@each_pair
def test_train_on_a_shallow_copy_acts_on_the_copy(toy: str, policy: str, mode: str) -> None:
    model, _ = frozen_toy(toy, policy, mode)
    for module in model.modules():
        if torch.nn.utils.parametrize.is_parametrized(module):
            with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
                copy.copy(module)
            continue
        flag = module.eval().training
        twin = copy.copy(module).train()
        assert module.training is flag
        assert twin.training is module.train().training
        assert type(twin) is type(module)


@each_pair
def test_a_shallow_copy_of_the_model_is_frozen_alike(toy: str, policy: str, mode: str) -> None:
    model, x = frozen_toy(toy, policy, mode)
    assert trial(copy.copy(model), x) == trial(frozen_toy(toy, policy, mode)[0], x)


AVERAGES = {"mean": None, "ema": get_ema_multi_avg_fn(0.9)}  # type: ignore[no-untyped-call]


@each_pair
@pytest.mark.parametrize("rule", AVERAGES)
def test_averages_of_frozen_weights_are_frozen_and_equal(toy: str, policy: str, mode: str, rule: str) -> None:
    model, x = frozen_toy(toy, policy, mode)
    averaged = AveragedModel(model, multi_avg_fn=AVERAGES[rule])
    assert bundles.freeze_plan(averaged) == bundles.freeze_plan(model)
    expected, before = selected(model, policy), contents(model)
    optimizers = make_optimizers(model)
    for _ in range(3):
        step(model.train(), x, *optimizers)
        averaged.update_parameters(model)
    after = contents(averaged.module)
    assert [name for name in expected if after[name] != before[name]] == []
    averaged.train()
    averaged.eval()
    averaged.train()
    assert [m.training for m in averaged.module.modules()] == [m.training for m in model.modules()]


# --- pickles --------------------------------------------------------------------------------------


@functools.cache
def pickles(toy: str) -> bool:
    """Whether torch lets the plain model be pickled: not where something is parametrized."""
    try:
        pickle.dumps(TOYS[toy].make())
    except RuntimeError as error:
        return "Serialization of parametrized modules" not in str(error)
    return True


@pytest.fixture(scope="module")
def revived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process sees in models that were saved frozen; one process for all."""
    folder = tmp_path_factory.mktemp("revived")
    for toy in filter(pickles, TOYS):
        for policy, mode in filter(lambda pair: accepts(*pair), itertools.product(POLICIES, MODES)):
            torch.save(frozen_toy(toy, policy, mode), folder / f"{toy}-{policy}-{mode}.pt")
    subprocess.run([sys.executable, toys.__file__, str(folder)], check=True)
    return {path.stem: torch.load(path) for path in folder.glob("*.seen")}


@each_cell
def test_a_saved_model_is_frozen_alike_in_a_fresh_process(
    toy: str, policy: str, mode: str, revived: dict[str, Any]
) -> None:
    if not pickles(toy):
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
            pickle.dumps(frozen_toy(toy, policy, mode))
        return
    model, x = frozen_toy(toy, policy, mode)
    assert revived[f"{toy}-{policy}-{mode}"] == trial(model, x)


@each_pair
def test_undo_is_exact_in_an_unpickled_model(toy: str, policy: str, mode: str) -> None:
    if not pickles(toy):
        pytest.skip("torch does not pickle parametrized modules")
    model: nn.Module = pickle.loads(pickle.dumps(frozen_toy(toy, policy, mode)[0]))
    bundles.unfreeze(model.train())
    plain = TOYS[toy].make()
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert [vars(module).keys() for module in model.modules()] == [vars(m).keys() for m in plain.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert contents(model) == contents(plain)


# --- compilers ------------------------------------------------------------------------------------


def compiled(model: nn.Module, backend: str) -> Any:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend=backend)


def exported(model: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attribute.* assigned during export")
        return torch.export.export(model, (x,)).module()


def traced(model: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and noise makes two runs differ
        return torch.jit.trace(model, (x,), check_trace=False)  # type: ignore[no-untyped-call]


def translated(model: nn.Module, x: Tensor, way: str) -> Any:
    ways = {"export": exported, "trace": traced}
    return ways[way](model, x) if way in ways else compiled(model, way)


@functools.cache
def plain_outputs(toy: str, way: str) -> list[bytes] | None:
    """What the plain model gives in eval, compiled; ``None`` where it does not pass the compiler."""
    model, x = TOYS[toy].make().eval(), TOYS[toy].make_input()
    try:
        with torch.no_grad():
            return outputs(translated(model, x, way), x)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException):
        return None


def drops_layers(model: nn.Module) -> bool:
    return any(hasattr(module, "layer_drop") and module.training for module in model.modules())


def left_out(toy: str, policy: str, mode: str, way: str) -> bool:
    """A cell counts where the plain model passes in eval and no layer drop is on in the frozen one."""
    return plain_outputs(toy, way) is None or drops_layers(frozen_toy(toy, policy, mode)[0].train())


def check_translated(toy: str, policy: str, mode: str, way: str) -> None:
    """Frozen blocks give the bytes that the plain model gives in eval, and nothing held moves."""
    expected = plain_outputs(toy, way)
    if expected is None or left_out(toy, policy, mode, way):
        pytest.skip("the plain model does not pass, or layer drop is on")
    model, x = frozen_toy(toy, policy, mode)
    model.train()
    before, near = contents(model), buffers_near(model, selected(model, policy))
    depth = WHOLE_BLOCKS.get(policy, 0) + (policy == "all")
    made = translated(model, x, way)
    if way != "export":
        made.train()
    with torch.no_grad():
        seen = outputs(made, x)[:depth]
    if MODES[mode].stats == "hold":
        assert [name for name in near if contents(model)[name] != before[name]] == []
    if mode in STILL:
        assert seen == expected[:depth]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@each_calm_pair
def test_in_train_mode_it_compiles_as_one_graph(toy: str, policy: str, mode: str, backend: str) -> None:
    check_translated(toy, policy, mode, backend)


@each_calm_pair
def test_in_train_mode_it_exports(toy: str, policy: str, mode: str) -> None:
    check_translated(toy, policy, mode, "export")


@each_calm_pair
def test_in_train_mode_it_traces(toy: str, policy: str, mode: str) -> None:
    check_translated(toy, policy, mode, "trace")


@pytest.mark.parametrize(("way", "bound"), [("aot_eager", 6), ("export", 1), ("trace", 1)])
def test_few_cells_are_left_out_of_compiling(way: str, bound: int) -> None:
    cells = [tuple(found.values) for found in CALM_PAIRS]
    skipped = [(toy, policy, mode) for toy, policy, mode in cells if left_out(toy, policy, mode, way)]
    assert len(CALM_PAIRS) == 90
    assert len(skipped) <= bound, skipped


def test_one_toy_is_left_out_of_pickling() -> None:
    assert [toy for toy in TOYS if not pickles(toy)] == ["spectralparam"]
