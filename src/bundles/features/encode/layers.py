"""Which module gives a layer that is asked for, and with which part of the model it is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from bundles.assemble.built import built_of
from bundles.builders.head import EncoderWithHead
from bundles.errors import FreezeArgumentError
from bundles.freezing.behaviour.describe import describe
from bundles.freezing.behaviour.hold import base_class
from bundles.freezing.derive import inside, layer_groups
from bundles.spec.features import OUTPUT
from bundles.spec.groups import LayerGroup, LayerGroups
from bundles.spec.resolve import home_of
from bundles.spec.table import Effect, ModuleRow, lineage
from bundles.spec.values import shown

PREFIX = "prefix"
# Libraries whose models are known: what they return, and that nothing in them is random in eval().
LIBRARIES = {"bundles", "timm", "torch", "torchaudio", "torchcrepe", "torchvision", "transformers"}


@dataclass(frozen=True)
class Layer:
    """A place in a model whose values are stored.

    Attributes:
        name: ``"output"``, or that of a block, as ``"block.6"``.
        module: dotted name from the model's root; empty for the root.
        side: whether the values are what the module returns, or what it is given: of a head, or of the
            dropout in front of it.
        groups: names of the layer groups that it is computed with.
    """

    name: str
    module: str
    side: Literal["output", "input"]
    groups: tuple[str, ...]


def find_layers(model: nn.Module, layers: Sequence[int | str] | None = None) -> tuple[Layer, ...]:
    """Return the places that layers stand for, in the order of the model.

    Args:
        model: any module, also wrapped by ``torch.compile`` or DDP.
        layers: names; or numbers of blocks of :func:`bundles.layer_groups`, from 0, negative ones from the
            end; ``None`` for ``"output"``: what the head is given, and without one what the model returns.

    Raises:
        FreezeArgumentError: the model has no such layer, or one is asked for twice.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    >>> [(layer.name, layer.module) for layer in find_layers(net, [-1, 0, "output"])]
    [('block.0', '0'), ('block.1', '1'), ('output', '')]
    """
    return Anatomy(inside(model)).layers(layers)


class Anatomy:
    """A model taken apart as far as stored features need it.

    Args:
        model: without wrappers around it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules(remove_duplicate=False))

    @cached_property
    def groups(self) -> LayerGroups:
        """The partition of the whole model."""
        return layer_groups(self.model)

    @cached_property
    def rows(self) -> dict[str, ModuleRow]:
        """What hangs on each module's ``training`` flag."""
        return {row.name: row for row in describe(self.model).modules}

    @cached_property
    def encoder(self) -> str:
        """The dotted name of the module that is called with the inputs.

        That is the encoder in front of a head, of transformers' encoder-decoders the encoder, and else all.
        """
        name = "encoder" if isinstance(self.model, EncoderWithHead) else ""
        module: Any = self.modules[name]
        if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
            part = module.get_encoder()
            name = next(name for name, found in self.modules.items() if found is part)
        return name

    @cached_property
    def base(self) -> str:
        """The dotted name of the encoder without the head that transformers' classes for a task add."""
        encoder = self.modules[self.encoder]
        inner = f"{self.encoder}.{getattr(encoder, 'base_model_prefix', '')}".strip(".")
        return inner if inner in self.modules else self.encoder

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks in the encoder."""
        return tuple(group.name for group in self.groups.blocks if self._roots(group))

    @cached_property
    def head(self) -> str | None:
        """The dotted name of the module whose input is what a head in the encoder is given, if there is one.

        Of a model that no bundle built the last layer is only guessed to be a head: it counts as one where
        it trains while the rest is frozen.
        """
        roles = {group.name: group.role for group in self.groups}
        below = {name: {roles[group] for group in groups} for name, groups in self.groups.below.items()}
        names = [name for name in self.modules if _is_within(name, self.encoder)]
        last = max((names.index(name) for name in names if "encoder" in below.get(name, ())), default=-1)
        heads = (name for name in names[last + 1 :] if below.get(name) == {"head"})
        found = next(heads, None)
        known = built_of(self.model) is not None or extractor_of(self.modules[self.encoder]) is not None
        if found is None or last < 0 or not (known or self._trains(found)):
            return None
        found = self._innermost(found)
        return next(self._dropouts(names[last + 1 : names.index(found)], found), found)

    def layers(self, wanted: Sequence[int | str] | None) -> tuple[Layer, ...]:
        """Return the places that layers stand for, see :func:`find_layers`."""
        wanted = [OUTPUT] if wanted is None else wanted
        if isinstance(wanted, str | int) or not isinstance(wanted, Sequence) or not wanted:
            raise FreezeArgumentError(
                f"layers={shown(wanted)} is no list of layers: give numbers of blocks, as [6, 9]."
            )
        found = [self.layer(name) for name in wanted]
        if len({layer.name for layer in found}) < len(found):
            raise FreezeArgumentError(f"layers={shown(list(wanted))} asks for a layer twice: leave one out.")
        return tuple(sorted(found, key=self.depth))

    def layer(self, name: int | str) -> Layer:
        """Return the place that a name or a number of a block stands for.

        Raises:
            FreezeArgumentError: there is none.
        """
        if name == OUTPUT:
            return self._output()
        if name == PREFIX:
            from bundles.features.encode.deterministic import prefix

            return prefix(self.model)
        name = self._block(name)
        groups = tuple(group.name for group in self.groups if group.role == "encoder")
        block = next(group for group in self.groups if group.name == name)
        return Layer(name, self._roots(block)[-1], "output", groups[: groups.index(name) + 1])

    def depth(self, layer: Layer) -> int:
        """Return how deep a layer of this model is, to be compared with others."""
        return len(self.blocks) if layer.name == OUTPUT else self.blocks.index(layer.name)

    def computed(self, layer: Layer) -> Iterator[str]:
        """Yield the names of the modules that a layer is computed with, in the order of the model.

        A module that other layers share, as the stack of blocks, is among them.
        """
        wanted = set(layer.groups)
        names = [name for name in self.modules if _is_within(name, self.encoder)]
        owners = [index for index, name in enumerate(names) if wanted.intersection(self._below(name))]
        last = max(owners, default=len(names))
        for index, name in enumerate(names):
            below = self._below(name)
            home = None if below else home_of(name, self.groups)
            if wanted.intersection(below) or home in wanted or (not below and home is None and index < last):
                yield name

    def effects(self, name: str) -> list[Effect]:
        """Return what hangs on a module's ``training`` flag and is more than a rate of zero."""
        module, row = self.modules[name], self.rows[name]
        if isinstance(module, _DropoutNd) and module.p == 0:
            return []
        return [effect for effect in row.effects if not _is_off(module, row, effect)]

    def parameters(self, layer: Layer) -> dict[str, nn.Parameter]:
        """Return the parameters that a layer is computed with, by dotted name."""
        wanted = {name for group in self.groups if group.name in layer.groups for name in group.parameters}
        found = self.model.named_parameters(remove_duplicate=False)
        return {name: p for name, p in found if name in wanted and _is_within(name, self.encoder)}

    def _output(self) -> Layer:
        if self.head is not None:
            groups = tuple(group.name for group in self.groups if group.role == "encoder")
            return Layer(OUTPUT, self.head, "input", groups)
        return Layer(OUTPUT, self.base, "output", self._below(self.base))

    @cached_property
    def _slot(self) -> str:
        """The dotted name of the slot of a bundle's head; a dot, which is no name, without one."""
        built = built_of(self.model)
        slot = None if built is None else built.bundle.head_slot
        return "." if built is None or slot is None else f"{built.bundle.prefix}{slot}"

    def _block(self, name: int | str) -> str:
        """Return the name of a block that exists."""
        blocks = self.blocks
        if isinstance(name, int) and not isinstance(name, bool) and -len(blocks) <= name < len(blocks):
            return blocks[name]
        if isinstance(name, str) and name in blocks:
            return name
        has = f"{blocks[0]} to {blocks[-1]}" if blocks else "no blocks"
        raise FreezeArgumentError(
            f"The model has no layer {shown(name)}: it has {has}, and {OUTPUT!r}; give blocks by number, "
            f"from 0, or from the end, as [-1]."
        )

    def _roots(self, group: LayerGroup) -> list[str]:
        """Names of the modules in the encoder that make up a group, those that have a forward."""
        called = [row.name for row in self.rows.values() if row.called and _is_within(row.name, self.encoder)]
        if named := [name for name in called if name in group.match]:
            return named
        whole = [name for name in called if self._below(name) == (group.name,)]
        return [name for name in whole if not set(lineage(name)).intersection(whole) - {name}]

    def _innermost(self, head: str) -> str:
        """Return the module in a head that has all of its parameters, past pooling and flattening.

        Not past what drops something in training, unless it is known that this comes before.
        """
        inner = [name for name in self.groups.below if name.rpartition(".")[0] == head and name != head]
        if len(inner) != 1 or any(True for _ in self.modules[head].parameters(recurse=False)):
            return head
        beside = [n for n in self.modules if _is_within(n, head) and not _is_within(n, inner[0])]
        drops = any(self.effects(name) for name in beside) and not self.rows[head].ordered
        return head if drops and not _is_within(self._slot, inner[0]) else self._innermost(inner[0])

    def _below(self, name: str) -> tuple[str, ...]:
        return self.groups.below.get(name, ())

    def _trains(self, head: str) -> bool:
        """Whether a head trains in front of which something is frozen."""
        trains = any(parameter.requires_grad for parameter in self.modules[head].parameters())
        return trains and any(not parameter.requires_grad for parameter in self.model.parameters())

    def _dropouts(self, between: Sequence[str], head: str) -> Iterator[str]:
        """Yield the dropouts right before a head, which no plan for the encoder holds.

        What is stored is then what they are given, so that they drop in training as without a store.
        """
        parent = head.rpartition(".")[0]
        for name in between:
            if name.rpartition(".")[0] == parent and "noise" in self.effects(name):
                yield name


def extractor_of(encoder: nn.Module) -> nn.Module | None:
    """Return the module of torchaudio's encoders that turns samples, and their number, into frames."""
    if not base_class(encoder).__module__.startswith(("torchaudio.", "bundles.")):
        return None
    found = (getattr(part, "feature_extractor", None) for part in (encoder, getattr(encoder, "model", None)))
    return next((module for module in found if isinstance(module, nn.Module)), None)


def is_of_library(module: nn.Module) -> bool:
    """Whether a model is one of a library that is known, with no module of anybody else in it.

    What is put together of torch's own layers is not.
    """
    packages = [base_class(part).__module__.partition(".")[0] for part in module.modules()]
    return packages[0] != "torch" and set(packages) <= LIBRARIES


def _is_off(module: nn.Module, row: ModuleRow, effect: Effect) -> bool:
    rates = [knob for knob in row.knobs if knob.effect == effect]
    return bool(rates) and all(getattr(module, knob.name) <= knob.off for knob in rates)


def _is_within(name: str, part: str) -> bool:
    return part in lineage(name)
