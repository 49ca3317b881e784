"""Proof that what was frozen did not move: by digest of every value, or by a sample after each step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from bundles.errors import FreezeArgumentError, FrozenDriftError, PinError
from bundles.freezing.apply import refresh_plans
from bundles.freezing.derive import unwrap
from bundles.freezing.proof.coverage import (
    frozen_names,
    frozen_positions,
    frozen_values,
    held_buffers,
    local_values,
    masks_of,
    tensors_of,
)
from bundles.freezing.proof.digests import digests
from bundles.freezing.proof.samples import differing, fetch, largest_difference, take
from bundles.spec.masks import Mask


@dataclass(frozen=True)
class Snapshot:
    """What every tensor that was frozen or held was like when it was taken.

    Attributes:
        digests: dotted name -> digest of dtype, shape and every value.
        frozen: names of the parameters among them that were frozen whole.
        masks: dotted name -> mask of the parameters of which single elements were frozen; only those count.
        samples: dotted name -> up to 64 values; empty in a snapshot that was read from JSON.
    """

    digests: dict[str, str]
    frozen: frozenset[str] = frozenset()
    masks: dict[str, Mask] = field(default_factory=dict)
    samples: dict[str, torch.Tensor] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.digests)

    def __repr__(self) -> str:
        return f"<Snapshot of {len(self)} tensors>"

    def moved(self, model: nn.Module, *, quick: bool = False) -> tuple[str, ...]:
        """Return the names whose tensors differ now, or are gone; ``quick`` looks at the samples only."""
        return self._moved(tensors_of(unwrap(model)), quick)

    @torch.no_grad()
    def amounts(self, model: nn.Module, names: Iterable[str]) -> dict[str, float]:
        """Return how far the sampled values of tensors are from what they were.

        The largest absolute difference; ``inf`` where one of them is NaN, or where the tensor is gone or
        has another size. Tensors of which the snapshot has no sample are left out.
        """
        sampled = [name for name in names if name in self.samples]
        now = fetch(self._sampled(self._present(tensors_of(unwrap(model)), sampled)))
        return {
            name: largest_difference(self.samples[name], now[name]) if name in now else math.inf
            for name in sampled
        }

    @torch.no_grad()
    def _moved(self, tensors: Mapping[str, torch.Tensor], quick: bool) -> tuple[str, ...]:
        present = self._present(tensors, self.digests)
        if quick:
            now = self._sampled(present)
            same = now.keys() - differing(self.samples, now)
        else:
            now = {name: frozen_values(tensor, self.masks.get(name)) for name, tensor in present.items()}
            same = {name for name, digest in digests(now).items() if digest == self.digests[name]}
        return tuple(name for name in self.digests if name not in same)

    def _present(self, tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
        """What is still there, and of the shape of its mask."""
        found = {name: tensors[name] for name in names if name in tensors}
        for name, mask in self.masks.items():
            if name in found and tuple(found[name].shape) != mask.shape:
                del found[name]
        return found

    def _sampled(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name in self.masks.keys() & tensors.keys() - self._positions.keys():
            self._positions[name] = take(frozen_positions(tensors[name], self.masks[name])).clone()
        return {name: take(local_values(t), self._positions.get(name)) for name, t in tensors.items()}

    @cached_property
    def _positions(self) -> dict[str, torch.Tensor]:
        """Where the sampled ones of masked elements are, as far as that was asked for."""
        return {}

    def to_json(self) -> str:
        """Return the digests as JSON text, without the samples.

        >>> import bundles, torch
        >>> taken = bundles.snapshot(bundles.freeze(torch.nn.Linear(2, 2), mode="features"))
        >>> Snapshot.from_json(taken.to_json()) == taken
        True
        """
        masks = {name: {"shape": mask.shape, "bits": mask.to_text()} for name, mask in self.masks.items()}
        return json.dumps({"digests": self.digests, "frozen": sorted(self.frozen), "masks": masks}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Snapshot:
        """Read what :meth:`to_json` wrote.

        Raises:
            PinError: the text is no snapshot.
        """
        try:
            data = json.loads(text)
            masks = {
                name: Mask.from_text(mask["shape"], mask["bits"]) for name, mask in data["masks"].items()
            }
            return cls(dict(data["digests"]), frozenset(data["frozen"]), masks)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PinError(f"The text is not a snapshot written by to_json(): {error}.") from error


@torch.no_grad()
def snapshot(model: nn.Module) -> Snapshot:
    """Take the digests of everything that is frozen or held in a model, and a sample of its values.

    On a model without a plan of ours that is every parameter that does not require grad, and the
    buffers of modules that have no other. Of a tensor that is sharded over ranks (a DTensor, as under
    FSDP2) it is this rank's part: each rank takes and verifies its own.

    Raises:
        FreezeArgumentError: a frozen tensor is on the meta device.

    >>> import torch, bundles
    >>> model = bundles.freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)), "encoder")
    >>> sorted(snapshot(model).digests)
    ['0.bias', '0.weight']
    """
    inner = unwrap(model)
    refresh_plans(inner)
    tensors, frozen, masks = tensors_of(inner), frozen_names(inner), masks_of(inner)
    covered = [name for name in tensors if name in frozen or name in masks]
    covered += held_buffers(inner, frozen)
    values = {name: frozen_values(tensors[name], masks.get(name)) for name in covered}
    return Snapshot(
        digests=digests(values),
        frozen=frozen.intersection(covered),
        masks=masks,
        samples=fetch({name: take(tensor) for name, tensor in values.items()}),
    )


def verify_frozen(model: nn.Module, snapshot: Snapshot, *, quick: bool = False) -> None:
    """Check that nothing in the snapshot moved; by value, so a write that changes nothing is none.

    The full check reads every byte: once an epoch. The quick one is for every step: it compares up to
    64 values of each tensor, which sees what an optimizer, a moving average or a batch does to a tensor,
    but not a write to a few elements; and it refuses frozen parameters that require grad or have a
    ``.grad``, which the next step would move.

    Args:
        model: the model of which the snapshot was taken, or a copy.
        snapshot: what :func:`snapshot` returned.
        quick: whether a sample is enough.

    Raises:
        FrozenDriftError: names every parameter and buffer that differs, and how far it moved.
        FreezeArgumentError: that is no snapshot, or ``quick`` is asked of one without samples.

    >>> import torch, bundles
    >>> model = bundles.freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)), "encoder")
    >>> verify_frozen(model, snapshot(model))
    """
    _check(snapshot, quick)
    tensors = tensors_of(unwrap(model))
    if len(snapshot) and tensors.keys().isdisjoint(snapshot.digests):
        raise FrozenDriftError(
            "The snapshot is of another model: none of its tensors is in this one.",
            moved=tuple(snapshot.digests),
        )
    if moved := snapshot._moved(tensors, quick):
        raise _drift(snapshot, moved, snapshot.amounts(model, moved))
    if quick and (thawed := tuple(name for name in snapshot.frozen if _can_move(tensors[name]))):
        raise FrozenDriftError(
            f"{len(thawed)} frozen parameters require grad or have a .grad, so that the next step would move "
            f"them: {_some(thawed)}; call bundles.freeze(model, ...) again.",
            thawed=thawed,
        )


def _check(snapshot: Snapshot, quick: bool) -> None:
    if not isinstance(snapshot, Snapshot):
        raise FreezeArgumentError(
            f"A {type(snapshot).__name__} is no Snapshot: verify_frozen(model, snapshot)."
        )
    if quick and snapshot.digests and not snapshot.samples:
        raise FreezeArgumentError(
            "The snapshot was read from JSON and holds no samples, so quick=True has nothing to compare: "
            "call verify_frozen(model, snapshot)."
        )


def _can_move(parameter: torch.Tensor) -> bool:
    return parameter.requires_grad or parameter.grad is not None


def _drift(snapshot: Snapshot, moved: tuple[str, ...], amounts: Mapping[str, float]) -> FrozenDriftError:
    most = max(amounts, key=lambda name: amounts[name], default=None)
    how_far = f" ({most} by {amounts[most]:.3g})" if most is not None and amounts[most] else ""
    return FrozenDriftError(
        f"{len(moved)} of {len(snapshot)} frozen tensors moved: {_some(moved)}{how_far}; freeze with "
        f"bundles.freeze(model, ...) before training, and see bundles.freeze_report(model).",
        moved=moved,
        amounts=dict(amounts),
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
