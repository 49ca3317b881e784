"""Copies and pickles of a frozen model: Keras makes them by its config, then the freeze is put on them."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bundles.adapters.keras import hold
from bundles.adapters.keras.table import is_wrapper, layers_of, variables_of
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


def register(model: Any) -> None:
    """Let ``copy`` and ``pickle`` ask here for models of a class; what is not frozen they get as ever.

    What is frozen cannot be in the config, by which Keras makes copies, without being in files, too.
    """
    copyreg.dispatch_table.setdefault(type(model), _reduced)


def _reduced(model: Any) -> Any:
    """Return how a model is made again, also where only models inside it are frozen."""
    build, arguments, *rest = made = model.__reduce_ex__(4)
    found = [(name, layer, hold.state_of(layer)) for name, layer in layers_of(model).items()]
    notes = {name: _note(layer, state) for name, layer, state in found if state is not None}
    return (_made, (build, arguments, notes), *rest) if notes else made


def _made(build: Callable[..., Any], arguments: tuple[Any, ...], notes: dict[str, _Note]) -> Any:
    model = build(*arguments)
    layers = layers_of(model)
    for name, note in notes.items():
        _put(layers[name], note)
    return model


def _note(model: Any, state: hold.State) -> _Note:
    layers = layers_of(model)
    variables = [name for name, _, _ in variables_of(layers)]
    wrapped = {id(layer.module): name for name, layer in layers.items() if is_wrapper(layer)}
    return _Note(
        state.plan,
        state.lasting,
        trainable=dict(zip(layers, (trained for _, trained in state.trainable), strict=True)),
        variables=dict(zip(variables, (trained for _, trained in state.variables), strict=True)),
        modules={wrapped[id(module)]: _plans(module, was) for module, was in state.modules},
    )


def _plans(module: Any, was: tuple[Any, ...]) -> list[tuple[str, FreezePlan]]:
    names = {id(each): name for name, each in module.named_modules()}
    return [(names[id(each)], marks.plan) for each, marks in was if marks.plan is not None]


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
