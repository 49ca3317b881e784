"""What one real call did on its way to the boundary: which modules it went through, and what passed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bundles.features.encode.layers import Layer


class Call(NamedTuple):
    """One call of a module: its name, the leaves of its arguments, and what it returned."""

    module: str
    given: list[Any]
    made: Any


class Passed(BaseException):
    """Ends a call at the boundary; no ``Exception``, so that no model catches it."""


class Recorder:
    """Watches one call of a model.

    Args:
        root: the model.
        boundary: where activations enter.
        count: how many tensors pass it: one, or one for each layer.
        stop: whether the call ends there, with :class:`Passed`.

    Attributes:
        before: the calls that were complete when the boundary was reached, outermost only.
        at: the call of the boundary itself; what it made is ``None`` on the side of the input.
        passed: the tensors that stored activations take the place of.
        times: how often the boundary was passed.
    """

    def __init__(self, root: nn.Module, boundary: Layer, count: int, *, stop: bool = False) -> None:
        self.boundary = boundary
        self.passed: list[Tensor] = []
        self._count = count
        self.before: list[Call] = []
        self.at: Call | None = None
        self.times = 0
        self._stop = stop
        self._open: list[list[Call]] = [[]]
        self._names = {module: name for name, module in root.named_modules() if module is not root}
        self._handles = [
            handle
            for module in self._names
            for handle in (
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave, with_kwargs=True),
            )
        ]

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def end(self, given: list[Any], made: Any) -> None:
        """Note that the model itself returned, which is the boundary where that has no name."""
        if not self.boundary.module:
            self._pass(Call("", given, made))

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._open.append([])
        if self._is(module, "input"):
            self._pass(Call(self._names[module], tree_leaves((args, kwargs)), None))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any) -> None:
        self._open.pop()
        if self.times and not self._is(module, "output"):
            return
        call = Call(self._names[module], tree_leaves((args, kwargs)), made)
        if self._is(module, "output"):
            self._pass(call)
        elif self._open:
            self._open[-1].append(call)

    def _is(self, module: nn.Module, side: str) -> bool:
        return self.boundary.side == side and self._names[module] == self.boundary.module

    def _pass(self, call: Call) -> None:
        self.times += 1
        if self.times == 1:
            self.at = call
            leaves = call.given if self.boundary.side == "input" else tree_leaves(call.made)
            self.passed = tensors_in(leaves, self._count)
            self.before = [done for level in self._open for done in level]
        if self._stop:
            raise Passed


def tensors_in(leaves: list[Any], count: int) -> list[Tensor]:
    """Return copies of the first tensors: what is above may write to its input."""
    return [leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor)][:count]
