"""Models under FSDP2: other classes, and parameters that are not always in their places."""

from __future__ import annotations

import gc
import sys
from typing import Any

from torch import nn


def settle(model: nn.Module) -> None:
    """Put the shards back in their places, where a forward without a backward left whole parameters.

    Those are passing copies: a flag written on them is lost, and so is what is read off them.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # where nobody imported it, nothing is sharded
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def show_shards() -> None:
    """Do as :func:`settle` for every sharded model of this process, whoever has it.

    A parameter in its whole form does not know its shard and torch lists sharded models nowhere in public,
    so the garbage collector is asked: some 0.1 s, once for an optimizer.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for found in gc.get_objects() if fsdp is not None else ():
        if issubclass(type(found), fsdp.FSDPModule):
            found.reshard()


def class_below(cls: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class on which ``fully_shard`` made this one, or ``None`` if it did not make it."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not issubclass(cls.__bases__[0], fsdp.FSDPModule):
        return None
    below: type[nn.Module] = cls.__bases__[-1]
    return below
