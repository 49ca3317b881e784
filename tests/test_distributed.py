"""Freezing and loading on two ranks: under DDP, under FSDP2, and what of it FSDP1 takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

import ranks

MODULES = ("ranks_ddp", "ranks_fsdp", "ranks_load")
CHECKS = [(module, check) for module in MODULES for check in ranks.checks_of(module)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Callable[[str], dict[str, str]]:
    """Run a module's checks in one pair of processes, once."""
    return functools.cache(lambda module: ranks.run(module, tmp_path_factory.mktemp(module), session_cache))


@pytest.mark.parametrize(("module", "check"), CHECKS)
def test_on_two_ranks(module: str, check: str, run: Callable[[str], dict[str, str]]) -> None:
    assert run(module)[check] == ""
