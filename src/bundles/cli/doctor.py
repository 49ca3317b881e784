"""``bundles doctor``."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import click

from bundles.cli.locks import open_lock
from bundles.display import safe
from bundles.experiment.doctor import examine
from bundles.experiment.doctor_lock import examine_lock

_MARKS = {"fact": "", "careful": "careful: ", "wrong": "wrong: "}


@click.command(name="doctor", epilog="Example: bundles doctor configs/pitch.lock.toml")
@click.argument("lock", required=False, type=click.Path(path_type=Path))
def command(lock: Path | None) -> None:
    """Print versions, caches and what cannot work here; with LOCK also what of it is here.

    Exits with 1 if anything is wrong. Nothing is downloaded; the output is the record of a run.
    """
    findings = examine()
    if lock is not None:
        path, found = open_lock(lock, frozen=True)
        findings = chain(findings, examine_lock(found, path))
    is_wrong = False
    for finding in findings:
        click.echo(safe(f"{finding.topic}: {_MARKS[finding.kind]}{finding.text}", limit=1000))
        is_wrong = is_wrong or finding.kind == "wrong"
    if is_wrong:
        sys.exit(1)
