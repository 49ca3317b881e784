"""Keep what is frozen in lower precision: ``frozen_dtype=`` of ``get_model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bundles.errors import FreezeArgumentError
from bundles.spec.plan import FreezePlan

if TYPE_CHECKING:
    import torch
    from torch import nn


def check_frozen_dtype(frozen_dtype: torch.dtype, freeze: object, dtype: torch.dtype | None) -> None:
    """Raise where ``frozen_dtype`` cannot be met, before anything is built.

    Raises:
        FreezeArgumentError: nothing is frozen, another ``dtype`` is asked of everything, or it is none that
            autocast computes in.
    """
    from bundles.freezing.behaviour.lowered import check_dtype

    if freeze is False:
        raise FreezeArgumentError(
            f"frozen_dtype={frozen_dtype!r} was given without freeze: add freeze=True, or a policy; "
            f"dtype= is that of the whole model."
        )
    if dtype is not None:
        raise FreezeArgumentError(
            f"dtype={dtype!r} is that of every tensor and frozen_dtype={frozen_dtype!r} that of frozen ones: "
            f"give one of the two."
        )
    check_dtype(frozen_dtype)


def lowered_dtypes(
    model: nn.Module, plan: FreezePlan | None, frozen_dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """Return the dtypes of the frozen tensors that are kept in another one than the model's."""
    if plan is None or frozen_dtype is None:
        return {}
    from bundles.freezing.behaviour.lowered import castable

    return dict.fromkeys(castable(model, plan), frozen_dtype)


def keep_lowered(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Note what is kept in lower precision, and cast what no file has filled."""
    if dtypes:
        from bundles.freezing.behaviour.lowered import lower

        lower(model, dtypes, next(iter(dtypes.values())))
