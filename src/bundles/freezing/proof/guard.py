"""A context manager that proves, when it is left, that what was frozen did not move."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from torch import nn

from bundles.errors import FreezeArgumentError
from bundles.freezing.proof.snapshot import Snapshot, snapshot, verify_frozen


class Guard:
    """What :func:`guard` returns: a snapshot taken at once, checked on exit and at each :meth:`check`.

    Attributes:
        model: what is guarded.
        quick: whether a check looks at a sample only.
        taken: the snapshot.
    """

    def __init__(self, model: nn.Module, *, quick: bool = False) -> None:
        self.model = model
        self.quick = quick
        self.taken: Snapshot = snapshot(model)
        if not self.taken:
            raise FreezeArgumentError(
                "Nothing in the model is frozen, so there is nothing to guard: call "
                "bundles.freeze(model, ...) first."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.check()

    def check(self, *, quick: bool | None = None) -> None:
        """Verify now.

        Args:
            quick: as that of :func:`bundles.verify_frozen`, for this check only.

        Raises:
            FrozenDriftError: as :func:`bundles.verify_frozen`.
        """
        verify_frozen(self.model, self.taken, quick=self.quick if quick is None else quick)


def guard(model: nn.Module, *, quick: bool = False) -> Guard:
    """Verify on leaving a ``with`` block that nothing frozen moved in it.

    An exception from inside the block is passed on, and nothing is verified then.

    Args:
        model: a model that is frozen, or has frozen parts.
        quick: compare a sample of the values only, as ``verify_frozen(..., quick=True)``.

    Raises:
        FreezeArgumentError: nothing in the model is frozen.
        FrozenDriftError: on exit; names every parameter and buffer that moved.

    >>> import torch, bundles
    >>> model = bundles.freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)), "encoder")
    >>> with bundles.guard(model) as watch:
    ...     for step in range(2):
    ...         loss = model(torch.ones(1, 2)).sum()
    ...         watch.check(quick=True)
    """
    return Guard(model, quick=quick)
