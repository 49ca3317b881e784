"""``bundles demo``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bundles.assemble.lookup import get_bundle
from bundles.cli.output import hint, print_table
from bundles.demo import pitch, speech, tasks, ways
from bundles.spec.bundle import Bundle

_COLUMNS = (
    *("way", "#held-out accuracy", "#ms per step"),
    *("moved although frozen", "#features in train() and eval()"),
)
_REFERENCE = 440.0


@click.command(name="demo", epilog="Example: bundles demo --bundle WAV2VEC2_NANO_DIGITS --wav three.wav")
@click.option("--wav", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Hear this file.")
@click.option(
    *("--bundle", "names"),
    multiple=True,
    default=["WAV2VEC2_NANO_DIGITS", "CREPE_TINY"],
    show_default=True,
    help="CREPE or a speech encoder; can be repeated.",
)
@click.option(
    "--examples", type=click.IntRange(64), help="How many to train on; each task has its own number."
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over them; each task has its own number.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of data, heads and batches.")
def command(
    wav: Path | None, names: tuple[str, ...], epochs: int | None, examples: int | None, seed: int
) -> None:
    """Freeze real pretrained models, train new heads, and see what moved. Needs no network."""
    for bundle in map(get_bundle, names):
        task = tasks.make_task(bundle, examples, seed)
        _hear(bundle, wav)
        click.echo(
            f"The task: {task.about}. A new head is trained on {len(task.train[1])} examples "
            f"and tested on {len(task.test[1])} others.\n"
        )
        _show(_run(bundle, task, epochs or task.epochs, seed))


def _hear(bundle: Bundle, wav: Path | None) -> None:
    if bundle.metadata.get("task") == "pitch":
        _hear_pitch(bundle, wav)
    elif bundle.metadata.get("companions") == "ctc":
        _hear_words(bundle, wav)


def _hear_pitch(bundle: Bundle, wav: Path | None) -> None:
    model = bundle.get_model(freeze="all", freeze_mode="features")
    wave = pitch.read_wav(wav, bundle.sample_rate) if wav else pitch.tone(_REFERENCE, 1.0, bundle.sample_rate)
    hertz, confidence = pitch.hear(model, wave, bundle)
    off = "" if wav else f", {pitch.cents_between(hertz, _REFERENCE):+.1f} cents off"
    what = wav.name if wav else f"a generated tone of {_REFERENCE:.0f} Hz"
    click.echo(f"{bundle.name} hears {hertz:.1f} Hz in {what}{off} (confidence {confidence:.2f}).")


def _hear_words(bundle: Bundle, wav: Path | None) -> None:
    model = bundle.get_model(freeze="all", freeze_mode="features")
    said = speech.utterances()[0]
    wave = pitch.read_wav(wav, bundle.sample_rate) if wav else said.wave
    heard = speech.transcribe(model, wave, bundle.get_labels())
    what = wav.name if wav else f"'{said.text}' (voice {said.voice})"
    click.echo(f"{bundle.name} hears '{heard}' in {what}.")


def _run(bundle: Bundle, task: tasks.Task, epochs: int, seed: int) -> dict[str, ways.Outcome]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    outcomes = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for way, build in ways.WAYS.items():
            tick = partial(progress.advance, progress.add_task(way, total=ways.steps_of(task, epochs)))
            outcomes[way] = ways.run(build, bundle, task, epochs=epochs, seed=seed, tick=tick)
    hint("Each way starts from the same head, batches and examples.")
    return outcomes


def _show(outcomes: dict[str, ways.Outcome]) -> None:
    print_table(_COLUMNS, [_row(way, outcome) for way, outcome in outcomes.items()])
    for way, outcome in outcomes.items():
        for text in outcome.warned:
            click.echo(f"warned ({way}): {text}")
    click.echo()


def _row(way: str, outcome: ways.Outcome) -> tuple[str, ...]:
    moved = f"{len(outcome.parameters_moved)} parameters, {len(outcome.buffers_moved)} buffers"
    shift = "equal" if outcome.shift == 0 else f"{outcome.shift:.0%} apart"
    return way, f"{outcome.accuracy:.1%}", f"{outcome.step * 1e3:.1f}", moved, shift
