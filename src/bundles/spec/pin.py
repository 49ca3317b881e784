"""A pin: which bytes, which card, which freeze somebody meant, so that they can be had again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bundles.errors import PinError
from bundles.spec.hub import hub_problem, parse_hub, path_problem
from bundles.spec.source import sha256_problem, size_problem, uri_problem
from bundles.spec.toml import toml_problem
from bundles.spec.values import FrozenDict, shown

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PIN = re.compile(r"(?P<name>[^@#]+(?:@[0-9a-f]{40})?)@(?P<digest>sha256:.*)", re.DOTALL)


@dataclass(frozen=True)
class FilePin:
    """One file of a bundle, by its content.

    Args:
        role: ``"weights"``, ``"shard"``, ``"card"`` (the card or configuration of a repository), or
            ``"asset"`` and its name, as ``"asset.tokenizer"``.
        path: its name; of a file in a repository, where it is in it.
        size: in bytes.
        sha256: 64 lower-case hex digits.
        source: where it came from.
        alternates: other addresses of the same bytes.
        extra: what a later version of the library says of it; kept.
    """

    role: str
    path: str
    size: int
    sha256: str
    source: str
    alternates: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        wrong: list[str] = []
        if not isinstance(self.alternates, tuple | list):
            wrong = [f"alternates: {shown(self.alternates)} is no list of addresses"]
        object.__setattr__(self, "alternates", () if wrong else tuple(self.alternates))
        object.__setattr__(self, "extra", FrozenDict(self.extra))
        refuse([*wrong, *self.problems()], "file pin")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with it."""
        if not isinstance(self.role, str) or not re.fullmatch(r"weights|shard|card|asset\..+", self.role):
            yield f"role: {shown(self.role)} is not 'weights', 'shard', 'card' or 'asset.NAME'"
        if not isinstance(self.path, str) or (problem := path_problem(self.path)):
            yield f"path: {problem if isinstance(self.path, str) else shown(self.path) + ' is no text'}"
        if self.size is None or (problem := size_problem(self.size)):
            yield f"size: {problem if self.size is not None else 'is missing'}"
        if self.sha256 is None or (problem := sha256_problem(self.sha256)):
            yield f"sha256: {problem if self.sha256 is not None else 'is missing'}"
        for key, uri in (("source", self.source), *(("alternates", each) for each in self.alternates)):
            if problem := uri_problem(uri) or toml_problem(uri) or commit_problem(uri):
                yield f"{key}: {problem}"
        if problem := toml_problem(self.extra):
            yield problem


@dataclass(frozen=True)
class ModelPin:
    """One model of an experiment: what it was made of, and what was frozen in it.

    Args:
        bundle: name, or address with its commit.
        card: ``sha256:`` digest of the card's content.
        files: every file, the weights first.
        freeze: the policy's string or ``repr``; ``None`` where nothing is frozen.
        freeze_mode: its preset or ``repr``.
        plan: ``sha256:`` digest of the freeze plan; ``None`` where nothing is frozen.
        head: recipe of the head, ``None`` for the bundle's own.
        dtype: of the tensors, as ``"float32"``; ``None`` for the builder's.
        converted: for pickled weights: ``{"converter": version, "sha256": digest of the safetensors}``.
        parameters: their number.
        trainable: the number of those that train.
        license: of the weights, as the card says.
        gated: whether the repository asks for a login.
        frozen: names of the frozen parameters as :func:`bundles.spec.fold.fold` writes them, to say which
            moved where the digest is another one.
        versions: of Python and the libraries that built it.
        extra: what a later version of the library says of it; kept.
    """

    bundle: str
    card: str
    files: tuple[FilePin, ...]
    parameters: int
    trainable: int
    freeze: str | None = None
    freeze_mode: str | None = None
    plan: str | None = None
    head: Mapping[str, Any] | None = None
    dtype: str | None = None
    converted: Mapping[str, Any] | None = None
    license: str | None = None
    gated: bool = False
    frozen: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=FrozenDict)
    extra: Mapping[str, Any] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        what = f"pin of {shown(self.bundle)}"
        wrong = list(self._type_problems())
        object.__setattr__(self, "files", tuple(self.files))
        object.__setattr__(self, "frozen", tuple(self.frozen) if _are_names(self.frozen) else ())
        for name in ("head", "converted", "versions", "extra"):
            value, absent = getattr(self, name), None if name in ("head", "converted") else FrozenDict()
            object.__setattr__(self, name, FrozenDict(value) if isinstance(value, Mapping) else absent)
        refuse([*wrong, *self.problems()], what)

    def _type_problems(self) -> Iterator[str]:
        for key in ("head", "converted", "versions", "extra"):
            value = getattr(self, key)
            is_absent = value is None and key in ("head", "converted")
            if not is_absent and not isinstance(value, Mapping):
                yield f"{key}: {shown(value)} is no table"
        for key in ("freeze", "freeze_mode", "dtype", "license"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, str) or toml_problem(value)):
                yield f"{key}: {shown(value)} is no text"
        if not _are_names(self.frozen):
            yield f"frozen: {shown(self.frozen)} is no list of names"
        if not isinstance(self.gated, bool):
            yield f"gated: {shown(self.gated)} is neither true nor false"

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with it."""
        if not isinstance(self.bundle, str) or not self.bundle or toml_problem(self.bundle):
            yield f"bundle: {shown(self.bundle)} is not the name of one"
        elif problem := commit_problem(self.bundle):
            yield f"bundle: {problem}"
        for key in ("card", "plan"):
            value = getattr(self, key)
            missing = value is None and key == "plan"
            if not missing and not (isinstance(value, str) and _DIGEST.fullmatch(value)):
                yield f"{key}: {shown(value)} is not 'sha256:' and 64 lower-case hex digits"
        for key in ("parameters", "trainable"):
            value = getattr(self, key)
            if type(value) is not int or not 0 <= value < 2**63:
                yield f"{key}: {shown(value)} is not a number of parameters"
        for name, version in self.versions.items():
            if not isinstance(version, str):
                yield f"versions.{name}: {shown(version)} is no text"
        for key in ("frozen", "head", "converted", "versions", "extra"):
            if problem := toml_problem(getattr(self, key) or {}):
                yield f"{key}.{problem}"
        if self.converted is not None:
            yield from _converted_problems(self.converted)
        digests: dict[str, str] = {}
        for file in self.files:
            if digests.setdefault(file.source, file.sha256) != file.sha256:
                yield f"files: {shown(file.source)} is there with two digests"
        paths = [(file.role, file.path) for file in self.files]
        yield from (
            f"files: {path} is there twice" for role, path in sorted({p for p in paths if paths.count(p) > 1})
        )

    def file(self, role: str) -> FilePin | None:
        """Return the first file of a role."""
        return next((file for file in self.files if file.role == role), None)


def commit_problem(uri: str) -> str | None:
    """Return why an address may give other bytes tomorrow, or ``None``.

    >>> commit_problem("hf:owner/repo@main#model.safetensors")
    "'hf:owner/repo@main#model.safetensors' names no commit, which is 40 lower-case hex digits"
    """
    if not uri.startswith("hf:") or hub_problem(uri[len("hf:") :]):
        return None  # what is malformed is said elsewhere
    is_pinned = parse_hub(uri[len("hf:") :]).commit is not None
    return None if is_pinned else f"{shown(uri)} names no commit, which is 40 lower-case hex digits"


def _converted_problems(converted: Mapping[str, Any]) -> Iterator[str]:
    if type(converted.get("converter")) is not int:
        yield f"converted.converter: {shown(converted.get('converter'))} is not the number of a version"
    if converted.get("sha256") is None or sha256_problem(converted["sha256"]):
        yield f"converted.sha256: {shown(converted.get('sha256'))} is no 64 lower-case hex digits"


def _are_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def pin_string(name: str, digest: str) -> str:
    """Return the one-line pin of a bundle.

    >>> pin_string("CREPE_TINY", "sha256:" + "0" * 64)[:30]
    'CREPE_TINY@sha256:000000000000'
    """
    return f"{name}@{digest}"


def split_pin(text: str) -> tuple[str, str] | None:
    """Return name and digest of a one-line pin, ``None`` for what is none.

    Raises:
        PinError: it reads like one, and its digest is malformed.

    >>> split_pin("CREPE_TINY") is None
    True
    """
    match = _PIN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    if not _DIGEST.fullmatch(match["digest"]):
        raise PinError(
            f"The pin {shown(text)} does not end in 'sha256:' and 64 lower-case hex digits: copy it whole "
            f"from bundle.pin()."
        )
    return match["name"], match["digest"]


def refuse(problems: list[str], what: str) -> None:
    """Raise for all problems at once.

    Raises:
        PinError: there is one.
    """
    if problems:
        raise PinError(f"The {what} is malformed: {'; '.join(problems)}.", problems=tuple(problems))
