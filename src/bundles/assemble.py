"""The one place where registry, sources, builders and freezing meet."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundles.errors import (
    BuildArgumentError,
    BuildError,
    FreezeArgumentError,
    RegistryError,
    WeightsFileError,
)
from bundles.registry.default import get_bundle
from bundles.sources.ahead import read_ahead
from bundles.spec.architectures import argument_problem, options_of, without_end
from bundles.spec.bundle import Bundle
from bundles.spec.formats import CONVERTER, is_pickle_name
from bundles.spec.groups import (
    LayerGroups,
    LayerRule,
    idle_patterns,
    match_layers,
    parse_rules,
    prefixed_rules,
)
from bundles.spec.keys import KeyMap
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import FreezePolicy, Loaded, Nothing, parse_policy
from bundles.spec.provenance import forget, mark
from bundles.spec.resolve import resolve
from bundles.spec.source import WeightSource
from bundles.spec.upstream import wants_progress

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bundles.builders.load import LoadReport

Freeze = bool | str | FreezePolicy
_ARGUMENTS = ("freeze", "freeze_mode", "pretrained", "head", "device", "dtype", "dl_kwargs")


def get_model(
    bundle: Bundle | str,
    *,
    freeze: Freeze = False,
    freeze_mode: str | FreezeMode | None = None,
    pretrained: bool = True,
    head: nn.Module | Callable[[int], nn.Module] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    dl_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a bundle's model, load its weights, freeze it, and return it in ``eval()``.

    Args:
        bundle: a bundle, or the name of one.
        freeze: ``False``; ``True`` for the bundle's default policy; a policy or its string.
        freeze_mode: a preset or ``FreezeMode``; the bundle's default without it.
        pretrained: whether weights are loaded; else they are initialised at random.
        head: a module, or a callable that takes the number of features. It replaces the architecture's
            head where there is a slot for one, else the result is ``EncoderWithHead``; that, too, where
            the head takes lengths or layers, which a slot does not give.
        device: where the model goes, as ``nn.Module.to`` takes it.
        dtype: of the floating-point tensors.
        dl_kwargs: torchaudio's, deprecated; what they come to here is in the warning.
        options: what this bundle's builder takes besides: ``normalize=`` of speech encoders that
            normalise waveforms (``"batch"`` as upstream, ``"per_utterance"``), ``with_star=`` of MMS_FA.

    Raises:
        UnknownBundleError: there is no bundle of that name.
        FreezeArgumentError, NothingSelectedError, InexpressibleModeError, HeadError: the request
            cannot be met; nothing was fetched.
        BuildArgumentError: an option is none of this bundle's.
        MissingDependencyError, BuildError: the module cannot be constructed.
        SourceError, CacheError, WeightsError: the weights cannot be had, or do not fit.

    >>> model = get_model("CREPE_TINY", freeze=True).train()
    >>> model.conv1_BN.training, model.classifier.training
    (False, True)
    """
    bundle = _with_options(_bundle_of(bundle), options)
    progress = wants_progress(dl_kwargs)
    request = read_request(bundle, freeze, freeze_mode)
    if pretrained and bundle.weights:
        read_ahead(bundle.weights)  # the disk works while torch is still being imported
    draft = _build(bundle, head, "empty" if pretrained and bundle.weights else "initialised")
    plan = None if request[0] == Nothing() else _plan(draft, request, pretrained)
    if pretrained:
        _load(draft, bundle, owned=plan.trainable if plan else (), progress=progress)
    model = _finish(draft, plan, pretrained, device, dtype)
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
    from bundles.builders.keys import translate
    from bundles.builders.load import copy_into, fit
    from bundles.builders.tensors import read_tensors
    from bundles.freezing.api import plan_for, put

    policy, mode = _request(Loaded(), parse_mode("eval"), freeze, freeze_mode)
    source, keys = _weights_of(bundle_or_file)
    tensors = translate(read_tensors(fetch_weights(source)), keys, source.uri)
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


def _with_options(bundle: Bundle, options: Mapping[str, Any]) -> Bundle:
    known = options_of(bundle.builder, bundle.architecture)
    for name, value in options.items():
        if name not in known:
            takes = ", ".join((*_ARGUMENTS, *known))
            raise BuildArgumentError(
                f"get_model of {bundle.name} has no argument {name!r}: it takes {takes}."
            )
        if problem := argument_problem(str(bundle.builder), name, value):
            raise BuildArgumentError(f"{name}= of {bundle.name}: {problem}.")
    return replace(bundle, architecture={**bundle.architecture, **options}) if options else bundle


# --- the stops ------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A constructed model on its way.

    Attributes:
        model: the module.
        rules: of its layer groups; empty where they are derived.
        prefix: where in it the names of the weight file begin.
        fresh: names that no weight file fills: a new head.
        replaced: names of the file that the model has no place for begin so: the head it replaces.
    """

    model: nn.Module
    rules: tuple[LayerRule, ...]
    prefix: str
    fresh: tuple[str, ...] = ()
    replaced: str = ""

    def groups(self) -> LayerGroups:
        """The partition of its parameters, which only a freeze asks for."""
        from bundles.freezing.derive import layer_groups

        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        return match_layers(self.rules, names) if self.rules else layer_groups(self.model)


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
    from bundles.builders.head import ENCODER, attach_head, fits_slot, make_head
    from bundles.builders.table import build

    if head is None:
        return _draft(build(bundle, parameters=parameters), bundle.rules, bundle.prefix)
    made = make_head(bundle, head)
    own = bundle.prefix + bundle.head_slot if bundle.head_slot else None
    if not fits_slot(made):
        bundle = _headless(bundle)
    slot = own if bundle.head_slot else None
    model = attach_head(build(bundle, parameters=parameters), slot, made)
    if slot:
        return _draft(model, bundle.rules, bundle.prefix, fresh=slot, replaced=slot)
    rules = _rules_with_head(prefixed_rules(bundle.rules, ENCODER), model)
    return _draft(model, rules, ENCODER + bundle.prefix, fresh="head", replaced=own and ENCODER + own)


def _headless(bundle: Bundle) -> Bundle:
    """The bundle whose model ends in its features, for a head that its slot could not feed."""
    architecture = without_end(bundle.builder, bundle.architecture)
    if architecture == bundle.architecture:
        return bundle
    kinds = [rule.kind for rule in parse_rules(bundle.layers)]
    layers = {
        name: entry
        for (name, entry), kind in zip(bundle.layers.items(), kinds, strict=True)
        if kind != "head"
    }
    return replace(bundle, architecture=architecture, layers=layers, head_slot=None)


def _rules_with_head(rules: tuple[LayerRule, ...], model: nn.Module) -> tuple[LayerRule, ...]:
    """The rules of an ``EncoderWithHead``; an encoder may have a head of its own that is no slot."""
    names = [name for name, _ in model.named_modules()]
    names += [name for name, _ in model.named_parameters()]
    live = tuple(rule for rule in rules if len(idle_patterns([rule], names)) < len(rule.match))
    name = "new_head" if any(rule.name == "head" for rule in live) else "head"
    return (*live, LayerRule(name, "head", ("head",))) if rules else ()


def _draft(
    model: nn.Module,
    rules: tuple[LayerRule, ...],
    prefix: str,
    *,
    fresh: str = "",
    replaced: str | None = None,
) -> _Draft:
    new = tuple(name for name in model.state_dict() if name.startswith(f"{fresh}.")) if fresh else ()
    return _Draft(model, rules, prefix, new, f"{replaced}." if replaced else "")


def _plan(draft: _Draft, request: tuple[FreezePolicy, FreezeMode], pretrained: bool) -> FreezePlan:
    from bundles.freezing.describe import describe

    table = describe(draft.model)
    loaded = [row.name for row in table.parameters if pretrained and row.name not in draft.fresh]
    return resolve(*request, table, draft.groups(), loaded)


def _load(draft: _Draft, bundle: Bundle, owned: tuple[str, ...], progress: bool) -> None:
    from bundles.builders.keys import translate
    from bundles.builders.load import assign
    from bundles.builders.tensors import read_tensors

    if bundle.weights is None:
        raise BuildError(f"The bundle {bundle.name} has no weights: pass pretrained=False.")
    tensors = read_tensors(fetch_weights(bundle.weights, progress=progress))
    tensors = translate(tensors, bundle.keys, bundle.weights.uri)
    own = {draft.prefix + name: tensor for name, tensor in tensors.items()}
    wanted = {n: t for n, t in own.items() if not draft.replaced or not n.startswith(draft.replaced)}
    assign(draft.model, wanted, bundle.weights.uri, owned=owned, fresh=draft.fresh)


def _finish(
    draft: _Draft,
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


def fetch_weights(source: WeightSource, *, progress: bool = True) -> Path:
    """Return the verified weights as safetensors; pickled checkpoints are converted once."""
    from bundles.builders.pickles import convert_pickle
    from bundles.sources.converted import converted
    from bundles.sources.fetch import fetch

    path = fetch(source, progress=progress)
    return converted(path, CONVERTER, convert_pickle) if is_pickle_name(source.address) else path


def _weights_of(
    bundle_or_file: Bundle | WeightSource | str | os.PathLike[str],
) -> tuple[WeightSource, KeyMap]:
    if isinstance(bundle_or_file, WeightSource):
        return bundle_or_file, KeyMap()
    if isinstance(bundle_or_file, str) and re.match(r"[a-z]{2,}:", bundle_or_file):
        return WeightSource(bundle_or_file), KeyMap()  # an address; one letter and a colon is a drive
    if isinstance(bundle_or_file, str) and not _looks_like_file(bundle_or_file):
        bundle_or_file = get_bundle(bundle_or_file)
    if isinstance(bundle_or_file, Bundle):
        if bundle_or_file.weights is None:
            raise BuildError(f"The bundle {bundle_or_file.name} has no weights to load.")
        return bundle_or_file.weights, bundle_or_file.keys
    if not isinstance(bundle_or_file, str | os.PathLike):
        raise WeightsFileError(
            f"A {type(bundle_or_file).__name__} is no weight source: give a bundle, its name, or a path."
        )
    return WeightSource(f"file:{os.fspath(bundle_or_file)}"), KeyMap()


def _looks_like_file(text: str) -> bool:
    return os.sep in text or Path(text).suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
