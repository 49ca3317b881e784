"""``bundles fetch``."""

from __future__ import annotations

import click

from bundles.assemble.provision import Item, expand, fetch_each, items_of
from bundles.display import safe
from bundles.sources.progress import readable


@click.command(name="fetch", epilog="Example: bundles fetch 'CREPE_*' HUBERT_BASE --to /media/disk/bundles")
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--to", type=click.Path(file_okay=False), help="Make a folder of it, for BUNDLES_SHARED_CACHE elsewhere."
)
@click.option("--dry-run", is_flag=True, help="Print what would be fetched; weights are not.")
def command(names: tuple[str, ...], to: str | None, dry_run: bool) -> None:
    """Download and verify everything that the bundles NAMES need, and convert pickled checkpoints.

    A name may be a glob, or the address of a repository: hf:owner/repo@commit.
    """
    wanted = expand(names)
    total, count, unknown = 0, 0, 0
    for item in items_of(wanted, progress=True) if dry_run else fetch_each(wanted, to=to):
        click.echo(line_of(item))
        total, count, unknown = total + (item.size or 0), count + 1, unknown + (item.size is None)
    more = f" and {unknown} of unknown size" if unknown else ""
    click.echo(f"{count} files, {readable(total)}{more}")
    if to and not dry_run:
        click.echo(f"There, with no network: BUNDLES_OFFLINE=1 BUNDLES_SHARED_CACHE={to}", err=True)


def line_of(item: Item) -> str:
    """Return a fetched file as a line: bundle, role, address, size."""
    size = "size unknown" if item.size is None else readable(item.size)
    at_home = item.source.scheme in ("file", "package")
    note = ", converted" if item.converted else ""
    note += f", stays in its {'package' if item.source.scheme == 'package' else 'place'}" if at_home else ""
    return safe(f"{item.bundle} {item.role}: {item.source.shown} ({size}{note})", limit=400)
