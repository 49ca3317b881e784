"""The command ``bundles``: verbs over the same functions that Python has."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import click

from bundles import __version__
from bundles.display import safe
from bundles.errors import BundlesError, BundlesWarning, FreezeArgumentError, UnknownBundleError

_COMMANDS = {
    "check": "Check cards: text, architecture, layer groups, sources; fill in digests.",
    "delta": "Look into delta checkpoints, and make whole ones of them.",
    "demo": "Freeze a real pretrained model, train its head, and see what moved.",
    "doctor": "Print versions, caches, what of a lock is here, and what cannot work.",
    "export": "Write a bundle as a folder: weights, card, and the files that go with it.",
    "features": "Store what a frozen encoder makes of files, once for all epochs.",
    "fetch": "Download what bundles need, or make a folder of it for machines without a network.",
    "list": "List bundles.",
    "lock": "Write down which bytes an experiment file comes to.",
    "outdated": "Say what moved, changed or is gone since a lock was written.",
    "plan": "Show what a freeze would do, and what a training step would cost.",
    "push": "Put a bundle, or an exported folder, into a repository of the Hub.",
    "show": "Show everything that is known of one bundle.",
    "sync": "Download exactly what a lock names.",
    "verify": "Hash again everything that a lock names.",
}


class _LazyGroup(click.Group):
    """Imports a command's module when the command is used, so that `bundles list` needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"bundles.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Examples: bundles list 'CREPE_*' · bundles plan CREPE_TINY --freeze last:2 · bundles demo",
)
@click.version_option(__version__, prog_name="bundles")
def group() -> None:
    """Pretrained models, frozen right."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; exit code 0 good, 1 a check failed, 2 usage."""
    before = warnings.formatwarning
    warnings.formatwarning = _one_line(before)
    try:
        return group(arguments, prog_name="bundles")
    except BundlesError as error:
        lines = (safe(line, limit=2_000) for line in str(error).split("\n"))  # it may quote a stranger
        click.echo("bundles: " + "\n".join(lines), err=True)
        sys.exit(2 if isinstance(error, UnknownBundleError | FreezeArgumentError) else 1)
    finally:
        warnings.formatwarning = before


def _one_line(usual: Callable[..., str]) -> Callable[..., str]:
    """Return a form for warnings in which ours are a line, each once: where click called us helps nobody."""
    told: set[str] = set()

    def form(message: Warning | str, category: type[Warning], *where: Any) -> str:
        if not issubclass(category, BundlesWarning):
            return usual(message, category, *where)
        line = f"bundles: {safe(message, limit=2_000)}\n"
        is_new = line not in told
        told.add(line)
        return line if is_new else ""

    return form
