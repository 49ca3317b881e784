"""Does freezing by bundles add anything to a step, beside ``requires_grad_(False)`` and ``eval()``?

    python benchmarks/habit.py [--bundle NAME] [--seconds N] [--rounds N]

One model is frozen one way and the other in turn, so that both step in the same memory: two processes of the
same code differ by some percent. One thread, two utterances, AdamW, random weights.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from interleaved import measure, report
from step_once import LABELS, stepper
from torch import nn

import bundles


def by_habit(model: nn.Module, plan: bundles.FreezePlan) -> None:
    """Freeze the tensors of a plan, and put the modules that it holds into eval, as people do."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in plan.trained)
    for hold in plan.holds:
        if hold.training is False:
            model.get_submodule(hold.module).training = False


def compare(bundle: bundles.Bundle, policy: str, seconds: float, rounds: int) -> None:
    """Print the steps of both ways."""
    model = bundle.get_model(pretrained=False, head=nn.Linear(bundle.num_features or 1, LABELS))
    waveforms = torch.randn(2, round(seconds * bundle.sample_rate))
    plan = bundles.freeze_plan(bundles.freeze(model, policy))
    assert plan is not None

    def ours() -> None:
        bundles.freeze(model, policy).train()

    def habit() -> None:
        by_habit(model, plan)

    def timed(freeze: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            bundles.unfreeze(model).requires_grad_(True).train()
            freeze()
            step = stepper(model, waveforms, autocast=False)
            step()  # makes the optimizer's state
            return step()

        return run

    figures = measure({"by habit": timed(habit), "by bundles": timed(ours)}, rounds)
    report(f"{bundle.name}, 2 x {seconds} s, freeze={policy!r}", figures, "ms", "by habit")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default="WAV2VEC2_BASE")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for policy in ("encoder", "last:2"):
        compare(bundles.get_bundle(arguments.bundle), policy, arguments.seconds, arguments.rounds)


if __name__ == "__main__":
    main()
