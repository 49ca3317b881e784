"""Settle ``freeze="fit:8GB"``: which policy trains the most within so much memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING

from bundles.assemble.draft import Draft, build_draft
from bundles.assemble.planning import plan_draft
from bundles.errors import FreezeArgumentError
from bundles.spec.bundle import Bundle
from bundles.spec.cost import size_text
from bundles.spec.fit import Fit
from bundles.spec.inputs import input_shape, takes_waveforms
from bundles.spec.mode import FreezeMode
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import Encoder, ExceptLast, FreezePolicy, Nothing

if TYPE_CHECKING:
    import torch
    from torch import nn

RESERVE = 0.15  # of the memory: what allocators hold back
_SECONDS = 10
_BATCH = 8


def settle(
    bundle: Bundle,
    policy: Fit,
    mode: FreezeMode,
    *,
    head: nn.Module | Callable[[int], nn.Module] | None = None,
    dtype: torch.dtype | None = None,
    frozen_dtype: torch.dtype | None = None,
) -> FreezePolicy:
    """Return the policy that trains the most and fits: nothing frozen, all but the last n, the encoder.

    Raises:
        FreezeArgumentError: not even the least fits, or the bundle does not say what its input looks like.
    """
    from bundles.freezing.cost.ghosts import example, without_drawing
    from bundles.freezing.cost.predict import peak_memory

    shape = fit_shape(bundle, policy)
    with without_drawing():  # a head made here must not change the one that is made later
        draft = build_draft(bundle, head, "meta")
    plans = _plans(draft, mode)
    inputs = example(shape, bundle.metadata.get("token_inputs", ()))

    def room(candidate: FreezePolicy) -> float:
        peak = peak_memory(draft.model, inputs, plan=plans[candidate], dtype=dtype, frozen_dtype=frozen_dtype)
        return policy.bytes * (1 - RESERVE) - peak

    candidates = list(plans)
    found = bisect_left(candidates, True, key=lambda candidate: room(candidate) >= 0)
    if found == len(candidates):
        _raise(bundle, policy, shape, candidates, policy.bytes * (1 - RESERVE) - room(candidates[-1]))
    return candidates[found]


def fit_shape(bundle: Bundle, policy: Fit) -> tuple[int, ...]:
    """Return the shape of the input that has to fit; where the policy is silent, 8 waveforms of 10 s."""
    if not takes_waveforms(bundle):
        return input_shape(bundle, policy.batch, policy.seconds)
    return input_shape(bundle, policy.batch or _BATCH, policy.seconds or _SECONDS)


def _plans(draft: Draft, mode: FreezeMode) -> dict[FreezePolicy, FreezePlan]:
    """Plans under which something trains, from the most that is trained to the least."""
    blocks = len(draft.groups().blocks)
    stem = any(group.kind == "stem" for group in draft.groups())
    most = blocks if stem else blocks - 1  # without a stem, all blocks are everything
    policies = (Nothing(), *(ExceptLast(n) for n in range(most, 0, -1)), Encoder())
    plans = {policy: plan_draft(draft, (policy, mode), pretrained=True) for policy in policies}
    return {policy: plan for policy, plan in plans.items() if plan.trained}


def _raise(
    bundle: Bundle, policy: Fit, shape: tuple[int, ...], candidates: list[FreezePolicy], least: float
) -> None:
    if not candidates:
        raise FreezeArgumentError(f"{bundle.name} has nothing that could train: give it a head with head=.")
    raise FreezeArgumentError(
        f"{bundle.name} does not fit into {policy.memory}: a step on an input of {shape} with "
        f"{candidates[-1]!r} takes {size_text(least)}, and {RESERVE:.0%} are kept free: ask for "
        f"'fit:{least / (1 - RESERVE) / 1e9 + 0.005:.2f}GB', or for a smaller batch as in 'fit:8GB:1x5s'."
    )
