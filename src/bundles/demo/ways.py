"""Fine-tune a new head on one model, frozen in three ways, and see what moved."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from bundles.demo.vowels import FORMANTS, vowels
from bundles.freezing.snapshot import snapshot
from bundles.spec.bundle import Bundle

BATCH = 64


@dataclass(frozen=True)
class Task:
    """Frames ``[n, 1024]`` and labels ``[n]`` to train on, and others to test on."""

    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """What one way came to.

    Attributes:
        accuracy: share of held-out frames whose vowel was named, 0 to 1.
        trained: number of parameters that trained.
        step: median seconds of a training step.
        parameters_moved: names of parameters that moved although frozen.
        buffers_moved: names of buffers of the frozen part that moved.
        warned: what the library said.
    """

    accuracy: float
    trained: int
    step: float
    parameters_moved: tuple[str, ...]
    buffers_moved: tuple[str, ...]
    warned: tuple[str, ...]


def make_task(bundle: Bundle, train: int, test: int, seed: int) -> Task:
    """Return generated vowels; train and test share nothing but the generator."""
    generator = torch.Generator().manual_seed(seed)
    length, rate = bundle.frame_length, bundle.sample_rate
    return Task(vowels(train, length, rate, generator), vowels(test, length, rate, generator))


def frozen_by_us(bundle: Bundle) -> nn.Module:
    """``freeze=True``: encoder frozen, mode ``"eval"``."""
    return bundle.get_model(head=_head, freeze=True)


def frozen_by_habit(bundle: Bundle) -> nn.Module:
    """What people do: ``requires_grad_(False)`` on the encoder, and then ``model.train()``."""
    model = bundle.get_model(head=_head)
    model.requires_grad_(False)
    model.get_submodule("classifier").requires_grad_(True)
    return model


def frozen_at_random(bundle: Bundle) -> nn.Module:
    """The same freeze without pretrained weights: features of a random encoder."""
    return bundle.get_model(head=_head, freeze=True, pretrained=False)


WAYS: dict[str, Callable[[Bundle], nn.Module]] = {
    "frozen, mode 'eval'": frozen_by_us,
    "requires_grad_(False), then train()": frozen_by_habit,
    "frozen without weights": frozen_at_random,
}


def run(
    build: Callable[[Bundle], nn.Module],
    bundle: Bundle,
    task: Task,
    *,
    epochs: int,
    seed: int,
    tick: Callable[[], object],
) -> Outcome:
    """Build a model, train it on the task, and say what came of it.

    Args:
        build: one of ``WAYS``.
        bundle: CREPE, small or full.
        task: what to train and test on.
        epochs: passes over the training frames.
        seed: of the head's initialisation and the order of batches.
        tick: called after every step.
    """
    torch.manual_seed(seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = build(bundle)
    before = snapshot(model)
    steps = _train(model, task, epochs, tick)
    moved = before.moved(model)
    parameters = dict(model.named_parameters())
    return Outcome(
        accuracy=_accuracy(model, task),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        step=statistics.median(steps),
        parameters_moved=tuple(name for name in moved if name in parameters),
        buffers_moved=tuple(name for name in moved if name not in parameters),
        warned=tuple(str(warning.message) for warning in caught),
    )


def steps_of(task: Task, epochs: int) -> int:
    """Return the number of steps that :func:`run` takes."""
    return epochs * (len(task.train[1]) // BATCH)


def _head(features: int) -> nn.Module:
    hidden = features // 2
    return nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, len(FORMANTS)),
    )


def _train(model: nn.Module, task: Task, epochs: int, tick: Callable[[], object]) -> list[float]:
    frames, labels = task.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    model.train()
    steps = []
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(labels)), BATCH)[: len(labels) // BATCH]:
            start = time.perf_counter()
            # CREPE ends in a sigmoid, so each class is a yes or no, as in its own training.
            target = F.one_hot(labels[batch], len(FORMANTS)).float()
            loss = F.binary_cross_entropy(model(frames[batch]), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps.append(time.perf_counter() - start)
            tick()
    return steps


@torch.no_grad()
def _accuracy(model: nn.Module, task: Task) -> float:
    frames, labels = task.test
    model.eval()
    guesses = torch.cat([model(batch).argmax(1) for batch in torch.split(frames, BATCH)])
    return (guesses == labels).float().mean().item()
