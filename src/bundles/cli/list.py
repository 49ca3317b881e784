"""``bundles list``."""

from __future__ import annotations

import json

import click

from bundles.cli.output import hint, print_table
from bundles.registry.default import default_registry, list_bundles


@click.command(name="list", epilog="Example: bundles list 'CREPE_*' --task pitch --json")
@click.argument("glob", default="*")
@click.option("--task", help="Only bundles for this task, as 'asr' or 'pitch'.")
@click.option("--modality", help="Only 'audio', 'text' or 'vision'.")
@click.option("--license", "license_", help="Only bundles under this licence; a glob.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known, as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print names only, one per line.")
def command(
    glob: str, task: str | None, modality: str | None, license_: str | None, as_json: bool, quiet: bool
) -> None:
    """List bundles whose name matches GLOB."""
    wanted = {"task": task, "modality": modality, "license": license_}
    names = list_bundles(glob, **{key: value for key, value in wanted.items() if value is not None})
    if as_json:
        from bundles.cli.show import facts

        click.echo(json.dumps([facts(name) for name in names], indent=1))
    elif quiet:
        click.echo("".join(f"{name}\n" for name in names), nl=False)
    else:
        print_table(*default_registry.table(names))
        found = f"{len(names)} of {len(default_registry)} bundles"
        hint(f"{found}; `bundles show NAME` tells more." if names else f"{found} match.")
    for problem in default_registry.problems:
        hint(f"problem: {problem}")
