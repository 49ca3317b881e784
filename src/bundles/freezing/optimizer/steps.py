"""No optimizer step moves what is frozen, and nobody has to say which optimizer.

torch calls global hooks before and after the ``step()`` of every optimizer. Before, the gradients of masked
elements are zeroed and the values of what must not move are kept; after, they are put back. Nothing is
kept between steps, so ``load_state_dict()`` and writes of one's own are never undone.

Frozen tensors have no gradient, and torch's optimizers pass over such, so nothing is done about them there.
Two kinds of optimizer are looked after:

- those that step along one vector over all parameters, as ``LBFGS`` does, whose history still moves
  them: their values are kept and put back, also before each evaluation of the closure;
- those from elsewhere, some of which decay what has no gradient: during their step the frozen tensors
  are taken out of their groups. At the first step after a freeze the values are kept and compared as well,
  and where that shows that the optimizer has other ways to its parameters, at every step from then on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bundles.freezing.sharded import show_shards


class Keeper(Protocol):
    """Knows parameters that are frozen, each as it is now."""

    def masked(self) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
        """Yield the parameters of which parts are frozen, and how to get the mask of what is here."""

    def whole(self) -> Iterator[Tensor]:
        """Yield the parameters that are frozen altogether."""


@dataclass(frozen=True)
class _Value:
    """What a tensor held before a step, and where it is frozen (``None``: everywhere)."""

    tensor: Tensor
    before: Tensor
    mask: Tensor | None

    def put_back(self, *, for_good: bool = False) -> None:
        if self.mask is None:
            self.tensor.copy_(self.before)
            return
        now = _integers(self.tensor)
        difference = _integers(self.before if for_good else self.before.clone())
        difference.bitwise_xor_(now).bitwise_and_(_ones(self.mask, self.tensor))
        now.bitwise_xor_(difference)

    def moved(self) -> bool:
        return not torch.equal(_integers(self.tensor), _integers(self.before))


@dataclass(frozen=True)
class _Step:
    """What one running step must leave alone.

    Attributes:
        values: of masked parameters, and of frozen ones that the optimizer may move.
        taken: lists of parameters out of which frozen ones were taken, with what was in them.
        on_trial: whether it is found out if the optimizer moves frozen parameters.
    """

    values: tuple[_Value, ...]
    taken: tuple[tuple[list[Tensor], list[Tensor]], ...] = ()
    on_trial: bool = False

    def put_back(self, *, for_good: bool = False) -> None:
        for value in self.values:
            value.put_back(for_good=for_good)

    def give_back(self) -> None:
        for present, before in self.taken:
            present[:] = before


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_keepers: WeakSet[Any] = WeakSet()
_masking: WeakSet[Any] = WeakSet()  # those of them that have masks
_running: WeakKeyDictionary[Optimizer, deque[_Step]] = WeakKeyDictionary()  # a step may call that of its base
_acquitted: WeakSet[Optimizer] = WeakSet()
_convicted: WeakSet[Optimizer] = WeakSet()
_met: WeakSet[Optimizer] = WeakSet()  # those whose shards have been in the keepers' sight
_is_watching = False


def watch(keeper: Keeper, *, masking: bool) -> None:
    """Keep what the keeper knows in place at every step of every optimizer, as long as the keeper lives."""
    global _is_watching
    if not _is_watching:
        register_optimizer_step_pre_hook(_before)
        register_optimizer_step_post_hook(_after)
        _is_watching = True
    _keepers.add(keeper)
    _acquitted.clear()
    _met.clear()
    if masking:
        _masking.add(keeper)


def unwatch(keeper: Keeper) -> None:
    """Undo :func:`watch`."""
    _keepers.discard(keeper)
    _masking.discard(keeper)


def settle() -> None:
    """End steps that an exception ended: give optimizers back what was taken out of their groups."""
    for steps in list(_running.values()):
        while steps:
            steps.pop().give_back()


def zero_masked_grad(parameter: Tensor, mask: Tensor) -> None:
    """Zero the gradient of masked elements, infinities and NaN included."""
    if (grad := parameter.grad) is None:
        return
    if grad.is_sparse:
        grad = grad.coalesce()
        rows = mask[tuple(grad.indices())]
        values = grad.values().masked_fill(rows, 0)
        parameter.grad = torch.sparse_coo_tensor(
            grad.indices(), values, grad.shape, is_coalesced=True, check_invariants=False
        )
    else:
        grad = here(grad).detach()
        _integers(grad).bitwise_and_(_ones(mask, grad).bitwise_not_())


def here(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds: all of it, or its shard of a ``DTensor``."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    trusted = _is_trusted(type(optimizer))
    if trusted and not _masking:
        return None
    with torch.no_grad():
        step = _begin(optimizer, trusted)
    _running.setdefault(optimizer, deque(maxlen=4)).append(step)
    if step.values or step.taken:
        return _with_closure(step, args, kwargs)
    return None


def _after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not (steps := _running.get(optimizer)):
        return
    step = steps.pop()
    step.give_back()
    with torch.no_grad():
        if step.on_trial:
            is_guilty = any(value.moved() for value in step.values if value.mask is None)
            (_convicted if is_guilty else _acquitted).add(optimizer)
        step.put_back(for_good=True)


def _begin(optimizer: Optimizer, trusted: bool) -> _Step:
    own = _parameters(optimizer)
    values = [*_masked_values(own)]
    if trusted:
        return _Step(tuple(values))
    frozen = {id(parameter): parameter for parameter in _frozen(own)}
    if _is_flat(optimizer):
        return _Step((*values, *_values(frozen.values())))
    on_trial = bool(frozen) and optimizer not in _acquitted
    if on_trial or optimizer in _convicted:
        values += _values(frozen.values())
    return _Step(tuple(values), tuple(_take_out(optimizer, frozen)), on_trial)


def _parameters(optimizer: Optimizer) -> set[int]:
    """What the optimizer steps; if these are shards that the keepers have not met, they are shown to them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if optimizer not in _met:
        _met.add(optimizer)
        if any(hasattr(parameter, "to_local") for parameter in parameters):
            show_shards()
    return {id(parameter) for parameter in parameters}


def _masked_values(own: set[int]) -> Iterator[_Value]:
    known = (entry for keeper in list(_masking) for entry in keeper.masked())
    for parameter, mask in {id(entry[0]): entry for entry in known if id(entry[0]) in own}.values():
        zero_masked_grad(parameter, mask())
        yield _Value(here(parameter), here(parameter).clone(), mask())


def _frozen(own: set[int]) -> Iterator[Tensor]:
    for keeper in list(_keepers):
        yield from (parameter for parameter in keeper.whole() if id(parameter) in own)


def _values(parameters: Iterable[Tensor]) -> Iterator[_Value]:
    plain = (here(p) for p in parameters if type(p) in (Tensor, nn.Parameter) or hasattr(p, "to_local"))
    return (_Value(tensor, tensor.clone(), None) for tensor in plain)  # quantised ones cannot be compared


def _take_out(optimizer: Optimizer, frozen: dict[int, Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    for group in optimizer.param_groups:
        present = group["params"]
        if any(id(parameter) in frozen for parameter in present):
            yield present, list(present)
            present[:] = [parameter for parameter in present if id(parameter) not in frozen]


def _with_closure(step: _Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same arguments, but for a closure before which everything frozen is in its place."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if not callable(closure):
        return None

    def in_place(*given: Any, **named: Any) -> Any:
        with torch.no_grad():
            step.put_back()
        try:
            return closure(*given, **named)
        except BaseException:
            step.give_back()
            raise

    if len(args) > 1:
        return (args[0], in_place, *args[2:]), kwargs
    return args, {**kwargs, "closure": in_place}


def _is_trusted(cls: type[Optimizer]) -> bool:
    return cls.__module__.startswith("torch.") and not issubclass(cls, LBFGS)


def _is_flat(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, LBFGS) or hasattr(optimizer, "_numel_cache")


def _integers(tensor: Tensor) -> Tensor:
    """The same memory as integers: bitwise arithmetic is exact for NaN, and faster than ``torch.where``."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.view(_INTEGERS[real.element_size()])


def _ones(mask: Tensor, tensor: Tensor) -> Tensor:
    """A mask for the integers of a tensor: all bits where it is True, none elsewhere."""
    spread = mask.unsqueeze(-1) if tensor.is_complex() else mask
    return spread.to(_integers(tensor).dtype).neg_()
