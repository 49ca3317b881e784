"""What the tests of downloads share: a file, options at a small scale, and a look into the cache."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from bundles.sources.options import Options
from bundles.spec.source import WeightSource
from loopback import Loopback

DATA = random.Random(0).randbytes(150_000)

# The defaults, at a scale at which a test takes milliseconds. SEVERAL fetches over four connections.
QUICK = Options(
    attempts=4,
    first_wait=0.01,
    longest_wait=0.02,
    deadline=3.0,
    connect_timeout=2.0,
    read_timeout=0.3,
    block=4_096,
    opening=20_000,
    parallel_from=1 << 40,
    shortest_run=5_000,
    longest_run=25_000,
    direct_from=40_000,
    lock_patience=0.5,
)
SEVERAL = replace(QUICK, parallel_from=60_000, parallel_below=float("inf"))


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no proxy and no cache of torch's have a say."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pinned(server: Loopback, path: str = "model.bin", data: bytes = DATA) -> WeightSource:
    return WeightSource(server.uri(path), sha256(data), len(data) or None)


def unpinned(server: Loopback, path: str = "model.bin") -> WeightSource:
    return WeightSource(server.uri(path))


def contents(folder: Path) -> list[str]:
    """What lies in a cache, but for locks and stamps, which may stay: ``files/SHA`` and the like."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith(("locks/", "stamps/")))


def spans(server: Loopback) -> list[tuple[int, int]]:
    """The ranges that were asked for."""
    return [span for request in server.requests if (span := request.span(len(server.body))) is not None]


def state(folder: Path) -> list[tuple[Path, int, int, int]]:
    """Everything below a folder, as it was last written."""
    paths = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
    return [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in paths]
