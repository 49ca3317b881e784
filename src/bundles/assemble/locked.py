"""Build by a lock: find the entry, take what it says, and refuse what came out otherwise."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundles.assemble.mismatch import check_converted, check_parameters, check_plan, check_versions
from bundles.assemble.pinned import apply_pin, check_pinned, pinned_bundle
from bundles.assemble.pins import head_of
from bundles.assemble.request import Freeze
from bundles.errors import (
    FreezeArgumentError,
    PinError,
    PinMismatchError,
    UnpinnedSourceWarning,
    warn,
)
from bundles.spec.bundle import Bundle
from bundles.spec.lock import Lock, read_lock
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.pin import ModelPin, split_pin
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import FreezePolicy, parse_policy
from bundles.spec.values import shown

if TYPE_CHECKING:
    import torch
    from torch import nn

_LARGEST = 16 << 20  # bytes; no lock of a thousand models is so long


@dataclass(frozen=True)
class Locked:
    """A pin of a lock, for ``get_model(lock=...)``.

    Attributes:
        pin: what was locked.
        folder: of the lock, from which ``file:`` sources are named.
        strict: whether other library versions are refused, rather than warned of.
    """

    pin: ModelPin
    folder: str | os.PathLike[str]
    strict: bool = False

    def bundle(self, asked: Bundle | str) -> Bundle:
        """Return the bundle with what was locked of it.

        Raises:
            PinMismatchError: the card is another one, or what is asked for is itself pinned to other bytes.
        """
        if isinstance(asked, Bundle):
            return apply_pin(asked, self.pin, self.folder)
        found = pinned_bundle(self.pin, self.folder)
        parts = split_pin(asked)
        return check_pinned(found, parts[1]) if parts else found

    def request(
        self,
        freeze: Freeze,
        freeze_mode: str | FreezeMode | None,
        head: Any,
        dtype: torch.dtype | None,
    ) -> tuple[Freeze, str | FreezeMode | None, Any, torch.dtype | None]:
        """Return these arguments of ``get_model``, as they were locked where they say nothing.

        Raises:
            PinMismatchError: another dtype is asked for.
            PinError: what was locked cannot be read from its text.
        """
        pin = self.pin
        if freeze is False and pin.freeze is not None:
            freeze = read_policy(pin.freeze)
        if freeze is not False and freeze_mode is None and pin.freeze_mode is not None:
            freeze_mode = read_mode(pin.freeze_mode)
        head = head if head is not None else head_of(pin.head)
        return freeze, freeze_mode, head, _dtype(pin, dtype)

    def check(self, bundle: Bundle, model: nn.Module, plan: FreezePlan | None, *, pretrained: bool) -> None:
        """Refuse what is not what was locked, before weights are loaded.

        Raises:
            PinMismatchError: the number of parameters, the freeze plan or the converted weights differ.
        """
        check_parameters(self.pin, model)
        check_plan(self.pin, plan)
        if pretrained:
            check_converted(self.pin, bundle)

    def check_versions(self, bundle: Bundle) -> None:
        """Warn of other library versions; see :func:`check_versions`."""
        check_versions(self.pin, bundle, strict=self.strict)


def find_locked(bundle: Bundle | str, path: str | os.PathLike[str]) -> Locked:
    """Return the entry of a lock that pins a bundle.

    Raises:
        PinError: the lock cannot be read, or is malformed.
        PinMismatchError: it does not pin that bundle, or pins it in two ways.
    """
    models = read_lock_file(path).models
    folder = Path(os.path.abspath(path)).parent
    name = _name(bundle, folder)
    found = [pin for pin in models.values() if name in _names(pin)]
    if not found:
        pinned = ", ".join(sorted({pin.bundle for pin in models.values()}))
        raise PinMismatchError(
            f"{os.fspath(path)} pins {pinned} and not {name}: ask for one of these, or add it to the "
            f"experiment file and type `bundles lock`."
        )
    if any(pin != found[0] for pin in found):
        names = ", ".join(key for key, pin in models.items() if pin in found)
        raise PinMismatchError(
            f"{os.fspath(path)} pins {name} more than once, as {names}: type "
            f"bundles.load_experiment(path)[NAME]."
        )
    return Locked(found[0], folder)


def read_lock_file(path: str | os.PathLike[str]) -> Lock:
    """Read the lock at a path; one that somebody else may change warns.

    Raises:
        PinError: it cannot be read, or is malformed.
    """
    if not isinstance(path, str | os.PathLike):
        raise PinError(f"lock={shown(path)} is no path: give that of a lock, as 'configs/pitch.lock.toml'.")
    name = os.fspath(path)
    try:
        facts = os.stat(path)
        text = Path(path).read_bytes().decode() if facts.st_size <= _LARGEST else None
    except UnicodeDecodeError as error:
        raise PinError(
            f"The lock {name} is not UTF-8 text (byte {error.start}): delete it and type `bundles lock`."
        ) from error
    except (OSError, ValueError) as error:  # no path holds a NUL
        reason = getattr(error, "strerror", None) or error
        name = name if name.isprintable() else shown(name)
        raise PinError(f"The lock {name} cannot be read ({reason}): write it by `bundles lock`.") from error
    if text is None:
        raise PinError(f"{name} is larger than {_LARGEST >> 20} MiB, which no lock is: check the path.")
    if os.path.islink(path) or facts.st_mode & stat.S_IWOTH:
        what = "a link" if os.path.islink(path) else "writable for everybody"
        warn(f"The lock {name} is {what}: somebody else may decide what it pins.", UnpinnedSourceWarning)
    return read_lock(text, name)


def read_policy(text: str) -> FreezePolicy:
    """Return the policy that a pin names.

    Raises:
        PinError: it was made in Python, and no text stands for it.
    """
    try:
        return parse_policy(text)
    except FreezeArgumentError as error:
        raise PinError(f"The locked policy {text!r} was made in Python: pass it as freeze=.") from error


def read_mode(text: str | None) -> FreezeMode | None:
    """Return the mode that a pin names.

    >>> read_mode("FreezeMode(noise='follow', stats='follow', structure='off', grad='flow')").stats
    'follow'
    """
    if text is None:
        return None
    if re.fullmatch(r"FreezeMode\((\w+='\w+'(, )?)*\)", text):
        return FreezeMode(**dict(re.findall(r"(noise|stats|structure|grad)='(\w+)'", text)))
    return parse_mode(text)


def _dtype(pin: ModelPin, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype that was locked; where none was, the one that is asked for."""
    from bundles.builders.tensors import dtype_named

    if pin.dtype is None:
        return dtype
    if (locked := dtype_named(pin.dtype)) is None:
        raise PinError(f"The dtype {pin.dtype!r} of {pin.bundle} is none of torch's, as 'float32'.")
    if dtype not in (None, locked):
        raise PinMismatchError(
            f"{pin.bundle} was locked in {pin.dtype} and is asked for in {dtype}: leave out dtype=, or "
            f"change the experiment file and type `bundles lock`.",
            locked=pin.dtype,
            found=str(dtype),
        )
    return locked


def _names(pin: ModelPin) -> tuple[str, ...]:
    """What a pinned bundle may be called: a repository also without its commit, or by the locked branch."""
    branch = str(pin.extra.get("asked", ""))
    return (
        (pin.bundle, pin.bundle.partition("@")[0], branch) if pin.bundle.startswith("hf:") else (pin.bundle,)
    )


def _name(bundle: Bundle | str, folder: Path) -> str:
    """What a lock calls a bundle."""
    name = bundle.name if isinstance(bundle, Bundle) else str(bundle)
    parts = split_pin(name)
    name = parts[0] if parts else name
    path = name.removeprefix("file:")
    if name.startswith("file:") or (os.sep in name and os.path.isdir(name)):
        real = os.path.realpath(os.path.expanduser(path))
        return f"file:{os.path.relpath(real, os.path.realpath(folder))}".replace(os.sep, "/")
    return name
