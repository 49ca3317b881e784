"""Predict what a training step costs under a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bundles.spec.plan import FreezePlan


def step_cost(plan: FreezePlan, forward: Mapping[str, float]) -> float:
    """Return the cost of a training step under the plan, as a share of full fine-tuning.

    A module with forward cost F costs F forward, F backward towards its weights as far as they train,
    and F backward towards its input where something before it trains. So with many layers full
    fine-tuning is 3F, a frozen prefix under a trainable share f is (1 + 2f)F, and a frozen model behind
    a trained front-end is 2F.

    Args:
        plan: what is frozen.
        forward: module name -> cost of its forward in any unit, in the order in which modules run.

    >>> import bundles
    >>> plan = bundles.CREPE_TINY.plan(freeze="first:3")
    >>> round(step_cost(plan, parameter_counts(plan)), 2)
    0.73
    """
    shares = {module: _trainable_share(plan, module) for module in forward}
    full = _spent((cost, 1.0, False) for cost in forward.values())
    spent = _spent((cost, shares[module], plan.mode.grad == "cut") for module, cost in forward.items())
    return spent / full if full else 1.0


def parameter_counts(plan: FreezePlan) -> dict[str, float]:
    """Return the parameters of each module: a stand-in for its forward cost where that is unknown."""
    counts: dict[str, float] = {}
    for tensor in plan.tensors:
        owner = tensor.name.rpartition(".")[0]
        counts[owner] = counts.get(owner, 0.0) + tensor.count
    return counts


def group_shares(plan: FreezePlan, forward: Mapping[str, float]) -> dict[str, float]:
    """Return each layer group's share of a forward, from 0 to 1."""
    groups = {tensor.name.rpartition(".")[0]: tensor.group for tensor in plan.tensors}
    shares = dict.fromkeys((group.name for group in plan.groups), 0.0)
    for module, cost in forward.items():
        if module in groups:
            shares[groups[module]] += cost / (sum(forward.values()) or 1)
    return shares


def _spent(modules: Iterable[tuple[float, float, bool]]) -> float:
    """Add up (forward cost, trainable share, whether a frozen one stops the gradient)."""
    total, trains_before = 0.0, False
    for cost, share, cuts in modules:
        total += cost * (1 + share + trains_before)
        trains_before = share > 0 or (trains_before and not cuts)
    return total


def _trainable_share(plan: FreezePlan, module: str) -> float:
    prefix = f"{module}." if module else ""
    own = [tensor for tensor in plan.tensors if tensor.name.rpartition(".")[0] == module]
    members = own or [tensor for tensor in plan.tensors if tensor.name.startswith(prefix)]
    whole = sum(tensor.count for tensor in members)
    return sum(tensor.count for tensor in members if tensor.state == "trainable") / (whole or 1)
