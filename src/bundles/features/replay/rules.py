"""What is known of one way through a model, from the calls that were seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from bundles.errors import FeatureError
from bundles.features.encode.layers import Layer
from bundles.features.replay.record import Call, Recorder, tensors_in
from bundles.features.replay.template import Sizes, Template, learn


@dataclass(frozen=True)
class Rules:
    """How to run what is above a boundary alone.

    A size that was the same in every call may be a rule or not, so a batch that brings a new one is a
    call to learn from, once; two values of each are enough.

    Attributes:
        before: what is called on the way to the boundary, in order.
        at: what the boundary returns, where it is an output.
        boundary: where stored activations enter.
        like: dtype, device and number of dimensions of what the activations take the place of.
        seen: the sizes of the calls that were seen.
    """

    before: tuple[Template, ...]
    at: Template | None
    boundary: Layer
    like: tuple[Tensor, ...]
    seen: tuple[Sizes, ...]

    def is_sure(self, sizes: Sizes) -> bool:
        """Whether all is known that a batch of these sizes needs."""
        for name, value in sizes.named().items():
            seen = {known.named()[name] for known in self.seen}
            if value not in seen and len(seen) < 2:
                return False
        return all(template.is_sure(sizes) for template in self._templates)

    def also(self, other: Rules) -> Rules:
        """Return what is true of the calls of both.

        Raises:
            FeatureError: they took other ways.
        """
        ours, theirs = self._templates, other._templates
        if self._way != other._way:
            raise FeatureError(
                "The model goes through its modules in another order from call to call, so that what is "
                "above the stored layer cannot be run alone: store layers='output' and train the head on a "
                "FeatureStore."
            )
        merged = tuple(one.also(two) for one, two in zip(ours, theirs, strict=True))
        count = len(self.before)
        at = merged[count] if self.at is not None else None
        return Rules(merged[:count], at, self.boundary, other.like, (*self.seen, *other.seen))

    @property
    def _way(self) -> tuple[Any, ...]:
        return self.boundary, *(template.module for template in self._templates)

    @property
    def _templates(self) -> tuple[Template, ...]:
        return self.before if self.at is None else (*self.before, self.at)


def learn_rules(root: nn.Module, record: Recorder, sizes: Sizes) -> Rules:
    """Return what a recorded call tells.

    Raises:
        FeatureError: the boundary was not passed once, or what was called returns what follows no rule.
    """
    boundary = record.boundary
    if record.at is None or record.times != 1:
        raise FeatureError(
            f"{boundary.module or 'The model'} was called {record.times} times in one call of the model, and "
            f"stored activations need one place to enter: store layers='output' and train the head on a "
            f"FeatureStore."
        )
    boundary, calls = _below_dropout(root, record)
    before = tuple(_learn(root, call, sizes) for call in calls)
    at = _learn(root, record.at, sizes) if boundary.side == "output" and boundary.module else None
    like = tuple(tensor[:0].clone() for tensor in record.passed)
    return Rules(before, at, boundary, like, (sizes,))


def _below_dropout(root: nn.Module, record: Recorder) -> tuple[Layer, list[Call]]:
    """Move a boundary that is a head's input down below a dropout that was called right before the head.

    What is stored was computed without its noise, so it is what the dropout is given, and it draws as ever.
    What the record says of what passed follows.
    """
    boundary, calls = record.boundary, list(record.before)
    while boundary.side == "input" and calls and _drops(root.get_submodule(calls[-1].module)):
        dropout = calls.pop()
        boundary = replace(boundary, module=dropout.module)
        record.passed = tensors_in(dropout.given, len(record.passed))
    return boundary, calls


def _drops(module: nn.Module) -> bool:
    return module.training and isinstance(module, nn.modules.dropout._DropoutNd)


def _learn(root: nn.Module, call: Call, sizes: Sizes) -> Template:
    return learn(root.get_submodule(call.module), call, sizes)
