"""A training step: all trainable, the bare habit, and frozen by bundles; against what `plan` predicts.

python benchmarks/step.py [CREPE_TINY|CREPE_FULL]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from interleaved import measure, report
from torch import nn

import bundles
from bundles.assemble import forward_costs
from bundles.spec.cost import step_cost


def stepper(model: nn.Module, frames: torch.Tensor) -> Callable[[], float]:
    """Return a function that makes one training step and returns milliseconds."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model.train()

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        model(frames).sum().backward()
        optimizer.step()
        return (time.perf_counter() - start) * 1e3

    return step


def by_habit(bundle: bundles.Bundle) -> nn.Module:
    """Freeze the encoder as people do."""
    model = bundle.get_model().requires_grad_(False)
    model.get_submodule("classifier").requires_grad_(True)
    return model


def main() -> None:
    """Measure and print."""
    bundle = bundles.get_bundle(sys.argv[1] if len(sys.argv) > 1 else "CREPE_TINY")
    torch.set_num_threads(1)
    frames = torch.randn(64, 1024)
    policies = ("encoder", "last:1", "last:2", "last:4", "first:1")
    rivals = {
        "all trainable": stepper(bundle.get_model(), frames),
        "habit: requires_grad_(False)": stepper(by_habit(bundle), frames),
        **{f"freeze={policy!r}": stepper(bundle.get_model(freeze=policy), frames) for policy in policies},
    }
    figures = measure(rivals, rounds=11)
    report(f"{bundle.name}, 64 frames, one thread", figures, "ms", "all trainable")
    costs = forward_costs(bundle)
    assert costs is not None
    full = statistics.median(figures["all trainable"])
    for policy in policies:
        seen = statistics.median(figures[f"freeze={policy!r}"]) / full
        print(f"{policy:8} predicted {step_cost(bundle.plan(freeze=policy), costs):.2f}, measured {seen:.2f}")


if __name__ == "__main__":
    main()
