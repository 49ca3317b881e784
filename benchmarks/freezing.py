"""Freeze, unfreeze, plan, report and proof on 24 layers with 315 M parameters, beside the bare habit.

python benchmarks/freezing.py [rounds]
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import torch
from interleaved import measure, report
from torch import nn

import bundles
from bundles.freezing.api import plan_for
from bundles.spec.mode import parse_mode
from bundles.spec.policy import parse_policy

WHICH = "last:2"


def timed(
    action: Callable[[], object],
    before: Callable[[], object] = lambda: None,
    threads: int | None = None,
) -> Callable[[], float]:
    """Return a function that prepares, then times the action, and returns milliseconds."""

    def run() -> float:
        usual = torch.get_num_threads()
        torch.set_num_threads(threads or usual)
        before()
        start = time.perf_counter()
        action()
        spent = (time.perf_counter() - start) * 1e3
        torch.set_num_threads(usual)
        return spent

    return run


def habit(model: nn.Module) -> None:
    """Freeze as people do."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()


def acts(model: nn.Module) -> dict[str, Callable[[], float]]:
    """What is milliseconds: freezing and looking."""

    def frozen() -> None:
        bundles.freeze(model, WHICH)

    def thawed() -> None:
        bundles.unfreeze(model).requires_grad_(True).train()

    policy, mode = parse_policy(WHICH), parse_mode("eval")
    frozen()
    taken = bundles.snapshot(model)
    return {
        "habit": timed(lambda: habit(model), thawed),
        "plan": timed(lambda: plan_for(model, policy, mode), thawed),
        "freeze": timed(frozen, thawed),
        "freeze again": timed(frozen, frozen),
        "unfreeze": timed(lambda: bundles.unfreeze(model), frozen),
        "train()": timed(model.train, frozen),
        "freeze_report": timed(lambda: bundles.freeze_report(model), frozen),
        "freeze_report, printed": timed(lambda: str(bundles.freeze_report(model)), frozen),
        "verify_frozen, quick": timed(lambda: bundles.verify_frozen(model, taken, quick=True), frozen),
    }


def proofs(model: nn.Module) -> dict[str, Callable[[], float]]:
    """What reads every byte, beside reading and copying them."""
    bundles.freeze(model, WHICH)
    taken = bundles.snapshot(model)
    source = torch.cat([p.detach().flatten() for p in model.parameters() if not p.requires_grad])
    target = torch.zeros_like(source)
    return {
        "copy of the bytes": timed(lambda: target.copy_(source)),
        "sum of the values": timed(lambda: source.sum()),
        "snapshot": timed(lambda: bundles.snapshot(model)),
        "verify_frozen": timed(lambda: bundles.verify_frozen(model, taken)),
        "verify_frozen, one thread": timed(lambda: bundles.verify_frozen(model, taken), threads=1),
    }


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    warnings.simplefilter("ignore", bundles.BundlesWarning)
    model = bundles.WAV2VEC2_LARGE.get_model(pretrained=False)
    size = sum(p.numel() for p in model.parameters())
    modules = sum(1 for _ in model.modules())
    title = f"{size / 1e6:.0f} M parameters, {modules} modules, freeze={WHICH!r}"
    report(title, measure(acts(model), rounds), "ms", "habit")
    name = f"{torch.get_num_threads()} threads"
    report(f"proof, {name}", measure(proofs(model), max(3, rounds // 2)), "ms", "copy of the bytes")


if __name__ == "__main__":
    main()
