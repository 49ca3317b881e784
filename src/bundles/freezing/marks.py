"""What a freeze leaves on a module, beside ``requires_grad``: taken as a whole, and put again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import nn

from bundles.freezing.behaviour.hold import (
    Hold,
    all_noted,
    forget_requires_grad,
    grads_and_before,
    held,
    hold,
    is_held,
    own_parameter,
    release,
    remember_requires_grad,
    set_requires_grad,
)
from bundles.freezing.optimizer.masks import forget, keep, kept_of
from bundles.spec.masks import Mask
from bundles.spec.plan import FreezePlan

V = TypeVar("V")

_PLAN = "_bundles_plan"


@dataclass(frozen=True)
class Marks:
    """What plans, also one put on a parent, have made of one module."""

    held: Hold | None
    noted: dict[str, bool]
    requires_grad: dict[str, tuple[bool, bool]]
    kept: tuple[frozenset[str], dict[str, Mask]]
    plan: FreezePlan | None

    @classmethod
    def of(cls, module: nn.Module) -> Marks:
        """Return those of a module."""
        noted, plan = all_noted(module), own_plan(module)
        return cls(held(module), noted, grads_and_before(module), kept_of(module), plan)

    def put(self, module: nn.Module) -> None:
        """Make a module without any what the other was."""
        for local, before in self.noted.items():
            remember_requires_grad(module, local, before)
        for local, (_, now) in self.requires_grad.items():
            if (parameter := own_parameter(module, local)) is not None:
                set_requires_grad(parameter, now)
        if any(self.kept):
            keep(module, *self.kept)
        if self.held is not None:
            hold(module, self.held)
        if self.plan is not None:
            note_plan(module, self.plan)

    def renamed(self, names: Mapping[str, str | None]) -> Marks:
        """Return these for a module that has its parameters under other names, or some not at all."""
        whole, masks = self.kept
        kept = frozenset(_renamed(dict.fromkeys(whole), names)), _renamed(masks, names)
        return replace(
            self,
            noted=_renamed(self.noted, names),
            requires_grad=_renamed(self.requires_grad, names),
            kept=kept,
        )


def _renamed(of: Mapping[str, V], names: Mapping[str, str | None]) -> dict[str, V]:
    return {new: value for local, value in of.items() if (new := names.get(local, local)) is not None}


def take_off(module: nn.Module) -> None:
    """Make a module one without any, but for ``requires_grad``."""
    note_plan(module, None)
    forget(module)
    release(module)
    forget_requires_grad(module)


def is_marked(module: nn.Module) -> bool:
    """Whether a plan has made anything of a module."""
    return is_held(module) or bool(all_noted(module)) or own_plan(module) is not None


def own_plan(model: nn.Module) -> FreezePlan | None:
    """Return the plan that was put on this module itself."""
    plan: FreezePlan | None = model.__dict__.get(_PLAN)
    return plan


def note_plan(model: nn.Module, plan: FreezePlan | None) -> None:
    """Note, or forget, which plan was put on this module itself."""
    if plan is None:
        model.__dict__.pop(_PLAN, None)
    else:
        model.__dict__[_PLAN] = plan


def applied_plans(model: nn.Module) -> Iterator[tuple[str, nn.Module, FreezePlan]]:
    """Yield (name, module, plan) of each module in the model on which a plan was put."""
    for name, module in model.named_modules(remove_duplicate=False):
        if (plan := own_plan(module)) is not None:
            yield name, module, plan
