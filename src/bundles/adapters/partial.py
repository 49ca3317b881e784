"""Checkpoints of a trainer without what is frozen: left out by digest, and put back from the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bundles.assemble.built import built_of
from bundles.builders.walk import state_of
from bundles.delta.base import digests_of
from bundles.errors import BundlesError, DeltaBaseError, StateDictMismatchError
from bundles.freezing.proof.snapshot import snapshot
from bundles.spec.values import shown

KEY = "bundles"


@dataclass
class Base:
    """What a model was before it was trained.

    Attributes:
        digests: name -> digest of each tensor of the ``state_dict()``.
        pins: name of a module -> pin of the bundle that built it, as far as there is one.
    """

    digests: dict[str, str]
    pins: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Base:
        """Look at a model with the values that a fresh process gives it."""
        state = state_of(model)
        return cls(digests_of(state, state, {}), dict(_pins(model)))

    def leave_out(
        self, state: MutableMapping[str, Any], part: nn.Module, prefix: str = ""
    ) -> dict[str, dict[str, str]]:
        """Take out of a ``state_dict()`` what is frozen in a part of the model and as it was, bit for bit.

        Args:
            state: of the whole model; it is changed.
            part: what is frozen, or has frozen parts.
            prefix: what the part's names begin with in the state, ``"model."`` or nothing.

        Returns:
            What :func:`complete` needs, as JSON types.
        """
        taken = snapshot(part)
        whole = {f"{prefix}{name}": d for name, d in taken.digests.items() if name not in taken.masks}
        left = {name: d for name, d in whole.items() if name in state and self.digests.get(name) == d}
        for name in left:
            del state[name]
        return {"digests": left, "pins": self.pins}


def fill(state: MutableMapping[str, Any], model: nn.Module) -> set[str]:
    """Put into a state what it lacks of the model's, and return the names; tensors are the model's own."""
    own = state_of(model)
    absent = {name for name in own if name not in state}
    state.update((name, own[name].detach()) for name in absent)
    return absent


def check(record: Mapping[str, Any], filled: set[str], model: nn.Module) -> None:
    """Check that exactly what a checkpoint leaves out was filled in, with the values that it had.

    Raises:
        StateDictMismatchError: the checkpoint lacks other tensors.
        DeltaBaseError: a tensor of the model has not the values that it had in the run.
    """
    digests = record.get("digests", {})
    if missing := sorted(filled - digests.keys()):
        raise StateDictMismatchError(
            f"The checkpoint lacks {len(missing)} tensors that the model has and that were not left out "
            f"when it was written: {', '.join(missing[:6])}; load it into the model that was trained.",
            missing=tuple(missing),
        )
    state = state_of(model)
    names = [name for name in digests if name in state]
    found = digests_of(state, names, {})
    if moved := [name for name in names if found[name] != digests[name]]:
        pins = ", ".join(record.get("pins", {}).values())
        raise DeltaBaseError(
            f"The checkpoint leaves out {len(moved)} frozen tensors that this model has with other values: "
            f"{', '.join(moved[:6])}; build the model from {pins or 'the weights of the run'} first.",
            expected={name: digests[name] for name in moved},
            found={name: found[name] for name in moved},
        )


def complete(checkpoint: MutableMapping[str, Any], model: nn.Module) -> None:
    """Put back into a checkpoint what it leaves out, from a model with the same base.

    Trainers do it on their own where the callback is given. For what loads a checkpoint without one, as
    ``LightningModule.load_from_checkpoint``, call it in the module's ``on_load_checkpoint(checkpoint)``. A
    checkpoint that is whole is left as it is.

    Args:
        checkpoint: with ``"state_dict"``, as Lightning reads it.
        model: whose ``state_dict()`` it holds.

    Raises:
        StateDictMismatchError, DeltaBaseError: the model is not the one that was trained.
    """
    record = checkpoint.get(KEY)
    if record is None:
        return
    if not isinstance(record, Mapping) or not isinstance(record.get("digests"), Mapping):
        raise DeltaBaseError(f"{shown(record)} does not say what the checkpoint leaves out.")
    state: dict[str, torch.Tensor] = dict(checkpoint["state_dict"])
    check(record, fill(state, model), model)
    checkpoint["state_dict"] = state


def _pins(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        built = built_of(module)
        if built is not None and built.pretrained:
            try:
                yield name, built.bundle.pin()
            except BundlesError:  # made by a Python function: the digests say enough
                continue
