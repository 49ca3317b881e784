"""Addresses on the Hugging Face Hub: ``owner/repo@revision#path/of/file``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bundles.errors import PinError
from bundles.spec.values import shown

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_ADDRESS = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^#@]+))?(?:#(?P<path>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT = re.compile(r"[0-9a-fA-F]{7,64}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_PART = re.compile(r"[^\x00-\x1f\x7f\\:*?\"<>|]{1,255}")
_RESERVED = re.compile(r"(?i)(?:con|prn|aux|nul|com[1-9]|lpt[1-9])(?:\..*)?")
_LONGEST = 255


@dataclass(frozen=True)
class HubAddress:
    """A repository of the Hub, at a revision, and a file in it.

    Attributes:
        repo: ``owner/name``.
        revision: a commit (40 hex digits), a branch or a tag; ``None`` for the main branch.
        path: of a file in it; ``None`` for the repository as a whole.

    >>> parse_hub("facebook/wav2vec2-base@main#config.json").path
    'config.json'
    """

    repo: str
    revision: str | None = None
    path: str | None = None

    @property
    def commit(self) -> str | None:
        """The revision where it is a commit, which never moves."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    @property
    def uri(self) -> str:
        """The address as a source: ``hf:owner/repo@revision#path``."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f"#{self.path}" if self.path else "")


def parse_hub(address: str) -> HubAddress:
    """Read an address without its ``hf:``.

    Raises:
        PinError: it is malformed; nothing was asked of anybody.
    """
    if problem := hub_problem(address):
        raise PinError(f"The address {shown('hf:' + address)} is malformed: {problem}.")
    match = _ADDRESS.fullmatch(address)
    assert match is not None  # noqa: S101 - hub_problem says so
    return HubAddress(match["repo"], match["revision"], match["path"])


def hub_problem(address: str) -> str | None:
    """Return what is wrong with an address on the Hub, or ``None``.

    >>> hub_problem("facebook/wav2vec2-base@0123abc#model.safetensors")
    "the revision '0123abc' is a short commit: give all 40 lower-case hex digits"
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in match["repo"] or "--" in match["repo"]:
        return f"it does not read 'hf:owner/repo@commit{'#path/of/file' if '#' in address else ''}'"
    return _revision_problem(match["revision"]) or path_problem(match["path"])


def path_problem(path: str | None) -> str | None:
    """Return what is wrong with a path inside a repository or folder, or ``None``.

    >>> path_problem("../config.json")
    "the path '../config.json' is not one of plain names with '/' between them"
    """
    if path is None:
        return None
    parts = path.split("/")
    plain = all(
        _PART.fullmatch(part)
        and part not in (".", "..")
        and part.strip() == part
        and not part.endswith(".")
        and not _RESERVED.fullmatch(part)
        for part in parts
    )
    if not plain or len(path) > _LONGEST or not path.isprintable():
        return f"the path {shown(path)} is not one of plain names with '/' between them"
    return None


def is_hub_blob(path: Path) -> bool:
    """Whether a file is a blob of the hub client's cache, which is replaced and never written again."""
    real = path.resolve()
    return real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")


def _revision_problem(revision: str | None) -> str | None:
    if revision is None or _COMMIT.fullmatch(revision):
        return None
    if _SHORT.fullmatch(revision):
        what = "a short commit" if len(revision) < 40 else "no commit"
        return f"the revision {shown(revision)} is {what}: give all 40 lower-case hex digits"
    if not _REVISION.fullmatch(revision) or ".." in revision:
        return f"the revision {shown(revision)} is no commit, branch or tag"
    return None
