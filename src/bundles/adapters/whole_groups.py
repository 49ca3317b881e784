"""Optimizers of trainers that load their state before anyone can know what was frozen when it was saved.

A schedule takes what is frozen out of an optimizer, with its momentum, and torch refuses a state that has
other numbers of parameters. Here the parameters are put back, without momentum: they have no gradient, and
optimizers pass over such. So a state is always of all parameters, wherever it is saved and loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from bundles.adapters.session import Session
from bundles.freezing.optimizer.optimizers import all_groups


def keep_whole(optimizers: Sequence[Optimizer]) -> None:
    """Put back into the groups what was taken out of them because it is frozen.

    >>> import bundles, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> model = bundles.freeze(model, "encoder", optimizer=optimizer)
    >>> len(optimizer.param_groups[0]["params"])
    2
    >>> keep_whole([optimizer])
    >>> len(optimizer.param_groups[0]["params"])
    4
    """
    for optimizer in optimizers:
        for group, parameters in zip(optimizer.param_groups, all_groups(optimizer), strict=True):
            group["params"][:] = parameters


def start(session: Session, model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """As ``session.start()``, with optimizers that may have loaded their state, and keep it.

    Going through the milestones takes out the momentum of what is frozen at one of them.
    """
    states = [optimizer.state_dict() for optimizer in optimizers]
    session.start(model, optimizers, step)
    keep_whole(optimizers)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)


def advance(session: Session, model: nn.Module, step: int, optimizers: Sequence[Optimizer]) -> bool:
    """As ``session.advance()``; parameters are taken out at milestones, also those that change no plan."""
    changed = session.advance(model, step, optimizers)
    if changed or (session.schedule is not None and step in dict(session.schedule.milestones)):
        keep_whole(optimizers)
    return changed
