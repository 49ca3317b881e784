"""What a frozen model is asked, whoever froze it: each check makes its own model and says yes or no."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from real_models import Real, run, same
from toys import contents


@dataclass(frozen=True)
class Way:
    """A way to freeze a whole model in place, and the way back that comes with it."""

    freeze: Callable[[nn.Module], object]
    undo: Callable[[nn.Module], object]

    def frozen(self, real: Real) -> nn.Module:
        """Return the model frozen, after somebody called ``train()``."""
        model = real.make()
        self.freeze(model)
        return model.train()


def nothing_trains(real: Real, way: Way) -> bool:
    """No parameter requires grad."""
    return not any(parameter.requires_grad for parameter in way.frozen(real).parameters())


def deterministic(real: Real, way: Way) -> bool:
    """Two calls with other random numbers give the same bits."""
    model, x = way.frozen(real), real.make_input()
    return same(run(model, x, 1), run(model, x, 2))


def equals_eval(real: Real, way: Way) -> bool:
    """A call gives the bits that the untouched model gives in ``eval()``."""
    return _equals_eval(way.frozen(real), real)


def buffers_still(real: Real, way: Way) -> bool:
    """No buffer that was there before the freeze moves in a call."""
    model, names = way.frozen(real), dict(real.make().named_buffers()).keys()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name in names}
    run(model, real.make_input())
    after = dict(model.named_buffers())
    return all(name in after and torch.equal(buffer, after[name]) for name, buffer in before.items())


def keys_kept(real: Real, way: Way) -> bool:
    """Names in ``state_dict()`` and of parameters are those of the untouched model."""
    model, untouched = way.frozen(real), real.make()
    names, wanted = dict(model.named_parameters()).keys(), dict(untouched.named_parameters()).keys()
    return list(model.state_dict()) == list(untouched.state_dict()) and names == wanted


def survives_deepcopy(real: Real, way: Way) -> bool:
    """A deep copy is frozen like the original."""
    return _equals_eval(copy.deepcopy(way.frozen(real)).train(), real)


def survives_pickle(real: Real, way: Way) -> bool | None:
    """A pickled copy is frozen like the original; ``None`` where the untouched model does not pickle."""
    try:
        pickle.dumps(real.make())
    except Exception:  # noqa: BLE001 - parametrized modules raise RuntimeError, local functions others
        return None
    stored = io.BytesIO()
    torch.save(way.frozen(real), stored)
    stored.seek(0)
    return _equals_eval(torch.load(stored, weights_only=False).train(), real)


def undo_exact(real: Real, way: Way) -> bool:
    """The way back restores every class, flag, ``requires_grad`` and byte."""
    return _comes_back(real.make(), way)


def undo_exact_in_part(real: Real, way: Way) -> bool:
    """The same for a model in which one parameter did not train before."""
    model = real.make()
    next(model.parameters()).requires_grad_(False)
    return _comes_back(model, way)


CHECKS: dict[str, Callable[[Real, Way], bool | None]] = {
    "nothing trains": nothing_trains,
    "deterministic": deterministic,
    "equals eval": equals_eval,
    "buffers still": buffers_still,
    "keys kept": keys_kept,
    "deepcopy": survives_deepcopy,
    "pickle": survives_pickle,
    "undo": undo_exact,
    "undo in part": undo_exact_in_part,
}


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return what an undo has to give back."""
    return {
        "classes": [type(module) for module in model.modules()],
        "training": [module.training for module in model.modules()],
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "contents": contents(model),
    }


def _comes_back(model: nn.Module, way: Way) -> bool:
    before = state_of(model)
    way.freeze(model)
    model.train()
    way.undo(model)
    return state_of(model) == before


def _equals_eval(model: nn.Module, real: Real) -> bool:
    x = real.make_input()
    reference = real.make().eval().requires_grad_(False)  # torch's fast paths ask whether grad is needed
    return same(run(model, x), run(reference, x))
