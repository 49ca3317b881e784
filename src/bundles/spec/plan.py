"""The freeze plan: what will be frozen and held, as data that can be printed, compared and stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

from bundles.errors import FreezeArgumentError, PinError
from bundles.spec.groups import Always, Kind, LayerGroup, LayerGroups
from bundles.spec.masks import Mask
from bundles.spec.mode import FreezeMode
from bundles.spec.selection import Selection

State = Literal["frozen", "masked", "trainable", "fixed"]


@dataclass(frozen=True)
class PlannedTensor:
    """What becomes of one parameter.

    Attributes:
        name: dotted name from the model's root.
        shape: its dimensions.
        group: the layer group that it belongs to.
        state: ``"masked"``: part of it is frozen; ``"fixed"``: it did not train before the freeze either.
        mask: of a masked one, True where frozen.
        alias_of: the first name of the same parameter, where this is another one.
    """

    name: str
    shape: tuple[int, ...]
    group: str
    state: State
    mask: Mask | None = None
    alias_of: str | None = None

    def __post_init__(self) -> None:
        expected = self.shape if self.state == "masked" else None
        if (None if self.mask is None else self.mask.shape) != expected:
            raise FreezeArgumentError(
                f"{self.name} of shape {self.shape} is planned {self.state!r} with the mask {self.mask}: a "
                f"mask of its shape belongs to 'masked', none to any other state."
            )

    @property
    def count(self) -> int:
        """The number of its elements."""
        return prod(self.shape)

    @property
    def frozen_count(self) -> int:
        """The number of its elements that are frozen."""
        return self.mask.count if self.mask else self.count if self.state == "frozen" else 0

    @property
    def trained_count(self) -> int:
        """The number of its elements that train."""
        return self.count - self.frozen_count if self.trains else 0

    @property
    def trains(self) -> bool:
        """Whether it gets a gradient: all of it trains, or part of it."""
        return self.state in ("trainable", "masked")


@dataclass(frozen=True)
class PlannedHold:
    """What becomes of one module's behaviour.

    Attributes:
        module: its name; empty for the root.
        training: the value at which its ``training`` flag is held; ``None`` follows ``train()``.
        cut: whether its forward records no graph.
        assumed: whether what the flag does in it could only be guessed.
        group: the layer group that it belongs to; ``None`` where it reaches over several.
        knobs: attributes that are held beside the flag, with their values.
    """

    module: str
    training: bool | None
    cut: bool = False
    assumed: bool = False
    group: str | None = None
    knobs: tuple[tuple[str, float | bool], ...] = ()


@dataclass(frozen=True)
class PlannedGroup:
    """A layer group, in order, with the patterns that define it."""

    name: str
    kind: Kind
    match: tuple[str, ...] = ()
    always: Always | None = None


@dataclass(frozen=True)
class FreezePlan:
    """Which parameters are frozen and how each module is held, worked out before a byte moves.

    >>> import bundles
    >>> plan = bundles.CREPE_TINY.plan(freeze="last:1")
    >>> plan.trainable
    ('conv6.weight', 'conv6.bias', 'conv6_BN.weight', 'conv6_BN.bias', 'classifier.weight', 'classifier.bias')
    >>> bundles.FreezePlan.from_json(plan.to_json()) == plan
    True
    """

    policy: str
    mode: FreezeMode
    groups: tuple[PlannedGroup, ...]
    tensors: tuple[PlannedTensor, ...]
    holds: tuple[PlannedHold, ...]

    @cached_property
    def frozen(self) -> tuple[str, ...]:
        """Names of the frozen parameters."""
        return tuple(tensor.name for tensor in self.tensors if tensor.state == "frozen")

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that train as a whole."""
        return tuple(tensor.name for tensor in self.tensors if tensor.state == "trainable")

    @cached_property
    def masked(self) -> tuple[str, ...]:
        """Names of the parameters of which some elements are frozen and others train."""
        return tuple(tensor.name for tensor in self.tensors if tensor.state == "masked")

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Names of the parameters that get a gradient: those that train as a whole, and the masked."""
        return tuple(tensor.name for tensor in self.tensors if tensor.trains)

    @cached_property
    def masks(self) -> dict[str, Mask]:
        """The masks of those, by name; True where frozen."""
        return {tensor.name: tensor.mask for tensor in self.tensors if tensor.mask is not None}

    @property
    def selection(self) -> Selection:
        """What is frozen of it, down to single elements."""
        return Selection.of(self.frozen, self.masks)

    def layer_groups(self) -> LayerGroups:
        """Return the partition that the plan was made with."""
        members: dict[str, list[str]] = {group.name: [] for group in self.groups}
        for tensor in self.tensors:
            members[tensor.group].append(tensor.name)
        return LayerGroups(
            tuple(LayerGroup(g.name, g.kind, g.match, tuple(members[g.name]), g.always) for g in self.groups)
        )

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits over what is frozen and how it is held, order ignored.

        The wording of policy and mode and the groups' names do not count: two ways to say what comes
        to the same for this model are equal.
        """
        tensors = sorted(
            (t.name, list(t.shape), t.mask.digest if t.mask else t.state == "frozen") for t in self.tensors
        )
        holds = sorted((h.module, str(h.training), h.cut, *h.knobs) for h in self.holds)
        text = json.dumps({"tensors": tensors, "holds": holds}, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the plan as JSON text, its digest included."""
        data = asdict(self)
        for entry, tensor in zip(data["tensors"], self.tensors, strict=True):
            del entry["mask"]
            if tensor.mask is not None:
                entry["mask"] = tensor.mask.to_text()
            if tensor.alias_of is None:
                del entry["alias_of"]
        return json.dumps({"digest": self.digest, **data}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> FreezePlan:
        """Read what :meth:`to_json` wrote.

        Raises:
            PinError: the text is not a plan, or its digest is that of another one.
        """
        try:
            data = json.loads(text)
            plan, recorded = _from_data(data), data["digest"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PinError(f"The text is not a freeze plan written by to_json(): {error}.") from error
        if recorded != plan.digest:
            raise PinError(
                f"What the plan freezes or holds was changed after it was written: its digest is "
                f"{plan.digest}, recorded is {recorded}."
            )
        return plan

    def __repr__(self) -> str:
        return f"<FreezePlan {self}>"

    def __str__(self) -> str:
        """One line: policy, mode, counts, digest."""
        distinct = [tensor for tensor in self.tensors if tensor.alias_of is None]
        frozen = sum(tensor.frozen_count for tensor in distinct)
        trained = sum(tensor.trained_count for tensor in distinct)
        return (
            f"{self.policy} in mode {self.mode}: {frozen:,} parameters frozen, {trained:,} trainable, "
            f"{len(self.holds)} modules held, {self.digest[:19]}"
        )


def _from_data(data: Mapping[str, Any]) -> FreezePlan:
    return FreezePlan(
        policy=data["policy"],
        mode=FreezeMode(**data["mode"]),
        groups=tuple(PlannedGroup(**{**group, "match": tuple(group["match"])}) for group in data["groups"]),
        tensors=tuple(_planned_tensor(tensor) for tensor in data["tensors"]),
        holds=tuple(
            PlannedHold(**{**hold, "knobs": tuple(map(tuple, hold["knobs"]))}) for hold in data["holds"]
        ),
    )


def _planned_tensor(data: Mapping[str, Any]) -> PlannedTensor:
    shape, text = tuple(data["shape"]), data.get("mask")
    mask = None if text is None else Mask.from_text(shape, text)
    return PlannedTensor(**{**data, "shape": shape, "mask": mask})
