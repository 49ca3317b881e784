"""Lend a model to a measurement and get it back bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bundles.freezing.apply import capture, reinstate, undo


@contextmanager
def untouched(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Thaw a model and put every module in ``eval()`` within a ``with`` block, then undo all of it.

    Afterwards, also on an exception: plans, ``requires_grad``, ``.grad``, training flags and requested
    modes, buffers, and the random states of ``torch`` and ``random`` are what they were, bit for bit.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> with untouched(model, training=True):
    ...     print(model[1](torch.ones(3, 2)).shape, model[1].num_batches_tracked)
    torch.Size([3, 2]) tensor(1)
    >>> model[1].num_batches_tracked
    tensor(0)
    """
    with _same_random_states(model), _same_buffers(model), _same_grads(model), _thawed(model):
        flags = [(module, module.training) for module in model.modules()]
        try:
            for module, _ in flags:
                module.training = training  # not train(), which a class may override to do more
            with _rnns_without_cudnn(model), torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for module, flag in flags:
                module.training = flag


@contextmanager
def _thawed(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    earlier = capture(model)
    try:
        undo(model)
        yield
    finally:
        reinstate(model, earlier)
        for module, flag in flags:
            module.training = flag


@contextmanager
def _same_grads(model: nn.Module) -> Iterator[None]:
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, grad in grads:
            parameter.grad = grad


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, values in buffers:
            module._buffers[name] = buffer
            if not _same_bits(buffer, values):
                with torch.no_grad():
                    buffer.copy_(values)


@contextmanager
def _same_random_states(model: nn.Module) -> Iterator[None]:
    cards = {tensor.get_device() for tensor in model.parameters() if tensor.is_cuda}
    state = random.getstate()
    with torch.random.fork_rng(devices=sorted(cards)):
        try:
            yield
        finally:
            random.setstate(state)


@contextmanager
def _rnns_without_cudnn(model: nn.Module) -> Iterator[None]:
    """Recurrent layers of cuDNN have no backward in ``eval()``; torch's own have."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent):
        yield


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))
