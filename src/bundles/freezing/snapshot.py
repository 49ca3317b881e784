"""Proof that what was frozen did not move: digests of values, parameters and buffers alike."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bundles.errors import FreezeArgumentError, FrozenDriftError
from bundles.freezing.apply import applied_plans
from bundles.freezing.derive import layer_groups, unwrap
from bundles.freezing.describe import describe
from bundles.freezing.hold import held
from bundles.spec.resolve import parts_of


@dataclass(frozen=True)
class Snapshot:
    """Digests of every tensor that was frozen or held when it was taken.

    Attributes:
        digests: dotted name -> sha256 over dtype, shape and bytes.
    """

    digests: dict[str, str]

    def __len__(self) -> int:
        return len(self.digests)

    def __repr__(self) -> str:
        return f"<Snapshot of {len(self)} tensors>"

    def moved(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names whose tensors differ now, or are gone."""
        tensors = _tensors(unwrap(model))
        return tuple(
            name
            for name, digest in self.digests.items()
            if name not in tensors or tensor_digest(tensors[name]) != digest
        )


def snapshot(model: nn.Module) -> Snapshot:
    """Take the digests of everything that is frozen or held in a model.

    On a model without a plan of ours that is every parameter that does not require grad, and the
    buffers of modules that have no other.

    >>> import torch, bundles
    >>> model = bundles.freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)), "encoder")
    >>> sorted(snapshot(model).digests)
    ['0.bias', '0.weight']
    """
    inner = unwrap(model)
    tensors = _tensors(inner)
    return Snapshot({name: tensor_digest(tensors[name]) for name in _covered(inner)})


def verify_frozen(model: nn.Module, snapshot: Snapshot) -> None:
    """Check that nothing in the snapshot moved; by value, so a write that changes nothing is none.

    Raises:
        FrozenDriftError: names every parameter and buffer that differs.

    >>> import torch, bundles
    >>> model = bundles.freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)), "encoder")
    >>> verify_frozen(model, snapshot(model))
    """
    if not isinstance(snapshot, Snapshot):
        raise FreezeArgumentError(
            f"A {type(snapshot).__name__} is no Snapshot: verify_frozen(model, snapshot)."
        )
    if len(snapshot) and _tensors(unwrap(model)).keys().isdisjoint(snapshot.digests):
        raise FrozenDriftError(
            "The snapshot is of another model: none of its tensors is in this one.",
            moved=tuple(snapshot.digests),
        )
    if moved := snapshot.moved(model):
        shown = ", ".join(moved[:8]) + (f" and {len(moved) - 8} more" if len(moved) > 8 else "")
        raise FrozenDriftError(
            f"{len(moved)} of {len(snapshot)} frozen tensors moved: {shown}; freeze with "
            f"bundles.freeze(model, ...) before training, and see bundles.freeze_report(model).",
            moved=moved,
        )


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return the sha256 of a tensor's dtype, shape and bytes."""
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    if size := values.numel() * values.element_size():
        digest.update((ctypes.c_char * size).from_address(values.data_ptr()))
    return digest.hexdigest()


def _covered(model: nn.Module) -> Iterator[str]:
    plans = list(applied_plans(model))
    table = describe(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    frozen = {f"{prefix}.{name}".lstrip(".") for prefix, _, plan in plans for name in plan.frozen}
    if not plans:
        frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    yield from (name for name in parameters if name in frozen)
    follows = any(plan.mode.stats == "follow" for _, _, plan in plans)
    parts = parts_of(table, frozenset(frozen), layer_groups(model))
    for row in table.modules:
        module = modules[row.name]
        covered = parts[row.name] in ("frozen", "presumed") or _is_held_still(module)
        if covered and not (follows and "stats" in row.effects):
            yield from (f"{row.name}.{name}".lstrip(".") for name in _own_buffers(module))


def _is_held_still(module: nn.Module) -> bool:
    what = held(module)
    return what is not None and what.training is False


def _own_buffers(module: nn.Module) -> Iterator[str]:
    return (name for name, buffer in module._buffers.items() if buffer is not None)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    buffers: dict[str, torch.Tensor] = dict(model.named_buffers(remove_duplicate=False))
    return buffers | dict(model.named_parameters(remove_duplicate=False))
