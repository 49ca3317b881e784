"""``bundles delta``."""

from __future__ import annotations

from pathlib import Path

import click

from bundles.cli.output import hint, print_table

_COLUMNS = ("tensor", "#elements", "#moved", "#largest", "#relative")


@click.group(name="delta", epilog="Example: bundles delta diff run.safetensors")
def command() -> None:
    """Look into delta checkpoints, and make whole ones of them."""


@command.command(name="diff", epilog="Example: bundles delta diff monday.safetensors tuesday.safetensors")
@click.argument("first", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("second", default="BASE")
def diff(first: Path, second: str) -> None:
    """Show what a delta moved of its BASE, or how two deltas on the same base differ, and by how much."""
    from bundles.delta.diff import diff as differences

    if second != "BASE" and not Path(second).is_file():
        raise click.BadParameter(f"{second!r} is neither BASE nor a file.", param_hint="SECOND")
    found = differences(first, None if second == "BASE" else second)
    rows = [
        (
            entry.name,
            f"{entry.count:,}",
            "one side only" if entry.moved is None else f"{entry.moved:,}",
            "" if entry.moved is None else f"{entry.largest:.3g}",
            "" if entry.moved is None else f"{entry.relative:.3%}",
        )
        for entry in found
    ]
    print_table(_COLUMNS, rows)
    moved = sum(entry.moved is None or entry.moved > 0 for entry in found)
    hint(f"{moved} of {len(found)} stored tensors differ; what is not stored is as in the base.")


@command.command(name="merge", epilog="Example: bundles delta merge run.safetensors --to whole.safetensors")
@click.argument("delta", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--to", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write."
)
@click.option("--part", default="", help="A module, as 'encoder': only what is in it, under its own names.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def merge(delta: Path, to: Path, part: str, force: bool) -> None:
    """Write the whole model of a DELTA as safetensors, for programs that know nothing of deltas."""
    from bundles.delta.merge import merge as merged

    if to.exists() and not force:
        raise click.UsageError(f"{to} is there already: name another file, or write over it with --force.")
    click.echo(merged(delta, to, part=part))
