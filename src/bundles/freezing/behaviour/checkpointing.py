"""Gradient checkpointing over a frozen prefix: where the reentrant kind loses gradients in silence.

A reentrant checkpoint records a graph only if a tensor that goes *into* it requires grad. After a frozen
prefix none does, so the first part that trains gets no gradient, and nothing fails: a later one, outside
of any checkpoint, still gets its own. The non-reentrant kind is right.
"""

from __future__ import annotations

import functools
from collections.abc import Collection

from torch import nn

from bundles.errors import FreezeError
from bundles.freezing.behaviour.hold import held
from bundles.spec.plan import FreezePlan
from bundles.spec.table import lineage


def check_checkpointing(model: nn.Module, plan: FreezePlan) -> None:
    """Refuse a plan under which a reentrant checkpoint would lose gradients.

    Raises:
        FreezeError: it would; the message holds the line to type.
    """
    trained = {tensor.name for tensor in plan.tensors if tensor.state not in ("frozen", "fixed")}
    off = {hold.module for hold in plan.holds if hold.training is False}
    if problem := _problem(model, trained, off):
        raise FreezeError(problem)


def checkpointing_problems(model: nn.Module) -> list[str]:
    """Return a sentence where the model, as it is now, loses gradients in a reentrant checkpoint."""
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    holds = {name: held(module) for name, module in model.named_modules(remove_duplicate=False)}
    off = {name for name, hold in holds.items() if hold is not None and hold.training is False}
    problem = _problem(model, trained, off)
    return [problem] if problem else []


def _problem(model: nn.Module, trained: Collection[str], off: Collection[str]) -> str | None:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    first = next((name for name in names if name in trained), names[0] if names else "")
    if not names or first == names[0] or any(map(_marks_its_input, model.modules())):
        return None
    layer = _checkpointed(model, first.rpartition(".")[0], off)
    return layer and (
        f"The gradient checkpointing of {layer} is reentrant and all before it is frozen, so {first} would "
        f"get no gradient: switch to use_reentrant=False, for a transformers model by "
        f"model.{_verb(model)}_enable({_verb(model)}_kwargs={{'use_reentrant': False}})."
    )


def _checkpointed(model: nn.Module, owner: str, off: Collection[str]) -> str | None:
    """Return the layer around a parameter that is recomputed reentrantly; only in training mode is it."""
    layer = None
    for name in lineage(owner):
        module = model.get_submodule(name)
        if _wraps_reentrantly(module):
            return name
        layer = name if name.rpartition(".")[2].isdigit() else layer
        if layer is not None and _checkpoints_reentrantly(module) and not {name, layer} & set(off):
            return layer
    return None


def _verb(model: nn.Module) -> str:
    """How transformers calls it, by its version."""
    is_new = hasattr(model, "activation_checkpointing_enable")
    return "activation_checkpointing" if is_new else "gradient_checkpointing"


def _checkpoints_reentrantly(module: nn.Module) -> bool:
    """Whether a module of transformers, or one of its layers, does."""
    call = getattr(module, "_gradient_checkpointing_func", None)
    asked = call.keywords.get("use_reentrant", True) if isinstance(call, functools.partial) else False
    return getattr(module, "gradient_checkpointing", False) is True and asked is not False


def _wraps_reentrantly(module: nn.Module) -> bool:
    """Whether it is a ``CheckpointWrapper`` of ``torch.distributed`` of the reentrant kind."""
    return getattr(getattr(module, "checkpoint_impl", None), "name", None) == "REENTRANT"


def _marks_its_input(module: nn.Module) -> bool:
    """Whether what goes into the model is made to require grad, as ``enable_input_require_grads`` does."""
    return bool(getattr(module, "_require_grads_hooks", None) or getattr(module, "_require_grads_hook", None))
