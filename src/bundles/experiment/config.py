"""A model as plain data, in an experiment file or in somebody else's config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from bundles.errors import PinError, PinMismatchError
from bundles.experiment.checks import check_table
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.values import FrozenDict

if TYPE_CHECKING:
    from torch import nn

    from bundles.assemble.locked import Locked


@dataclass(frozen=True)
class ModelConfig:
    """One model that a config asks for.

    Args:
        bundle: name of a bundle; an address, as ``hf:owner/repo@commit``; or the pin of either.
        freeze: ``true`` for the bundle's default policy, ``false`` for none, or a policy as text.
        freeze_mode: how the frozen part behaves: a preset, or a table of the four axes.
        head: what follows the encoder: ``type``, a head of ``bundles.heads`` or ``Linear``, and its
            arguments without ``in_features``, which the bundle knows.
        dtype: of the floating-point tensors.
        lock: path of the lock, in a config that is no experiment file; such a file has it beside itself.
    """

    bundle: str
    freeze: bool | str = False
    freeze_mode: FreezeMode | None = None
    head: Mapping[str, Any] | None = None
    dtype: str | None = None
    lock: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Return what ``bundles.get_model`` takes besides the bundle and the lock."""
        given: dict[str, Any] = {"freeze": self.freeze, "freeze_mode": self.freeze_mode}
        if (recipe := self.head) is not None:
            from bundles.heads.recipes import make_head

            given["head"] = lambda in_features: make_head(recipe, in_features)
        if self.dtype is not None:
            import torch

            given["dtype"] = getattr(torch, self.dtype)
        return given


KEYS = tuple(field.name for field in fields(ModelConfig))


def from_config(config: Mapping[str, Any] | str) -> nn.Module:
    """Build the model that a part of somebody's config describes, in ``eval()``.

    Args:
        config: the name of a bundle, an address or a pin; or a mapping with the keys of an experiment's
            ``[model]`` (``bundle``, ``freeze``, ``freeze_mode``, ``head``, ``dtype``) and ``lock``, the path
            of a lock. Any mapping does, OmegaConf's ``DictConfig`` among them, which is resolved first. It
            is plain data: nothing in it can name code to import or to call. With a lock, what the config
            does not say is as it was locked, and what it says has to be what was locked.

    Raises:
        PinError: the config is malformed. All problems are named at once: ``problems`` has one line each.
        PinMismatchError: it says something else than its lock; every difference is named with both values.
        BundlesError: the model cannot be built, as :func:`bundles.get_model` says.

    >>> config = {"bundle": "CREPE_TINY", "freeze": True, "head": {"type": "Linear", "out_features": 5}}
    >>> from_config(config).classifier
    Linear(in_features=256, out_features=5, bias=True)
    """
    from bundles.assemble import get_model

    wanted = read_config(config)
    if wanted.lock is None:
        return get_model(wanted.bundle, **wanted.arguments())
    return get_model(wanted.bundle, lock=_agreed(wanted, wanted.lock, config))


def read_config(config: Mapping[str, Any] | str) -> ModelConfig:
    """Return what a config asks for.

    Raises:
        PinError: it is malformed; all problems are named at once.

    >>> read_config({"bundle": "CREPE_TINY", "freeze": "last:1", "freeze_mode": "features"}).freeze_mode
    FreezeMode(noise='off', stats='hold', structure='off', grad='cut')
    """
    problems: list[str] = []
    wanted = read_model(config, (), KEYS, problems)
    if wanted is None:
        raise PinError(_joined(problems), problems=tuple(problems))
    return wanted


def read_model(
    config: object, where: tuple[str, ...], keys: tuple[str, ...], problems: list[str]
) -> ModelConfig | None:
    """Return one model of a config, or ``None`` where problems were added.

    Args:
        config: its mapping, or the name of its bundle.
        where: the keys that lead to it, for the messages.
        keys: those of ``KEYS`` that it may have.
        problems: gains one line for each problem: dotted path, value, what is allowed.
    """
    plain, found = check_table({"bundle": config} if isinstance(config, str) else config, where, keys)
    problems += found
    if found:
        return None
    given = {key: value for key, value in plain.items() if value is not None}
    mode = given.get("freeze_mode")
    if mode is not None:
        given["freeze_mode"] = FreezeMode(**mode) if isinstance(mode, dict) else parse_mode(mode)
    if "head" in given:
        given["head"] = FrozenDict(given["head"])
    return ModelConfig(**given)


def _agreed(wanted: ModelConfig, path: str, config: Any) -> Locked:
    """The entry of the lock, which says what the config says, too."""
    from bundles.assemble.locked import find_locked
    from bundles.experiment.agree import disagreements, text_of

    locked = find_locked(wanted.bundle, path)
    problems = tuple(
        f"{key}: the config says {text_of(asked)}, the lock {text_of(pinned)}"
        for key, asked, pinned in disagreements(wanted, locked.pin)
        if config.get(key) is not None
    )
    if problems:
        lines = (f"The config and {path} disagree:", *problems, "Change either, or leave the key out.")
        raise PinMismatchError("\n".join(lines), problems=problems)
    return locked


def _joined(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"The config does not describe a model: {problems[0]}."
    return "\n".join((f"The config does not describe a model, for {len(problems)} reasons:", *problems))
