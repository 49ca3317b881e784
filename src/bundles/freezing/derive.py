"""Layer groups of any model: those it carries, else derived from its children."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from bundles.errors import BuildError, FreezeArgumentError
from bundles.freezing.behaviour.describe import owned_parameters
from bundles.freezing.marks import own_plan
from bundles.freezing.sharded import settle
from bundles.spec.groups import (
    Kind,
    LayerGroup,
    LayerGroups,
    LayerRule,
    idle_patterns,
    match_layers,
    parse_rules,
    with_rest,
)
from bundles.spec.values import shown

_ATTRIBUTE = "_bundles_layers"
_REST = "unlisted"  # the group of parameters that came later, or that given groups leave out
_HEADS = ("head", "heads", "classifier", "fc", "lm_head", "aux", "score", "qa_outputs", "logits", "ctc")
_BODIES = ("encoder", "decoder", "backbone", "transformer", "trunk", "body", "features", "layers")
_WRAPPED = ("_orig_mod", "module")


def layer_groups(model: nn.Module, groups: LayerGroups | Mapping[str, Any] | None = None) -> LayerGroups:
    """Return the ordered partition of a model's parameters into stem, blocks, norm and head.

    A frozen model has those it was frozen by, a bundle's model carries its own. For any other, the
    head is what the last children are called (``head``, ``classifier``, ``fc``, ...), else the last child
    unless it is most of the model;
    the blocks are the row of layers that holds most parameters (a ``ModuleList``, or a ``Sequential``),
    else the other children.

    Args:
        model: any module; ``torch.compile``, DDP and EMA wrappers are looked through.
        groups: given groups instead: a ``LayerGroups``, or a mapping as in a card's ``layers``.

    Raises:
        FreezeArgumentError: ``groups`` is malformed.

    >>> import torch
    >>> layer_groups(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))).names
    ('block.0', 'head')
    """
    model = unwrap(model)
    names = [name for name, *_ in owned_parameters(model)]
    if isinstance(groups, LayerGroups):
        return with_rest(groups, names, _REST)
    if groups is not None:
        return _given(groups, [name for name, _ in model.named_modules()] + names, names)
    if (plan := own_plan(model)) is not None:
        return with_rest(plan.layer_groups(), names, _REST)
    rules = model.__dict__.get(_ATTRIBUTE)
    return _derive(model) if rules is None else match_layers(rules, names, rest=_REST)


def carry_rules(model: nn.Module, rules: Iterable[LayerRule]) -> None:
    """Make a model carry the rules of its layer groups, also into copies and pickles."""
    model.__dict__[_ATTRIBUTE] = tuple(rules)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside its wrappers, as :func:`inside`; under FSDP2 its parameters are the shards.

    Raises:
        FreezeArgumentError: it is no module.
    """
    model = inside(model)
    settle(model)
    return model


def inside(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile``, ``DataParallel``, DDP or ``AveragedModel``.

    Raises:
        FreezeArgumentError: it is no module, or one of Keras.
    """
    if not isinstance(model, nn.Module):
        raise FreezeArgumentError(
            f"A {type(model).__name__} is no nn.Module: for a bundle call get_model(freeze=...) first."
        )
    if isinstance(model, getattr(sys.modules.get("keras"), "Layer", ())):  # a module, too, on torch
        raise FreezeArgumentError(
            f"A {type(model).__name__} of Keras has flags and names of its own: type "
            f"bundles.adapters.keras.freeze(model, ...) and verify_frozen(model, ...), save by "
            f"model.save_weights(...), and give a module in a TorchModuleWrapper as wrapper.module."
        )
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while type(model).__name__ in ("OptimizedModule", "AveragedModel") or isinstance(model, wrappers):
        model = next(child for name in _WRAPPED if (child := model._modules.get(name)) is not None)
    return model


def _given(groups: Mapping[str, Any], modules_and_parameters: list[str], names: list[str]) -> LayerGroups:
    if not isinstance(groups, Mapping):
        raise FreezeArgumentError(
            f"groups={shown(groups)} is neither a LayerGroups nor a mapping, as {{'blocks': 'layers.{{i}}'}}."
        )
    rules = parse_rules(groups)
    if idle := idle_patterns(rules, modules_and_parameters):
        raise FreezeArgumentError(f"The patterns {', '.join(idle)} of groups= match nothing in the model.")
    try:
        return match_layers(rules, names, rest=_REST)
    except BuildError as error:
        raise FreezeArgumentError(f"groups= cannot be used: {error}") from error


def _derive(model: nn.Module, prefix: str = "") -> LayerGroups:
    children = _children("", [name for name, *_ in owned_parameters(model)])
    only = model._modules[children[0]] if len(children) == 1 and children[0] in model._modules else None
    if only is None or isinstance(only, nn.ModuleList):
        return _prefixed(_partition(model, guess_head=not prefix), prefix)
    return _derive(only, f"{prefix}{children[0]}.")  # a model inside a model


def _prefixed(groups: LayerGroups, prefix: str) -> LayerGroups:
    def within(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(prefix + name for name in names)

    return LayerGroups(
        tuple(replace(g, match=within(g.match), parameters=within(g.parameters)) for g in groups)
    )


def _partition(model: nn.Module, *, guess_head: bool) -> LayerGroups:
    sizes = {name: parameter.numel() for name, _, _, parameter in owned_parameters(model)}
    head = _head(model, sizes, guess=guess_head)
    ends = set(_within(sizes, head))
    body = {name: size for name, size in sizes.items() if name not in ends}
    blocks = _blocks(model, body)
    inside = dict.fromkeys(_within(body, blocks))
    first = list(body).index(next(iter(inside))) if inside else len(body)
    outside = [(index < first, name) for index, name in enumerate(body) if name not in inside]
    sketch: list[tuple[str, Kind, list[str]]] = [
        ("stem", "stem", [name for before, name in outside if before]),
        *((f"block.{index}", "block", [block]) for index, block in enumerate(blocks)),
        ("norm", "norm", [name for before, name in outside if not before]),
        ("head", "head", head),
    ]
    groups = (
        LayerGroup(name, kind, tuple(prefixes), tuple(_within(sizes, prefixes)))
        for name, kind, prefixes in sketch
    )
    return LayerGroups(tuple(group for group in groups if group.parameters))


def _head(model: nn.Module, sizes: Mapping[str, int], *, guess: bool) -> list[str]:
    """Names of the top-level children that make up the head; empty where there is none."""
    parts = list(dict.fromkeys(name.partition(".")[0] for name in sizes))
    named = [part for part in parts if part in _HEADS and part in model._modules]
    if named or not guess or len(parts) < 2 or parts[-1] not in model._modules:
        return named if len(named) < len(parts) else []
    is_layer = not _children(parts[-1], [name.rpartition(".")[0] for name in sizes])
    is_body = parts[-1] in _BODIES or (not is_layer and _share(parts[-1], sizes) >= 0.5)
    return [] if is_body else [parts[-1]]


def _blocks(model: nn.Module, body: Mapping[str, int]) -> list[str]:
    """Names of the modules that are the blocks, in order."""
    rows = [
        (name, row)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(row := _children(name, body)) > 1
    ]
    lists = [row for name, row in rows if _is_list(model, name) and _share(name, body) >= 0.5]
    sequences = [row for name, row in rows if not _is_list(model, name) and _share(name, body) >= 0.8]
    if lists or sequences:
        return lists[0] if lists else sequences[-1]  # the outermost list, or the innermost sequence
    row, parent = _children("", body), ""
    while len(row) == 1 and row[0] not in body:  # an encoder that is all of the body
        row, parent = _children(row[0], body), row[0]
    modules = [name for name in row if name not in body]  # a bare parameter is stem or norm
    return modules or ([parent] if parent else [])


def _children(prefix: str, names: Iterable[str]) -> list[str]:
    """``a.b``, ``a.c`` for prefix ``a``: the next dotted level that leads to some parameter."""
    start = f"{prefix}." if prefix else ""
    below = (name[len(start) :].partition(".")[0] for name in names if name.startswith(start))
    return list(dict.fromkeys(start + part for part in below))


def _is_list(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.ModuleList)


def _share(prefix: str, sizes: Mapping[str, int]) -> float:
    inside = sum(sizes[name] for name in (_within(sizes, [prefix]) if prefix else sizes))
    return inside / (sum(sizes.values()) or 1)


def _within(names: Iterable[str], prefixes: Iterable[str]) -> list[str]:
    """The names that are one of the prefixes, or below one."""
    starts = tuple(f"{prefix}." for prefix in prefixes)
    return [name for name in names if f"{name}.".startswith(starts)]
