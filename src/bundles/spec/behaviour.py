"""What a freeze mode comes to in one module: the value of its flag, and what is held beside the flag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bundles.spec.mode import FreezeMode
from bundles.spec.table import ModuleRow

Part = Literal["frozen", "presumed", "mixed", "free"]


@dataclass(frozen=True)
class Behaviour:
    """How one module is held.

    Attributes:
        training: the value of its ``training`` flag; ``None`` follows ``train()``.
        knobs: attributes that are held beside the flag, with their values.
        expressible: whether that says what the mode asks for.
    """

    training: bool | None
    knobs: tuple[tuple[str, float | bool], ...] = ()
    expressible: bool = True


def behaviour_of(row: ModuleRow, part: Part, mode: FreezeMode) -> Behaviour:
    """Return how a module of that part of the model is held.

    One flag governs all that hangs on it. Where that must differ, or where gradient flows only while
    the flag is ``True`` (cuDNN's RNNs), what has a knob of its own is switched off by the knob.
    """
    if part == "free" or (part == "mixed" and not row.reads):
        return Behaviour(None)
    always = tuple((knob.name, knob.off) for knob in row.knobs if (knob.effect, part) in _ALWAYS)
    if not row.effects:
        # A class of unknown make that does not read the flag itself: so that it reads as frozen, too.
        return Behaviour(None if row.builtin or mode.noise != "off" else False, always)
    training, knobs, expressible = _flag_and_knobs(row, mode)
    return Behaviour(training, (*knobs, *always), expressible)


def _flag_and_knobs(
    row: ModuleRow, mode: FreezeMode
) -> tuple[bool | None, tuple[tuple[str, float | bool], ...], bool]:
    wanted = {effect: _WANTED[effect](mode) for effect in row.effects}
    values = set(wanted.values())
    if len(values) == 1 and not (row.flows_in_training and mode.grad == "flow"):
        return values.pop(), (), True
    off = {effect for effect, value in wanted.items() if value is False}
    silenced = {knob.effect for knob in row.knobs} & off
    rest = {value for effect, value in wanted.items() if effect not in silenced}
    if len(rest) > 1:
        return False not in values, (), row.assumed  # what can be off or still is; else on
    if rest == {False}:
        return False, (), True
    knobs = tuple((knob.name, knob.off) for knob in row.knobs if knob.effect in silenced)
    return (rest.pop() if rest else True), knobs, True


_ALWAYS = {("graph", "frozen"), ("fused", "mixed")}  # off in every mode: what never serves a frozen part
_WANTED = {
    "noise": lambda mode: {"off": False, "follow": None, "on": True}[mode.noise],
    "stats": lambda mode: {"hold": False, "follow": None}[mode.stats],
    "structure": lambda mode: {"off": False, "follow": None}[mode.structure],
}
