"""From a name to a frozen model: look up, build, plan, fetch, load, freeze."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from bundles.assemble.built import remember
from bundles.assemble.draft import Draft, build_draft
from bundles.assemble.planning import plan_draft
from bundles.assemble.request import (
    Freeze,
    bundle_of,
    locked_of,
    read_request,
    settled_of,
    with_options,
    with_upstream,
)
from bundles.assemble.storage import check_frozen_dtype, keep_lowered, lowered_dtypes
from bundles.assemble.weights import read_names, read_weights
from bundles.errors import BuildError
from bundles.sources.ahead import read_ahead
from bundles.spec.bundle import Bundle
from bundles.spec.mode import FreezeMode
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import FreezePolicy, Nothing
from bundles.spec.provenance import forget, mark
from bundles.spec.upstream import wants_progress

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bundles.assemble.locked import Locked
    from bundles.spec.fit import Fit


def get_model(
    bundle: Bundle | str,
    *,
    freeze: Freeze = False,
    freeze_mode: str | FreezeMode | None = None,
    pretrained: bool = True,
    head: nn.Module | Callable[[int], nn.Module] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    frozen_dtype: torch.dtype | None = None,
    dl_kwargs: Mapping[str, Any] | None = None,
    lock: str | os.PathLike[str] | Locked | None = None,
    **options: Any,
) -> nn.Module:
    """Build a bundle's model, load its weights, freeze it, and return it in ``eval()``.

    Args:
        bundle: a bundle, the name of one, or the one-line pin of one (:meth:`bundles.Bundle.pin`).
        freeze: ``False``; ``True`` for the bundle's default policy; a policy or its string.
        freeze_mode: a preset or ``FreezeMode``; the bundle's default without it.
        pretrained: whether weights are loaded; else they are initialised at random.
        head: a module, or a callable that takes the number of features. It replaces the architecture's
            head where there is a slot for one, else the result is ``EncoderWithHead``; that, too, where
            the head takes lengths or layers, which a slot does not give.
        device: where the model goes, as ``nn.Module.to`` takes it. ``"meta"`` with ``pretrained=False``
            costs no memory: names and shapes alone, buffers real, for :func:`bundles.load_into` to fill.
        dtype: of the floating-point tensors.
        frozen_dtype: ``torch.bfloat16`` or ``torch.float16`` for the frozen tensors that autocast would
            cast at each call: weights and biases of torch's linear and convolutional layers. The model is
            to be called under ``torch.autocast``; what is thawed becomes float32 again.
        dl_kwargs: torchaudio's, deprecated; what they come to here is in the warning.
        lock: the path of a lock that pins this bundle, see ``bundles lock``. Its bytes are loaded, and what
            the call does not say (``freeze``, ``freeze_mode``, ``head``, ``dtype``) is as it was locked;
            ``freeze=False`` says nothing. What the call does say has to come to what was locked.
        options: what this bundle's builder takes besides: ``normalize=`` of speech encoders that
            normalise waveforms (``"batch"`` as upstream, ``"per_utterance"``), ``with_star=`` of MMS_FA;
            of torchtext's bundles also ``freeze_encoder=``, ``freeze_model=`` and ``load_weights=``, which
            are deprecated.

    Raises:
        UnknownBundleError: there is no bundle of that name.
        FreezeArgumentError, NothingSelectedError, InexpressibleModeError, HeadError: the request
            cannot be met; nothing was fetched.
        BuildArgumentError: an option is none of this bundle's.
        MissingDependencyError, BuildError: the module cannot be constructed.
        PinError: the lock is malformed.
        PinMismatchError: the card, the bytes, or what would be frozen is not what was pinned.
        SourceError, CacheError, WeightsError: the weights cannot be had, or do not fit.

    >>> model = get_model("CREPE_TINY", freeze=True).train()
    >>> model.conv1_BN.training, model.classifier.training
    (False, True)
    """
    bundle, locked = locked_of(bundle, lock)
    freeze, pretrained, options = with_upstream(bundle, freeze, pretrained, options)
    bundle = with_options(settled_of(bundle) if pretrained else bundle, options)
    progress = wants_progress(dl_kwargs)
    if locked is not None:
        freeze, freeze_mode, head, dtype = locked.request(freeze, freeze_mode, head, dtype)
        locked.check_versions(bundle)
    request = read_request(bundle, freeze, freeze_mode)
    if frozen_dtype is not None:
        check_frozen_dtype(frozen_dtype, freeze, dtype)
    if request[0].unsettled:
        request = _settled(bundle, request, head=head, dtype=dtype, frozen_dtype=frozen_dtype)
    if pretrained and bundle.weights:
        read_ahead(bundle.weights)  # the disk works while torch is still being imported
    hollow = not pretrained and device is not None and _is_meta(device)
    draft = build_draft(
        bundle, head, "meta" if hollow else "empty" if pretrained and bundle.weights else "initialised"
    )
    plan = None if request[0] == Nothing() else plan_draft(draft, request, pretrained=pretrained)
    if locked is not None:
        locked.check(bundle, draft.model, plan, pretrained=pretrained)
    lowered = lowered_dtypes(draft.model, plan, frozen_dtype)
    if pretrained:
        _load(draft, bundle, plan.trained if plan else (), lowered, progress)
    is_there = hollow and any(parameter.is_meta for parameter in draft.model.parameters())
    keep_lowered(draft.model, lowered)
    model = _finish(draft, plan, pretrained, None if is_there else device, dtype)
    remember(model, bundle, options, pretrained=pretrained, has_head=head is not None)
    return model.eval()


def plan(
    bundle: Bundle | str,
    *,
    freeze: Freeze = True,
    freeze_mode: str | FreezeMode | None = None,
    head: nn.Module | Callable[[int], nn.Module] | None = None,
) -> FreezePlan:
    """Return what :func:`get_model` would freeze and hold, from the architecture alone."""
    bundle = bundle_of(bundle)
    request = read_request(bundle, freeze, freeze_mode)
    if request[0].unsettled:
        request = _settled(bundle, request, head=head)
    return plan_draft(build_draft(bundle, head, "meta"), request, pretrained=True)


def forward_costs(bundle: Bundle) -> dict[str, float] | None:
    """Return the floating-point operations of each module in one forward.

    ``None`` where the bundle does not say what its input looks like, or is wrong about it.
    """
    from bundles.freezing.cost.flops import module_flops
    from bundles.freezing.cost.ghosts import example

    shape = bundle.metadata.get("input_shape")
    if shape is None:
        return None
    inputs = example(shape, bundle.metadata.get("token_inputs", ()))
    try:
        return module_flops(build_draft(bundle, None, "meta").model, inputs)
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def _settled(
    bundle: Bundle, request: tuple[FreezePolicy, FreezeMode], **how: Any
) -> tuple[FreezePolicy, FreezeMode]:
    """The request with the policy that ``"fit:8GB"`` comes to."""
    from bundles.assemble.fit import settle

    policy, mode = request
    return settle(bundle, cast("Fit", policy), mode, **how), mode


def _is_meta(device: torch.device | str) -> bool:
    return str(device).partition(":")[0] == "meta"


def _load(
    draft: Draft,
    bundle: Bundle,
    owned: tuple[str, ...],
    lowered: Mapping[str, torch.dtype],
    progress: bool,
) -> None:
    from bundles.builders.keys import translate
    from bundles.builders.load import assign

    if bundle.weights is None:
        raise BuildError(f"The bundle {bundle.name} has no weights: pass pretrained=False.")
    tensors, _ = read_weights(bundle.weights, progress=progress)
    tensors = translate(tensors, bundle.keys, bundle.weights.uri)
    kept = {name: tensor for name, tensor in tensors.items() if not draft.is_replaced(name)}
    named = read_names(bundle, draft.model, draft.prefix, kept)
    own = {draft.prefix + name: tensor for name, tensor in named.items() if not draft.is_replaced(name)}
    assign(draft.model, own, bundle.weights.uri, owned=owned, fresh=draft.fresh, lowered=lowered)


def _finish(
    draft: Draft,
    plan: FreezePlan | None,
    pretrained: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    from bundles.freezing.api import put
    from bundles.freezing.derive import carry_rules
    from bundles.spec.provenance import provenance

    model = draft.model
    try:
        if device is not None or dtype is not None:
            model = model.to(device=device, dtype=dtype)
    except (TypeError, RuntimeError) as error:
        raise BuildError(
            f"The model cannot go to device={device!r}, dtype={dtype!r} ({str(error).splitlines()[0][:99]}): "
            f"give a device as 'cpu' or 'cuda:0', a dtype as torch.float16."
        ) from error
    unloaded = draft.fresh if pretrained else tuple(model.state_dict())
    known = provenance(model) if unloaded else {}
    mark(model, {name: None for name in unloaded if name not in known})
    model.register_load_state_dict_post_hook(forget)  # type: ignore[no-untyped-call]
    if draft.rules:
        carry_rules(model, draft.rules)
    if plan is not None:
        put(model, plan)
    return model
