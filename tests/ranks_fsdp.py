"""Checks of freezing under FSDP2 (``fully_shard``), and of what FSDP1 takes, each on two ranks at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor

import bundles
from bundles import Elements, FreezeError, FrozenDriftError, UnfreezeSchedule
from ranks import agree, batches, contents, moved, whole
from toys import TOYS, as_bytes

SHAPE = TOYS["batchnorm1d"].shape
HEAD = {"head.proj.weight", "head.proj.bias"}
KINDS = ("batchnorm1d", "dropout", "layerdrop", "spectralhook", "tied", "nonpersistent")


def frozen_before_sharding_holds(folder: Path) -> None:
    for kind in KINDS:
        plain = bundles.freeze(TOYS[kind].make(), "encoder")
        _check_frozen(kind, _sharded(plain))


def frozen_after_sharding_holds(folder: Path) -> None:
    for kind in KINDS:
        _check_frozen(kind, bundles.freeze(_sharded(TOYS[kind].make()), "encoder"))


def both_orders_make_the_same_model_and_undo_gives_back_everything(folder: Path) -> None:
    seen = []
    for first, then in ((_freeze, _sharded), (_sharded, _freeze)):
        model = _toy()
        keys = list(model.state_dict())
        flags = [p.requires_grad for p in model.parameters()]
        then(first(model))
        assert list(model.state_dict()) == keys
        seen.append(_state(model.train()))
        bundles.unfreeze(model)
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(module.training for module in model.modules())
        assert all(isinstance(m, FSDPModule) for m in (model, *model.get_submodule("encoder.blocks")))  # type: ignore[misc]
        before = contents(model)
        _train(model)
        assert {name for name, _ in model.named_parameters()} <= moved(model, before)
    assert seen[0] == seen[1]


def freezing_reaches_the_shards_after_a_forward_that_left_whole_parameters(folder: Path) -> None:
    model = _sharded(_toy())
    with torch.no_grad():
        model(next(batches(SHAPE, 1)))
    bundles.freeze(model, "match:head")
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == HEAD
    taken, before = bundles.snapshot(model), contents(model)
    _train(model)
    assert not HEAD & moved(model, before)
    with torch.no_grad():
        model(next(batches(SHAPE, 1)))
    bundles.verify_frozen(model, taken)


def a_features_freeze_records_no_graph(folder: Path) -> None:
    model = _sharded(bundles.freeze(_toy(), "encoder", "features"))
    before = contents(model)
    *made, logits = model.train()(next(batches(SHAPE, 1)))
    assert [tensor.requires_grad for tensor in (*made, logits)] == [False, False, False, True]
    logits.sum().backward()
    _train(model)
    assert moved(model, before) == HEAD


def each_rank_verifies_its_own_part(folder: Path) -> None:
    model = bundles.freeze(_sharded(_toy()), "encoder")
    taken = bundles.snapshot(model)
    _train(model)
    bundles.verify_frozen(model, taken)
    bundles.verify_frozen(model, taken, quick=True)
    _nudge(model.get_parameter("encoder.blocks.1.0.weight"), rank=1)
    assert _drift(model, taken) == ((), (("encoder.blocks.1.0.weight",)))[dist.get_rank()]


def parameter_groups_hold_the_shards_that_train(folder: Path) -> None:
    plain = bundles.freeze(_toy(), "first:1")
    wanted = bundles.param_groups(plain, lr=1.0, layer_decay=0.5)
    model = bundles.freeze(_sharded(_toy()), "first:1")
    found = bundles.param_groups(model, lr=1.0, layer_decay=0.5)
    assert [(g["name"], g["lr"]) for g in found] == [(g["name"], g["lr"]) for g in wanted]
    held = {id(parameter) for group in found for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def a_schedule_thaws_shards_and_they_train_as_whole_ones(folder: Path) -> None:
    schedule = UnfreezeSchedule({0: "encoder", 2: "last:1", 4: "none"})
    trained = []
    for model in (_sharded(_toy()), _toy()):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
        for step in range(6):
            schedule.apply(model, step, optimizer=optimizer)
            torch.manual_seed(step)  # the same on both ranks, so that the mean of both gradients is exact
            _step(model, torch.randn(SHAPE), optimizer)
        trained.append(contents(model))
    assert trained[0] == trained[1]


def a_frozen_model_goes_through_a_distributed_checkpoint(folder: Path) -> None:
    model, optimizer = _trained()
    weights, moments = get_state_dict(model, optimizer)
    assert list(weights) == list(_toy().state_dict())
    save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    other = bundles.freeze(_sharded(_toy()), "encoder")
    again = _optimizer(other)
    weights, moments = get_state_dict(other, again)
    load({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    set_state_dict(other, again, model_state_dict=weights, optim_state_dict=moments)
    assert contents(other) == contents(model)
    assert _state(other.train()) == _state(model.train())
    for net, optim in ((model, optimizer), (other, again)):
        torch.manual_seed(1)
        _step(net, torch.ones(SHAPE), optim)
    assert contents(other) == contents(model)


def elements_frozen_before_sharding_hold(folder: Path) -> None:
    _check_elements(lambda model, policy: _sharded(bundles.freeze(model, policy)))


def elements_frozen_after_sharding_hold(folder: Path) -> None:
    _check_elements(lambda model, policy: bundles.freeze(_sharded(model), policy))


def elements_frozen_in_training_hold_despite_old_momentum(folder: Path) -> None:
    model = _sharded(_toy())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    for x in batches(SHAPE, 2):
        _step(model, x, optimizer)
    bundles.freeze(model, Elements(MASKS))
    before = _wholes(model)
    for x in batches(SHAPE, 3):
        _step(model, x, optimizer)
    _check_masks(model, before)


def elements_hold_at_a_step_while_whole_parameters_are_in_place(folder: Path) -> None:
    for first, then in ((_sharded, _freeze_elements), (_freeze_elements, _sharded)):
        plain = _toy()
        before = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
        model = then(first(plain))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
        x = next(batches(SHAPE, 1))
        model.train()(x)[-1].square().sum().backward()
        with torch.no_grad():
            model(x)
        optimizer.step()
        model.reshard()  # type: ignore[operator]
        _check_masks(model, before)


def elements_hold_where_no_backward_reshards(folder: Path) -> None:
    model = bundles.freeze(_toy(), Elements(MASKS))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _sharded(model).set_reshard_after_backward(False)  # type: ignore[operator]
    _train(model)
    model.reshard()  # type: ignore[operator]
    _check_masks(model, before)


def elements_are_verified_in_parts_and_thaw(folder: Path) -> None:
    model = bundles.freeze(_sharded(_toy()), Elements(MASKS))
    taken = bundles.snapshot(model)
    _train(model)
    bundles.verify_frozen(model, taken)
    _nudge(model.get_parameter("head.proj.weight"), rank=0)
    assert _drift(model, taken) == (("head.proj.weight",), ())[dist.get_rank()]
    bundles.unfreeze(model)
    before = _wholes(model)
    _train(model)
    after = _wholes(model)
    assert all(not (after[name] == before[name]).any() for name in MASKS)


def elements_go_through_a_distributed_checkpoint(folder: Path) -> None:
    model = bundles.freeze(_sharded(_toy()), Elements(MASKS))
    _train(model)
    save({"model": get_state_dict(model, ())[0]}, checkpoint_id=folder)
    other = bundles.freeze(_sharded(_toy()), Elements(MASKS))
    weights = get_state_dict(other, ())[0]
    load({"model": weights}, checkpoint_id=folder)
    set_state_dict(other, (), model_state_dict=weights, optim_state_dict={})
    before, wanted = _wholes(other), _wholes(model)
    assert all(torch.equal(before[name], wanted[name]) for name in wanted)
    _train(other)
    _check_masks(other, before)


def flat_parameters_take_a_freeze_before_the_wrap(folder: Path) -> None:
    model = bundles.freeze(_toy(), "encoder")
    wrap = _flat(model)
    with FullyShardedDataParallel.summon_full_params(wrap, writeback=False):
        before = _unwrapped(wrap)
    _train(wrap)
    with FullyShardedDataParallel.summon_full_params(wrap, writeback=False):
        after = _unwrapped(wrap)
    assert {name for name in before if before[name] != after[name]} == HEAD


def flat_parameters_take_no_masks_and_say_so(folder: Path) -> None:
    wrap = _flat(bundles.freeze(_toy(), Elements(MASKS)))
    try:
        _train(wrap)
    except FreezeError as error:
        message = str(error)
    assert "fully_shard" in message


MASKS: dict[str, Any] = {
    "head.proj.weight": torch.arange(24).reshape(3, 8) % 3 == 0,
    "encoder.blocks.1.0.weight": torch.arange(64).reshape(8, 8) % 5 == 0,
    "encoder.blocks.1.0.bias": torch.arange(8) < 5,
}


def _toy() -> nn.Module:
    return TOYS["batchnorm1d"].make()


def _freeze(model: nn.Module) -> nn.Module:
    return bundles.freeze(model, "encoder")


def _freeze_elements(model: nn.Module) -> nn.Module:
    return bundles.freeze(model, Elements(MASKS))


def _sharded(model: nn.Module) -> nn.Module:
    """Shard each block, and the rest."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for block in model.get_submodule("encoder.blocks").children():
        fully_shard(block)
    fully_shard(model)
    return model


def _flat(model: nn.Module) -> FullyShardedDataParallel:
    policy = ModuleWrapPolicy({type(model.get_submodule("encoder"))})
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, use_orig_params=True, auto_wrap_policy=policy, device_id=cpu)


def _unwrapped(wrap: nn.Module) -> dict[str, bytes]:
    return {name.replace("_fsdp_wrapped_module.", ""): value for name, value in contents(wrap).items()}


def _step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)
    model.train()(x)[-1].square().sum().backward()
    optimizer.step()


def _train(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> None:
    """Three steps of what moves a parameter without a gradient soonest, on data that differ."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    for x in batches(shape, 3):
        _step(model, x, optimizer)


def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = bundles.freeze(_sharded(_toy()), "encoder")
    optimizer = _optimizer(model)
    for x in batches(SHAPE, 2):
        _step(model, x, optimizer)
    return model, optimizer


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(bundles.param_groups(model, lr=0.01, weight_decay=0.3))


def _state(model: nn.Module) -> list[tuple[str, bool, list[bool]]]:
    """What is frozen and held, module by module."""
    return [
        (name, module.training, [p.requires_grad for p in module.parameters(recurse=False)])
        for name, module in model.named_modules()
    ]


def _check_frozen(kind: str, model: nn.Module) -> None:
    """Whatever train() is called, the encoder computes as in eval, and training moves the head alone."""
    toy, before = TOYS[kind], contents(model)
    assert list(model.state_dict()) == list(toy.make().state_dict()), kind
    x = toy.make_input()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    with torch.no_grad():
        wanted = [as_bytes(made) for made in toy.make().eval()(x)[:-1]]
        for module in model.train().modules():
            module.train()
        assert [as_bytes(made) for made in model(x)[:-1]] == wanted, kind
    for _ in range(3):
        _step(model, x, optimizer)
    parameters = model.named_parameters(remove_duplicate=False)
    trained = {name for name, parameter in parameters if parameter.requires_grad}
    assert moved(model, before) == trained, kind
    assert trained <= HEAD, kind
    assert agree(contents(model))


def _wholes(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(parameter).clone() for name, parameter in model.named_parameters()}


def _check_elements(make: Callable[[nn.Module, Elements], nn.Module]) -> None:
    plain = _toy()
    before = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    keys = list(plain.state_dict())
    model = make(plain, Elements(MASKS))
    assert list(model.state_dict()) == keys
    _train(model)
    _check_masks(model, before)


def _check_masks(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Masked elements are bit for bit what they were, and all others moved."""
    after = _wholes(model)
    for name, mask in MASKS.items():
        assert torch.equal(after[name] == before[name], mask), name


@torch.no_grad()
def _nudge(parameter: Tensor, rank: int) -> None:
    """Move the first element of one rank's part."""
    assert isinstance(parameter, DTensor)
    if dist.get_rank() == rank:
        parameter.to_local().view(-1)[0] += 1


def _drift(model: nn.Module, taken: bundles.Snapshot) -> tuple[str, ...]:
    """What moved, on this rank."""
    try:
        bundles.verify_frozen(model, taken)
    except FrozenDriftError as error:
        return error.moved
    return ()
