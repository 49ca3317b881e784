"""Proof that what was frozen in a Keras model did not move."""

from __future__ import annotations

from typing import Any

import torch

from bundles.adapters.keras import hold
from bundles.adapters.keras.table import buffers_of, is_wrapper, keras_of, layers_of, variables_of
from bundles.errors import FrozenDriftError
from bundles.freezing.proof.digests import digests
from bundles.freezing.proof.snapshot import Snapshot
from bundles.freezing.proof.snapshot import snapshot as snapshot_torch


@torch.no_grad()
def snapshot(model: Any) -> Snapshot:
    """Take the digests of the frozen weights, and of the statistics that are held.

    Without a freeze of ours those are the weights that do not train.

    Raises:
        FreezeArgumentError: the model is none of Keras on torch, or not built.
    """
    keras_of(model)
    tensors = _covered(model)
    return Snapshot(digests=digests(tensors))


@torch.no_grad()
def verify_frozen(model: Any, snapshot: Snapshot) -> None:
    """Check that nothing in the snapshot moved.

    Raises:
        FrozenDriftError: names every weight that differs or is gone.
        FreezeArgumentError: as :func:`snapshot`.
    """
    keras_of(model)
    tensors = _tensors(model)
    now = digests({name: tensors[name] for name in snapshot.digests if name in tensors})
    moved = tuple(name for name, digest in snapshot.digests.items() if now.get(name) != digest)
    if moved:
        some = ", ".join(moved[:8]) + (f" and {len(moved) - 8} more" if len(moved) > 8 else "")
        raise FrozenDriftError(
            f"{len(moved)} of {len(snapshot)} frozen tensors moved: {some}; freeze with "
            f"bundles.adapters.keras.freeze(model, ...) before training.",
            moved=moved,
        )


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """Every weight and buffer by name."""
    layers = layers_of(model)
    found = {name: variable.value for name, _, variable in (*variables_of(layers), *buffers_of(layers))}
    for name, layer in layers.items():
        if is_wrapper(layer):
            dot = f"{name}." if name else ""
            found |= {dot + local: buffer for local, buffer in layer.module.named_buffers()}
    return found


def _covered(model: Any) -> dict[str, torch.Tensor]:
    layers, tensors = layers_of(model), _tensors(model)
    state = hold.state_of(model)
    names = [name for name, _, variable in variables_of(layers) if not variable.trainable]
    if state is not None:
        still = {planned.module for planned in state.plan.holds if planned.training is False}
        names += [name for name, layer, _ in buffers_of(layers) if layer in still]
    for name, layer in layers.items():
        if is_wrapper(layer):
            dot = f"{name}." if name else ""
            names += [dot + local for local in snapshot_torch(layer.module).digests]
    return {name: tensors[name] for name in dict.fromkeys(names)}
