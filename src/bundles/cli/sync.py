"""``bundles sync``."""

from __future__ import annotations

from pathlib import Path

import click

from bundles.cli.fetch import line_of
from bundles.cli.locks import open_lock
from bundles.experiment.copies import sync
from bundles.sources.progress import readable


@click.command(name="sync", epilog="Example: bundles sync configs/pitch.lock.toml --to /media/disk/bundles")
@click.argument("lock", type=click.Path(path_type=Path))
@click.option(
    "--to", type=click.Path(file_okay=False), help="Make a folder of it, for BUNDLES_SHARED_CACHE elsewhere."
)
@click.option("--locked", is_flag=True, help="Refuse a lock that disagrees with its experiment file.")
@click.option("--frozen", is_flag=True, help="Take the lock as it is and look at no experiment file.")
def command(lock: Path, to: str | None, locked: bool, frozen: bool) -> None:
    """Download exactly what LOCK names, and verify it; nothing is resolved anew.

    LOCK may be the experiment file, whose lock then has to be there and to agree with it.
    """
    path, found = open_lock(lock, locked=locked, frozen=frozen)
    total, count = 0, 0
    for item in sync(found, path.parent, to=to):
        click.echo(line_of(item))
        total, count = total + (item.size or 0), count + 1
    click.echo(f"{count} files, {readable(total)}")
    if to:
        click.echo(f"There, with no network: BUNDLES_OFFLINE=1 BUNDLES_SHARED_CACHE={to}", err=True)
