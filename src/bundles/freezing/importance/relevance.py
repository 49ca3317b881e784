"""Layer-wise relevance propagation, per unit, by zennit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from bundles.errors import FreezeArgumentError, MissingDependencyError
from bundles.freezing.importance.probe import Probe, pair


def unit_relevance(probe: Probe) -> dict[str, Tensor]:
    """Return parameter name -> mean over examples of each unit's absolute relevance, shape ``(units,)``.

    A unit is an output of a linear layer or a channel of a convolution or batch norm; its relevance is
    summed over positions. Several parameters of a layer get the same.

    Raises:
        MissingDependencyError: zennit is not installed.
        FreezeArgumentError: the model has no such layer that the output depends on.
    """
    found: dict[nn.Module, Tensor] = {}
    count = 0
    with _rules()().context(probe.model), _listening(probe.model, found):
        for batch in probe.batches():
            outputs = (probe.loss or target_outputs)(probe.model, batch)
            torch.autograd.grad(outputs, list(probe.parameters.values()), allow_unused=True)
            count += _examples(batch)
    scores = {
        f"{name}.{local}".lstrip("."): found[module] / count
        for name, module in probe.model.named_modules()
        if module in found
        for local in module._parameters
    }
    scores = {name: values for name, values in scores.items() if name in probe.parameters}
    if not scores:
        raise FreezeArgumentError(
            "method='lrp' found no linear, convolutional or batch-norm layer that the output depends on: "
            "take method='fisher' for this model."
        )
    return scores


def target_outputs(model: nn.Module, batch: Any) -> Tensor:
    """Return the sum of each example's output for its target class, which is what gets explained."""
    inputs, targets = pair(batch)
    outputs = model(_listened(inputs))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
        raise FreezeArgumentError(
            "method='lrp' explains outputs of shape (examples, classes) at targets of shape (examples,): for "
            "another model give loss=lambda model, batch: ..., the sum of the outputs to explain."
        )
    return outputs.gather(1, targets[:, None]).sum()


def _listened(inputs: Any) -> Any:
    """Let relevance reach the first layer, also where nothing before it trains."""
    floats = isinstance(inputs, Tensor) and inputs.is_floating_point()
    return inputs.detach().requires_grad_() if floats else inputs


def _examples(batch: Any) -> int:
    return next(leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)


def _rules() -> Callable[[], Any]:
    try:
        rules: Callable[[], Any] = import_module("zennit.composites").EpsilonPlus
    except ImportError as error:
        raise MissingDependencyError(
            f"method='lrp' needs zennit, which cannot be imported ({error}): type `pip install zennit`."
        ) from error
    return rules


@contextmanager
def _listening(model: nn.Module, found: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Add up, per unit, the relevance that arrives at the output of each layer that has units."""

    def listen(module: nn.Module, _: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(add, module))  # type: ignore[no-untyped-call]

    def add(module: nn.Module, relevance: Tensor) -> None:
        channels = relevance.movedim(-1, 1) if isinstance(module, nn.Linear) else relevance
        units = channels.flatten(2).sum(2) if channels.ndim > 2 else channels
        found[module] = found.get(module, torch.zeros_like(units[0])) + units.abs().sum(0)

    with ExitStack() as stack:
        for module in model.modules():
            if _has_units(module):
                stack.callback(module.register_forward_hook(listen).remove)
        yield


def _has_units(module: nn.Module) -> bool:
    is_conv = isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
    return is_conv or isinstance(module, nn.Linear | _BatchNorm)
