"""Predict what a training step costs under a plan."""

from __future__ import annotations

from collections.abc import Mapping

from bundles.spec.plan import FreezePlan


def step_cost(plan: FreezePlan, forward: Mapping[str, float]) -> float:
    """Return the cost of a training step under the plan, as a share of full fine-tuning.

    A step costs, per group with forward cost F: F forward, F backward towards its input where the
    group or something before it trains, and F backward towards its weights where it trains. Full
    fine-tuning is 3F; a frozen prefix under a trainable share f is (1 + 2f)F.

    Args:
        plan: the groups are taken to run in order.
        forward: forward cost of each group, in any unit.

    >>> import bundles
    >>> plan = bundles.CREPE_TINY.plan(freeze="none")
    >>> step_cost(plan, {group.name: 1.0 for group in plan.groups})
    1.0
    """
    total = spent = 0.0
    gradient_enters = False
    for group in plan.groups:
        cost = forward.get(group.name, 0.0)
        share = _trainable_share(plan, group.name)
        gradient_enters = gradient_enters and not (plan.mode.grad == "cut" and not share)
        gradient_enters = gradient_enters or share > 0
        spent += cost * (1 + gradient_enters + share)
        total += cost * 3
    return spent / total if total else 1.0


def parameter_counts(plan: FreezePlan) -> dict[str, float]:
    """Return the parameters of each group: a stand-in for its forward cost where that is unknown."""
    counts = dict.fromkeys((group.name for group in plan.groups), 0.0)
    for tensor in plan.tensors:
        counts[tensor.group] = counts.get(tensor.group, 0.0) + tensor.count
    return counts


def _trainable_share(plan: FreezePlan, group: str) -> float:
    members = [tensor for tensor in plan.tensors if tensor.group == group]
    whole = sum(tensor.count for tensor in members)
    return sum(tensor.count for tensor in members if tensor.state == "trainable") / (whole or 1)
