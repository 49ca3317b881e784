"""``bundles check``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from bundles.assemble.check import CardCheck, FileCheck, check_file
from bundles.cli.output import hint, print_table
from bundles.registry.fill import filled, replace_text

_COLUMNS = ("card", "#parameters", "#groups", "problems", "fills in")


@click.command(name="check", epilog="Example: bundles check my_cards.toml --write")
@click.argument("cards", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--write", is_flag=True, help="Fill in commits, sizes, digests and parameter counts.")
@click.option("--offline", is_flag=True, help="Leave alone what would need a network.")
def command(cards: tuple[Path, ...], write: bool, offline: bool) -> None:
    """Check card files, or folders of them: text, architecture, layer groups, sources. Needs no weights.

    With --write, what is missing is filled in, unless anything in any of the files is wrong.
    """
    checks = [check_file(str(path), offline=offline, fill=write) for path in _files(cards)]
    _print(checks)
    if not all(check.is_good for check in checks):
        if write:
            hint("nothing was written")
        sys.exit(1)
    if write:
        _write(checks)


def _files(cards: Iterable[Path]) -> Iterator[Path]:
    for path in cards:
        found = sorted(path.glob("*.toml")) if path.is_dir() else [path]
        if not found:
            raise click.BadParameter(f"The folder {path} holds no *.toml.", param_hint="CARDS")
        yield from found


def _print(checks: list[FileCheck]) -> None:
    rows = [_row(card) for check in checks for card in check.cards]
    if rows:
        print_table(_COLUMNS, rows)
    for check in checks:
        for problem in [*check.problems, *(line for card in check.cards for line in card.problems)]:
            click.echo(problem)
        for card in check.cards:
            for warning in card.warnings:
                hint(f"warning: {warning}")


def _row(card: CardCheck) -> tuple[str, ...]:
    missing = ", ".join(".".join(key) for key in card.values)
    return card.name, f"{card.num_parameters:,}", str(card.groups), str(len(card.problems) or ""), missing


def _write(checks: list[FileCheck]) -> None:
    """Make all the new texts, then put each in its file's place."""
    texts = {}
    for check in checks:
        if values := {card.name: card.values for card in check.cards if card.values}:
            texts[check.path] = filled(check.path, values)
    for path, text in texts.items():
        try:
            replace_text(path, text)
        except OSError as error:
            raise click.ClickException(f"{path} cannot be written ({error.strerror}).") from error
        hint(f"wrote {path}")
    if not texts:
        hint("nothing to fill in")
