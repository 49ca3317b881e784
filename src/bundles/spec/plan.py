"""The freeze plan: what will be frozen and held, as data that can be printed, compared and stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

from bundles.errors import PinError
from bundles.spec.groups import Always, Kind, LayerGroup, LayerGroups
from bundles.spec.mode import FreezeMode

State = Literal["frozen", "trainable", "fixed"]


@dataclass(frozen=True)
class PlannedTensor:
    """What becomes of one parameter. ``"fixed"``: it did not train before the freeze either."""

    name: str
    shape: tuple[int, ...]
    group: str
    state: State

    @property
    def count(self) -> int:
        """The number of its elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class PlannedHold:
    """What becomes of one module's behaviour.

    Attributes:
        module: its name; empty for the root.
        training: the value at which its ``training`` flag is held; ``None`` follows ``train()``.
        cut: whether its forward records no graph.
        assumed: whether what the flag does in it could only be guessed.
        group: the layer group that it belongs to; ``None`` where it reaches over several.
    """

    module: str
    training: bool | None
    cut: bool = False
    assumed: bool = False
    group: str | None = None


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
        """Names of the parameters that train."""
        return tuple(tensor.name for tensor in self.tensors if tensor.state == "trainable")

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
        tensors = sorted((t.name, list(t.shape), t.state == "frozen") for t in self.tensors)
        holds = sorted((h.module, str(h.training), h.cut) for h in self.holds)
        text = json.dumps({"tensors": tensors, "holds": holds}, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the plan as JSON text, its digest included."""
        return json.dumps({"digest": self.digest, **asdict(self)}, indent=1)

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
        frozen = sum(t.count for t in self.tensors if t.state == "frozen")
        trained = sum(t.count for t in self.tensors if t.state == "trainable")
        return (
            f"{self.policy} in mode {self.mode}: {frozen:,} parameters frozen, {trained:,} trainable, "
            f"{len(self.holds)} modules held, {self.digest[:19]}"
        )


def _from_data(data: Mapping[str, Any]) -> FreezePlan:
    return FreezePlan(
        policy=data["policy"],
        mode=FreezeMode(**data["mode"]),
        groups=tuple(PlannedGroup(**{**group, "match": tuple(group["match"])}) for group in data["groups"]),
        tensors=tuple(
            PlannedTensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in data["tensors"]
        ),
        holds=tuple(PlannedHold(**hold) for hold in data["holds"]),
    )
