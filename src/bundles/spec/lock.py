"""The lock of an experiment: the pins of its models, as a TOML file that tools write and people review."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from bundles.errors import PinError
from bundles.spec.pin import FilePin, ModelPin, refuse
from bundles.spec.toml import toml_key, toml_lines, toml_problem
from bundles.spec.values import FrozenDict, shown

LOCK_VERSION = 1
SINGLE = "model"
_CONFLICT = re.compile(r"^(?:<{7}|={7}|>{7})(?: |$)", re.MULTILINE)
_TABLES = ("converted", "head", "versions")
_MODEL_KEYS = tuple(f.name for f in fields(ModelPin) if f.name not in ("files", "extra"))
_FILE_KEYS = tuple(f.name for f in fields(FilePin) if f.name != "extra")


@dataclass(frozen=True)
class Lock:
    """What a lock file says.

    Args:
        models: the pins, by the names that the experiment file gives the models; of a single model that
            is ``"model"``.
        single: whether the experiment has one model, as the table ``[model]``.
        created_by: what wrote it, as ``"bundles 0.6.0"``.
        version: of the format.
        extra: what a later version of the library added at the top; kept when it is written again.

    Raises:
        PinError: it holds what no lock may; all problems are named at once.
    """

    models: Mapping[str, ModelPin]
    single: bool
    created_by: str = "bundles"
    version: int = LOCK_VERSION
    extra: Mapping[str, Any] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", FrozenDict(self.models))
        object.__setattr__(self, "extra", FrozenDict(self.extra))
        refuse(list(self.problems()), "lock")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with it."""
        if self.version != LOCK_VERSION:
            yield f"lock-version: {shown(self.version)} is not {LOCK_VERSION}"
        if not isinstance(self.created_by, str) or (toml_problem(self.created_by)):
            yield f"created-by: {shown(self.created_by)} is no text"
        if self.single and set(self.models) != {SINGLE}:
            yield f"models: {', '.join(self.models) or 'none'}, where a single one is named {SINGLE!r}"
        if problem := toml_problem(self.extra):
            yield problem
        for name, pin in self.models.items():
            if not name or toml_problem(name):
                yield f"models: {shown(name)} is not the name of a model"
            yield from (f"{self._key(name)}.{problem}" for problem in _absolute(pin))

    def _key(self, name: str) -> str:
        return SINGLE if self.single else f"models.{toml_key(name)}"


def write_lock(lock: Lock) -> str:
    """Return the text of a lock: the same for equal locks, one item per line, models in order of name.

    >>> pin = ModelPin("CREPE_TINY", "sha256:" + 64 * "0", (), parameters=2, trainable=1)
    >>> print(write_lock(Lock({"model": pin}, single=True, created_by="bundles 0.6.0")))
    # Written by `bundles lock`: change the experiment file, not this one.
    lock-version = 1
    created-by = "bundles 0.6.0"
    <BLANKLINE>
    [model]
    bundle = "CREPE_TINY"
    card = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
    parameters = 2
    trainable = 1
    gated = false
    <BLANKLINE>
    """
    lines = [
        "# Written by `bundles lock`: change the experiment file, not this one.",
        f"lock-version = {lock.version}",
        *toml_lines("created-by", lock.created_by),
        *_sorted_lines(lock.extra),
    ]
    for name, pin in sorted(lock.models.items()):
        key = SINGLE if lock.single else f"models.{toml_key(name)}"
        lines += _model_lines(key, pin)
    return "\n".join(lines) + "\n"


def read_lock(text: str, path: str) -> Lock:
    """Read a lock.

    Args:
        text: of the file.
        path: of the file, for messages.

    Raises:
        PinError: it is none, is of a newer version of the format, or malformed: all problems at once.

    >>> pin = ModelPin("CREPE_TINY", "sha256:" + 64 * "0", (), parameters=2, trainable=1)
    >>> lock = Lock({"pitch": pin}, single=False)
    >>> read_lock(write_lock(lock), "pitch.lock.toml") == lock
    True
    """
    data = _parsed(text, path)
    _check_version(data, path)
    try:
        return _to_lock(data)
    except PinError as error:
        problems = tuple(f"{path}: {problem}" for problem in getattr(error, "problems", (str(error),)))
        again = "restore it, or delete it and type `bundles lock`"
        raise PinError("\n".join((*problems, f"{path} is no sound lock: {again}.")), problems=problems) from (
            error
        )


# --- writing ------------------------------------------------------------------------------------


def _model_lines(key: str, pin: ModelPin) -> list[str]:
    said = {name: getattr(pin, name) for name in _MODEL_KEYS if getattr(pin, name) not in (None, ())}
    lines = ["", f"[{key}]"]
    for name, value in said.items():
        lines += toml_lines(name, value) if name not in _TABLES else []
    lines += _sorted_lines(pin.extra)
    for name in _TABLES:
        if said.get(name):
            lines += ["", f"[{key}.{name}]", *_sorted_lines(said[name])]
    for file in pin.files:
        facts = {name: getattr(file, name) for name in _FILE_KEYS}
        lines += ["", f"[[{key}.files]]"]
        for name, value in facts.items():
            lines += toml_lines(name, value) if value != () else []
        lines += _sorted_lines(file.extra)
    return lines


def _sorted_lines(table: Mapping[str, Any]) -> list[str]:
    return [line for key, value in sorted(table.items()) for line in toml_lines(key, value)]


# --- reading ------------------------------------------------------------------------------------


def _parsed(text: str, path: str) -> dict[str, Any]:
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        raise PinError(
            f"{path}, line {line}, holds the marks of a merge conflict: take one side, then type "
            f"`bundles lock`."
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise PinError(
            f"{path} is no TOML ({str(error)[:99]}): restore it, or delete it and type `bundles lock`."
        ) from error


def _check_version(data: Mapping[str, Any], path: str) -> None:
    version = data.get("lock-version")
    if version is None:
        raise PinError(f"{path} is no lock, it has no lock-version: write one by `bundles lock`.")
    if type(version) is not int or version < 1:
        raise PinError(
            f"{path} has the lock-version {shown(version)}, and this library reads {LOCK_VERSION}."
        )
    if version > LOCK_VERSION:
        writer = re.fullmatch(r"bundles (\d[\w.]{0,30})", str(data.get("created-by", "")))
        wanted = f"'pretrained-bundles>={writer[1]}'" if writer else "--upgrade pretrained-bundles"
        raise PinError(
            f"{path} has lock-version {version}, and this library reads {LOCK_VERSION}: type "
            f"`pip install {wanted}`."
        )


def _to_lock(data: dict[str, Any]) -> Lock:
    single, several = data.get("model"), data.get("models")
    if (single is None) == (several is None):
        raise PinError("", problems=("one of the tables [model] and [models.NAME] has to be there",))
    tables = several if single is None else {SINGLE: single}
    if not isinstance(tables, dict):
        raise PinError("", problems=(f"models: {shown(tables)} is no table",))
    problems: list[str] = []
    models = {}
    for name, table in tables.items():
        key = SINGLE if single is not None else f"models.{toml_key(name)}"
        models[name] = _read_into(problems, key, lambda table=table, key=key: _to_pin(table, key))
    refuse(problems, "lock")
    extra = {k: v for k, v in data.items() if k not in ("lock-version", "created-by", "model", "models")}
    return Lock(
        {name: pin for name, pin in models.items() if pin is not None},
        single=single is not None,
        created_by=data.get("created-by", "bundles"),
        extra=extra,
    )


def _read_into(problems: list[str], key: str, read: Any) -> Any:
    """Return what is read, or note under its key what is wrong with it."""
    try:
        return read()
    except PinError as error:
        found = getattr(error, "problems", (str(error),))
        problems += (problem if problem.startswith(key) else f"{key}.{problem}" for problem in found)
        return None


def _to_pin(table: Any, key: str) -> ModelPin:
    if not isinstance(table, dict):
        raise PinError("", problems=(f"{key}: {shown(table)} is no table",))
    entries = table.get("files", [])
    if not isinstance(entries, list):
        raise PinError("", problems=(f"{key}.files: {shown(entries)} is no list of tables",))
    problems: list[str] = []
    files = [
        _read_into(problems, f"{key}.files[{i}]", lambda entry=entry: _made(FilePin, entry, _FILE_KEYS))
        for i, entry in enumerate(entries)
    ]
    own = {name: value for name, value in table.items() if name != "files"}
    sound = tuple(file for file in files if file is not None)
    pin = _read_into(problems, key, lambda: _made(ModelPin, own, _MODEL_KEYS, files=sound))
    refuse(problems, "lock")
    assert isinstance(pin, ModelPin)  # noqa: S101 - there was no problem
    return pin


def _made(kind: Any, table: Any, known: tuple[str, ...], **more: Any) -> Any:
    """A pin of a table: the known keys are its fields, the others are kept."""
    if not isinstance(table, dict):
        raise PinError("", problems=(f"{shown(table)} is no table",))
    needed = [f.name for f in fields(kind) if f.name in known and _is_needed(f)]
    missing = tuple(f"{name}: is missing" for name in needed if name not in table)
    if missing:
        raise PinError("", problems=missing)
    extra = {name: value for name, value in table.items() if name not in known}
    return kind(**{name: value for name, value in table.items() if name in known}, **more, extra=extra)


def _is_needed(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _absolute(pin: ModelPin) -> Iterator[str]:
    """What a lock would say of one machine alone."""
    places = [("bundle", pin.bundle)]
    for i, file in enumerate(pin.files):
        places += [(f"files[{i}].source", file.source)]
        places += [(f"files[{i}].alternates", uri) for uri in file.alternates]
    for key, uri in places:
        path = uri.removeprefix("file:") if uri.startswith("file:") else None
        if path is not None and (path.startswith(("/", "\\", "~")) or _leaves(path)):
            yield (
                f"{key}: {shown(uri)} is a place on one machine: put the file into the folder of the lock, "
                f"and name it from there"
            )


def _leaves(path: str) -> bool:
    parts = re.split(r"[/\\]", path)
    return ".." in parts or bool(re.match(r"[A-Za-z]:", path))
