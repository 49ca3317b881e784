"""Linear probing, full fine-tuning, and one after the other, in and out of distribution.

Kumar et al. 2022, https://arxiv.org/abs/2202.10054: a random head distorts pretrained features while it is
learnt, so head first, then everything (LP-FT) keeps more of what is needed outside the tuning data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from digits import Set, blurred, changed, dimmed, moved, noisy, split
from torch import Tensor, nn
from torch.optim import Optimizer
from training import accuracy, fit, pretrained, train, tuned

import bundles

DOMAINS = {"noise": noisy, "blur": blurred, "moved": moved, "dim": dimmed}
Results = dict[str, dict[str, list[float]]]


def on_digits(seeds: range, epochs: int = 30) -> Results:
    """Where -> method -> accuracy per seed, per cent: on plain digits, as tuned on, and on four others.

    The features come from digits of all five looks and a coarser question (the digit modulo 5), so they
    know the shifts and not the task.
    """
    found: Results = {
        where: {method: [] for method in METHODS} for where in ("plain digits", "shifted digits")
    }
    for seed in seeds:
        data = split(seed)
        looks = torch.cat([data.source[0], *(look(data.source[0]) for look in DOMAINS.values())])
        coarse = (data.source[1] % 5).repeat(1 + len(DOMAINS))
        base = pretrained(seed, (looks, coarse), 5, max(1, epochs // 5))
        base.head = nn.Linear(base.head.in_features, 10)
        for method, tune in METHODS.items():
            best = tuned(base, partial(_call, tune, data.tune, epochs), data.choose, seed)
            shifted = [accuracy(best, changed(data.judge, look)) for look in DOMAINS.values()]
            found["plain digits"][method].append(accuracy(best, data.judge))
            found["shifted digits"][method].append(sum(shifted) / len(shifted))
    return found


def probe(model: nn.Module, data: Set, rate: float, epochs: int) -> None:
    """Train the head."""
    bundles.freeze(model, "encoder")
    train(model, data, rate, epochs)


def probe_then_tune(model: nn.Module, data: Set, rate: float, epochs: int) -> None:
    """Train the head, then everything at a tenth of the rate; half of the epochs each."""
    schedule = bundles.UnfreezeSchedule.lp_ft(at=epochs // 2)

    def follow(optimizer: Optimizer, epoch: int) -> None:
        schedule.apply(model, epoch, optimizer=optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate if epoch < epochs // 2 else rate / 10

    fit(model, data, [{"params": list(model.parameters())}], epochs, follow)


METHODS: dict[str, Callable[[nn.Module, Set, float, int], None]] = {
    "linear probing": probe,
    "full fine-tuning": train,
    "LP-FT": probe_then_tune,
}


def _call(tune: Callable[..., None], data: Set, epochs: int, model: nn.Module, rate: float) -> None:
    tune(model, data, rate, epochs)


# --- the case of the paper's theory ---------------------------------------------------------------


def on_two_linear_layers(seeds: range, steps: int = 3000) -> Results:
    """Where -> method -> squared error per seed, over that of answering 0.

    50 inputs, 5 features, a true linear answer; pretrained features that are nearly the true ones; 40
    tuning examples in a subspace of 20 dimensions; gradient descent.
    """
    found: Results = {
        where: {method: [] for method in METHODS} for where in ("in its subspace", "everywhere")
    }
    for seed in seeds:
        torch.manual_seed(seed)
        truth, start, inputs = _true_and_start()
        points = torch.randn(500, 20).double() @ inputs, torch.randn(500, 50).double()
        x = torch.randn(40, 20).double() @ inputs
        for method in METHODS:
            model = copy.deepcopy(start)
            _descend(model, x, truth(x).detach(), method, steps)
            for where, test in zip(found, points, strict=True):
                error = (model(test) - truth(test)).square().mean() / truth(test).square().mean()
                found[where][method].append(error.item())
    return found


def _true_and_start() -> tuple[nn.Module, nn.Module, Tensor]:
    """The true network, the pretrained one with a fresh head, and an orthonormal basis of 20 inputs."""
    true, start = _two_layers(), _two_layers()
    features = torch.linalg.qr(torch.randn(50, 5).double()).Q.T
    near = torch.linalg.qr(features.T + 0.02 * torch.randn(50, 5).double()).Q.T
    near = (features @ near.T) @ near  # turned so that each feature lies near the true one
    with torch.no_grad():
        true[0].weight.copy_(features)
        true[1].weight.normal_()
        start[0].weight.copy_(near)
        start[1].weight.normal_()
    return true, start, torch.linalg.qr(torch.randn(50, 20).double()).Q.T


def _two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(50, 5, bias=False), nn.Linear(5, 1, bias=False)).double()


def _descend(model: nn.Module, x: Tensor, y: Tensor, method: str, steps: int) -> None:
    if method != "full fine-tuning":
        bundles.freeze(model, "encoder")
        _gradient_descent(model, x, y, steps)
        bundles.unfreeze(model)
    if method != "linear probing":
        _gradient_descent(model, x, y, steps)


def _gradient_descent(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
