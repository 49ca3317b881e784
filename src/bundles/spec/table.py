"""A model's modules and parameters as plain data: all that planning needs to know of it."""

from __future__ import annotations

from collections.abc import Iterator
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
class Knob:
    """An attribute of a module that switches off one of the things its ``training`` flag governs.

    Attributes:
        name: of the attribute.
        effect: what it governs, all of it; ``"graph"``: that its input is marked as requiring grad;
            ``"fused"``: that it reads its children's weights instead of calling them.
        off: the value at which that is off.
    """

    name: str
    effect: Effect | Literal["graph", "fused"]
    off: float | bool


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
        knobs: attributes that govern some of its effects beside the flag.
        flows_in_training: whether gradient passes through only while the flag is ``True``, as in
            cuDNN's RNNs.
    """

    name: str
    called: bool
    ordered: bool
    reads: bool
    builtin: bool
    effects: tuple[Effect, ...]
    assumed: bool
    knobs: tuple[Knob, ...] = ()
    flows_in_training: bool = False


@dataclass(frozen=True)
class ModuleTable:
    """Modules in the order of ``named_modules()``, parameters in that of ``named_parameters()``."""

    modules: tuple[ModuleRow, ...]
    parameters: tuple[ParameterRow, ...]


def lineage(name: str) -> Iterator[str]:
    """Yield a module's name and those of the modules around it.

    >>> list(lineage("a.b"))
    ['a.b', 'a', '']
    """
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
