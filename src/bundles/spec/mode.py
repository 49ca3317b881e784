"""How a frozen part behaves: four axes and six presets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from bundles.errors import FreezeArgumentError
from bundles.spec.suggest import accepted
from bundles.spec.values import shown

AXES = {
    "noise": ("off", "follow", "on"),
    "stats": ("hold", "follow"),
    "structure": ("off", "follow"),
    "grad": ("flow", "cut"),
}


@dataclass(frozen=True)
class FreezeMode:
    """How a frozen part behaves once ``model.train()`` is called.

    Args:
        noise: dropout in every form. ``"off"``; ``"follow"`` the caller's ``train()``; or ``"on"``,
            in ``eval()`` too.
        stats: buffers written in forward (batch-norm statistics, power iteration, codebooks).
            ``"hold"`` uses the stored ones and never updates them; ``"follow"`` lets them move.
        structure: layer drop and masking. ``"off"`` or ``"follow"``.
        grad: ``"flow"`` lets gradient pass through to what comes before; ``"cut"`` records no graph.

    Raises:
        FreezeArgumentError: an axis has a value that does not exist.

    >>> FreezeMode(noise="follow")
    FreezeMode(noise='follow', stats='hold', structure='off', grad='flow')
    """

    noise: Literal["off", "follow", "on"] = "off"
    stats: Literal["hold", "follow"] = "hold"
    structure: Literal["off", "follow"] = "off"
    grad: Literal["flow", "cut"] = "flow"

    def __post_init__(self) -> None:
        for axis in fields(self):
            value = getattr(self, axis.name)
            if value not in AXES[axis.name]:
                choices = accepted(str(value), AXES[axis.name])
                raise FreezeArgumentError(
                    f"FreezeMode({axis.name}={value!r}) is not known: give one of {choices}."
                )

    @property
    def expects_training(self) -> bool:
        """Whether something beside the frozen part is expected to train."""
        return self.grad == "flow" and self.noise != "on"

    def __str__(self) -> str:
        """The preset's name, or the axes where no preset has these."""
        return next((name for name, preset in PRESETS.items() if preset == self), repr(self))


PRESETS: dict[str, FreezeMode] = {
    "eval": FreezeMode(),
    "features": FreezeMode(grad="cut"),
    "regularized": FreezeMode(noise="follow", structure="follow"),
    "frontend": FreezeMode(stats="follow"),
    "weights": FreezeMode(noise="follow", stats="follow", structure="follow"),
    "mc": FreezeMode(noise="on"),
}


def parse_mode(mode: str | FreezeMode) -> FreezeMode:
    """Return the mode that a preset's name stands for; a ``FreezeMode`` is returned as it is.

    Raises:
        FreezeArgumentError: no preset has that name.

    >>> parse_mode("regularized").noise
    'follow'
    """
    if isinstance(mode, FreezeMode):
        return mode
    if isinstance(mode, str) and mode in PRESETS:
        return PRESETS[mode]
    raise FreezeArgumentError(
        f"Freeze mode {shown(mode)} is not known: give one of {accepted(str(mode), PRESETS)}, "
        f"or FreezeMode(noise=, stats=, structure=, grad=)."
    )
