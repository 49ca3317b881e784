"""What ``DistributedDataParallel`` cannot follow is refused before it goes wrong.

It decides at construction which gradients it averages. A parameter thawed later would train on each
process alone, without an error; one frozen later fails in the next iteration, unless it was told to
find unused parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel

from bundles.errors import FreezeArgumentError
from bundles.freezing.derive import unwrap
from bundles.spec.plan import FreezePlan

_MARK = "bundles"


def guard(model: nn.Module, *, frozen: Iterable[str] = (), trained: Iterable[str] = ()) -> None:
    """Refuse what the DDP wrap around a model could not follow; without a wrap, nothing is refused.

    Args:
        model: perhaps wrapped.
        frozen: names of parameters that will be frozen, in the model inside the wrap.
        trained: names of those that will train.

    Raises:
        FreezeArgumentError: one of them cannot be.
    """
    if (wrap := find_wrap(model)) is None:
        return
    parameters = dict(unwrap(wrap).named_parameters(remove_duplicate=False))
    ours = {id(parameter) for parameter in wrap._module_parameters}  # without those that DDP shall ignore
    averaged = {
        name: _is_averaged(parameters[name]) for name in (*frozen, *trained) if id(parameters[name]) in ours
    }
    _refuse_thawing([name for name in trained if not averaged.get(name, True)])
    if not wrap.find_unused_parameters or wrap.static_graph:
        _refuse_freezing([name for name in frozen if averaged.get(name, False)])


def guard_plan(model: nn.Module, plan: FreezePlan) -> None:
    """Refuse a plan that the DDP wrap around a model could not follow, as :func:`guard` does."""
    guard(model, frozen=plan.frozen, trained=plan.trained)


def find_wrap(model: nn.Module) -> DistributedDataParallel | None:
    """Return the DDP wrap around a model, also inside ``torch.compile``; ``None`` if there is none."""
    while not isinstance(model, DistributedDataParallel):
        inner = model._modules.get("_orig_mod")
        if inner is None:
            return None
        model = inner
    return model


def _is_averaged(parameter: nn.Parameter) -> bool:
    """Whether DDP averages a parameter's gradient.

    It has no list of them, but keeps each one's node of the graph alive: a mark on the node lasts.
    """
    requires_grad = parameter.requires_grad
    parameter.requires_grad_()
    _metadata(parameter)[_MARK] = True
    averaged = _metadata(parameter).pop(_MARK, False)
    parameter.requires_grad_(requires_grad)
    return averaged


def _metadata(parameter: nn.Parameter) -> dict[str, bool]:
    node: Any = get_gradient_edge(parameter).node
    metadata: dict[str, bool] = node.metadata
    return metadata


def _refuse_thawing(names: list[str]) -> None:
    if names:
        raise FreezeArgumentError(
            f"DistributedDataParallel was built while {_few(names)} did not train, so each process would "
            f"train them alone and the copies would differ: wrap a model in which everything that will ever "
            f"train does, with DistributedDataParallel(model, find_unused_parameters=True), and freeze it "
            f"then; or unfreeze the model inside and wrap it again."
        )


def _refuse_freezing(names: list[str]) -> None:
    if names:
        raise FreezeArgumentError(
            f"DistributedDataParallel waits for gradients of {_few(names)} and would fail in the next "
            f"iteration: freeze before wrapping, or wrap with find_unused_parameters=True and without "
            f"static_graph=True."
        )


def _few(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
