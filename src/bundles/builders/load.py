"""Put weights into a module: everything that fits, or an error that lists everything that does not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bundles.builders.match import aliases, listed, mismatch_error, mismatches, ties, torn
from bundles.builders.walk import left_on_meta, set_tensor, state_of, takes_data
from bundles.spec.provenance import mark


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
    lowered: Mapping[str, torch.dtype] | None = None,
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
        lowered: names that take another dtype than the model's; where the file has them in it, they are
            not copied.

    Raises:
        StateDictMismatchError: names or shapes differ, or something would be left on the meta device;
            the model is not changed in the first case.
    """
    state = {name: value for name, value in state_of(model).items() if name not in fresh}
    tied = ties(state)
    tensors = {**{name: tensors[other] for name, other in aliases(tied, tensors)}, **tensors}
    if wrong := [*mismatches(state, tensors), *torn(tied, tensors)]:
        raise mismatch_error(source, _less(state, tensors), _less(tensors, state), wrong)
    dtypes = lowered or {}
    ready = {
        name: _fitted(tensor, state.get(name), name in owned, dtypes.get(name))
        for name, tensor in tensors.items()
    }
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
            set_tensor(model, name, old)
        raise mismatch_error(source, sorted(missing), sorted(found.unexpected_keys), [])
    for first, *others in tied:
        for name in others:
            set_tensor(model, name, _get(model, first))


def _fitted(
    tensor: torch.Tensor, old: torch.Tensor | None, copy: bool, dtype: torch.dtype | None
) -> torch.Tensor:
    """The tensor as the model wants it: a file in float16 must not turn a float32 model into float16."""
    if old is None:
        return tensor
    device = tensor.device if old.is_meta else old.device
    dtype = dtype or old.dtype
    if copy or tensor.dtype != dtype or tensor.device != device:
        return tensor.to(device=device, dtype=dtype, copy=copy)
    return tensor


def _less(names: Collection[str], others: Collection[str]) -> list[str]:
    return sorted(name for name in names if name not in others)


def _get(model: nn.Module, name: str) -> torch.Tensor:
    owner, _, local = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(owner), local)
    return found
