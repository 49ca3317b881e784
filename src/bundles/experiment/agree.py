"""Whether a lock still says what its experiment file says, and if not, where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bundles.errors import PinMismatchError
from bundles.experiment.config import ModelConfig
from bundles.experiment.file import ExperimentFile
from bundles.registry import default
from bundles.spec.bundle import Bundle
from bundles.spec.lock import SINGLE, Lock
from bundles.spec.mode import FreezeMode
from bundles.spec.pin import ModelPin
from bundles.spec.policy import Nothing, parse_policy
from bundles.spec.toml import toml_key
from bundles.spec.values import plain_value

ASKED = "asked"  # key of a pin: the address in the experiment file, where that is another: a branch, a pin


def check_agreement(file: ExperimentFile, lock: Lock, lock_name: str) -> None:
    """Refuse a lock that is not one of an experiment file.

    Raises:
        PinMismatchError: they disagree; every difference is named with both values.
    """
    if problems := tuple(differences(file, lock)):
        lines = [f"{file.path} and {lock_name} disagree:", *problems]
        raise PinMismatchError(
            "\n".join((*lines, f"Type `bundles lock {file.path}` to lock what the file says.")),
            problems=problems,
        )


def differences(file: ExperimentFile, lock: Lock) -> Iterator[str]:
    """Yield where a lock and its file disagree, in the order of the file."""
    for name, wanted in file.models.items():
        if name not in lock.models:
            yield f"{_key(name, file.single)}: is in the file and not in the lock"
            continue
        for key, asked, pinned in disagreements(wanted, lock.models[name]):
            where = f"{_key(name, file.single)}.{key}"
            yield f"{where}: the file says {text_of(asked)}, the lock {text_of(pinned)}"
    for name in lock.models:
        if name not in file.models:
            yield f"{_key(name, lock.single)}: is in the lock and not in the file"


def disagreements(wanted: ModelConfig, pin: ModelPin) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, what is asked for and what is pinned, where these are not the same.

    What ``freeze = true`` and a missing mode come to is the bundle's to say. Of a repository that takes a
    look into it, so there it is left to the digest of the plan.
    """
    bundle = _in_registry(pin.bundle)
    if not means(wanted.bundle, pin):
        yield "bundle", wanted.bundle, pin.extra.get(ASKED, pin.bundle)
    elif (asked := policy_text(wanted.freeze, bundle)) is not None and asked != _policy(pin.freeze):
        yield "freeze", wanted.freeze, False if pin.freeze is None else pin.freeze
    elif pin.freeze is not None and (mode := mode_text(wanted.freeze_mode, bundle)) not in (
        None,
        pin.freeze_mode,
    ):
        yield "freeze_mode", mode, pin.freeze_mode
    head = None if wanted.head is None else plain_value(wanted.head)
    pinned = None if pin.head is None else plain_value(pin.head)
    if head != pinned:
        yield "head", head, pinned
    if wanted.dtype != pin.dtype:
        yield "dtype", wanted.dtype, pin.dtype


def means(address: str, pin: ModelPin) -> bool:
    """Whether a bundle that is asked for is the one that is pinned."""
    return bool(address == pin.extra.get(ASKED, pin.bundle))


def policy_text(freeze: bool | str, bundle: Bundle | None) -> str | None:
    """Return what a ``freeze`` comes to, ``None`` where only the bundle could tell, and is not at hand."""
    if freeze is False:
        return repr(Nothing())
    if freeze is True:
        return None if bundle is None else repr(bundle.default_policy)
    return repr(parse_policy(freeze))


def mode_text(mode: FreezeMode | None, bundle: Bundle | None) -> str | None:
    """Return what a ``freeze_mode`` comes to, ``None`` where only the bundle could tell."""
    if mode is not None:
        return str(mode)
    return None if bundle is None else str(bundle.default_mode)


def text_of(value: Any) -> str:
    """Return a value as the file would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {text_of(item)}" for key, item in value.items()) + " }"
    return "nothing" if value is None else str(value) if isinstance(value, int | float) else repr(value)


def _policy(pinned: str | None) -> str:
    """The pinned policy's ``repr``; what is no string of a policy is one."""
    from bundles.errors import FreezeArgumentError

    if pinned is None:
        return repr(Nothing())
    try:
        return repr(parse_policy(pinned))
    except FreezeArgumentError:
        return pinned


def _in_registry(name: str) -> Bundle | None:
    registry = default.default_registry
    return registry[name] if ":" not in name and name in registry else None


def _key(name: str, single: bool) -> str:
    return SINGLE if single else f"models.{toml_key(name)}"
