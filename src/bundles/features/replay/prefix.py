"""The part of a model whose activations are stored: whether it is what they were computed with, still."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bundles.assemble.built import built_of
from bundles.builders.head import EncoderWithHead
from bundles.errors import FeatureKeyError, FreezeArgumentError, NotDeterministicError
from bundles.features.encode.deterministic import check_deterministic, prefix
from bundles.features.encode.layers import Anatomy, Layer, find_layers
from bundles.features.encode.state import state_digest
from bundles.features.inputs.preprocess import preprocessing_of
from bundles.features.replay.proof import mismatch
from bundles.features.store.store import FeatureStore
from bundles.freezing.marks import own_plan
from bundles.heads.protocol import uses_layers
from bundles.spec.features import OUTPUT
from bundles.spec.values import plain_value


def enter(model: nn.Module, store: FeatureStore) -> tuple[tuple[str, ...], Layer]:
    """Return the stored layers that enter a model, and where: the deepest that its frozen prefix covers.

    Raises:
        FeatureKeyError: the model has no such layers, or trains below them.
        NotDeterministicError: the model has no prefix that stays the same.
    """
    end = prefix(model)
    anatomy = Anatomy(model)
    if isinstance(model, EncoderWithHead) and uses_layers(model.head):
        return _all_layers(anatomy, end, store)
    try:
        found = find_layers(model, store.layers)
    except FreezeArgumentError as error:
        raise mismatch(model, [f"layers: {error}"]) from error
    covered = [layer for layer in found if anatomy.depth(layer) <= anatomy.depth(end)]
    if not covered:
        raise FeatureKeyError(
            f"The store holds {', '.join(store.layers)}, and the frozen prefix of the model ends at "
            f"{end.name}: extract with layers='prefix', or freeze more.",
            differs=(f"layers: {', '.join(store.layers)} and {end.name}",),
        )
    return (covered[-1].name,), covered[-1]


def check_alike(model: nn.Module, stores: Sequence[FeatureStore]) -> None:
    """Raise where stores are not of one model, frozen and read in one way.

    Raises:
        FeatureKeyError: two differ.
    """
    first = stores[0]
    for other in stores[1:]:
        differs = [*first.facts.differences(other.facts)]
        if not differs and (first.state, first.layers) != (other.state, other.layers):
            differs = ["their layers, or the values that they were computed with"]
        if differs:
            raise mismatch(model, [f"{other.path.name} is not {first.path.name}: {line}" for line in differs])


def _all_layers(anatomy: Anatomy, end: Layer, store: FeatureStore) -> tuple[tuple[str, ...], Layer]:
    """A head that uses all layers is given the list of them."""
    missing = [name for name in anatomy.blocks if name not in store.layers]
    if missing or end.name != OUTPUT:
        count = len(anatomy.blocks)
        raise FeatureKeyError(
            f"The head uses all layers, and the store holds {', '.join(store.layers)} of an encoder that is "
            f"frozen up to {end.name}: extract with layers=list(range({count})), and freeze the encoder.",
            differs=(f"layers: {', '.join(store.layers)} and {', '.join(anatomy.blocks)}",),
        )
    return anatomy.blocks, replace(anatomy.layer(OUTPUT), module="head", side="input")


class Prefix:
    """What a layer is computed with.

    Args:
        model: of which it is a part.
        layer: what is stored of it.
        store: of the features.

    Attributes:
        kind: of the inputs, as ``"waveform"``.

    Raises:
        FeatureKeyError: values or preprocessing are not those of the store.
        NotDeterministicError: the layer is not the same from call to call.
    """

    def __init__(self, model: nn.Module, layer: Layer, store: FeatureStore) -> None:
        check_deterministic(model, [layer.name])
        self._layer = layer
        self._has_trained = False
        self.kind = str(store.facts.preprocessing.get("kind"))
        if differs := list(_differences(model, store)):
            raise mismatch(model, differs)
        self._state = self._digest(model)
        self._is_same = True
        self._stamps: list[Any] | None = None
        self._parts: list[Any] = []
        self._look(model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": [], "_stamps": None, "_tensors": (), "_modules": ()}

    @property
    def flags(self) -> tuple[bool, ...]:
        """The ``training`` flag of each of its modules."""
        return tuple(module.training for module in self._modules)

    def is_frozen(self, model: nn.Module) -> bool:
        """Whether it is still what was stored, as far as that shows at once.

        Raises:
            FeatureKeyError: its values changed, and it did not train in between.
        """
        parts = [part for module in model.modules() for part in (module, own_plan(module))]
        if not _are_same(self._parts, parts):
            self._parts = parts
            self._look(model)
        if not self._is_covered or any(tensor.requires_grad for tensor in self._tensors):
            self._has_trained = True
            return False
        stamps = [_stamp(tensor) for tensor in self._tensors]
        if self._stamps != stamps:
            self._stamps, self._is_same = stamps, self._digest(model) == self._state
        if not (self._is_same or self._has_trained):
            self.check_values(model)
        return self._is_same

    def check_values(self, model: nn.Module) -> None:
        """Raise where a value is another than when the features were stored.

        Raises:
            FeatureKeyError: one is.
        """
        if self._digest(model) != self._state:
            raise mismatch(model, ["the values of the prefix, which changed since the features were stored"])

    def _look(self, model: nn.Module) -> None:
        """Find the prefix in a model, which may be a copy of the one that it was found in before."""
        anatomy = Anatomy(model)
        self._is_covered = _covers(anatomy, self._layer)
        names = list(anatomy.computed(self._layer))
        self._modules = tuple(anatomy.modules[name] for name in names)
        buffers = [buffer for module in self._modules for buffer in module._buffers.values()]
        found = [*anatomy.parameters(self._layer).values(), *buffers]
        self._tensors = tuple(tensor for tensor in found if tensor is not None)
        self._stamps = None

    def _digest(self, model: nn.Module) -> str:
        return state_digest(model, [self._layer.name])


def _covers(anatomy: Anatomy, layer: Layer) -> bool:
    """Whether all that a layer is computed with is frozen and stays the same in training."""
    try:
        return anatomy.depth(layer) <= anatomy.depth(prefix(anatomy.model))
    except NotDeterministicError:
        return False


def _differences(model: nn.Module, store: FeatureStore) -> Iterator[str]:
    """Yield in what a store is not of this model."""
    if state_digest(model, store.facts.layers) != store.state:
        yield "the values of the prefix, or its modules"
    if built_of(model) is not None:
        ours = _plain(preprocessing_of(model).to_dict())
        theirs = _plain(store.facts.preprocessing)
        if ours != theirs:
            yield f"preprocessing: {theirs} and {ours}"


def _plain(preprocessing: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(plain_value(preprocessing)))


def _are_same(ours: Sequence[object], theirs: Sequence[object]) -> bool:
    return len(ours) == len(theirs) and all(one is two for one, two in zip(ours, theirs, strict=True))


def _stamp(tensor: Tensor) -> tuple[Any, ...]:
    """What tells that a tensor was written to, or that another is in its place."""
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version, tensor.dtype
