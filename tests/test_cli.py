"""The command line: tables on stdout, hints on stderr, exit codes 0, 1 and 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bundles


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own, as in a pipe."""
    program = str(Path(sys.executable).with_name("bundles"))
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def test_list_prints_a_table_on_stdout_and_hints_on_stderr() -> None:
    done = run("list")
    assert done.returncode == 0
    assert "CREPE_TINY" in done.stdout
    assert "MIT" in done.stdout
    assert "bundles show" not in done.stdout
    assert "bundles show NAME" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_list_quiet_prints_names_only() -> None:
    assert run("list", "*tiny", "-q").stdout == "CREPE_TINY\n"
    assert run("list", "NO_SUCH_*", "-q").stdout == ""


def test_list_json_agrees_with_show_json() -> None:
    rows = json.loads(run("list", "--task", "pitch", "--json").stdout)
    assert [row["name"] for row in rows] == bundles.list_bundles(task="pitch")
    assert json.loads(run("show", "CREPE_TINY", "--json").stdout) == rows[1]


def test_list_filters_by_licence() -> None:
    assert run("list", "--license", "GPL-*", "-q").stdout == ""
    assert run("list", "CREPE_*", "--license", "mit", "-q").stdout.split() == ["CREPE_FULL", "CREPE_TINY"]


def test_show_prints_digest_licence_and_paper() -> None:
    out = run("show", "CREPE_FULL").stdout
    weights = bundles.CREPE_FULL.weights
    assert all(text in out for text in (weights.sha256, "MIT", "arxiv.org/abs/1802.06182", "22,239,976"))


def test_plan_prints_groups_holds_and_the_predicted_cost() -> None:
    done = run("plan", "CREPE_TINY", "--freeze", "last:2", "--freeze-mode", "features")
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if "block.0" in line)
    assert line.split()[:6] == ["block.0", "encoder", "4", "65,920", "0", "frozen"]
    assert "1 off, 2 without graph" in line
    assert "block.5" in done.stdout
    assert "predicted cost of a training step: 42% of full fine-tuning" in done.stdout


def test_plan_json_is_the_plan_that_python_gives() -> None:
    plan = bundles.FreezePlan.from_json(run("plan", "CREPE_TINY", "--json").stdout)
    assert plan == bundles.CREPE_TINY.plan()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show", "CREPE-TINNY"], 2, "did you mean CREPE_TINY, CREPE_FULL, "),
        (["plan", "CREPE_TINY", "--freeze", "lst:2"], 2, "give one of 'last:2'"),
        (["plan", "CREPE_TINY", "--freeze-mode", "evil"], 2, "give one of 'eval'"),
        (
            ["plan", "CREPE_TINY", "--freeze", "match:nothing"],
            1,
            "selects no parameter; the groups are block.0",
        ),
        (["plan", "CREPE_TINY", "--freeze", "last:9"], 2, "needs 9 blocks and the model has 6"),
        (["lst"], 2, "No such command 'lst'"),
        (["list", "--tsk", "asr"], 2, "No such option"),
        (["demo", "--wav", "no-such-file.wav"], 2, "does not exist"),
    ],
)
def test_a_wrong_word_ends_with_one_sentence_and_the_right_code(
    arguments: list[str], code: int, words: str
) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_of_every_command_ends_in_an_example() -> None:
    for name in ("list", "show", "plan", "demo"):
        assert "Example: bundles" in run(name, "--help").stdout
    assert "Examples: bundles" in run("--help").stdout


def test_version_is_that_of_the_package() -> None:
    assert bundles.__version__ in run("--version").stdout


def test_list_is_printed_without_importing_torch() -> None:
    program = "import sys; from bundles.cli.main import main"
    code = f"{program}\ntry: main(['list'])\nexcept SystemExit: print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" not in out.split()


@pytest.mark.parametrize("command", [["plan"], ["fetch", "--dry-run"]], ids=lambda command: command[0])
def test_a_warning_of_ours_is_one_line_told_once(command: list[str], tmp_path: Path) -> None:
    hub_cache = tmp_path / "hub" / "models--owner--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = hub_cache / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (hub_cache / "refs").mkdir()
    (hub_cache / "refs" / "main").write_text(commit)
    bundles.export("CREPE_TINY", tmp_path / "crepe")
    for path in (tmp_path / "crepe").iterdir():
        path.rename(snapshot / path.name)
    name, *rest = command
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "BUNDLES_OFFLINE": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name("bundles"), name, "hf:owner/name", *rest],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = f"bundles: hf:owner/name means hf:owner/name@{commit} now and may mean something else tomorrow.\n"
    assert done.stderr.count(told) == 1
    assert "Warning" not in done.stderr
