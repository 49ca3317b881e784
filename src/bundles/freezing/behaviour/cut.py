"""Cut the gradient: call a module so that no graph is recorded, and say so where that loses gradient."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bundles.errors import BundlesWarning, warn

CALLED_WITH_GRAD = "_bundles_called_with_grad"
_WAYS_IN = re.compile(r"forward(_\w+)?|extract(_\w+)?|encode(_\w+)?|get_\w+_features")


def ways_in(cls: type[nn.Module]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the methods, with their names, by which a module of that class is called.

    These are ``forward`` and what is called like ``forward_features``, ``extract_features``,
    ``encode_image`` or ``get_text_features``.
    """
    for name in filter(_WAYS_IN.fullmatch, dir(cls)):
        bound_otherwise = isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod)
        if callable(method := getattr(cls, name)) and not bound_otherwise:
            yield name, method


def call_without_graph(module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call under ``no_grad``, which unlike ``inference_mode`` gives tensors that a head may train on."""
    if not torch.compiler.is_compiling() and torch.is_grad_enabled():
        _warn_of_lost_gradient(module, *args, *kwargs.values())
    with torch.no_grad():
        return call(*args, **kwargs)


def _warn_of_lost_gradient(module: nn.Module, *inputs: Any) -> None:
    """Warn, once after each freeze, of an input that waits for a gradient that will not come."""
    if CALLED_WITH_GRAD in module.__dict__:
        return
    if any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
        module.__dict__[CALLED_WITH_GRAD] = True
        warn(
            f"The input of a frozen {type(module).__name__} requires grad, and mode 'features' records no "
            f"graph in it, so what comes before gets no gradient: freeze with mode 'eval', or detach the "
            f"input.",
            BundlesWarning,
        )
