"""Put a delta on its base: a model built anew, or one that is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundles.builders.match import mismatch_error
from bundles.builders.walk import state_of
from bundles.delta import frozen, training
from bundles.delta.base import Tensors, check_model, rebuild, unsaved_buffers
from bundles.delta.format import Header, malformed, read_parts, reading
from bundles.errors import BundlesError, DeltaBaseError, HeadError, PinError
from bundles.freezing.derive import unwrap
from bundles.freezing.optimizer.masks import mask_like
from bundles.freezing.optimizer.optimizers import Optimizers
from bundles.heads.recipes import make_head
from bundles.spec.masks import Mask


def load_delta(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    head: nn.Module | Callable[[int], nn.Module] | None = None,
    optimizer: Optimizers | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Return the model that :func:`save_delta` was given: the same parameters, buffers and freeze.

    Without a model the bundle is built anew from the files that the delta names, by their digests, and comes
    in ``eval()``. A given model is changed in place and keeps its mode; before it is, what the delta does not
    store is compared with the delta's base. Nothing is changed where an error is raised.

    Args:
        path: of the file.
        model: built by the same bundle with a head of the same sizes, or of the same class of one's own.
        head: for a model that is built anew with a head that is none of ``bundles.heads``: as in
            :func:`bundles.get_model`.
        optimizer: over the given model, one or a list, made as those whose state was saved; they get it
            back, by the names of parameters.
        device: where a model that is built anew goes; a given one stays where it is.

    Raises:
        FileNotFoundError, WeightsFileError: there is no file, or it is damaged or no delta.
        PinError: its header is malformed, or of another format version.
        DeltaBaseError: the base is another one: card, file, tensors, or what the freeze comes to.
        HeadError: no recipe describes the head, and ``head`` is not given.
        StateDictMismatchError: names or shapes are not those of the model.
        FreezeArgumentError: ``optimizer`` is none of those whose state was saved.
        UnknownBundleError, SourceError, WeightsError, BuildError: the base cannot be had.

    >>> import bundles, tempfile, torch
    >>> model = bundles.CREPE_TINY.get_model(freeze=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load_delta(bundles.save_delta(model, f"{folder}/run.safetensors"))
    >>> torch.equal(again.classifier.weight, model.classifier.weight), again.conv1.weight.requires_grad
    (True, False)
    """
    path = Path(path).expanduser()
    header, tensors = read_parts(path)
    with reading(path):
        if model is not None:
            return _load_into(model, header, tensors, head, optimizer, path)
        if optimizer is not None:
            raise HeadError(
                "An optimizer is over the parameters of a model that is there: build the model, give its "
                "parameters to the optimizer, and type load_delta(path, model, optimizer=optimizer)."
            )
        built = build(header, head, path)
        _put(built, header, tensors, _plans(built, header, tensors), _masks(header, tensors), assign=True)
        return built if device is None else built.to(device)


def build(header: Header, head: Any, path: Path) -> nn.Module:
    """Build a delta's bundle anew, with its head, unfrozen and without what the delta stores."""
    if "digests" in header.base:
        raise DeltaBaseError(
            f"The delta {path} was written over a {header.base['class']}, which no bundle built: type "
            f"load_delta(path, model) with the model as it was before the training."
        )
    if header.head is not None and head is None:
        recipe = header.head["recipe"]
        if recipe is None:
            raise HeadError(
                f"The delta {path} has a head of {header.head['class']}, which no recipe describes: type "
                f"load_delta(path, head=...) with what get_model(head=...) was given."
            )
        head = lambda size: make_head(recipe, size)  # noqa: E731 - as people write it
    return rebuild(header.base, head, header.dtype)


def _load_into(
    model: nn.Module,
    header: Header,
    tensors: Tensors,
    head: Any,
    optimizer: Optimizers | None,
    path: Path,
) -> nn.Module:
    if head is not None:
        raise HeadError("A model that is given has its head already: leave head= out.")
    inner = unwrap(model)
    masks = _masks(header, tensors)
    state = _check_shapes(inner, header, tensors, masks, path)
    plans = _plans(inner, header, tensors)
    if optimizer is not None:
        training.check(inner, optimizer, header.optimizers, tensors, plans.names)
    left = [name for name in header.names if name not in tensors]
    check_model(inner, header, state, left, masks)
    schedule = header.unfreeze_schedule()
    _put(inner, header, tensors, plans, masks, assign=False)
    if optimizer is not None:
        training.fit(inner, optimizer, header.optimizers, schedule, header.step)
        training.restore(inner, optimizer, header.optimizers, tensors)
    return model


def _put(
    model: nn.Module,
    header: Header,
    tensors: Tensors,
    plans: frozen.Frozen,
    masks: Mapping[str, Mask],
    *,
    assign: bool,
) -> None:
    """Freeze the model and fill in what is stored; ``assign`` makes the stored tensors be the model's."""
    state = _check_shapes(model, header, tensors, masks, None)
    frozen.put_back(model, plans)
    with torch.no_grad():
        for name in header.names:
            target = state[name]
            if name in tensors:
                _fill(target, tensors[name], assign=assign)
            elif f"packed:{name}" in tensors:
                values = tensors[f"packed:{name}"].to(target.device)
                target[~mask_like(target, masks[name])] = values
        own = unsaved_buffers(model)
        for name, shape in header.unsaved.items():
            if name in own and list(own[name].shape) == shape == list(tensors[name].shape):
                own[name].copy_(tensors[name])


def _fill(target: torch.Tensor, tensor: torch.Tensor, *, assign: bool) -> None:
    if target.dtype != tensor.dtype or (assign and type(target) in (nn.Parameter, torch.Tensor)):
        target.data = tensor.to(target.device)
    else:
        target.copy_(tensor)


def _plans(model: nn.Module, header: Header, tensors: Tensors) -> frozen.Frozen:
    return frozen.read(model, header.freeze, tensors)


def _masks(header: Header, tensors: Tensors) -> dict[str, Mask]:
    """The masks of what is stored in part."""
    try:
        found = dict(frozen.masks_of_plans(header.freeze, tensors))
    except BundlesError as error:
        raise PinError(f"The header of the delta is malformed: {error}") from error
    return {name: mask for name, mask in found.items() if name not in tensors}


def _check_shapes(
    model: nn.Module, header: Header, tensors: Tensors, masks: Mapping[str, Mask], path: Path | None
) -> Tensors:
    """Return the tensors of the model, after a check that they are those that the delta was made of.

    Raises:
        StateDictMismatchError: names or shapes differ.
        PinError: what is stored has not the shapes that the header says.
    """
    state = state_of(model)
    wrong = [n for n, shape in header.names.items() if n in state and list(state[n].shape) != shape]
    packed = [n for n in header.names if f"packed:{n}" in tensors and n in state]
    wrong += [name for name in packed if tensors[f"packed:{name}"].dtype != state[name].dtype]
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    missing = [name for name in header.names if name not in state]
    extra = [name for name, tensor in state.items() if first[id(tensor)] not in header.names]
    if wrong or missing or extra:
        raise mismatch_error(str(path or "the delta"), extra, missing, wrong)
    for name, shape in header.names.items():
        if (row := tensors.get(f"packed:{name}")) is not None and name not in tensors:
            mask = masks.get(name)
            if mask is None or list(mask.shape) != shape or row.shape != (mask.size - mask.count,):
                raise malformed(path, f"{name} is stored in another shape")
    return state
