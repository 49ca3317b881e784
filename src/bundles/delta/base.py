"""What a delta is a difference to: a bundle with its weight files, or a module of one's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bundles import assemble
from bundles.assemble.built import Built, built_of
from bundles.assemble.lookup import get_bundle
from bundles.assemble.request import with_options
from bundles.builders.head import EncoderWithHead
from bundles.builders.walk import state_of
from bundles.delta.format import DTYPES, Header
from bundles.errors import BundlesWarning, ChecksumError, DeltaBaseError
from bundles.freezing.proof.coverage import frozen_values
from bundles.freezing.proof.digests import digests
from bundles.heads.recipes import recipe_of
from bundles.sources.fetch import fetch
from bundles.sources.verify import stamped_sha256
from bundles.spec.bundle import Bundle
from bundles.spec.canonical import card_digest
from bundles.spec.masks import Mask
from bundles.spec.source import WeightSource
from bundles.spec.values import plain_value

Tensors = dict[str, torch.Tensor]
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class AnyHead(nn.Module):
    """Stands where a head of somebody's own was, for which there is no recipe: it passes features on."""

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return the features."""
        return features


def describe_bundle(built: Built) -> dict[str, Any]:
    """Return what says which bundle a model was built of, and of which bytes.

    Raises:
        SourceError, CacheError, WeightsError: the digest of a file is unknown, and it cannot be had.
    """
    bundle = built.bundle
    files = _files(bundle.weights) if built.pretrained and bundle.weights is not None else {}
    return {
        "bundle": bundle.name,
        "card": card_digest(bundle),
        "files": files,
        "options": plain_value(built.options),
        "pretrained": bool(files),
    }


def head_of(model: nn.Module, built: Built) -> dict[str, Any] | None:
    """Return where a head is that the bundle does not have itself, and the recipe of it if there is one."""
    if built.head is None:
        return None
    head = model.get_submodule(built.head)
    cls = type(head)
    return {
        "at": built.head,
        "slot": not isinstance(model, EncoderWithHead),
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "recipe": recipe_of(head),
    }


def placeholder(head: Mapping[str, Any] | None) -> nn.Module | None:
    """Return what takes the place of a delta's head where only the rest of the model matters."""
    if head is None:
        return None
    return nn.Identity() if head["slot"] else AnyHead()


def reference(model: nn.Module, built: Built, dtype: torch.dtype | None) -> Tensors:
    """Return the tensors that the model's bundle builds, by the model's names, with a copy of its head.

    Raises:
        BundlesError: the bundle cannot be built any more.
    """
    head = None if built.head is None else copy.deepcopy(model.get_submodule(built.head))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", BundlesWarning)
        made = assemble.get_model(built.bundle, head=head, dtype=dtype)
    found = {**state_of(made), **unsaved_buffers(made)}
    return {name: t for name, t in found.items() if built.head is None or not _is_in(name, built.head)}


def rebuild(base: Mapping[str, Any], head: Any, dtype: str | None) -> nn.Module:
    """Build a delta's bundle anew, from the files that the delta names.

    Raises:
        DeltaBaseError: the card or a file is another than when the delta was written.
        UnknownBundleError, SourceError, WeightsError, BuildError: the bundle cannot be had.
    """
    bundle = with_options(get_bundle(base["bundle"]), base["options"])
    if (found := card_digest(bundle)) != base["card"]:
        raise _other_base(base["bundle"], "card", base["card"], found)
    try:
        with torch.random.fork_rng(devices=[]):  # reading a checkpoint draws no random numbers
            return assemble.get_model(
                _pinned(bundle, base["files"]) if base["pretrained"] else bundle,
                pretrained=base["pretrained"],
                head=head,
                dtype=None if dtype is None else DTYPES[dtype],
            )
    except ChecksumError as error:
        raise _other_base(base["bundle"], error.source, error.expected, error.found) from error


def unsaved_buffers(model: nn.Module) -> Tensors:
    """Return the buffers that no ``state_dict()`` has; forwards may write to them all the same."""
    return {
        f"{prefix}.{local}".lstrip("."): buffer
        for prefix, module in model.named_modules()
        for local in sorted(module._non_persistent_buffers_set)
        if (buffer := module._buffers.get(local)) is not None
    }


def same_bits(ours: torch.Tensor, theirs: torch.Tensor | None, mask: Mask | None = None) -> bool:
    """Whether two tensors are equal bit for bit, or in the elements where a mask is True."""
    if theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    ours, theirs = (_as_words(frozen_values(t.detach(), mask).cpu()) for t in (ours, theirs))
    return torch.equal(ours, theirs)


def differing(
    ours: Mapping[str, torch.Tensor],
    theirs: Mapping[str, torch.Tensor],
    names: Collection[str],
    masks: Mapping[str, Mask],
) -> list[str]:
    """Return the names of the tensors that are not :func:`same_bits`, compared on several threads."""

    def is_same(name: str) -> bool:
        return same_bits(ours[name], theirs.get(name), masks.get(name))

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return [name for name, same in zip(names, threads.map(is_same, names), strict=True) if not same]


def digests_of(
    state: Mapping[str, torch.Tensor], names: Iterable[str], masks: Mapping[str, Mask]
) -> dict[str, str]:
    """Return the digest of each of these tensors; of one with a mask, of what is frozen of it."""
    return digests({name: frozen_values(state[name].detach(), masks.get(name)) for name in names})


def check_model(
    model: nn.Module, header: Header, state: Tensors, names: Collection[str], masks: Mapping[str, Mask]
) -> None:
    """Check that what a delta does not store is in a model as it was in the delta's base.

    Raises:
        DeltaBaseError: it is not; names what differs.
    """
    base = header.base
    if "digests" in base:
        _refuse(base["class"], names, base["digests"], digests_of(state, names, masks))
        return
    _check_card(model, base)
    if not names:
        return
    expected = base_tensors(base, header.head, header.dtype)
    if moved := differing(state, expected, names, masks):
        there = [name for name in moved if name in expected]
        _refuse(base["bundle"], moved, digests_of(expected, there, masks), digests_of(state, moved, masks))


def _check_card(model: nn.Module, base: Mapping[str, Any]) -> None:
    """Compare digests that are known on either side, before any file is read."""
    built = built_of(model)
    weights = None if built is None else built.bundle.weights
    if weights is None or weights.sha256 is None:
        return
    if (expected := base["files"].get(weights.name, weights.sha256)) != weights.sha256:
        raise _other_base(base["bundle"], weights.shown, expected, weights.sha256)


def base_tensors(base: Mapping[str, Any], head: Mapping[str, Any] | None, dtype: str | None) -> Tensors:
    """Return the tensors of a delta's bundle but for its head, which is no part of the base.

    Raises:
        DeltaBaseError, BundlesError: as :func:`rebuild`.
    """
    if "digests" in base:
        raise DeltaBaseError(
            f"The delta was written over a {base['class']}, which no bundle built: pass that model, as it "
            f"was before the training, to bundles.load_delta(path, model)."
        )
    if not base["pretrained"]:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BundlesWarning)
        return state_of(rebuild(base, placeholder(head), dtype))


def _refuse(what: str, names: Collection[str], expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    moved = [name for name in names if expected.get(name) != found.get(name) or name not in expected]
    if not moved:
        return
    first = moved[0]
    raise DeltaBaseError(
        f"The delta belongs to another base than this model: {len(moved)} of the tensors of {what} that it "
        f"does not store differ, as {first} (its digest is {found.get(first)}, expected is "
        f"{expected.get(first)}): give the model that the training started from.",
        moved=tuple(moved),
        expected={name: expected.get(name) for name in moved},
        found={name: found.get(name) for name in moved},
    )


def _other_base(bundle: str, what: str, expected: str, found: str) -> DeltaBaseError:
    return DeltaBaseError(
        f"The base of the delta moved: of {bundle} the {what} has {found}, and the delta was written for "
        f"{expected}; take the version of it that the delta was written with.",
        expected=expected,
        found=found,
    )


def _files(source: WeightSource) -> dict[str, str]:
    from bundles.assemble.weights import fetch_shards, fetch_weights

    found = {source.name: _sha256(source)}
    if source.is_index:
        paths = fetch_shards(source, fetch_weights(source))
        found |= {name: source.shard(name).sha256 or stamped_sha256(paths[name]) for name in paths}
    return found


def _sha256(source: WeightSource) -> str:
    return source.sha256 or stamped_sha256(fetch(source, progress=False))


def _pinned(bundle: Bundle, files: Mapping[str, str]) -> Bundle:
    """The bundle with the digests of the files, where its card has the same or none.

    Raises:
        DeltaBaseError: it has another.
    """
    source = bundle.weights
    if source is None:
        raise DeltaBaseError(f"The delta was written over weights and {bundle.name} has none any more.")
    digest = files.get(source.name)
    if source.sha256 is not None and digest is not None and source.sha256 != digest:
        raise _other_base(bundle.name, source.shown, digest, source.sha256)
    shards = {n: {**source.shards.get(n, {}), "sha256": d} for n, d in files.items() if n != source.name}
    return replace(bundle, weights=replace(source, sha256=source.sha256 or digest, shards=shards))


def _is_in(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _as_words(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, so that NaN equals itself and -0.0 is not 0.0."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if real.is_contiguous() and real.nbytes % 8 == 0 and real.storage_offset() * real.itemsize % 8 == 0:
        return real.flatten().view(torch.int64)  # the widest are compared fastest
    return real if real.dtype == torch.bool else real.contiguous().view(_WORDS[real.element_size()])
