"""``bundles demo``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bundles.cli.output import hint, print_table
from bundles.demo import pitch, ways
from bundles.demo.vowels import FORMANTS
from bundles.registry.default import get_bundle
from bundles.spec.bundle import Bundle

_COLUMNS = ("way", "#held-out accuracy", "#parameters trained", "#ms per step", "moved although frozen")
_REFERENCE = 440.0


@click.command(name="demo", epilog="Example: bundles demo --wav singing.wav")
@click.option(
    "--wav", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Hear this file's pitch."
)
@click.option("--bundle", "name", default="CREPE_TINY", show_default=True, help="CREPE_TINY or CREPE_FULL.")
@click.option(
    "--epochs", type=click.IntRange(1), default=8, show_default=True, help="Passes over the training set."
)
@click.option(
    "--frames", type=click.IntRange(128), default=2048, show_default=True, help="Frames to train on."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of data, heads and batches.")
def command(wav: Path | None, name: str, epochs: int, frames: int, seed: int) -> None:
    """Freeze a real pretrained model, train its head, and see what moved. Needs no network."""
    bundle = get_bundle(name)
    _hear(bundle, wav)
    task = ways.make_task(bundle, train=frames, test=max(frames // 3, 128), seed=seed)
    click.echo(
        f"\nThe task: which of {len(FORMANTS)} vowels is sung, in 64 ms, at a random pitch, with noise. "
        f"A new head is trained on {frames} frames and tested on {len(task.test[1])} others.\n"
    )
    outcomes = _run(bundle, task, epochs, seed)
    print_table(_COLUMNS, [_row(way, outcome) for way, outcome in outcomes.items()])
    for way, outcome in outcomes.items():
        for text in outcome.warned:
            click.echo(f"warned ({way}): {text}")


def _hear(bundle: Bundle, wav: Path | None) -> None:
    model = bundle.get_model(freeze="all", freeze_mode="features")
    wave = pitch.read_wav(wav, bundle.sample_rate) if wav else pitch.tone(_REFERENCE, 1.0, bundle.sample_rate)
    hertz, confidence = pitch.hear(model, wave, bundle)
    off = "" if wav else f", {pitch.cents_between(hertz, _REFERENCE):+.1f} cents off"
    what = wav.name if wav else f"a generated tone of {_REFERENCE:.0f} Hz"
    click.echo(f"{bundle.name} hears {hertz:.1f} Hz in {what}{off} (confidence {confidence:.2f}).")


def _run(bundle: Bundle, task: ways.Task, epochs: int, seed: int) -> dict[str, ways.Outcome]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    outcomes = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for way, build in ways.WAYS.items():
            tick = partial(progress.advance, progress.add_task(way, total=ways.steps_of(task, epochs)))
            outcomes[way] = ways.run(build, bundle, task, epochs=epochs, seed=seed, tick=tick)
    hint("Each way starts from the same head, batches and frames.")
    return outcomes


def _row(way: str, outcome: ways.Outcome) -> tuple[str, ...]:
    moved = f"{len(outcome.parameters_moved)} parameters, {len(outcome.buffers_moved)} buffers"
    return way, f"{outcome.accuracy:.1%}", f"{outcome.trained:,}", f"{outcome.step * 1e3:.1f}", moved
