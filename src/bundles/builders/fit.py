"""Fit the tensors of a file into somebody's own model, sharded or not, and copy them there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bundles.builders.load import LoadReport
from bundles.builders.match import aliases, listed, mismatch_error, mismatches, ties, torn
from bundles.builders.shards import is_sharded, mesh_device, refuse_flat, shard
from bundles.builders.walk import left_on_meta, set_tensor, state_of
from bundles.errors import StateDictMismatchError
from bundles.spec.provenance import mark, provenance


@dataclass(frozen=True)
class Fit:
    """What would go where in somebody's own model; nothing is changed yet.

    Attributes:
        report: the names, by the model.
        tensors: what is to be copied, by the model's names; whole, also where the model is sharded.
    """

    report: LoadReport
    tensors: Mapping[str, torch.Tensor]


def fit(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: str,
    *,
    prefix: str = "",
    source_prefix: str = "",
) -> Fit:
    """Match the tensors below one prefix of a file to those below another of a model.

    Args:
        model: somebody's own, initialised or on the meta device.
        tensors: by the file's names.
        source: where they come from.
        prefix: where in the model, as ``"encoder."``.
        source_prefix: where in the file.

    Raises:
        StateDictMismatchError: shapes differ, no name fits, or something below the prefix would be left
            on the meta device.
        BuildError: the model is wrapped in FSDP1.
    """
    refuse_flat(model)
    prefix, source_prefix = _dotted(prefix), _dotted(source_prefix)
    _check_prefix("model", "prefix", prefix, model.state_dict())
    _check_prefix("file", "source_prefix", source_prefix, tensors)
    state = {name: tensor for name, tensor in state_of(model).items() if name.startswith(prefix)}
    named = {prefix + n.removeprefix(source_prefix): n for n in tensors if n.startswith(source_prefix)}
    offered = {name: tensors[original] for name, original in named.items()}
    offered = {**{name: offered[other] for name, other in aliases(ties(state), offered)}, **offered}
    fitting = {name: offered[name] for name in state if name in offered}
    missing = tuple(name for name in state if name not in offered)
    unexpected = tuple(original for name, original in named.items() if name not in state)
    mismatched = [*mismatches(state, fitting), *torn(ties(state), fitting)]
    empty = [name for name in _left(model, {id(state[n]) for n in fitting}) if name.startswith(prefix)]
    if mismatched or empty or not fitting:
        missing = tuple(name for name in missing if name not in empty)
        raise mismatch_error(source, missing, unexpected, mismatched, empty)
    return Fit(LoadReport(source, tuple(fitting), missing, unexpected), fitting)


def copy_into(model: nn.Module, fitted: Fit, *, owned: Collection[str] = ()) -> None:
    """Copy what fits over the model's own tensors, in place: optimizers keep what they hold.

    What is on the meta device has no place: it becomes the file's tensor, or this rank's part of it.

    Args:
        model: the one that was fitted.
        fitted: what goes where.
        owned: names that get memory of their own although they were on the meta device: what will train.
    """
    state, report = state_of(model), fitted.report
    device, made = mesh_device(model), dict[int, torch.Tensor]()
    for name, tensor in fitted.tensors.items():
        old = state[name]
        if not old.is_meta:
            _overwrite(old, tensor)
            continue
        if id(old) not in made:  # tied ones stay one
            made[id(old)] = _materialised(old, tensor, device, name in owned)
        set_tensor(model, name, made[id(old)])
    known = provenance(model)  # what another file gave stays what it is
    fresh = {name: None for name in report.missing if name not in known}
    mark(model, {**fresh, **dict.fromkeys(report.loaded, report.source)})


def _overwrite(old: torch.Tensor, tensor: torch.Tensor) -> None:
    with torch.no_grad():
        old.copy_(shard(tensor, old) if is_sharded(old) else tensor)


def _materialised(old: torch.Tensor, tensor: torch.Tensor, device: str, copy: bool) -> torch.Tensor:
    """Return what takes the place of a tensor on the meta device."""
    if is_sharded(old):
        made: torch.Tensor = shard(tensor, old, copy=copy)
    else:
        made = tensor.to(device=device, dtype=old.dtype, copy=copy)
    return nn.Parameter(made, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else made


def _left(model: nn.Module, filled: Collection[int]) -> Iterator[str]:
    """Yield names on the meta device that are none of the tensors with these ids."""
    for name in left_on_meta(model):
        owner, _, local = name.rpartition(".")
        if id(getattr(model.get_submodule(owner), local)) not in filled:
            yield name


def _check_prefix(what: str, argument: str, prefix: str, names: Collection[str]) -> None:
    if not any(name.startswith(prefix) for name in names):
        parts = dict.fromkeys(name.partition(".")[0] for name in names)
        raise StateDictMismatchError(
            f"The {what} has no part {argument}={prefix!r}: its parts are {listed(parts)}."
        )


def _dotted(prefix: str) -> str:
    """Return a prefix that ends in a dot, or is empty."""
    return prefix if not prefix or prefix.endswith(".") else f"{prefix}."
