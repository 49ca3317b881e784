"""``bundles lock``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bundles.cli.output import hint
from bundles.display import safe
from bundles.errors import PinError
from bundles.experiment.file import is_lock, read_experiment, read_lock_of, write_text
from bundles.experiment.locking import changes, lock_experiment, stale
from bundles.spec.lock import write_lock


@click.command(name="lock", epilog="Example: bundles lock configs/pitch.toml --upgrade pitch")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--check", "--locked", is_flag=True, help="Write nothing; exit with 1 if file and lock disagree."
)
@click.option("--upgrade", metavar="NAME", multiple=True, help="Resolve this model anew; repeatable.")
@click.option("--upgrade-all", is_flag=True, help="Resolve all models anew.")
def command(file: Path, check: bool, upgrade: tuple[str, ...], upgrade_all: bool) -> None:
    """Write FILE.lock.toml: commits, sizes and digests of everything that the experiment FILE names.

    A pin that is there stays, unless the file asks for something else or an upgrade is asked for. Nothing is
    downloaded from the Hub but listings and small files.
    """
    if is_lock(file):
        raise PinError(f"{file} is a lock: give the experiment file beside it, without '.lock'.")
    wanted = read_experiment(file)
    old = read_lock_of(wanted.lock_path)
    if check and not (upgrade or upgrade_all):
        found = [f"there is no {wanted.lock_path}"] if old is None else list(stale(wanted, old))
        _report(found, f"{wanted.lock_path} is what {file} asks for", check=True)
        return
    new = lock_experiment(wanted, old, upgrade=upgrade, upgrade_all=upgrade_all)
    lines = list(changes(old, new))
    if new != old and not check:
        write_text(wanted.lock_path, write_lock(new))
        hint(f"wrote {wanted.lock_path}")
    _report(lines, f"{wanted.lock_path} is as it was", check=check)


def _report(lines: list[str], unchanged: str, *, check: bool) -> None:
    for line in lines:
        click.echo(safe(line, limit=400))
    if not lines:
        hint(unchanged)
    elif check:
        hint("nothing was written: leave out --check to lock what the file says")
        sys.exit(1)
