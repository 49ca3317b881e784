"""A Keras model as the plain table that planning works on, and its layer groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

from bundles.builders.require import require
from bundles.errors import BuildError, FreezeArgumentError, MissingDependencyError
from bundles.spec.groups import (
    Kind,
    LayerGroup,
    LayerGroups,
    idle_patterns,
    match_layers,
    parse_rules,
    with_rest,
)
from bundles.spec.table import Effect, ModuleRow, ModuleTable, ParameterRow
from bundles.spec.values import shown

_REST = "unlisted"
_PREPROCESSING = "keras.src.layers.preprocessing."  # whose base class Keras does not export
_NORMS = ("BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization")


def import_keras() -> Any:
    """Return the module ``keras``.

    Raises:
        MissingDependencyError: it is absent, or the library that it is set to run on is.
    """
    try:
        return require("keras")
    except MissingDependencyError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name in ("tensorflow", "jax"):
            raise MissingDependencyError(
                f"Keras is set to run on {cause.name}, which is not installed: set the environment variable "
                f"KERAS_BACKEND=torch before keras is imported."
            ) from error
        raise


def keras_of(model: Any) -> Any:
    """Return the module ``keras``, if it runs on torch and the model is one of its layers.

    Raises:
        MissingDependencyError: Keras cannot be imported.
        FreezeArgumentError: it runs on another backend, or the model is none of Keras or not built.
    """
    keras = import_keras()
    if (backend := keras.backend.backend()) != "torch":
        raise FreezeArgumentError(
            f"Keras runs on {backend}, where layers cannot be held: set the environment variable "
            f"KERAS_BACKEND=torch before keras is imported."
        )
    if not isinstance(model, keras.Layer):
        raise FreezeArgumentError(
            f"A {type(model).__name__} is no Keras model or layer: for torch modules type "
            f"bundles.freeze(model, ...)."
        )
    if not model.built:
        raise FreezeArgumentError(
            f"The model {model.name!r} has no weights yet: call model.build(shape), or run one batch."
        )
    return keras


def layers_of(model: Any) -> dict[str, Any]:
    """Return every layer by dotted name, in order, the model itself as ``""``; a shared one once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(name: str, layer: Any) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        found[name] = layer
        for local, child in _unique(layer._layers):
            visit(f"{name}.{local}" if name else local, child)

    visit("", model)
    return found


def is_wrapper(layer: Any) -> bool:
    """Whether a layer is a ``TorchModuleWrapper``, with a torch module inside."""
    return isinstance(layer, require("keras").layers.TorchModuleWrapper)


def variables_of(layers: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (full name, layer's name, variable) of all weights; of wrapped modules as torch names them."""
    for prefix, layer in layers.items():
        dot = f"{prefix}." if prefix else ""
        own = _wrapped(prefix, layer) if is_wrapper(layer) else _unique(layer._trainable_variables)
        for name, variable in own:
            yield dot + name, prefix, variable


def _wrapped(prefix: str, layer: Any) -> Iterator[tuple[str, Any]]:
    known = {id(variable.value): variable for variable in layer.weights}
    for name, parameter in layer.module.named_parameters():
        if id(parameter) not in known:
            raise FreezeArgumentError(
                f"The module in {prefix or layer.name} got the parameter {name} after it was wrapped, which "
                f"Keras does not know: wrap it when it is complete."
            )
        yield name, known[id(parameter)]


def _unique(named: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of what has names, a second one of the same name as ``name_1``."""
    taken: set[str] = set()
    for value in named:
        name, number = value.name, 0
        while name in taken:
            number += 1
            name = f"{value.name}_{number}"
        taken.add(name)
        yield name, value


def buffers_of(layers: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (full name, layer's name, variable) of what layers write themselves, as moving averages."""
    for prefix, layer in layers.items():
        for name, variable in () if is_wrapper(layer) else _unique(layer._non_trainable_variables):
            yield f"{prefix}.{name}" if prefix else name, prefix, variable


def describe(layers: Mapping[str, Any], before: Mapping[int, bool]) -> ModuleTable:
    """Return the model's layers and weights as data.

    Args:
        layers: what :func:`layers_of` returned.
        before: whether variables trained before a freeze of ours, by id.
    """
    found = list(variables_of(layers))
    names: dict[int, list[str]] = {}
    for name, _, variable in found:
        names.setdefault(id(variable), []).append(name)
    parameters = (
        ParameterRow(
            name=name,
            shape=tuple(variable.shape),
            module=prefix,
            trainable=before.get(id(variable), variable.trainable),
            tied=tuple(names[id(variable)]),
        )
        for name, prefix, variable in found
    )
    return ModuleTable(tuple(_row(name, layer) for name, layer in layers.items()), tuple(parameters))


def _row(name: str, layer: Any) -> ModuleRow:
    effects, assumed = _effects(layer)
    return ModuleRow(
        name=name,
        called=True,
        ordered=isinstance(layer, require("keras").Sequential),
        reads=bool(effects),
        builtin=True,  # no flag is held but where something is known to hang on it
        effects=effects,
        assumed=assumed,
    )


def _effects(layer: Any) -> tuple[tuple[Effect, ...], bool]:
    """Return what hangs on a layer's ``training`` argument, and whether that is a guess.

    What draws has a seed generator; a recurrent layer draws for its cell. A layer made of layers only passes
    the argument on to them. Augmentation of the input is none of the model's behaviour: it stays as it comes.
    """
    known = require("keras").layers
    if isinstance(layer, known.BatchNormalization | known.SpectralNormalization):
        return ("stats",), False
    is_input = any(cls.__module__.startswith(_PREPROCESSING) for cls in type(layer).__mro__)
    if is_input or is_wrapper(layer) or "training" not in layer.call_signature_parameters:
        return (), False
    is_keras = type(layer).__module__.partition(".")[0] == "keras"
    draws = bool(layer._seed_generators) or isinstance(layer, known.RNN)
    if is_keras or layer._layers:
        return (("noise",) if draws else ()), not is_keras
    return (("noise", "stats") if layer._non_trainable_variables else ("noise",)), True


def groups_of(
    layers: Mapping[str, Any], table: ModuleTable, groups: LayerGroups | Mapping[str, Any] | None
) -> LayerGroups:
    """Return the partition that was given, or that of the layers in their order.

    Raises:
        FreezeArgumentError: what was given is malformed.
    """
    names = [row.name for row in table.parameters]
    if isinstance(groups, LayerGroups):
        return with_rest(groups, names, _REST)
    if groups is None:
        return _derive(layers, table)
    if not isinstance(groups, Mapping):
        raise FreezeArgumentError(
            f"groups={shown(groups)} is neither a LayerGroups nor a mapping, as {{'blocks': 'block_{{i}}'}}."
        )
    rules = parse_rules(groups)
    if idle := idle_patterns(rules, [*layers, *names]):
        raise FreezeArgumentError(f"The patterns {', '.join(idle)} of groups= match nothing in the model.")
    try:
        return match_layers(rules, names, rest=_REST)
    except BuildError as error:
        raise FreezeArgumentError(f"groups= cannot be used: {error}") from error


def _derive(layers: Mapping[str, Any], table: ModuleTable) -> LayerGroups:
    """The head is the last layer with weights, each other one is a block with the norms that follow it.

    A model among the layers that holds most of the rest is looked into: its layers are the blocks.
    """
    model = require("keras").Model
    sizes = {row.name: prod(row.shape) for row in table.parameters}
    row = _below("", layers, sizes)
    while len(row) == 1 and isinstance(layers[row[0]], model):
        row = _below(row[0], layers, sizes)
    last_is_body = not row or (isinstance(layers[row[-1]], model) and _share(row[-1:], row, sizes) >= 0.5)
    head = [] if len(row) < 2 or last_is_body else row[-1:]
    body = row[: len(row) - len(head)]
    inner = next((n for n in body if isinstance(layers[n], model) and _share([n], body, sizes) >= 0.5), None)
    blocks = _blocks(_below(inner, layers, sizes) if inner else body, layers)
    return _grouped(list(sizes), blocks, head)


def _grouped(names: list[str], blocks: list[list[str]], head: list[str]) -> LayerGroups:
    inside = [name for name in names if any(_is_in(name, block) for block in blocks)]
    start = names.index(inside[0]) if inside else 0
    rest = [(i, n) for i, n in enumerate(names) if n not in set(inside) and not _is_in(n, head)]
    sketch: list[tuple[str, Kind, list[str]]] = [
        ("stem", "stem", [name for index, name in rest if index < start]),
        *((f"block.{index}", "block", block) for index, block in enumerate(blocks)),
        ("norm", "norm", [name for index, name in rest if index >= start]),
        ("head", "head", head),
    ]
    groups = (
        LayerGroup(name, kind, tuple(match), tuple(n for n in names if _is_in(n, match)))
        for name, kind, match in sketch
    )
    return LayerGroups(tuple(group for group in groups if group.parameters))


def _blocks(row: list[str], layers: Mapping[str, Any]) -> list[list[str]]:
    """Layers that are no norms, each with the norms right after it."""
    blocks: list[list[str]] = []
    for name in row:
        if type(layers[name]).__name__ not in _NORMS:
            blocks.append([name])
        elif blocks:
            blocks[-1].append(name)
    return blocks


def _below(prefix: str, layers: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The layers right below one that hold weights, in order."""
    start = f"{prefix}." if prefix else ""
    found = (start + name[len(start) :].partition(".")[0] for name in names if name.startswith(start))
    return [name for name in dict.fromkeys(found) if name in layers]


def _is_in(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _share(part: list[str], whole: list[str], sizes: Mapping[str, int]) -> float:
    def size(prefixes: list[str]) -> int:
        return sum(size for name, size in sizes.items() if _is_in(name, prefixes))

    return size(part) / (size(whole) or 1)
