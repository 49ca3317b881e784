"""Load pretrained weights into somebody's own model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bundles.assemble.lookup import get_bundle, is_repository
from bundles.assemble.request import Freeze, merge_request, settled_of
from bundles.assemble.weights import read_names, read_weights
from bundles.errors import BuildError, StateDictMismatchError, WeightsFileError
from bundles.spec.bundle import Bundle
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.policy import Loaded, Nothing
from bundles.spec.source import WeightSource

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bundles.builders.load import LoadReport


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
        module: the model; its tensors are written in place, so optimizers keep theirs. It may be sharded
            by ``torch.distributed.fsdp.fully_shard``, and on the meta device: each rank then maps the
            file, and keeps no more of it than its own part.
        bundle_or_file: a bundle, its name, the address of a repository or folder that
            :func:`bundles.get_bundle` takes, or the path of such a folder, of a safetensors file, of a
            shard index (``model.safetensors.index.json``) or of a checkpoint.
        prefix: where in the model, as ``"encoder."``.
        source_prefix: where in the file. Of a bundle whose builder wraps the model, both the wrapped
            names (``model.encoder...``) and the file's own are understood.
        freeze: a policy on the whole model; ``"loaded"`` or ``True`` freezes exactly what came from
            this file, and what came from others before.
        freeze_mode: a preset or ``FreezeMode``; ``"eval"`` without it.

    Returns:
        Which names were loaded, missing and unexpected.

    Raises:
        StateDictMismatchError: shapes differ, no name fits, or something below the prefix would be left
            on the meta device; the model is not changed.
        FreezeArgumentError, NothingSelectedError, InexpressibleModeError: the freeze cannot be met; the
            model is not changed.
        BuildError: the model is wrapped in FSDP1; load before wrapping.
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
    from bundles.builders.fit import copy_into, fit
    from bundles.builders.keys import translate
    from bundles.freezing.api import plan_for, put

    policy, mode = merge_request(Loaded(), parse_mode("eval"), freeze, freeze_mode)
    source, bundle = _weights_of(bundle_or_file)
    tensors, is_writable = read_weights(source, lasting=False)
    if bundle is not None:
        tensors = translate(tensors, bundle.keys, source.uri)
    own = {bundle.prefix + name: tensor for name, tensor in tensors.items()} if bundle else tensors
    if bundle is not None and not source_prefix:
        own = _named_today(bundle, module, prefix.rstrip("."), own)
    try:
        fitted = fit(module, own, source.uri, prefix=prefix, source_prefix=source_prefix)
    except StateDictMismatchError as error:
        if own.keys() == tensors.keys() or error.mismatched:
            raise
        fitted = fit(module, tensors, source.uri, prefix=prefix, source_prefix=source_prefix)
    plan = None if policy == Nothing() else plan_for(module, policy, mode, loaded=fitted.report.loaded)
    owned = fitted.tensors if is_writable else plan.trained if plan else ()
    copy_into(module, fitted, owned=owned)
    if plan is not None:
        put(module, plan)
    return fitted.report


def _named_today(
    bundle: Bundle, module: nn.Module, prefix: str, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Tensors under the names that their library gives them today, where the part to fill is its model.

    What that model has no use for keeps its name, and is reported.
    """
    part = dict(module.named_modules()).get(prefix)
    if not hasattr(part, "base_model_prefix"):
        return tensors
    named = read_names(bundle, module, prefix, tensors)
    used = {id(tensor) for tensor in named.values()}
    return {**{name: tensor for name, tensor in tensors.items() if id(tensor) not in used}, **named}


def _weights_of(
    bundle_or_file: Bundle | WeightSource | str | os.PathLike[str],
) -> tuple[WeightSource, Bundle | None]:
    if isinstance(bundle_or_file, WeightSource):
        return bundle_or_file, None
    if isinstance(bundle_or_file, os.PathLike) and os.path.isdir(bundle_or_file):
        bundle_or_file = f"file:{os.fspath(bundle_or_file)}"
    if isinstance(bundle_or_file, str) and is_repository(bundle_or_file):
        bundle_or_file = get_bundle(bundle_or_file)
    elif isinstance(bundle_or_file, str) and re.match(r"[a-z]{2,}:", bundle_or_file):
        return WeightSource(bundle_or_file), None  # an address; one letter and a colon is a drive
    elif isinstance(bundle_or_file, str) and not _looks_like_file(bundle_or_file):
        bundle_or_file = get_bundle(bundle_or_file)
    if isinstance(bundle_or_file, Bundle):
        if bundle_or_file.weights is None:
            raise BuildError(f"The bundle {bundle_or_file.name} has no weights to load.")
        return settled_of(bundle_or_file).weights or bundle_or_file.weights, bundle_or_file
    if not isinstance(bundle_or_file, str | os.PathLike):
        raise WeightsFileError(
            f"A {type(bundle_or_file).__name__} is no weight source: give a bundle, its name, or a path."
        )
    return WeightSource(f"file:{os.fspath(bundle_or_file)}"), None


def _looks_like_file(text: str) -> bool:
    return os.sep in text or Path(text).suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".json")
