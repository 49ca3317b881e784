"""What of a module's own parameters is frozen: the record that it carries, into copies and pickles too.

A masked parameter keeps ``requires_grad=True`` and its place in the optimizer, so nothing that a checkpoint
sees changes. The record is not part of the ``state_dict()``: a model that is built and frozen again, or
copied, or unpickled, has its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bundles.errors import FreezeError
from bundles.freezing.optimizer import steps
from bundles.spec.masks import Mask

_KEPT = "_bundles_kept"


class Kept:
    """The frozen parameters of one module, and the masks of those that are frozen in part.

    It holds the dictionary in which the module has its parameters, and looks them up there each time:
    sharding and moving to another device put new ones into it. A copy of the module refers to the copy.
    """

    def __init__(self, parameters: dict[str, Any], whole: Iterable[str], masks: Mapping[str, Mask]) -> None:
        self.parameters = parameters
        self.names = frozenset(whole)
        self.masks = dict(masks)
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"parameters": self.parameters, "names": self.names, "masks": self.masks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from bundles.freezing.replaced import watch_replacements  # which no freeze may have called here

        watch_replacements()
        self.__dict__.update(state)
        self._start()

    def masked(self) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
        """Yield the parameters of which parts are frozen, and how to get the mask of what is here."""
        for local in self.masks:
            if (parameter := self._stepped(local)) is not None:
                self._clear_in_backward(local, parameter)
                yield parameter, partial(self.mask, local, parameter)

    def whole(self) -> Iterator[Tensor]:
        """Yield the parameters that are frozen altogether, but for those that someone thawed since."""
        for local in self.names:
            parameter = self._stepped(local)
            if parameter is not None and not parameter.requires_grad:
                yield parameter

    def mask(self, local: str, parameter: Tensor) -> Tensor:
        """Return the mask for a parameter, True where frozen; for a ``DTensor`` this rank's part.

        Raises:
            FreezeError: the parameter has another shape than when it was frozen.
        """
        mask, shape = self.masks[local], tuple(parameter.shape)
        if shape != mask.shape:
            raise FreezeError(
                f"The parameter {local!r} of shape {shape} was frozen in part when it had the shape "
                f"{mask.shape}: freeze the model again; FSDP1, which flattens parameters, cannot keep "
                f"masks, torch's fully_shard can."
            )
        place = (
            parameter.device,
            *(getattr(parameter, name, None) for name in ("device_mesh", "placements")),
        )
        if local not in self._tensors or self._tensors[local][0] != place:
            self._tensors[local] = (place, mask_like(parameter, mask))
        return self._tensors[local][1]

    def stop(self) -> None:
        """Let go of the parameters."""
        steps.unwatch(self)
        while self._hooks:
            self._hooks.popitem()[1][1].remove()

    def _start(self) -> None:
        self._tensors: dict[str, tuple[tuple[Any, ...], Tensor]] = {}
        self._hooks: dict[str, tuple[int, RemovableHandle]] = {}
        self._shards: dict[str, weakref.ref[Tensor]] = {}
        steps.watch(self, masking=bool(self.masks))
        for local in (*self.masks, *self.names):
            parameter = self._stepped(local)
            if parameter is not None and local in self.masks:
                self._clear_in_backward(local, parameter)

    def now(self, local: str) -> Tensor | None:
        """Return the parameter as it is now; ``None`` where the module has none of that name any more."""
        parameter: Tensor | None = self.parameters[local] if local in self.parameters else None  # noqa: SIM401
        return parameter

    def _stepped(self, local: str) -> Tensor | None:
        """Return what optimizers step: the shard, also while FSDP2 has the whole parameter in its place."""
        parameter = self.now(local)
        if parameter is not None and hasattr(parameter, "to_local"):
            self._shards[local] = weakref.ref(parameter)
        elif local in self._shards and (shard := self._shards[local]()) is not None:
            return shard
        return parameter

    def _clear_in_backward(self, local: str, parameter: Tensor) -> None:
        """Zero the gradient of masked elements as soon as it is there, so that no norm counts them."""
        is_new = local not in self._hooks or self._hooks[local][0] != id(parameter)
        if is_new and parameter.requires_grad and parameter.is_leaf:
            hook = partial(_clear, weakref.ref(self), local)
            handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._hooks[local] = (id(parameter), handle)


def keep(module: nn.Module, whole: Iterable[str], masks: Mapping[str, Mask]) -> None:
    """Keep parameters of a module, by their local names, and elements of others where they are."""
    forget(module)
    kept = module.__dict__[_KEPT] = Kept(module._parameters, whole, masks)
    with torch.no_grad():
        for parameter, mask in kept.masked():
            if parameter.grad is not None:  # of the time before
                steps.zero_masked_grad(parameter, mask())


def forget(module: nn.Module) -> None:
    """Undo :func:`keep`."""
    if (kept := module.__dict__.pop(_KEPT, None)) is not None:
        kept.stop()


def kept_of(module: nn.Module) -> tuple[frozenset[str], dict[str, Mask]]:
    """Return what :func:`keep` was told."""
    kept: Kept | None = module.__dict__.get(_KEPT)
    return (frozenset(), {}) if kept is None else (kept.names, dict(kept.masks))


def mask_of(module: nn.Module, local: str) -> Tensor | None:
    """Return the mask of a module's own parameter, or ``None`` if it has none.

    A boolean tensor on the parameter's device, True where frozen; of a ``DTensor`` this rank's part.
    """
    kept: Kept | None = module.__dict__.get(_KEPT)
    if kept is None or local not in kept.masks or (parameter := kept.now(local)) is None:
        return None
    return kept.mask(local, parameter)


def masked_elements(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of all masked parameters by dotted name, tied ones under every name."""
    return {
        f"{name}.{local}".lstrip("."): mask
        for name, module in model.named_modules(remove_duplicate=False)
        for local in kept_of(module)[1]
        if (mask := mask_of(module, local)) is not None
    }


def _clear(kept: weakref.ref[Kept], local: str, parameter: Tensor) -> None:
    if (record := kept()) is not None:
        with torch.no_grad():
            steps.zero_masked_grad(parameter, record.mask(local, parameter))


def mask_like(parameter: Tensor, mask: Mask) -> Tensor:
    """The mask as a tensor, where the parameter is and sharded as it is."""
    octets = torch.frombuffer(bytearray(mask.bits or b"\0"), dtype=torch.uint8)
    bits = (octets.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    whole = bits.reshape(-1)[: mask.size].reshape(mask.shape).bool().to(parameter.device)
    return _shard(whole, parameter) if hasattr(parameter, "to_local") else whole


def _shard(whole: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return steps.here(distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None))
