"""Put weights into a module: everything that fits, or an error that lists everything that does not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bundles.builders.match import aliases, listed, mismatch_error, mismatches, ties, torn
from bundles.builders.walk import left_on_meta, state_of, takes_data
from bundles.errors import StateDictMismatchError
from bundles.spec.provenance import mark, provenance


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        source: where the tensors came from.
        loaded: names in the module that were filled.
        missing: names in the module, below the prefix, that the file does not have.
        unexpected: names in the file, below its prefix, that the module does not have.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        counts = (
            f"{len(self.loaded)} tensors loaded from {self.source}, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected"
        )
        missing = f"; missing in the file: {listed(self.missing)}" if self.missing else ""
        unexpected = f"; left in the file: {listed(self.unexpected)}" if self.unexpected else ""
        return counts + missing + unexpected


def assign(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: str,
    *,
    owned: Collection[str] = (),
    fresh: Collection[str] = (),
) -> LoadReport:
    """Make a model's parameters and buffers be these tensors, without copying them.

    Args:
        model: its parameters may be empty or on the meta device.
        tensors: by the model's names; the model keeps them.
        source: recorded as their provenance.
        owned: names that are copied all the same: those that a freeze leaves to train. A mapped tensor
            that trains is copied page by page at its first step, which takes longer and is as good
            afterwards; so where no freeze says what will train, nothing is owned.
        fresh: names that are left as they are: a new head.

    Raises:
        StateDictMismatchError: names or shapes differ, or something would be left on the meta device;
            the model is not changed in the first case.
    """
    state = {name: value for name, value in state_of(model).items() if name not in fresh}
    tied = ties(state)
    tensors = {**{name: tensors[other] for name, other in aliases(tied, tensors)}, **tensors}
    if wrong := [*mismatches(state, tensors), *torn(tied, tensors)]:
        raise mismatch_error(source, _less(state, tensors), _less(tensors, state), wrong)
    ready = {name: _fitted(tensor, state.get(name), name in owned) for name, tensor in tensors.items()}
    if ready.keys() == state.keys() and takes_data(model, state.values()):
        # So that each parameter stays itself, for its ties and for whoever else holds it. Backwards, so that
        # of a tie that the file has twice the first name counts, as it does for torch.
        for name in reversed(state):
            state[name].data = ready[name]
    else:
        _load_as_torch_does(model, state, ready, tied, source)
    if left := sorted(left_on_meta(model)):
        raise mismatch_error(source, [], [], [], left)
    mark(model, dict.fromkeys(state, source))
    return LoadReport(source, tuple(state), (), ())


def _load_as_torch_does(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    ready: Mapping[str, torch.Tensor],
    tied: list[list[str]],
    source: str,
) -> None:
    """Load through the modules' own code, which may rename older keys or fill in what old files lacked."""
    found = model.load_state_dict(ready, strict=False, assign=True)
    missing = [name for name in found.missing_keys if name in state]
    if missing or found.unexpected_keys:
        for name, old in state.items():
            _set(model, name, old)
        raise mismatch_error(source, sorted(missing), sorted(found.unexpected_keys), [])
    for first, *others in tied:
        for name in others:
            _set(model, name, _get(model, first))


@dataclass(frozen=True)
class Fit:
    """What would go where in somebody's own model; nothing is changed yet.

    Attributes:
        report: the names, by the model.
        tensors: what is to be copied, by the model's names.
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
        model: somebody's own, initialised.
        tensors: by the file's names.
        source: where they come from.
        prefix: where in the model, as ``"encoder."``.
        source_prefix: where in the file.

    Raises:
        StateDictMismatchError: shapes differ, or no name fits.
    """
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
    empty = [name for name in fitting if state[name].is_meta]
    if mismatched or empty or not fitting:
        raise mismatch_error(source, missing, unexpected, mismatched, empty)
    return Fit(LoadReport(source, tuple(fitting), missing, unexpected), fitting)


def _check_prefix(what: str, argument: str, prefix: str, names: Collection[str]) -> None:
    if not any(name.startswith(prefix) for name in names):
        parts = dict.fromkeys(name.partition(".")[0] for name in names)
        raise StateDictMismatchError(
            f"The {what} has no part {argument}={prefix!r}: its parts are {listed(parts)}."
        )


def copy_into(model: nn.Module, fitted: Fit) -> None:
    """Copy what fits over the model's own tensors, in place: optimizers keep what they hold."""
    state, report = state_of(model), fitted.report
    with torch.no_grad():
        for name, tensor in fitted.tensors.items():
            state[name].copy_(tensor)
    known = provenance(model)  # what another file gave stays what it is
    fresh = {name: None for name in report.missing if name not in known}
    mark(model, {**fresh, **dict.fromkeys(report.loaded, report.source)})


def _dotted(prefix: str) -> str:
    """Return a prefix that ends in a dot, or is empty."""
    return prefix if not prefix or prefix.endswith(".") else f"{prefix}."


def _fitted(tensor: torch.Tensor, old: torch.Tensor | None, copy: bool) -> torch.Tensor:
    """The tensor as the model wants it: a file in float16 must not turn a float32 model into float16."""
    if old is None:
        return tensor
    device = tensor.device if old.is_meta else old.device
    if copy or tensor.dtype != old.dtype or tensor.device != device:
        return tensor.to(device=device, dtype=old.dtype, copy=copy)
    return tensor


def _less(names: Collection[str], others: Collection[str]) -> list[str]:
    return sorted(name for name in names if name not in others)


def _get(model: nn.Module, name: str) -> torch.Tensor:
    owner, _, local = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(owner), local)
    return found


def _set(model: nn.Module, name: str, value: torch.Tensor) -> None:
    owner, _, local = name.rpartition(".")
    setattr(model.get_submodule(owner), local, value)
