"""Experiment files: TOML that people write, of which ``[model]`` or ``[models.NAME]`` is ours."""

from __future__ import annotations

import contextlib
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundles.assemble.locked import read_lock_file
from bundles.errors import CacheError, PinError
from bundles.experiment.config import KEYS, ModelConfig, read_model
from bundles.sources.cache import sync_folder
from bundles.spec.lock import SINGLE, Lock
from bundles.spec.values import shown

_KEYS = tuple(key for key in KEYS if key != "lock")  # it is beside the file
_LARGEST = 16 << 20  # bytes; no lock of a thousand models is so long


@dataclass(frozen=True)
class ExperimentFile:
    """What an experiment file asks for.

    Attributes:
        path: of the file.
        models: what is wanted, by name; a single one is named ``"model"``.
        single: whether it is the table ``[model]``.
    """

    path: Path
    models: Mapping[str, ModelConfig]
    single: bool

    @property
    def lock_path(self) -> Path:
        """Where its lock is: ``NAME.lock.toml`` beside ``NAME.toml``."""
        return lock_path(self.path)


def lock_path(path: Path) -> Path:
    """Return the path of an experiment file's lock.

    >>> lock_path(Path("configs/speakers.toml")).name
    'speakers.lock.toml'
    """
    return path if is_lock(path) else path.with_name(f"{path.name.removesuffix('.toml')}.lock.toml")


def is_lock(path: Path) -> bool:
    """Whether a path is one of a lock."""
    return path.name.endswith(".lock.toml")


def experiment_path(path: Path) -> Path:
    """Return the path of the experiment file that a lock belongs to.

    >>> experiment_path(Path("configs/speakers.lock.toml")).name
    'speakers.toml'
    """
    return path.with_name(f"{path.name.removesuffix('.lock.toml')}.toml") if is_lock(path) else path


def read_experiment(path: Path) -> ExperimentFile:
    """Read an experiment file; what is not a model in it is left alone.

    Raises:
        PinError: it is absent, no TOML, or asks for what does not exist; all problems are named at once.
    """
    data = _parsed(path)
    single, several = data.get("model"), data.get("models")
    if (single is None) == (several is None):
        what = "neither of them" if single is None else "both"
        raise PinError(f"{path} needs a table [model], or tables [models.NAME], and has {what}.")
    tables = {SINGLE: single} if several is None else several
    if not isinstance(tables, Mapping) or not tables:
        raise PinError(f"models of {path} is {shown(tables)}: write tables [models.NAME].")
    problems: list[str] = []
    models = {}
    for name, table in tables.items():
        where = (SINGLE,) if several is None else ("models", name)
        models[name] = read_model(table, where, _KEYS, problems)
    if problems:
        raise PinError("\n".join(f"{path}: {problem}." for problem in problems), problems=tuple(problems))
    return ExperimentFile(
        path, {name: model for name, model in models.items() if model is not None}, single=several is None
    )


def read_lock_of(path: Path) -> Lock | None:
    """Return the lock at a path, ``None`` where there is none.

    Raises:
        PinError: it cannot be read, or is malformed.
    """
    return read_lock_file(path) if os.path.lexists(path) else None


def write_text(path: Path, text: str) -> None:
    """Put a text in the place of a file in one step: readers see the old one or the new one.

    Raises:
        CacheError: the folder cannot be written; the file is as it was.
    """
    target = os.path.realpath(path)  # a link stays one
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=".lock-", dir=os.path.dirname(target))
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
        sync_folder(Path(target).parent)
    except OSError as error:
        raise CacheError(
            f"{path} cannot be written ({error.strerror or error}): it is as it was; check the folder."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # gone, if all went well
                os.unlink(temporary)


def _mode(target: str) -> int:
    """Of the file that is replaced; a new one is read by everybody and written by its owner."""
    with contextlib.suppress(OSError):
        return os.stat(target).st_mode & 0o777
    return 0o644


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, PinError):
            raise
        raise PinError(f"{path} is no TOML ({str(error)[:120]}): mend it there.") from error


def _text(path: Path) -> str:
    if "\0" in str(path):
        raise PinError(f"{shown(str(path))} is the path of no file: check it.")
    try:
        if path.stat().st_size > _LARGEST:
            raise PinError(
                f"{path} is larger than {_LARGEST >> 20} MiB, which no experiment file or lock is."
            )
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except OSError as error:
        raise PinError(f"{path} cannot be read ({error.strerror or error}): check the path.") from error
    except UnicodeDecodeError as error:
        raise PinError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
