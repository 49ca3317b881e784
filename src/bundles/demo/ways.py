"""Fine-tune a new head on one model, frozen in three ways, and see what moved."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bundles.demo.tasks import Task
from bundles.errors import BundlesError
from bundles.freezing.proof.snapshot import snapshot
from bundles.spec.bundle import Bundle


@dataclass(frozen=True)
class Outcome:
    """What one way came to.

    Attributes:
        accuracy: share of the test examples that were told right, 0 to 1.
        trained: number of parameters that trained.
        step: median seconds of a training step.
        parameters_moved: names of parameters that moved although frozen.
        buffers_moved: names of buffers of the frozen part that moved.
        unrest: how far, relatively, two passes of the same inputs through the frozen part lie apart in
            ``train()``, when what else is in the batch differs.
        warned: what the library said.
    """

    accuracy: float
    trained: int
    step: float
    parameters_moved: tuple[str, ...]
    buffers_moved: tuple[str, ...]
    shift: float
    warned: tuple[str, ...]


def frozen_by_us(bundle: Bundle, head: nn.Module) -> nn.Module:
    """``freeze=True``: encoder frozen, mode ``"eval"``."""
    return bundle.get_model(head=head, freeze=True)


def frozen_by_habit(bundle: Bundle, head: nn.Module) -> nn.Module:
    """What people do: ``requires_grad_(False)`` on the encoder, and then ``model.train()``."""
    model = bundle.get_model(head=head)
    model.requires_grad_(False)
    head.requires_grad_(True)
    return model


def frozen_at_random(bundle: Bundle, head: nn.Module) -> nn.Module:
    """The same freeze without pretrained weights: features of a random encoder."""
    return bundle.get_model(head=head, freeze=True, pretrained=False)


Way = Callable[[Bundle, nn.Module], nn.Module]
WAYS: dict[str, Way] = {
    "frozen, mode 'eval'": frozen_by_us,
    "requires_grad_(False), then train()": frozen_by_habit,
    "frozen without weights": frozen_at_random,
}


def run(
    build: Way, bundle: Bundle, task: Task, *, epochs: int, seed: int, tick: Callable[[], object]
) -> Outcome:
    """Build a model, train it on the task, and say what came of it.

    Args:
        build: one of ``WAYS``.
        bundle: of the kind that the task is for.
        task: what to train and test on.
        epochs: passes over the training examples.
        seed: of the head's initialisation and the order of batches.
        tick: called after every step.

    Raises:
        BundlesError: the bundle does not say how many features a head takes.
    """
    torch.manual_seed(seed)
    head = task.head(_features(bundle))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = build(bundle, head)
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
        shift=_shift(model, head, task),
        warned=tuple(str(warning.message) for warning in caught),
    )


def steps_of(task: Task, epochs: int) -> int:
    """Return the number of steps that :func:`run` takes."""
    return epochs * (len(task.train[1]) // task.batch)


def _features(bundle: Bundle) -> int:
    if bundle.num_features is None:
        raise BundlesError(f"{bundle.name} does not say how many features it gives: take another bundle.")
    return bundle.num_features


def _train(model: nn.Module, task: Task, epochs: int, tick: Callable[[], object]) -> list[float]:
    inputs, labels = task.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    model.train()
    steps = []
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(labels)), task.batch)[: len(labels) // task.batch]:
            start = time.perf_counter()
            loss = task.loss(model(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps.append(time.perf_counter() - start)
            tick()
    return steps


@torch.no_grad()
def _accuracy(model: nn.Module, task: Task) -> float:
    inputs, labels = task.test
    model.eval()
    guesses = torch.cat([model(batch).argmax(1) for batch in torch.split(inputs, task.batch)])
    return (guesses == labels).float().mean().item()


@torch.no_grad()
def _shift(model: nn.Module, head: nn.Module, task: Task) -> float:
    features: list[torch.Tensor] = []
    watch = head.register_forward_pre_hook(lambda _, inputs: features.append(torch.cat(list(inputs[0]))))
    for training in (True, False):
        model.train(training)
        model(task.test[0][: task.batch])
    watch.remove()
    in_train, in_eval = features
    return float((in_train - in_eval).norm() / in_eval.norm())
