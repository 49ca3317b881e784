"""A call with stand-ins below the boundary, and stored activations in it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bundles.errors import FeatureError
from bundles.features.replay.rules import Rules
from bundles.features.replay.template import Sizes

_FORWARD = "forward"


class Player:
    """Puts stand-ins on a model until the boundary is passed, or :meth:`remove` is called.

    Instances get a ``forward`` of their own, as torch itself does it; no module is replaced and no class
    is touched, and hooks that sit on modules run, with fillers.

    Args:
        root: the model.
        rules: what is called on the way to where the activations enter.
        activations: one tensor, or one for each layer.
        sizes: of the batch.
    """

    def __init__(
        self,
        root: nn.Module,
        rules: Rules,
        activations: Sequence[Tensor],
        sizes: Sizes,
    ) -> None:
        boundary, self._rules = rules.boundary, rules
        self._activations, self._sizes = activations, sizes
        self._next = 0
        self._own: dict[nn.Module, Any] = {}
        self._handles: list[Any] = []
        self._modules = [root.get_submodule(template.module) for template in rules.before]
        for module in self._modules:
            self._put(module, self._stand_in)
        if boundary.module and boundary.side == "output":
            self._put(root.get_submodule(boundary.module), self._give)
        elif boundary.module:
            target = root.get_submodule(boundary.module)
            self._handles.append(target.register_forward_pre_hook(self._swap, with_kwargs=True, prepend=True))

    @property
    def is_passed(self) -> bool:
        """Whether the activations have entered the model."""
        return not (self._own or self._handles)

    def remove(self) -> None:
        """Take everything off again."""
        for module, own in self._own.items():
            module.__dict__.pop(_FORWARD, None)
            if own is not None:
                module.__dict__[_FORWARD] = own
        for handle in self._handles:
            handle.remove()
        self._own.clear()
        self._handles.clear()

    def end(self, output: Any) -> Any:
        """Return what the model returns: the activations, where the boundary is the model itself."""
        if not self._rules.boundary.module:
            self._check_complete()
            output = _with_tensors(output, self._activations)
        elif not self.is_passed:
            raise _other_way(self._rules.boundary.module, "was not called")
        return output

    def _put(self, module: nn.Module, forward: Any) -> None:
        if module not in self._own:
            self._own[module] = module.__dict__.get(_FORWARD)
            module.__dict__[_FORWARD] = functools.partial(forward, module)

    def _stand_in(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        index = self._next
        if index == len(self._rules.before) or self._modules[index] is not module:
            raise _other_way(type(module).__name__, "was called in another order")
        self._next += 1
        template, given = self._rules.before[index], tree_leaves((args, kwargs))
        try:
            return template.make(module, given, self._sizes, self._device)
        except IndexError as error:
            raise _other_way(template.module, "was given other arguments") from error

    def _give(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self._check_complete()
        self.remove()
        given = tree_leaves((args, kwargs))
        at = self._rules.at
        made = None if at is None else at.make(module, given, self._sizes, self._device)
        return _with_tensors(made, self._activations)

    def _swap(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self._check_complete()
        self.remove()
        return _with_tensors((args, dict(kwargs)), self._activations)

    @property
    def _device(self) -> torch.device:
        return self._activations[0].device

    def _check_complete(self) -> None:
        if self._next != len(self._rules.before):
            raise _other_way(self._rules.boundary.module or "the model", "was reached by another way")


def _with_tensors(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """Return a tree whose first tensors are these."""
    leaves, spec = tree_flatten(tree)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for index, tensor in zip(places, tensors, strict=False):
        leaves[index] = tensor
    return tree_unflatten(leaves, spec)


def _other_way(module: str, what: str) -> FeatureError:
    return FeatureError(
        f"{module} {what} than in the calls before, so this call cannot be run from stored activations: "
        f"store layers='output' and train the head on a FeatureStore."
    )
