"""``bundles plan``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from bundles import assemble
from bundles.assemble.lookup import get_bundle
from bundles.assemble.request import Freeze
from bundles.cli.output import hint, print_table
from bundles.spec.bundle import Bundle
from bundles.spec.cost import group_shares, parameter_counts, step_cost
from bundles.spec.fit import Fit
from bundles.spec.plan import FreezePlan, PlannedTensor
from bundles.spec.policy import parse_policy

_DTYPES = ("float32", "bfloat16", "float16")
_COLUMNS = ("group", "role", "#tensors", "#parameters", "#trainable", "state", "held", "#of a forward")


@click.command(
    name="plan", epilog="Example: bundles plan WAV2VEC2_BASE --freeze last:2 --batch 8 --seconds 10"
)
@click.argument("name")
@click.option("--freeze", "policy", help="Policy, as 'encoder' or 'last:2'; the bundle's own without it.")
@click.option("--freeze-mode", "mode", help="Preset, as 'eval' or 'features'; the bundle's own without it.")
@click.option("--batch", type=click.IntRange(1), help="Items of a step: also predict its time and memory.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Length of each waveform of it.")
@click.option("--dtype", type=click.Choice(_DTYPES), help="Of the whole model, for the prediction.")
@click.option("--frozen-dtype", type=click.Choice(_DTYPES[1:]), help="Of frozen tensors, likewise.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(name: str, policy: str | None, mode: str | None, as_json: bool, **step: Any) -> None:
    """Show what freezing the bundle NAME would do, and what a training step takes. Needs no weights."""
    bundle = get_bundle(name)
    freeze = _with_size(True if policy is None else policy, **step)
    plan = bundle.plan(freeze=freeze, freeze_mode=mode)
    if as_json:
        click.echo(plan.to_json())
        return
    measured = assemble.forward_costs(bundle)
    costs = measured or parameter_counts(plan)
    shares = group_shares(plan, costs)
    print_table(_COLUMNS, [_row(plan, group.name, shares[group.name]) for group in plan.groups])
    click.echo(str(plan))
    for hold in plan.holds:
        if hold.group is None:
            click.echo(f"held across groups: {hold.module or bundle.name}")
    if any(step.values()) or isinstance(freeze, Fit):
        _print_step(bundle, freeze, mode, **step)
    else:
        of = "operations of a forward" if measured else "parameters, since a forward cannot be counted"
        what = "a training step" if plan.trained else "a step, a forward only since nothing trains,"
        click.echo(f"predicted cost of {what}: {step_cost(plan, costs):.0%} of full fine-tuning (by {of})")
    there = f"bundles.{name}" if name.isidentifier() else f"bundles.get_bundle({name!r})"
    hint(f"`{there}.get_model(freeze={policy or True!r}, freeze_mode={str(plan.mode)!r})` builds it.")


def _with_size(freeze: Freeze, batch: int | None, seconds: float | None, **_: Any) -> Freeze:
    """The policy; one that has to fit is told the size of the step, unless it says that itself."""
    policy = parse_policy(freeze) if isinstance(freeze, str) else freeze
    if isinstance(policy, Fit):
        return replace(policy, batch=policy.batch or batch, seconds=policy.seconds or seconds)
    return freeze


def _print_step(
    bundle: Bundle,
    freeze: Freeze,
    mode: str | None,
    batch: int | None,
    seconds: float | None,
    dtype: str | None,
    frozen_dtype: str | None,
) -> None:
    """Print what a step takes."""
    import torch

    from bundles.assemble.predict import predict

    cost = predict(
        bundle,
        freeze=freeze,
        freeze_mode=mode,
        batch=batch,
        seconds=seconds,
        dtype=getattr(torch, dtype) if dtype else None,
        frozen_dtype=getattr(torch, frozen_dtype) if frozen_dtype else None,
    )
    click.echo(f"predicted training step on {cost.shape}: {cost}")


def _row(plan: FreezePlan, group: str, share: float) -> tuple[str, ...]:
    tensors = [tensor for tensor in plan.tensors if tensor.group == group]
    counted = [tensor for tensor in tensors if tensor.alias_of is None]  # a tied one where it comes first
    total = sum(tensor.count for tensor in counted)
    trainable = sum(tensor.trained_count for tensor in counted)
    return (
        group,
        next("head" if g.kind == "head" else "encoder" for g in plan.groups if g.name == group),
        str(len(tensors)),
        f"{total:,}",
        f"{trainable:,}",
        _state(tensors),
        _held(plan, group) + _always(plan, group),
        f"{share:.1%}",
    )


def _state(tensors: list[PlannedTensor]) -> str:
    if not any(tensor.trained_count for tensor in tensors):
        return "frozen"
    return "trainable" if all(tensor.trained_count == tensor.count for tensor in tensors) else "mixed"


def _always(plan: FreezePlan, name: str) -> str:
    """A remark on a group that no mode can make deterministic."""
    always = next((group.always for group in plan.groups if group.name == name), None)
    return f" (always {always})" if always else ""


def _held(plan: FreezePlan, group: str) -> str:
    holds = [hold for hold in plan.holds if hold.group == group]
    words = {
        "off": [hold for hold in holds if hold.training is False],
        "on": [hold for hold in holds if hold.training is True],
        "without graph": [hold for hold in holds if hold.cut],
    }
    return ", ".join(f"{len(found)} {word}" for word, found in words.items() if found)
