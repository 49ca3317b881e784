"""``bundles export``."""

from __future__ import annotations

from dataclasses import replace

import click

from bundles.assemble.export import export
from bundles.assemble.lookup import get_bundle
from bundles.sources.progress import readable


@click.command(name="export", epilog="Example: bundles export CREPE_TINY --to crepe --freeze last:2")
@click.argument("name")
@click.option("--to", required=True, type=click.Path(file_okay=False), help="The folder to write.")
@click.option("--name", "title", help="What the bundle is called in its card.")
@click.option("--freeze", help="What freeze=True is to mean, as 'encoder' or 'last:2'.")
@click.option("--freeze-mode", help="How, as 'eval' or 'features'.")
@click.option("--force", is_flag=True, help="Write into a folder that is not empty.")
def command(
    name: str, to: str, title: str | None, freeze: str | None, freeze_mode: str | None, force: bool
) -> None:
    """Write the bundle NAME as a folder: weights, card, and the files that go with it."""
    bundle = get_bundle(name)
    if freeze is not None:
        bundle = replace(bundle, default_policy=freeze)
    if freeze_mode is not None:
        bundle = replace(bundle, default_mode=freeze_mode)
    try:
        folder = export(bundle, to, name=title, force=force)
    except FileExistsError as error:
        raise click.UsageError(str(error)) from error
    for path in sorted(folder.iterdir()):
        click.echo(f"{path} ({readable(path.stat().st_size)})")
    click.echo(f"It is read by bundles.get_bundle('file:{folder}').", err=True)
