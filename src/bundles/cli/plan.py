"""``bundles plan``."""

from __future__ import annotations

import click

from bundles import assemble
from bundles.cli.output import hint, print_table
from bundles.registry.default import get_bundle
from bundles.spec.cost import group_shares, parameter_counts, step_cost
from bundles.spec.plan import FreezePlan

_COLUMNS = ("group", "role", "#tensors", "#parameters", "#trainable", "state", "held", "#of a forward")


@click.command(
    name="plan", epilog="Example: bundles plan CREPE_TINY --freeze last:2 --freeze-mode regularized"
)
@click.argument("name")
@click.option("--freeze", "policy", help="Policy, as 'encoder' or 'last:2'; the bundle's own without it.")
@click.option("--freeze-mode", "mode", help="Preset, as 'eval' or 'features'; the bundle's own without it.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(name: str, policy: str | None, mode: str | None, as_json: bool) -> None:
    """Show what freezing the bundle NAME would do. Needs no weights."""
    bundle = get_bundle(name)
    plan = bundle.plan(freeze=True if policy is None else policy, freeze_mode=mode)
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
    of = "operations of a forward" if measured else "parameters, since a forward cannot be counted"
    what = "a training step" if plan.trainable else "a step, a forward only since nothing trains,"
    click.echo(f"predicted cost of {what}: {step_cost(plan, costs):.0%} of full fine-tuning (by {of})")
    hint(f"`bundles.{name}.get_model(freeze={policy or True!r}, freeze_mode={str(plan.mode)!r})` builds it.")


def _row(plan: FreezePlan, group: str, share: float) -> tuple[str, ...]:
    tensors = [tensor for tensor in plan.tensors if tensor.group == group]
    total = sum(tensor.count for tensor in tensors)
    trainable = sum(tensor.count for tensor in tensors if tensor.state == "trainable")
    return (
        group,
        next("head" if g.kind == "head" else "encoder" for g in plan.groups if g.name == group),
        str(len(tensors)),
        f"{total:,}",
        f"{trainable:,}",
        "frozen" if not trainable else "trainable" if trainable == total else "mixed",
        _held(plan, group) + _always(plan, group),
        f"{share:.1%}",
    )


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
