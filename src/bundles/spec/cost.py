"""Predict what a training step costs under a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bundles.spec.plan import FreezePlan, PlannedTensor


@dataclass(frozen=True)
class StepCost:
    """What a training step with AdamW takes; predicted, so nothing of it was computed.

    Memory is in bytes, and that of tensors: the interpreter and its libraries are not counted, nor what an
    allocator holds back.

    Attributes:
        shape: of the input; empty where tensors were given.
        relative: time, as a share of a step that trains everything.
        operations: floating-point operations of forward and backward.
        work: the same, with memory traffic, random numbers and the optimizer's arithmetic counted as the
            operations that fit into their time: what ``relative`` is a ratio of.
        weights: parameters and buffers.
        gradients: of what trains.
        optimizer: AdamW's two moments.
        saved_activations: what forward keeps for backward.
        peak_memory: the most at any time of the step, all of these included that live then.
    """

    shape: tuple[int, ...]
    relative: float
    operations: float
    work: float
    weights: int
    gradients: int
    optimizer: int
    saved_activations: int
    peak_memory: int

    def __str__(self) -> str:
        """One line: share of time and peak, with what the peak is made of."""
        parts = ("weights", "gradients", "optimizer", "saved_activations")
        made_of = ", ".join(f"{part.replace('_', ' ')} {size_text(getattr(self, part))}" for part in parts)
        return (
            f"{self.relative:.0%} of the time of training everything, {self.operations / 1e9:,.1f} GFLOP, "
            f"peak {size_text(self.peak_memory)} ({made_of})"
        )


def size_text(count: float) -> str:
    """Return a number of bytes for people.

    >>> size_text(1_500_000), size_text(2.5e9)
    ('1.5 MB', '2.5 GB')
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


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
    own: dict[str, list[PlannedTensor]] = {}
    for tensor in plan.tensors:
        own.setdefault(tensor.name.rpartition(".")[0], []).append(tensor)
    shares = {module: _trainable_share(own.get(module) or _below(plan, module)) for module in forward}
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


def _below(plan: FreezePlan, module: str) -> list[PlannedTensor]:
    prefix = f"{module}." if module else ""
    return [tensor for tensor in plan.tensors if tensor.name.startswith(prefix)]


def _trainable_share(members: list[PlannedTensor]) -> float:
    whole = sum(tensor.count for tensor in members)
    return sum(tensor.count for tensor in members if tensor.trains) / (whole or 1)
