"""The one place where registry, sources, builders and freezing meet."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bundles.errors import BuildError, FreezeArgumentError, RegistryError, WeightsFileError
from bundles.registry.default import get_bundle
from bundles.spec.bundle import Bundle
from bundles.spec.groups import LayerGroups, LayerRule, match_layers, prefixed_rules
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import FreezePolicy, Loaded, Nothing, parse_policy
from bundles.spec.provenance import forget, mark
from bundles.spec.resolve import resolve
from bundles.spec.source import WeightSource

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bundles.builders.load import LoadReport

Freeze = bool | str | FreezePolicy


def get_model(
    bundle: Bundle | str,
    *,
    freeze: Freeze = False,
    freeze_mode: str | FreezeMode | None = None,
    pretrained: bool = True,
    head: nn.Module | Callable[[int], nn.Module] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build a bundle's model, load its weights, freeze it, and return it in ``eval()``.

    Args:
        bundle: a bundle, or the name of one.
        freeze: ``False``; ``True`` for the bundle's default policy; a policy or its string.
        freeze_mode: a preset or ``FreezeMode``; the bundle's default without it.
        pretrained: whether weights are loaded; else they are initialised at random.
        head: a module, or a callable that takes the number of features. It replaces the architecture's
            head where there is a slot for one, else the result is ``EncoderWithHead``.
        device: where the model goes, as ``nn.Module.to`` takes it.
        dtype: of the floating-point tensors.

    Raises:
        UnknownBundleError: there is no bundle of that name.
        FreezeArgumentError, NothingSelectedError, InexpressibleModeError, HeadError: the request
            cannot be met; nothing was fetched.
        MissingDependencyError, BuildError: the module cannot be constructed.
        SourceError, CacheError, WeightsError: the weights cannot be had, or do not fit.

    >>> model = get_model("CREPE_TINY", freeze=True).train()
    >>> model.conv1_BN.training, model.classifier.training
    (False, True)
    """
    bundle = _bundle_of(bundle)
    request = read_request(bundle, freeze, freeze_mode)
    draft = _build(bundle, head, "empty" if pretrained and bundle.weights else "initialised")
    plan = _plan(draft, request, pretrained)
    if pretrained:
        _load(draft, bundle, owned=plan.trainable)
    model = _finish(draft, plan, request, device, dtype)
    return model.eval()


def plan(
    bundle: Bundle | str,
    *,
    freeze: Freeze = True,
    freeze_mode: str | FreezeMode | None = None,
    head: nn.Module | Callable[[int], nn.Module] | None = None,
) -> FreezePlan:
    """Return what :func:`get_model` would freeze and hold, from the architecture alone."""
    bundle = _bundle_of(bundle)
    return _plan(_build(bundle, head, "meta"), read_request(bundle, freeze, freeze_mode), True)


def forward_costs(bundle: Bundle) -> dict[str, float] | None:
    """Return the floating-point operations of each module in one forward.

    ``None`` where the bundle does not say what its input looks like, or is wrong about it.
    """
    from bundles.freezing.flops import module_flops

    shape = bundle.metadata.get("input_shape")
    if shape is None:
        return None
    try:
        return module_flops(_build(bundle, None, "meta").model, shape)
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def load_into(
    module: nn.Module,
    bundle_or_file: Bundle | WeightSource | str | os.PathLike[str],
    *,
    prefix: str = "",
    source_prefix: str = "",
    freeze: Freeze = False,
    freeze_mode: str | FreezeMode | None = None,
) -> LoadReport:
    """Load pretrained weights into a part of somebody's own model, and freeze it if asked.

    Args:
        module: the model; its tensors are written in place, so optimizers keep theirs.
        bundle_or_file: a bundle, its name, or the path of a safetensors file or checkpoint.
        prefix: where in the model, as ``"encoder."``.
        source_prefix: where in the file.
        freeze: a policy on the whole model; ``"loaded"`` or ``True`` freezes exactly what came from
            this file, and what came from others before.
        freeze_mode: a preset or ``FreezeMode``; ``"eval"`` without it.

    Returns:
        Which names were loaded, missing and unexpected.

    Raises:
        StateDictMismatchError: shapes differ or no name fits; the model is not changed.
        FreezeArgumentError, NothingSelectedError, InexpressibleModeError: the freeze cannot be met; the
            model is not changed.
        UnknownBundleError, SourceError, CacheError, WeightsError: the weights cannot be had.

    >>> import torch, bundles
    >>> class Tracker(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.pitch = bundles.CREPE_TINY.get_model(pretrained=False)
    ...         self.head = torch.nn.Linear(360, 5)
    >>> report = load_into(model := Tracker(), "CREPE_TINY", prefix="pitch.", freeze="loaded")
    >>> len(report.loaded), report.missing, model.head.weight.requires_grad
    (44, (), True)
    """
    from bundles.builders.load import copy_into, fit
    from bundles.builders.tensors import read_tensors
    from bundles.freezing.api import plan_for, put

    policy, mode = _request(Loaded(), parse_mode("eval"), freeze, freeze_mode)
    source = _weights_of(bundle_or_file)
    tensors = read_tensors(_fetch(source))
    fitted = fit(module, tensors, source.uri, prefix=prefix, source_prefix=source_prefix)
    plan = None if policy == Nothing() else plan_for(module, policy, mode, loaded=fitted.report.loaded)
    copy_into(module, fitted)
    if plan is not None:
        put(module, plan)
    return fitted.report


def _bundle_of(bundle: Bundle | str) -> Bundle:
    if isinstance(bundle, Bundle):
        return bundle
    if isinstance(bundle, str):
        return get_bundle(bundle)
    raise RegistryError(f"A {type(bundle).__name__} is neither a Bundle nor the name of one.")


# --- the stops ------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A constructed model on its way: where the bundle's own part sits, and what of it is new."""

    model: nn.Module
    rules: tuple[LayerRule, ...]
    groups: LayerGroups
    prefix: str = ""
    fresh: tuple[str, ...] = ()


def read_request(
    bundle: Bundle, freeze: Freeze, freeze_mode: str | FreezeMode | None
) -> tuple[FreezePolicy, FreezeMode]:
    """Return the policy and mode that the arguments of ``get_model`` ask of a bundle."""
    return _request(parse_policy(bundle.default_policy), parse_mode(bundle.default_mode), freeze, freeze_mode)


def _request(
    default: FreezePolicy, mode: FreezeMode, freeze: Freeze, freeze_mode: str | FreezeMode | None
) -> tuple[FreezePolicy, FreezeMode]:
    if freeze is False and freeze_mode is not None:
        raise FreezeArgumentError(
            f"freeze_mode={freeze_mode!r} was given without freeze: add freeze=True, or a policy."
        )
    if freeze is False:
        return Nothing(), mode
    policy = default if freeze is True else parse_policy(freeze)
    return policy, mode if freeze_mode is None else parse_mode(freeze_mode)


def _build(bundle: Bundle, head: nn.Module | Callable[[int], nn.Module] | None, parameters: str) -> _Draft:
    from bundles.builders.head import ENCODER, attach_head, make_head
    from bundles.builders.table import build
    from bundles.freezing.derive import layer_groups

    made = None if head is None else make_head(bundle, head)
    model = build(bundle, parameters=parameters)
    rules, prefix, slot = bundle.rules, "", ""
    if made is not None:
        slot, prefix = (f"{bundle.head_slot}.", "") if bundle.head_slot else ("head.", ENCODER)
        model = attach_head(model, bundle.head_slot, made)
        rules = _rules_with_head(rules, prefix) if prefix and rules else rules
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    groups = match_layers(rules, names) if rules else layer_groups(model)
    fresh = tuple(name for name in model.state_dict() if slot and name.startswith(slot))
    return _Draft(model, rules, groups, prefix, fresh)


def _rules_with_head(rules: tuple[LayerRule, ...], prefix: str) -> tuple[LayerRule, ...]:
    """The rules of an ``EncoderWithHead``; an encoder may have a head of its own that is no slot."""
    name = "new_head" if any(rule.name == "head" for rule in rules) else "head"
    return (*prefixed_rules(rules, prefix), LayerRule(name, "head", ("head",)))


def _plan(draft: _Draft, request: tuple[FreezePolicy, FreezeMode], pretrained: bool) -> FreezePlan:
    from bundles.freezing.describe import describe

    table = describe(draft.model)
    loaded = [row.name for row in table.parameters if pretrained and row.name not in draft.fresh]
    return resolve(*request, table, draft.groups, loaded)


def _load(draft: _Draft, bundle: Bundle, owned: tuple[str, ...]) -> None:
    from bundles.builders.load import assign
    from bundles.builders.tensors import read_tensors

    if bundle.weights is None:
        raise BuildError(f"The bundle {bundle.name} has no weights: pass pretrained=False.")
    tensors = read_tensors(_fetch(bundle.weights))
    own = {draft.prefix + name: tensor for name, tensor in tensors.items()}
    wanted = {name: tensor for name, tensor in own.items() if not _in_slot(name, draft, bundle)}
    assign(draft.model, wanted, bundle.weights.uri, owned=owned, fresh=draft.fresh)


def _in_slot(name: str, draft: _Draft, bundle: Bundle) -> bool:
    """Whether a tensor of the file belongs to the head that was replaced."""
    return bool(draft.fresh and bundle.head_slot and name.startswith(f"{bundle.head_slot}."))


def _finish(
    draft: _Draft,
    plan: FreezePlan,
    request: tuple[FreezePolicy, FreezeMode],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    from bundles.freezing.api import put
    from bundles.freezing.derive import carry_rules
    from bundles.spec.provenance import provenance

    try:
        model = draft.model.to(device=device, dtype=dtype)
    except (TypeError, RuntimeError) as error:
        raise BuildError(
            f"The model cannot go to device={device!r}, dtype={dtype!r} ({str(error).splitlines()[0][:99]}): "
            f"give a device as 'cpu' or 'cuda:0', a dtype as torch.float16."
        ) from error
    known = provenance(model)
    mark(model, {name: None for name in model.state_dict() if name not in known})
    model.register_load_state_dict_post_hook(forget)  # type: ignore[no-untyped-call]
    if draft.rules:
        carry_rules(model, draft.rules)
    if request[0] != Nothing():
        put(model, plan)
    return model


def _fetch(source: WeightSource) -> Path:
    """Return the verified weights as safetensors; pickled checkpoints are converted once."""
    from bundles.builders.pickles import CONVERTER, convert_pickle, is_pickle_name
    from bundles.sources.converted import converted
    from bundles.sources.fetch import fetch

    path = fetch(source)
    return converted(path, CONVERTER, convert_pickle) if is_pickle_name(source.address) else path


def _weights_of(bundle_or_file: Bundle | WeightSource | str | os.PathLike[str]) -> WeightSource:
    if isinstance(bundle_or_file, WeightSource):
        return bundle_or_file
    if isinstance(bundle_or_file, str) and re.match(r"[a-z]{2,}:", bundle_or_file):
        return WeightSource(bundle_or_file)  # an address; one letter and a colon is a drive
    if isinstance(bundle_or_file, str) and not _looks_like_file(bundle_or_file):
        bundle_or_file = get_bundle(bundle_or_file)
    if isinstance(bundle_or_file, Bundle):
        if bundle_or_file.weights is None:
            raise BuildError(f"The bundle {bundle_or_file.name} has no weights to load.")
        return bundle_or_file.weights
    if not isinstance(bundle_or_file, str | os.PathLike):
        raise WeightsFileError(
            f"A {type(bundle_or_file).__name__} is no weight source: give a bundle, its name, or a path."
        )
    return WeightSource(f"file:{os.fspath(bundle_or_file)}")


def _looks_like_file(text: str) -> bool:
    return os.sep in text or Path(text).suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
