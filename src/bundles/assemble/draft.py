"""Construct a bundle's module, with the head that was asked for, and remember what of it is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from bundles.spec.architectures import without_end, without_tail
from bundles.spec.bundle import Bundle
from bundles.spec.groups import (
    LayerGroups,
    LayerRule,
    idle_patterns,
    match_layers,
    parse_rules,
    prefixed_rules,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Draft:
    """A constructed model on its way.

    Attributes:
        model: the module.
        rules: of its layer groups; empty where they are derived.
        prefix: where in it the names of the weight file begin.
        fresh: names that no weight file fills: a new head.
        replaced: names of the file that the model has no place for begin so: the head it replaces.
    """

    model: nn.Module
    rules: tuple[LayerRule, ...]
    prefix: str
    fresh: tuple[str, ...] = ()
    replaced: str = ""

    def is_replaced(self, name: str) -> bool:
        """Whether a name of the file is one of the head that a new one takes the place of."""
        return bool(self.replaced) and (self.prefix + name).startswith(self.replaced)

    def groups(self) -> LayerGroups:
        """The partition of its parameters, which only a freeze asks for."""
        from bundles.freezing.derive import layer_groups

        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        return match_layers(self.rules, names) if self.rules else layer_groups(self.model)


def build_draft(
    bundle: Bundle, head: nn.Module | Callable[[int], nn.Module] | None, parameters: str
) -> Draft:
    """Construct a bundle's module; ``parameters`` are as in :func:`bundles.builders.table.build`.

    Raises:
        HeadError: the head does not fit the bundle.
        MissingDependencyError, BuildError: the module cannot be constructed.
    """
    from bundles.builders.head import ENCODER, attach_head
    from bundles.builders.table import build

    if head is None:
        return _draft(build(bundle, parameters=parameters), bundle.rules, bundle.prefix)
    own = bundle.prefix + bundle.head_slot if bundle.head_slot else None
    made, fits = _made(bundle, head)
    if fits:
        bundle = replace(bundle, architecture=without_tail(bundle.builder, bundle.architecture))
    else:
        bundle = _headless(bundle)
    slot = own if bundle.head_slot else None
    model = attach_head(build(bundle, parameters=parameters), slot, made)
    if slot:
        if bundle.builder == "transformers":
            from bundles.builders.transformers.labels import relabel

            relabel(model, made)
        return _draft(model, bundle.rules, bundle.prefix, fresh=slot, replaced=slot)
    rules = _rules_with_head(prefixed_rules(bundle.rules, ENCODER), model)
    return _draft(model, rules, ENCODER + bundle.prefix, fresh="head", replaced=own and ENCODER + own)


def _made(bundle: Bundle, head: nn.Module | Callable[[int], nn.Module]) -> tuple[nn.Module, bool]:
    """The head as a module, and whether it goes into the bundle's slot, whose size may be another."""
    from bundles.builders.head import fits_slot, make_head

    ends = _headless(bundle)
    is_module = hasattr(head, "named_modules") and not isinstance(head, type)
    if bundle.head_slot is None or (is_module and not fits_slot(cast("nn.Module", head))):
        return make_head(ends, head), False
    made = make_head(bundle, head)
    if fits_slot(made):
        return made, True
    return (made if ends.num_features == bundle.num_features else make_head(ends, head)), False


def _headless(bundle: Bundle) -> Bundle:
    """The bundle whose model ends in its features, for a head that no slot could feed."""
    architecture = without_end(bundle.builder, bundle.architecture)
    if architecture == bundle.architecture:
        return bundle
    kinds = [rule.kind for rule in parse_rules(bundle.layers)]
    layers = {
        name: entry
        for (name, entry), kind in zip(bundle.layers.items(), kinds, strict=True)
        if kind != "head"
    }
    size = bundle.metadata.get("encoder_features", bundle.num_features)
    return replace(bundle, architecture=architecture, layers=layers, head_slot=None, num_features=size)


def _rules_with_head(rules: tuple[LayerRule, ...], model: nn.Module) -> tuple[LayerRule, ...]:
    """The rules of an ``EncoderWithHead``; an encoder may have a head of its own that is no slot."""
    names = [name for name, _ in model.named_modules()]
    names += [name for name, _ in model.named_parameters()]
    live = tuple(rule for rule in rules if len(idle_patterns([rule], names)) < len(rule.match))
    name = "new_head" if any(rule.name == "head" for rule in live) else "head"
    return (*live, LayerRule(name, "head", ("head",))) if rules else ()


def _draft(
    model: nn.Module,
    rules: tuple[LayerRule, ...],
    prefix: str,
    *,
    fresh: str = "",
    replaced: str | None = None,
) -> Draft:
    new = tuple(name for name in model.state_dict() if name.startswith(f"{fresh}.")) if fresh else ()
    return Draft(model, rules, prefix, new, f"{replaced}." if replaced else "")
