"""Hermetic tests: a cache of their own, no settings from outside, one thread, a fixed seed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import bundles
from bundles.registry.origins import add_builtin
from bundles.registry.registry import Registry
from redirects import forget_redirects

# SpeechBrain would turn off the profiling of TorchScript, for every test that follows in the process.
os.environ["SB_DISABLE_QUIRKS"] = "allow_tf32,disable_jit_profiling"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session: converting CREPE_FULL takes a second, and once is enough."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _hermetic(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("BUNDLES_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BUNDLES_CACHE", str(session_cache))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(session_cache / "config"))
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def _without_redirects() -> Iterator[None]:
    yield
    forget_redirects()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that does not exist yet."""
    folder = tmp_path / "empty-cache"
    monkeypatch.setenv("BUNDLES_CACHE", str(folder))
    return folder


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A default registry of the test's own, which starts with the built-in bundles."""
    fresh = Registry(populate=add_builtin)
    monkeypatch.setattr("bundles.registry.default.default_registry", fresh)
    monkeypatch.setitem(vars(bundles), "default_registry", fresh)
    return fresh
