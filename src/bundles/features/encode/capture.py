"""Take values out of a model while it is called, and stop it when no more are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bundles.errors import FeatureError
from bundles.features.encode.layers import Layer
from bundles.freezing.behaviour.hold import held

T = TypeVar("T")


class _Enough(BaseException):
    """Everything that is wanted was seen; a ``BaseException``, so that no model catches it."""


class Captured:
    """What was seen in one call of a model.

    Attributes:
        values: layer -> its values, with the batch in front.
        calls: layer -> how often its module was called; the last call's values are kept.
        lengths: what torchaudio's extractor says of the valid frames.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self.lengths: Tensor | None = None


class Capture:
    """Watches calls of a model.

    Args:
        modules: of the model, by dotted name.
        layers: what is wanted.
        extractor: a module that returns features and lengths, whose lengths are wanted, too.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        layers: Sequence[Layer],
        extractor: nn.Module | None,
    ) -> None:
        self._modules, self._layers, self._extractor = modules, layers, extractor

    def run(self, call: Callable[[], T], *, stop: bool) -> tuple[Captured, T | None]:
        """Return what was seen, and what the call returned if it came to its end.

        Args:
            call: calls the model.
            stop: whether the call ends when all layers were seen once.

        Raises:
            FeatureError: a layer was not seen.
        """
        seen, result = Captured(), None
        handles = list(self._hooks(seen, stop))
        try:
            result = call()
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if missing := [layer.name for layer in self._layers if layer.name not in seen.values]:
            raise FeatureError(
                f"The model did not call {', '.join(missing)}, or gave no tensor there: ask for other layers."
            )
        return seen, result

    def _hooks(self, seen: Captured, stop: bool) -> Iterator[RemovableHandle]:
        for layer in self._layers:
            module = self._modules[layer.module]
            if layer.side == "input":
                hook = self._before(seen, layer.name, stop)
                yield module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                yield module.register_forward_hook(self._after(seen, layer.name, stop))
        if self._extractor is not None:
            yield self._extractor.register_forward_hook(_keep_lengths(seen), prepend=True)

    def _before(self, seen: Captured, name: str, stop: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._note(seen, name, first_tensor((*args, *kwargs.values())), stop)

        return hook

    def _after(self, seen: Captured, name: str, stop: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._note(seen, name, first_tensor(output), stop)

        return hook

    def _note(self, seen: Captured, name: str, values: Tensor | None, stop: bool) -> None:
        if values is None:
            return
        seen.values[name] = values.clone()  # a ReLU in place may come next
        seen.calls[name] = seen.calls.get(name, 0) + 1
        if stop and len(seen.values) == len(self._layers):
            raise _Enough


def _keep_lengths(seen: Captured) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.lengths = second_tensor(output)

    return hook


def first_tensor(output: Any) -> Tensor | None:
    """Return the features in what a module returns: the last hidden state, or the first tensor."""
    if isinstance(output, Mapping):
        named = output.get("last_hidden_state")
        output = tuple(output.values()) if named is None else named
    if isinstance(output, tuple | list):
        return next((value for value in output if isinstance(value, Tensor)), None)
    return output if isinstance(output, Tensor) else None


def second_tensor(output: Any) -> Tensor | None:
    """Return the lengths in a pair of features and lengths."""
    is_pair = isinstance(output, tuple) and len(output) == 2
    return output[1] if is_pair and isinstance(output[1], Tensor) else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block every module that nothing holds is in ``eval()``; then each is as it was.

    The flags are set and no ``train()`` is called, which a model may have given more to do.
    """
    free = [m for m in model.modules() if (what := held(m)) is None or what.training is None]
    before = [(module, module.training) for module in free]
    for module in free:
        module.training = False
    try:
        yield
    finally:
        for module, was in before:
            module.training = was
