"""Every block of the README and the docs runs, and so does every example in a docstring."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import bundles

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(bundles.__path__, "bundles.")
    if ".cli." not in module.name
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _go_to_a_copy(tmp_path, monkeypatch)
    names: dict[str, object] = {"__name__": "readme"}
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, str(page), "exec"), names)


def _go_to_a_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What examples write shall not lie in the checkout."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    for entry in ROOT.iterdir():
        if entry.name != "configs":
            (folder / entry.name).symlink_to(entry)
    monkeypatch.chdir(folder)


def test_console_blocks_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _go_to_a_copy(tmp_path, monkeypatch)
    lines = [line for block in blocks(ROOT / "README.md", "console") for line in block.splitlines()]
    assert len(lines) >= 3
    for line in lines:
        program, *arguments = shlex.split(line.removeprefix("$ "))
        path = Path(sys.executable).with_name(program)
        done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_block_is_of_a_kind_that_runs() -> None:
    kinds = {kind for page in PAGES for kind in re.findall(r"^```(\w+)$", page.read_text(), re.MULTILINE)}
    assert kinds == {"python", "console", "sh"}


def test_the_pip_lines_are_those_of_the_makefile() -> None:
    _, plain, install = blocks(ROOT / "README.md", "sh")
    makefile = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv").replace("$(PYTHON)", "python3")
    assert [line for line in plain.splitlines() if line not in makefile] == []
    assert install == 'pip install "pretrained-bundles[torchcrepe]"\n'


@pytest.mark.slow
def test_the_pip_lines_work_in_a_clean_clone(tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    *setup, _ = blocks(ROOT / "README.md", "sh")[1].splitlines()
    script = "\n".join(["set -e", *setup])
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path / "clone", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "held-out accuracy" in done.stdout


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bundles.BundlesWarning)
        failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_public_functions_and_classes_have_docstrings_and_functions_have_examples() -> None:
    public = [getattr(bundles, name) for name in bundles.__all__]
    documented = [value for value in public if callable(value) and value.__module__.startswith("bundles.")]
    assert [value.__name__ for value in documented if not value.__doc__] == []
    functions = [value for value in documented if not isinstance(value, type)]
    assert [value.__name__ for value in functions if ">>>" not in (value.__doc__ or "")] == []
