"""Show that a call from stored activations is the call that the model would have made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from bundles.builders.tensors import dtype_named
from bundles.errors import FeatureError, FeatureKeyError
from bundles.features.encode.layers import Layer
from bundles.features.replay.activations import Activations
from bundles.features.replay.play import Player
from bundles.features.replay.record import Passed, Recorder
from bundles.features.replay.rules import Rules
from bundles.features.replay.template import Sizes
from bundles.features.store.store import FeatureStore

ROUNDING = 1e-4  # of the largest number of an item: a difference beyond is another result
_AUTOCAST = 8  # roundings of the type that autocast computes in, over the depth of a model


def generator_state(device: torch.device) -> list[Tensor]:
    """Return what is drawn from: on the CPU, and on the device where it is another."""
    states = [torch.get_rng_state()]
    return (
        states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(device)]
    )


def set_generator_state(device: torch.device, states: Sequence[Tensor]) -> None:
    """Put back what :func:`generator_state` returned."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, device)


def check_replay(
    root: nn.Module,
    call: tuple[tuple[Any, ...], Mapping[str, Any], Any],
    rules: Rules,
    tensors: Sequence[Tensor],
    sizes: Sizes,
    before: Sequence[Tensor],
) -> None:
    """Run a call again from what passed the boundary, and compare what comes out bit for bit.

    Buffers, and what random numbers are drawn from, are as after the first call.

    Args:
        root: the model, which has just been called.
        call: arguments and result of that call.
        rules: of the way to where activations enter.
        tensors: what passed the boundary.
        sizes: of the batch.
        before: :func:`generator_state` before the call.

    Raises:
        FeatureError: the outputs differ, or other random numbers were drawn.
    """
    args, kwargs, output = call
    device = tensors[0].device
    after = generator_state(device)
    set_generator_state(device, before)
    with _own_buffers(root):
        player = Player(root, rules, [tensor.clone() for tensor in tensors], sizes)
        try:
            again = player.end(root(*args, **kwargs))
        finally:
            player.remove()
            drawn = generator_state(device)
            set_generator_state(device, after)
    if (place := _difference(output, again)) is not None:
        raise _inexact(rules.boundary, f"gives another result{place}")
    if not all(map(torch.equal, drawn, after)):
        raise _inexact(rules.boundary, "draws other random numbers")


def compare(
    stored: Activations, computed: Sequence[Tensor], layers: Sequence[str], stores: Sequence[FeatureStore]
) -> Iterator[str]:
    """Yield a line for each layer whose stored values are not those that were computed.

    They may differ by the rounding of the stored type and by that of a batch of another size.

    Args:
        stored: of a batch.
        computed: the same of the model, in batches.
        layers: their names.
        stores: whose type they were rounded to, and which know the difference that was measured then.
    """
    kind = dtype_named(stores[0].facts.dtype) or torch.float32
    bound = max(store.manifest.bound for store in stores)
    for name, items, rows in zip(layers, stored.items, stored.valid(computed), strict=True):
        for item, row in zip(items, rows, strict=True):
            if item.shape != row.shape:
                yield f"{name}: the shape {list(item.shape)} and {list(row.shape)}"
                break
            if (excess := _excess(item, row, kind, bound)) > 0:
                yield f"{name}: values that are {excess:.2g} of the largest apart"
                break


def encode_alone(
    root: nn.Module, boundary: Layer, count: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """Return what passes a boundary in a call whose rest is left out."""
    record = Recorder(root, boundary, count, stop=True)
    states = generator_state(args[0].device)
    try:
        with torch.no_grad(), _own_buffers(root):
            record.end([], root(*args, **kwargs))
    except Passed:
        pass
    finally:
        record.remove()
        set_generator_state(args[0].device, states)
    return record.passed


def mismatch(model: nn.Module, differs: Sequence[str]) -> FeatureKeyError:
    """Return the error about stored values that are not the model's."""
    return FeatureKeyError(
        f"The store and this {type(model).__name__} differ in {'; '.join(differs)}: extract the features of "
        f"this model, as it is frozen now, with bundles.extract_features(model, dataset, out).",
        differs=tuple(differs),
    )


@contextmanager
def _own_buffers(root: nn.Module) -> Iterator[None]:
    """Let a call write to copies of the buffers."""
    kept = [(module, dict(module._buffers)) for module in root.modules()]
    for module, buffers in kept:
        module._buffers.update({name: b.clone() for name, b in buffers.items() if b is not None})
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)


def _excess(item: Tensor, row: Tensor, kind: torch.dtype, bound: float) -> float:
    """Return the largest difference as a fraction of the largest number; 0 where it is rounding."""
    stored, real = item.double(), row.detach().cpu().double()
    if torch.equal(stored, real.to(kind).double()):
        return 0.0
    scale = float(real.abs().max()) or 1.0
    rounding = torch.finfo(kind).eps * real.abs() + torch.finfo(kind).tiny
    allowed = rounding + scale * max(bound, _rounding(row))
    difference = (stored - real).abs()
    return 0.0 if bool((difference <= allowed).all()) else float(difference.max()) / scale


def _rounding(row: Tensor) -> float:
    kind = row.device.type
    computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else row.dtype
    return max(ROUNDING, _AUTOCAST * torch.finfo(computed).eps)


def _difference(one: Any, two: Any) -> str | None:
    """Return where two results differ in any bit; one not-a-number is as good as another."""
    ours, spec = tree_flatten_with_path(one)
    theirs, other = tree_flatten_with_path(two)
    if spec != other:
        return ""
    pairs = zip(ours, theirs, strict=True)
    return next((f" ({keystr(path)})" for (path, a), (_, b) in pairs if not _same_leaf(a, b)), None)


def _same_leaf(one: Any, two: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
        if one is two or type(one) is not type(two):
            return one is two
        # A result of a class of the user's, or a cache of keys and values, is compared by what is in it.
        return _difference(vars(one), vars(two)) is None if hasattr(one, "__dict__") else bool(one == two)
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    return bool(((one == two) | ((one != one) & (two != two))).all())


def _inexact(boundary: Layer, what: str) -> FeatureError:
    where = boundary.module or "its output"
    return FeatureError(
        f"The model {what} when what is above {where} runs from stored activations, so more than these "
        f"passes: store layers='output' and train the head on a FeatureStore."
    )
