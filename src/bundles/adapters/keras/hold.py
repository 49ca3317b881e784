"""Put a plan on a Keras model, and take it off again."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from bundles.adapters.keras.table import is_wrapper, variables_of
from bundles.errors import FreezeArgumentError
from bundles.freezing import apply as torch_apply
from bundles.freezing.behaviour.describe import describe
from bundles.freezing.derive import layer_groups
from bundles.spec.cut import check_cut
from bundles.spec.plan import FreezePlan
from bundles.spec.resolve import plan_names

_STATE = "_bundles_keras"


@dataclass
class State:
    """What a freeze changed on one model, so that it can be undone.

    Attributes:
        plan: what was put on it.
        lasting: whether ``trainable`` of layers was set, which is in their config and so in files.
        trainable: of each layer by name, what it was before.
        variables: of each variable by id, what ``trainable`` was before.
        held: the layers with a ``call`` of ours, and the one of their own that stood there.
        modules: wrapped torch modules that got a plan of their own, with what they were before.
    """

    plan: FreezePlan
    lasting: bool
    trainable: list[tuple[Any, bool]]
    variables: list[tuple[Any, bool]]
    held: list[tuple[Any, Any]]
    modules: list[tuple[Any, Any]]


def state_of(model: Any) -> State | None:
    """Return what a freeze of ours left on the model."""
    found: State | None = vars(model).get(_STATE)
    return found


def before(model: Any) -> dict[int, bool]:
    """Return which variables trained before the freeze, by id."""
    state = state_of(model)
    return {} if state is None else {id(variable): trained for variable, trained in state.variables}


def apply(model: Any, layers: Mapping[str, Any], plan: FreezePlan, *, lasting: bool = True) -> None:
    """Freeze and hold what the plan says, whatever was frozen before.

    Args:
        model: the model.
        layers: what ``layers_of`` returned of it.
        plan: what is frozen and how it behaves.
        lasting: whether layers that are frozen whole are told so by ``trainable``, beside their weights.
            Keras writes that into files, and builds the optimizer of a file over what trains by it.

    Raises:
        FreezeArgumentError: a layer is held by the freeze of another model that it is in.
        InexpressibleModeError: a wrapped torch module cannot show the mode.
    """
    _check_free(model, layers)
    inside = list(_plans_inside(layers, plan))  # before anything is changed: they may refuse the mode
    undo(model)
    rows = {tensor.name: tensor for tensor in plan.tensors}
    found = list(variables_of(layers))
    state = State(
        plan,
        lasting,
        trainable=[(layer, layer.trainable) for layer in layers.values()],
        variables=[(variable, variable.trainable) for _, _, variable in found],
        held=[],
        modules=[],
    )
    vars(model)[_STATE] = state
    for module, its_plan in inside:
        state.modules.append((module, torch_apply.capture(module)))
        torch_apply.apply(module, its_plan)
    for name, layer in layers.items():
        if lasting and layer.weights and _is_off(f"{name}." if name else "", plan, layers):
            layer.trainable = False
    for name, _, variable in found:
        if rows[name].state != "fixed":
            variable.trainable = rows[name].trains
            if not rows[name].trains:
                variable.value.grad = None
    for planned in plan.holds:
        _hold(layers[planned.module], planned.training, planned.cut, state)


def undo(model: Any) -> None:
    """Give back every ``trainable``, ``call`` and torch plan that the freeze changed."""
    state: State | None = vars(model).pop(_STATE, None)
    if state is None:
        return
    for layer, own in state.held:
        vars(layer).pop("call")
        if own is not None:
            vars(layer)["call"] = own
    for module, was in state.modules:
        torch_apply.reinstate(module, was)
    set_trainable(state.trainable, state.variables)


def set_trainable(layers: Iterable[tuple[Any, bool]], variables: Iterable[tuple[Any, bool]]) -> None:
    """Set ``trainable`` of layers, then of variables."""
    for layer, trained in layers:  # parents first, since the setter tells the layers below
        layer.trainable = trained
    for variable, trained in variables:
        variable.trainable = trained


def _check_free(model: Any, layers: Mapping[str, Any]) -> None:
    """Refuse a layer that two freezes would hold: the first to be undone would end the other, too."""
    state = state_of(model)
    own = set() if state is None else {id(layer) for layer, _ in state.held}
    for name, layer in layers.items():
        if id(layer) not in own and hasattr(vars(layer).get("call"), _STATE):
            raise FreezeArgumentError(
                f"The layer {name or layer.name} is held already, by the freeze of another model that it is "
                f"in: call unfreeze() on that one first, and freeze one of them."
            )


def _is_off(start: str, plan: FreezePlan, layers: Mapping[str, Any]) -> bool:
    """Whether all weights of a layer are frozen, and none below needs ``trainable`` to update statistics."""
    below = [tensor.state for tensor in plan.tensors if tensor.name.startswith(start)]
    if not below or "trainable" in below or "frozen" not in below:
        return False
    return plan.mode.stats == "hold" or not any(
        layer._non_trainable_variables for name, layer in layers.items() if f"{name}.".startswith(start)
    )


def _plans_inside(layers: Mapping[str, Any], plan: FreezePlan) -> Iterator[tuple[Any, FreezePlan]]:
    """Yield (torch module, plan) of each wrapper in which something is selected; others stay as they are.

    Raises:
        InexpressibleModeError: the module cannot show the mode.
    """
    for name, layer in layers.items():
        start = f"{name}." if name else ""
        tensors = [tensor for tensor in plan.tensors if tensor.name.startswith(start)]
        if is_wrapper(layer) and any(tensor.state == "frozen" for tensor in tensors):
            names = [tensor.name.removeprefix(start) for tensor in tensors if tensor.state != "trainable"]
            table, groups = describe(layer.module), layer_groups(layer.module)
            check_cut(plan.mode, table, frozenset(names), groups)
            yield layer.module, plan_names(names, plan.policy, plan.mode, table, groups)


def _hold(layer: Any, training: bool | None, cut: bool, state: State) -> None:
    """Give one layer a ``call`` that sets the argument; its class and its config stay as they are."""
    own = layer.call

    @functools.wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        if training is not None:
            kwargs["training"] = training
        with torch.no_grad() if cut else nullcontext():
            return own(*args, **kwargs)

    vars(call)[_STATE] = True
    state.held.append((layer, vars(layer).get("call")))
    vars(layer)["call"] = call
