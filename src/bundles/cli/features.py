"""``bundles features``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from bundles.display import safe
from bundles.errors import InputError, UnreadableInputWarning
from bundles.sources.progress import readable

if TYPE_CHECKING:
    from bundles.features.inputs.preprocess import Preprocessing
    from bundles.features.store.store import FeatureStore

_DTYPES = ("float16", "bfloat16", "float32")
_INTERRUPTED = 130  # as of any program that SIGINT ended


@click.command(
    name="features",
    epilog="Example: bundles features WAV2VEC2_NANO_DIGITS --input 'data/*.wav' --out features --layers 2,5",
)
@click.argument("name")
@click.argument("others", nargs=-1, metavar="")
@click.option(
    *("--input", "source"),
    required=True,
    help="A glob in quotes, a folder or a file: audio, pictures or texts; *.tar of webdataset; *.parquet.",
)
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder of the store.")
@click.option(
    "--layers", help="Blocks to store, as '6,9' from 0, '-1', or 'prefix'; what the head is given without it."
)
@click.option("--engine", type=click.Choice(("local", "ray")), default="local", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--dtype", type=click.Choice(_DTYPES), default="float16", show_default=True)
@click.option("--device", help="Where to compute, as 'cuda'.")
@click.option("--freeze", "policy", help="Policy, as 'encoder' or 'last:2'; the bundle's own without it.")
@click.option("--freeze-mode", "mode", help="Preset, as 'eval' or 'features'; the bundle's own without it.")
@click.option("--workers", type=click.IntRange(1), help="Processes; one per core without it.")
@click.option(
    "--sample-rate",
    type=click.IntRange(1),
    help="What the model hears, in hertz, if it does not say so itself.",
)
@click.pass_context
def command(
    context: click.Context,
    /,
    name: str,
    others: tuple[str, ...],
    source: str,
    layers: str | None,
    policy: str | None,
    sample_rate: int | None,
    **rest: Any,
) -> None:
    """Store what the frozen encoder of the bundle NAME makes of every file.

    What is stored already is not computed again, and a run that was stopped or killed goes on from where it
    was. Files that cannot be read are listed at the end; the others are stored, and the exit code is 1.
    """
    with _stoppable(context), warnings.catch_warnings():
        _check(source, others)
        from bundles.features.extract import extract_features

        warnings.simplefilter("ignore", UnreadableInputWarning)  # they are listed below
        store = extract_features(
            name,
            source,
            rest["out"],
            layers=_layers(layers),
            engine=rest["engine"],
            batch_size=rest["batch_size"],
            dtype=rest["dtype"],
            device=rest["device"],
            freeze=True if policy is None else policy,
            freeze_mode=rest["mode"],
            num_workers=rest["workers"],
            on_error="skip",
            preprocessing=None if sample_rate is None else _heard_at(name, sample_rate),
        )
    click.echo(line_of(store))
    for _, why in store.manifest.unreadable:  # it begins with the name
        click.echo(f"bundles: {safe(why, limit=2_000)}", err=True)
    context.exit(1 if store.manifest.unreadable else 0)


def line_of(store: FeatureStore) -> str:
    """Return a store as a line: how many items, how many were left out, which layers, how large and where."""
    size = sum(shard.size for shard in store.manifest.shards)
    layers, where = ", ".join(store.layers), safe(store.path, limit=400)
    count, left_out = len(store), len(store.manifest.unreadable)
    items = f"{count} item{'s' * (count != 1)}" + (f", {left_out} left out" if left_out else "")
    return f"{items}: {layers} in {store.facts.dtype} ({readable(size)}) in {where}"


@contextmanager
def _stoppable(context: click.Context) -> Iterator[None]:
    """Say what Ctrl-C leaves."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("bundles: stopped; the same command goes on from what is finished.", err=True)
        context.exit(_INTERRUPTED)


def _check(source: str, others: tuple[str, ...]) -> None:
    """Refuse a pattern that the shell has resolved, and one that matches nothing."""
    if others:
        raise click.UsageError(
            f"After --input {safe(source)} comes {safe(others[0])}: put the glob in quotes, as "
            f"--input 'data/*.wav'."
        )
    from bundles.features.inputs.files import find

    try:
        find(source)
    except InputError as error:
        raise click.UsageError(safe(error, limit=2_000)) from error


def _layers(text: str | None) -> list[int | str] | str | None:
    """Return layers as :func:`bundles.extract_features` takes them.

    >>> _layers("6,9"), _layers("-1"), _layers("prefix")
    ([6, 9], [-1], 'prefix')
    """
    if text is None or text in ("output", "prefix"):
        return text
    parts = [part.strip() for part in text.split(",")]
    return [int(part) if part.removeprefix("-").isdecimal() else part for part in parts]


def _heard_at(name: str, rate: int) -> Preprocessing:
    from bundles.assemble.lookup import get_bundle
    from bundles.features.inputs.preprocess import preprocessing_of

    told = preprocessing_of(get_bundle(name))
    if told.kind != "waveform" or told.sample_rate not in (None, rate):
        takes = f"{told.kind} at {told.sample_rate} Hz" if told.sample_rate else told.kind
        raise click.UsageError(f"{safe(name)} takes {takes}: leave --sample-rate {rate} out.")
    return replace(told, sample_rate=rate)
