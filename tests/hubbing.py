"""What the tests of the Hub share: a hub, an environment of their own, and looks into the client's cache."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bundles.spec.source import WeightSource
from downloading import QUICK, isolate
from hub import Hub, Repo

DATA = random.Random(1).randbytes(40_000)
OTHER = random.Random(2).randbytes(40_000)
CONFIG = b'{"model_type": "bert"}'
RAPID = replace(QUICK, small_deadline=6.0)


@contextmanager
def hub_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process uses, with a client's cache of its own and without what slows a test down."""
    import huggingface_hub.constants

    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr("bundles.sources.hub.unpinned._told", set())
    # Read when the client was imported: no request to count its users, no patience with a silent server.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    with Hub() as hub:
        for name, value in hub.env(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


def filled(hub: Hub) -> tuple[Repo, str]:
    """A repository with a small file and a large one, and its commit."""
    repo = hub.repo("owner/name")
    commit = repo.commit({"config.json": CONFIG, "model.safetensors": DATA}, lfs={"model.safetensors"})
    return repo, commit


def at(commit: str | None, path: str = "model.safetensors", data: bytes | None = None) -> WeightSource:
    """The source of a file of ``owner/name``; pinned if its data are given."""
    uri = f"hf:owner/name{f'@{commit}' if commit else ''}#{path}"
    return WeightSource(uri) if data is None else WeightSource(uri, sha(data), len(data))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def debris(tmp_path: Path) -> list[str]:
    """What is half done in the client's cache and in ours."""
    names = ("*.incomplete", ".incomplete-*")
    partial = list((tmp_path / "empty-cache" / "files" / ".partial").glob("*"))
    return sorted(str(path) for name in names for path in tmp_path.rglob(name)) + list(map(str, partial))
