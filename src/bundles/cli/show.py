"""``bundles show``."""

from __future__ import annotations

import json
from typing import Any

import click

from bundles.assemble.lookup import get_bundle
from bundles.cli.output import print_table
from bundles.spec.companions import COMPANIONS
from bundles.spec.values import plain_value


@click.command(name="show", epilog="Example: bundles show CREPE_TINY")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str, as_json: bool) -> None:
    """Show everything that is known of the bundle NAME."""
    known = facts(name)
    if as_json:
        click.echo(json.dumps(known, indent=1))
    else:
        print_table(("", ""), [(key, _cell(value)) for key, value in known.items() if value is not None])


def facts(name: str) -> dict[str, Any]:
    """Return what is known of a bundle as JSON types."""
    bundle = get_bundle(name)
    weights = bundle.weights
    return {
        "name": bundle.name,
        **plain_value(bundle.metadata),
        "companions": list(COMPANIONS.get(bundle.metadata.get("companions", ""), ())) or None,
        "builder": bundle.builder if isinstance(bundle.builder, str) else repr(bundle.builder),
        "architecture": plain_value(bundle.architecture),
        "weights": weights.shown if weights else None,
        "sha256": weights.sha256 if weights else None,
        "bytes": weights.size if weights else None,
        "layers": plain_value(bundle.layers),
        "freeze=True": f"{bundle.default_policy!r}, mode {bundle.default_mode}",
        "head": bundle.head_slot or "EncoderWithHead",
        "num_features": bundle.num_features,
        "defined in": bundle.origin,
    }


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and value > 99_999 else str(value)
