"""A model's modules and parameters as plain data: all that planning needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effect = Literal["noise", "stats", "structure"]


@dataclass(frozen=True)
class ParameterRow:
    """One parameter, under one of its names.

    Attributes:
        name: dotted name from the model's root.
        shape: its dimensions.
        module: name of the module that owns it; empty for the root.
        trainable: whether it trained before any freeze of ours.
        tied: every name of the same parameter, this one included.
    """

    name: str
    shape: tuple[int, ...]
    module: str
    trainable: bool
    tied: tuple[str, ...]


@dataclass(frozen=True)
class ModuleRow:
    """One module.

    Attributes:
        name: dotted name from the model's root; empty for the root.
        called: whether it has a forward of its own, which a ``ModuleList`` has not.
        ordered: whether it runs its children one after another, as ``Sequential`` does.
        reads: whether its own code reads ``self.training``.
        builtin: whether it is one of torch's own classes, whose behaviour is known.
        effects: what hangs on its ``training`` flag.
        assumed: whether the effects could only be guessed.
    """

    name: str
    called: bool
    ordered: bool
    reads: bool
    builtin: bool
    effects: tuple[Effect, ...]
    assumed: bool


@dataclass(frozen=True)
class ModuleTable:
    """Modules in the order of ``named_modules()``, parameters in that of ``named_parameters()``."""

    modules: tuple[ModuleRow, ...]
    parameters: tuple[ParameterRow, ...]
