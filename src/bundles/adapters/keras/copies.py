"""Copies and pickles of a frozen model: Keras makes them by its config, then the freeze is put on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bundles.adapters.keras import hold
from bundles.adapters.keras.table import import_keras, is_wrapper, layers_of, variables_of
from bundles.errors import FreezeArgumentError
from bundles.freezing import apply as torch_apply
from bundles.spec.plan import FreezePlan


@dataclass(frozen=True)
class _Note:
    """What a copy needs to be frozen as the model, and to be given back by ``unfreeze`` as the model.

    Attributes:
        plan: what was put on the model.
        lasting: as that of ``hold.State``.
        trainable: of each layer by name, in order, what it was before.
        variables: of each weight by name, in order, what it was before.
        modules: by wrapper, the plans that its torch module had before, by the names of modules in it.
    """

    plan: FreezePlan
    lasting: bool
    trainable: dict[str, bool]
    variables: dict[str, bool]
    modules: dict[str, list[tuple[str, FreezePlan]]]


def register() -> None:
    """Let ``copy`` and ``pickle`` of Keras' layers ask here; what is not frozen they get as ever.

    What is frozen cannot be in the config, by which Keras makes copies, without being in files, too. All
    classes are told, since a model of any of them, also one made later, may have a frozen one inside.
    """
    import_keras().Layer.__reduce__ = _reduced


def _reduced(model: Any) -> Any:
    """Return how a model is made again, also where only models inside it are frozen.

    Raises:
        FreezeArgumentError: one of these was changed since it was frozen.
    """
    build, arguments = made = super(import_keras().Layer, model).__reduce__()
    found = [(layer, hold.state_of(layer)) for layer in layers_of(model).values()]
    notes = {place: _note(layer, state) for place, (layer, state) in enumerate(found) if state is not None}
    return (_made, (build, arguments, notes)) if notes else made


def _made(build: Callable[..., Any], arguments: tuple[Any, ...], notes: dict[int, _Note]) -> Any:
    register()  # this may be a process in which nothing was frozen yet
    model = build(*arguments)
    layers = list(layers_of(model).values())  # by place: those without a name of their own get new ones
    for place, note in notes.items():
        _put(layers[place], note)
    return model


def _note(model: Any, state: hold.State) -> _Note:
    layers = layers_of(model)
    variables = {name: variable for name, _, variable in variables_of(layers)}
    wrapped = {id(layer.module): name for name, layer in layers.items() if is_wrapper(layer)}
    _check_unchanged(model, state, layers, variables)
    before = {id(each): trained for each, trained in (*state.trainable, *state.variables)}
    return _Note(
        state.plan,
        state.lasting,
        trainable={name: before[id(layer)] for name, layer in layers.items()},
        variables={name: before[id(variable)] for name, variable in variables.items()},
        modules={
            wrapped[id(module)]: [(name, marks.plan) for name, _, marks in was if marks.plan is not None]
            for module, was in state.modules
        },
    )


def _check_unchanged(
    model: Any, state: hold.State, layers: Mapping[str, Any], variables: Mapping[str, Any]
) -> None:
    """Refuse a model that has what its plan does not know, or lacks what it names."""
    known = {id(each) for each, _ in (*state.trainable, *state.variables)}
    now = {id(layer) for layer in layers.values()}
    modules = {id(layer.module) for layer in layers.values() if is_wrapper(layer)}
    changed = [
        *sorted({tensor.name for tensor in state.plan.tensors} ^ set(variables)),
        *(name for name, each in (*variables.items(), *layers.items()) if id(each) not in known),
        *(layer.name for layer, _ in state.trainable if id(layer) not in now),
        *(type(module).__name__ for module, _ in state.modules if id(module) not in modules),
    ]
    if changed:
        raise FreezeArgumentError(
            f"The model {model.name!r} was changed after it was frozen ({changed[0]} came, went or was "
            f"replaced), so that its copy would be frozen otherwise: type "
            f"bundles.adapters.keras.unfreeze(model) before such a change, and freeze(model, ...) after it."
        )


def _put(model: Any, note: _Note) -> None:
    """Make a copy what the model was before it was frozen, and freeze it."""
    layers = layers_of(model)
    new = dict(zip(note.trainable, layers, strict=True))
    for name, plans in note.modules.items():  # a torch module comes as it was pickled, frozen
        module = layers[new[name]].module
        torch_apply.undo(module)
        for inner, plan in plans:
            torch_apply.apply(module.get_submodule(inner), plan)
    variables = {name: variable for name, _, variable in variables_of(layers)}
    hold.set_trainable(
        zip(layers.values(), note.trainable.values(), strict=True),
        zip(variables.values(), note.variables.values(), strict=True),
    )
    new |= dict(zip(note.variables, variables, strict=True))
    hold.apply(model, layers, _renamed(note.plan, new), lasting=note.lasting)


def _renamed(plan: FreezePlan, new: dict[str, str]) -> FreezePlan:
    """Return the plan by the names of a copy: layers that have none of their own are numbered anew."""
    return replace(
        plan,
        groups=tuple(
            replace(g, match=tuple(new.get(match, match) for match in g.match)) for g in plan.groups
        ),
        tensors=tuple(
            replace(t, name=new[t.name], alias_of=t.alias_of and new[t.alias_of]) for t in plan.tensors
        ),
        holds=tuple(replace(planned, module=new[planned.module]) for planned in plan.holds),
    )
