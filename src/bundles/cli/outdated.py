"""``bundles outdated``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bundles.cli.locks import open_lock
from bundles.cli.output import hint
from bundles.display import safe
from bundles.experiment.file import experiment_path
from bundles.experiment.outdated import outdated


@click.command(name="outdated", epilog="Example: bundles outdated configs/pitch.lock.toml --check")
@click.argument("lock", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Exit with 1 if anything moved, changed, is gone or is unknown.")
def command(lock: Path, check: bool) -> None:
    """Say how far the branches that LOCK was made from have moved, and whether bytes or terms changed.

    Asks the Hub for listings and small files; nothing is written.
    """
    path, found = open_lock(lock)
    kinds = []
    for movement in outdated(found):
        click.echo(safe(f"{movement.model}: {movement.text}", limit=400))
        kinds.append(movement.kind)
    if not kinds:
        hint("nothing that this lock names can move without its address")
    if "moved" in kinds or "changed" in kinds:
        hint(f"`bundles lock {experiment_path(path)} --upgrade NAME` takes what there is now")
    if check and set(kinds) - {"same"}:
        sys.exit(1)
