"""``bundles verify``."""

from __future__ import annotations

from pathlib import Path

import click

from bundles.cli.locks import open_lock
from bundles.display import safe
from bundles.experiment.copies import check, refuse_bad
from bundles.sources.progress import readable


@click.command(name="verify", epilog="Example: bundles verify configs/pitch.lock.toml")
@click.argument("lock", type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Libraries of other versions than the lock's are wrong, too.")
def command(lock: Path, strict: bool) -> None:
    """Hash everything that LOCK names again, and list all that is wrong or absent; asks no network."""
    path, found = open_lock(lock)
    copies = []
    for copy in check(found, path.parent, strict=strict):
        size = f" ({readable(copy.file.size)})" if copy.file is not None else ""
        if copy.problem is None:
            click.echo(safe(f"{copy.model}: {copy.what}{size} is what was locked", limit=400))
        copies.append(copy)
    refuse_bad(copies, str(path))
