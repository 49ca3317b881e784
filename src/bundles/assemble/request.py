"""Read what was asked for: which bundle, with which options, frozen how."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bundles.assemble.lookup import get_bundle
from bundles.errors import BuildArgumentError, FreezeArgumentError, RegistryError
from bundles.spec.architectures import argument_problem, options_of
from bundles.spec.bundle import Bundle
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.policy import FreezePolicy, Nothing, parse_policy
from bundles.spec.upstream import from_torchtext
from bundles.spec.values import shown

if TYPE_CHECKING:
    from bundles.assemble.locked import Locked

Freeze = bool | str | FreezePolicy
ARGUMENTS = (
    "freeze",
    "freeze_mode",
    "pretrained",
    "head",
    "device",
    "dtype",
    "frozen_dtype",
    "dl_kwargs",
    "lock",
)


def bundle_of(bundle: Bundle | str) -> Bundle:
    """Return the bundle, looked up if it is a name."""
    if isinstance(bundle, Bundle):
        return bundle
    if isinstance(bundle, str):
        return get_bundle(bundle)
    raise RegistryError(f"A {type(bundle).__name__} is neither a Bundle nor the name of one.")


def locked_of(
    bundle: Bundle | str, lock: str | os.PathLike[str] | Locked | None
) -> tuple[Bundle, Locked | None]:
    """Return the bundle, and the entry of a lock that pins it.

    Raises:
        PinError: the lock is malformed.
        PinMismatchError: it does not pin the bundle, or another state of it.
    """
    if lock is None:
        return bundle_of(bundle), None
    from bundles.assemble.locked import Locked, find_locked

    found = lock if isinstance(lock, Locked) else find_locked(bundle, lock)
    return found.bundle(bundle), found


def settled_of(bundle: Bundle) -> Bundle:
    """Return a bundle whose pin string has been compared, which takes its files where no card knows them.

    Raises:
        PinMismatchError: it is another one than was pinned.
    """
    if bundle.pinned is None:
        return bundle
    from bundles.assemble.pinned import check_pinned

    return check_pinned(bundle, bundle.pinned)


def with_upstream(
    bundle: Bundle, freeze: Freeze, pretrained: bool, options: dict[str, Any]
) -> tuple[Freeze, bool, dict[str, Any]]:
    """Return the arguments of ``get_model`` with those that torchtext took of its bundles understood.

    Raises:
        BuildArgumentError: ``pretrained`` is no bool: a path or a name there would be left unread.
    """
    if not isinstance(pretrained, bool):
        raise BuildArgumentError(
            f"pretrained={shown(pretrained)} is neither True nor False: weights of your own go into a model "
            f"by bundles.load_into(model, path)."
        )
    if bundle.metadata.get("companions") != "text":
        return freeze, pretrained, options
    return from_torchtext(freeze, pretrained, options)


def with_options(bundle: Bundle, options: Mapping[str, Any]) -> Bundle:
    """Return the bundle with those of its builder's arguments changed that ``get_model`` takes, too.

    Raises:
        BuildArgumentError: it has no such argument, or does not take that value.
    """
    known = options_of(bundle.builder, bundle.architecture)
    for name, value in options.items():
        if name not in known:
            takes = ", ".join((*ARGUMENTS, *known))
            raise BuildArgumentError(
                f"get_model of {bundle.name} has no argument {name!r}: it takes {takes}."
            )
        if problem := argument_problem(str(bundle.builder), name, value):
            raise BuildArgumentError(f"{name}= of {bundle.name}: {problem}.")
    return replace(bundle, architecture={**bundle.architecture, **options}) if options else bundle


def read_request(
    bundle: Bundle, freeze: Freeze, freeze_mode: str | FreezeMode | None
) -> tuple[FreezePolicy, FreezeMode]:
    """Return the policy and mode that the arguments of ``get_model`` ask of a bundle."""
    return merge_request(
        parse_policy(bundle.default_policy), parse_mode(bundle.default_mode), freeze, freeze_mode
    )


def merge_request(
    default: FreezePolicy, mode: FreezeMode, freeze: Freeze, freeze_mode: str | FreezeMode | None
) -> tuple[FreezePolicy, FreezeMode]:
    """Return the policy and mode that the arguments ask for, the defaults where they say nothing.

    Raises:
        FreezeArgumentError: a mode without a freeze, or an argument that is none.
    """
    if freeze is False and freeze_mode is not None:
        raise FreezeArgumentError(
            f"freeze_mode={freeze_mode!r} was given without freeze: add freeze=True, or a policy."
        )
    if freeze is False:
        return Nothing(), mode
    policy = default if freeze is True else parse_policy(freeze)
    return policy, mode if freeze_mode is None else parse_mode(freeze_mode)
