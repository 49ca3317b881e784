"""A training step that computes what is frozen, one on stored activations, and the head alone on a store.

    python benchmarks/cached.py [--rounds N] [--batch N] [--seconds N] [--bundle NAME]

Random weights, one thread, AdamW, a float32 store of one batch of utterances of one length. The cases step
in turn in one process; times are medians, and the speed-up is the median of the ratios to the step that
computes, round by round. "by FLOPs" is the formula: with F for a forward and a share f of it above what is
stored, (1 + 2f) F for what computes the frozen prefix, and 3f F for what does not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from interleaved import measure
from torch import Tensor, nn

import bundles
from bundles.display import text_table
from bundles.features.cached import cached
from bundles.features.cached import statistics as answers
from bundles.features.encode.layers import Anatomy
from bundles.features.extract import extract_features
from bundles.features.store.store import FeatureStore
from bundles.freezing.cost.flops import module_flops

LABELS = 32
Case = tuple[nn.Module, Callable[[], Tensor]]


def build(bundle: bundles.Bundle, which: str) -> nn.Module:
    """Return the model, the same weights each time."""
    torch.manual_seed(0)
    return bundle.get_model(pretrained=False, freeze=which, head=lambda size: nn.Linear(size, LABELS)).train()


def stepper(model: nn.Module, forward: Callable[[], Tensor]) -> Callable[[], float]:
    """Return a function that makes a training step and returns milliseconds."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=False)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        forward().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return (time.perf_counter() - start) * 1e3

    return step


def share_above(model: nn.Module, layer: str, waves: Tensor) -> float:
    """Return the part of a forward's FLOPs that comes after a layer."""
    anatomy = Anatomy(model)
    costs = module_flops(model, tuple(waves.shape))
    below = set(anatomy.computed(anatomy.layer(layer)))
    return sum(cost for name, cost in costs.items() if name not in below) / sum(costs.values())


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the logits."""
    return output[0] if isinstance(output, tuple) else output


def on_a_store(store: FeatureStore, count: int) -> Case:
    """Return a head of its own, and its forward on the first items of a store."""
    head = nn.Linear(store[0].shape[-1], LABELS)
    return head, lambda: head(store.collate([store[i] for i in range(count)])[0])


def cases(bundle: bundles.Bundle, waves: Tensor, out: Path) -> tuple[dict[str, Case], dict[str, float]]:
    """Return the rivals, and the share of the FLOPs above what is stored."""
    found: dict[str, Case] = {}
    shares = {}
    for name, which, layers in (("head only", "encoder", None), ("last 2", "last:2", "prefix")):
        plain, other = build(bundle, which), build(bundle, which)
        how = {"dtype": "float32", "num_workers": 1, "progress": False}
        store = extract_features(other, list(waves), out / which, layers=layers, batch_size=len(waves), **how)
        model = cached(other, store)
        shares[name] = share_above(plain, store.layers[0], waves)
        found[f"{name}, computed"] = (plain, lambda plain=plain: first(plain(waves)))
        found[f"{name}, cached"] = (model, lambda model=model: first(model(waves)))
        if layers is None:
            found[f"{name}, store and head"] = on_a_store(store, len(waves))
    return found, shares


def report(figures: Mapping[str, list[float]], shares: Mapping[str, float]) -> None:
    """Print times, and speed-ups beside the formula."""
    rows = []
    for name, times in figures.items():
        kind = name.partition(",")[0]
        ratios = [plain / ours for plain, ours in zip(figures[f"{kind}, computed"], times, strict=True)]
        f = shares[kind]
        predicted = 1.0 if name.endswith("computed") else (1 + 2 * f) / (3 * f)
        numbers = (min(times), statistics.median(times), statistics.median(ratios), predicted)
        rows.append((name, *(f"{number:.2f}" for number in numbers)))
    print(text_table(("step", "#min ms", "#median ms", "#speed-up", "#by FLOPs"), rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default="WAV2VEC2_BASE")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = bundles.get_bundle(arguments.bundle)
    waves = torch.randn(arguments.batch, int(arguments.seconds * bundle.sample_rate))
    with tempfile.TemporaryDirectory() as folder:
        rivals, shares = cases(bundle, waves, Path(folder))
        figures = measure({name: stepper(*case) for name, case in rivals.items()}, arguments.rounds)
    report(figures, shares)
    for name, (model, _) in rivals.items():
        if name.endswith("cached"):
            print(name, answers(model))


if __name__ == "__main__":
    main()
