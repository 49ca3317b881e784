"""Compare what a pin says with what came out: versions, plan, size, converted weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bundles.assemble.pins import converted_digest, versions_of
from bundles.errors import PinMismatchError, VersionMismatchWarning, warn
from bundles.spec.bundle import Bundle
from bundles.spec.fold import unfold
from bundles.spec.formats import CONVERTER
from bundles.spec.pin import ModelPin
from bundles.spec.plan import FreezePlan

if TYPE_CHECKING:
    from torch import nn

_SHOWN = 12  # names in a message


def check_versions(pin: ModelPin, bundle: Bundle, *, strict: bool = False) -> None:
    """Warn of libraries that are of another version than was recorded; of ``bundles`` itself not.

    Raises:
        PinMismatchError: there is one, and ``strict`` is set.
    """
    now = versions_of(bundle)
    others = [
        f"{name} {now.get(name, 'is absent')}, recorded {version}"
        for name, version in sorted(pin.versions.items())
        if name != "bundles" and now.get(name) != version
    ]
    if not others:
        return
    told = f"{pin.bundle} was locked with other versions: {'; '.join(others)}."
    if strict:
        raise PinMismatchError(
            f"{told} Install those, or type `bundles lock FILE --upgrade-all`.",
            locked=dict(pin.versions),
            found=now,
        )
    warn(told, VersionMismatchWarning)


def check_plan(pin: ModelPin, plan: FreezePlan | None) -> None:
    """Refuse a plan that freezes or holds something else than was locked.

    Raises:
        PinMismatchError: it does; the names that moved are in the message and in ``moved``.
    """
    found = plan.digest if plan else None
    if found == pin.plan:
        return
    then, now = unfold(pin.frozen), frozenset(plan.frozen if plan else ())
    moved = (
        *(f"{name} was frozen and is not" for name in sorted(then - now)),
        *(f"{name} is frozen and was not" for name in sorted(now - then)),
    )
    more = f" and {len(moved) - _SHOWN} more" if len(moved) > _SHOWN else ""
    told = "; ".join(moved[:_SHOWN]) + more if moved else "the same names, of other shapes or held otherwise"
    asked = f"{plan.policy} in mode {plan.mode} with the plan {found}" if plan else "nothing"
    raise PinMismatchError(
        f"What would be frozen of {pin.bundle} is not what was locked: locked is {_said(pin)}, asked for is "
        f"{asked}: {told}. Ask for what was locked, or type `bundles lock FILE --upgrade-all`.",
        locked=pin.plan,
        found=found,
        moved=moved,
    )


def _said(pin: ModelPin) -> str:
    return f"{pin.freeze} in mode {pin.freeze_mode} with the plan {pin.plan}" if pin.plan else "nothing"


def check_parameters(pin: ModelPin, model: nn.Module) -> None:
    """Refuse a model that is larger or smaller than the one that was locked.

    Raises:
        PinMismatchError: it is.
    """
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != pin.parameters:
        raise PinMismatchError(
            f"{pin.bundle} has {found:,} parameters and was locked with {pin.parameters:,}, the head "
            f"{dict(pin.head) if pin.head else 'its own'}: ask for that head, or type "
            f"`bundles lock FILE --upgrade-all`.",
            locked=pin.parameters,
            found=found,
        )


def check_converted(pin: ModelPin, bundle: Bundle) -> None:
    """Refuse a converted checkpoint with other bytes; a later converter may write others.

    Raises:
        PinMismatchError: the converter is the same, and what it wrote is not.
        SourceError, CacheError, WeightsError: the checkpoint cannot be had.
    """
    if pin.converted is None or pin.converted["converter"] != CONVERTER or bundle.weights is None:
        return
    if (found := converted_digest(bundle.weights)) != pin.converted["sha256"]:
        raise PinMismatchError(
            f"The converted weights of {pin.bundle} are not those that were locked: locked is sha256 "
            f"{pin.converted['sha256']}, found {found}. Delete `converted` in the cache and try again.",
            locked=pin.converted["sha256"],
            found=found,
        )
