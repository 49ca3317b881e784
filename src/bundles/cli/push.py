"""``bundles push``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from bundles.assemble.export import CARD, export
from bundles.errors import CardError, OfflineError, PinError
from bundles.registry.cards import read_card_file
from bundles.sources.fetch import is_offline
from bundles.sources.hub.client import upload_folder
from bundles.spec.hub import parse_hub
from bundles.spec.values import shown


@click.command(name="push", epilog="Example: bundles push ./crepe me/crepe-tuned --private")
@click.argument("name_or_folder")
@click.argument("repo")
@click.option("--private", is_flag=True, help="Where the repository is made now, nobody else sees it.")
@click.option("--message", default="Add the bundle", show_default=True, help="Of the commit.")
def command(name_or_folder: str, repo: str, private: bool, message: str) -> None:
    """Put a bundle, or a folder that `bundles export` wrote, into the repository REPO of the Hub.

    Prints the address that stands for what was uploaded, for ever.
    """
    address = parse_hub(repo)
    if address.revision or address.path:
        raise PinError(f"The repository {shown(repo)} is not of the form owner/name.")
    if is_offline():
        raise OfflineError(
            "Nothing is uploaded while BUNDLES_OFFLINE or HF_HUB_OFFLINE is set: unset it first."
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(name_or_folder)
        if os.path.isfile(folder / CARD):
            _check(folder)
        else:
            folder = export(name_or_folder, os.path.join(scratch, "bundle"))
        commit = upload_folder(repo, folder, message=message, private=private)
    click.echo(f"hf:{repo}@{commit}")


def _check(folder: Path) -> None:
    """Refuse a folder whose card nobody could use: it stays on the Hub."""
    if problems := read_card_file(str(folder / CARD)).problems:
        raise CardError("\n".join(problems), problems=tuple(problems))
