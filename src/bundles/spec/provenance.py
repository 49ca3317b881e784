"""Where each tensor of a model came from, carried by the modules themselves.

The record sits on the module that owns the tensor, so it follows the module into copies, pickles and
other models. It is three-valued: a source; ``None`` for a tensor known to be freshly initialised; no
entry where nothing is known, as in a user's own model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ATTRIBUTE = "_bundles_provenance"


def mark(model: Any, origins: Mapping[str, str | None]) -> None:
    """Record the origin of parameters and buffers.

    Args:
        model: a ``torch.nn.Module``.
        origins: dotted tensor name -> source, or ``None`` for freshly initialised.
    """
    by_owner: dict[str, dict[str, str | None]] = {}
    for name, origin in origins.items():
        owner, _, local = name.rpartition(".")
        by_owner.setdefault(owner, {})[local] = origin
    modules = dict(model.named_modules(remove_duplicate=False)) if by_owner else {}
    for owner, own in by_owner.items():
        state = modules[owner].__dict__
        state[_ATTRIBUTE] = {**state.get(_ATTRIBUTE, {}), **own}  # a new dict: copies may share the old


def forget(model: Any, incompatible_keys: Any = None) -> None:
    """Drop every record: after ``load_state_dict`` by hand nothing is known of the tensors.

    The signature is that of a post hook of ``load_state_dict``; after a partial load the records stay.
    """
    if incompatible_keys is None or not incompatible_keys.missing_keys:
        for module in model.modules():
            module.__dict__.pop(_ATTRIBUTE, None)


def provenance(model: Any) -> dict[str, str | None]:
    """Return the recorded origin of every tensor of the model that has one.

    >>> import torch
    >>> provenance(torch.nn.Linear(2, 1))
    {}
    """
    found: dict[str, str | None] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        for local, origin in module.__dict__.get(_ATTRIBUTE, {}).items():
            found[prefix + local] = origin
    return found
