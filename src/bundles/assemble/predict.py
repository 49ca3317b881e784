"""Predict what a training step takes: of a bundle before any download, or of any module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bundles.assemble.draft import build_draft
from bundles.assemble.fit import fit_shape, settle
from bundles.assemble.planning import plan_draft
from bundles.assemble.request import Freeze, bundle_of, merge_request, read_request
from bundles.assemble.storage import check_frozen_dtype
from bundles.errors import FreezeArgumentError
from bundles.spec.bundle import Bundle
from bundles.spec.cost import StepCost
from bundles.spec.fit import Fit
from bundles.spec.inputs import input_shape
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.policy import All

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def predict(
    model: Bundle | str | nn.Module,
    *,
    freeze: Freeze | None = None,
    freeze_mode: str | FreezeMode | None = None,
    head: nn.Module | Callable[[int], nn.Module] | None = None,
    inputs: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
    batch: int | None = None,
    seconds: float | None = None,
    dtype: torch.dtype | None = None,
    frozen_dtype: torch.dtype | None = None,
) -> StepCost:
    """Predict time and memory of a training step with AdamW; nothing is downloaded and nothing computed.

    A forward and a backward are followed with tensors that have shapes and no values, under the freeze that
    is asked for. Memory is that of float32 kernels on a CPU; time is a share of the time of training
    everything, which depends on the machine less than seconds do. Layer drop is left out.

    Args:
        model: a bundle, the name of one, or any module.
        freeze: as ``get_model`` takes it. Without it, a bundle's default policy, and a module as it
            is frozen now.
        freeze_mode: likewise.
        head: of a bundle, as ``get_model`` takes it.
        inputs: the shape of the input, or a tensor, or a tuple of tensors as forward takes them, or a dict
            of them by name. A bundle knows its own.
        batch: items of a bundle's input; the card's number without it.
        seconds: length of each, where a bundle takes waveforms.
        dtype: of every tensor, as ``get_model`` takes it.
        frozen_dtype: of frozen tensors, as ``get_model`` takes it; the step is then one under autocast.

    Raises:
        FreezeArgumentError: the input is unknown or not taken, forward goes by values, or as :func:`freeze`.
        UnknownBundleError, NothingSelectedError, InexpressibleModeError, HeadError: as ``get_model``.

    >>> import bundles
    >>> cost = predict("CREPE_TINY", freeze="last:2", batch=64)
    >>> cost.shape, cost.relative < 1, cost.gradients < cost.weights
    ((64, 1024), True, True)
    """
    if frozen_dtype is not None:
        check_frozen_dtype(frozen_dtype, freeze, dtype)
    if not isinstance(model, Bundle | str):
        if head is not None or batch is not None or seconds is not None:
            raise FreezeArgumentError(
                f"head=, batch= and seconds= are of bundles: give inputs= of {type(model).__name__}, as a "
                f"shape or tensors."
            )
        return _of_module(model, inputs, freeze, freeze_mode, dtype, frozen_dtype)
    bundle = bundle_of(model)
    policy, mode = read_request(bundle, True if freeze is None else freeze, freeze_mode)
    shape: tuple[int, ...] = ()
    if isinstance(policy, Fit):
        fit = replace(policy, batch=batch or policy.batch, seconds=seconds or policy.seconds)
        shape = fit_shape(bundle, fit) if inputs is None else ()
        policy = settle(bundle, fit, mode, head=head, dtype=dtype, frozen_dtype=frozen_dtype)
    from bundles.freezing.cost.ghosts import example
    from bundles.freezing.cost.predict import predict_step

    draft = build_draft(bundle, head, "meta")
    plan = plan_draft(draft, (policy, mode), pretrained=True)
    if inputs is not None:
        return predict_step(draft.model, inputs, plan=plan, dtype=dtype, frozen_dtype=frozen_dtype)
    shape = shape or input_shape(bundle, batch, seconds)
    given = example(shape, bundle.metadata.get("token_inputs", ()))
    cost = predict_step(draft.model, given, plan=plan, dtype=dtype, frozen_dtype=frozen_dtype)
    return replace(cost, shape=shape)


def _of_module(
    model: nn.Module,
    inputs: Tensor | Sequence[Any] | Mapping[str, Any] | None,
    freeze: Freeze | None,
    freeze_mode: str | FreezeMode | None,
    dtype: torch.dtype | None,
    frozen_dtype: torch.dtype | None,
) -> StepCost:
    from bundles.freezing.api import plan_for
    from bundles.freezing.cost.predict import predict_step

    if inputs is None:
        raise FreezeArgumentError(
            f"What a step of {type(model).__name__} takes depends on its input: give inputs=(8, 160000), or "
            f"tensors."
        )
    if freeze is None and freeze_mode is None:
        return predict_step(model, inputs, dtype=dtype, frozen_dtype=frozen_dtype)
    policy, mode = merge_request(All(), parse_mode("eval"), freeze or False, freeze_mode)
    plan = plan_for(model, policy, mode)
    return predict_step(model, inputs, plan=plan, dtype=dtype, frozen_dtype=frozen_dtype)
