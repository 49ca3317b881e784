"""When what is frozen: milestones as a value, a pure function of step or epoch."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from bundles.errors import FreezeArgumentError
from bundles.spec.mode import PRESETS, FreezeMode, parse_mode
from bundles.spec.policy import (
    All,
    Blocks,
    Encoder,
    ExceptLast,
    First,
    FreezePolicy,
    Head,
    Loaded,
    Match,
    Nothing,
    parse_policy,
)
from bundles.spec.values import shown


@dataclass(frozen=True, init=False, repr=False)
class Schedule:
    """Milestones, a mode and a warm-up; ``bundles.UnfreezeSchedule`` is this with ``apply()``.

    Attributes:
        milestones: (step, policy) in order; the first step is 0.
        mode: how the frozen part behaves.
        warmup: over how many steps the learning rate of what thaws grows to its full value.
    """

    milestones: tuple[tuple[int, FreezePolicy], ...]
    mode: FreezeMode
    warmup: int

    def __init__(
        self,
        milestones: Mapping[int, str | FreezePolicy],
        *,
        mode: str | FreezeMode = "eval",
        warmup: int = 0,
    ) -> None:
        if not isinstance(milestones, Mapping) or not milestones:
            raise FreezeArgumentError(
                f"The milestones {shown(milestones)} are not a mapping from step to policy, "
                f"as {{0: 'encoder', 1000: 'none'}} is."
            )
        entries = {_count(step, "milestone"): parse_policy(policy) for step, policy in milestones.items()}
        if 0 not in entries:
            raise FreezeArgumentError(
                f"The first milestone is {min(entries)}: say what is frozen from step 0 on, as in "
                f"{{0: 'encoder', {min(entries)}: ...}}."
            )
        if unsettled := [policy for policy in entries.values() if policy.unsettled]:
            raise FreezeArgumentError(
                f"{unsettled[0]!r} depends on what fits a bundle, so no step can be told by it: give "
                f"get_model(freeze='fit:...') it, or a policy such as 'last:2' to the schedule."
            )
        object.__setattr__(self, "milestones", tuple(sorted(entries.items(), key=lambda entry: entry[0])))
        object.__setattr__(self, "mode", parse_mode(mode))
        object.__setattr__(self, "warmup", _count(warmup, "warmup"))

    @classmethod
    def gradual(
        cls,
        blocks: int,
        *,
        every: int = 1,
        start: int | None = None,
        mode: str | FreezeMode = "eval",
        warmup: int = 0,
    ) -> Self:
        """Head first, then one more block from the top each time, at last everything.

        Gradual unfreezing of ULMFiT (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146), where
        ``every`` is an epoch. The final norm trains with the head, the stem thaws with the lowest block.

        Args:
            blocks: how many the model has, as ``len(bundles.layer_groups(model).blocks)``.
            every: steps or epochs from one block to the next.
            start: when the topmost block thaws; as ``every`` where it is not given.
            mode: how the frozen part behaves.
            warmup: as that of the class.

        Raises:
            FreezeArgumentError: a number is not a whole one, or ``blocks``, ``every`` or ``start`` is 0.

        >>> import bundles
        >>> [str(policy) for _, policy in bundles.UnfreezeSchedule.gradual(3).milestones]
        ['ExceptLast(0)', 'ExceptLast(1)', 'ExceptLast(2)', 'Nothing()']
        """
        first = every if start is None else start
        for name, value in {"blocks": blocks, "every": every, "start": first}.items():
            _count(value, name, least=1)
        thaws = {
            first + (n - 1) * every: ExceptLast(n) if n < blocks else Nothing() for n in range(1, blocks + 1)
        }
        return cls({0: ExceptLast(0), **thaws}, mode=mode, warmup=warmup)

    @classmethod
    def lp_ft(cls, at: int, *, mode: str | FreezeMode = "eval", warmup: int = 0) -> Self:
        """The head alone (linear probing) until ``at``, then everything (fine-tuning).

        LP-FT (Kumar et al. 2022, https://arxiv.org/abs/2202.10054): a head that fits already keeps
        fine-tuning from distorting the pretrained features.

        >>> import bundles
        >>> bundles.UnfreezeSchedule.lp_ft(at=1000)
        UnfreezeSchedule({0: Encoder(), 1000: Nothing()}, mode='eval', warmup=0)
        """
        return cls({0: Encoder(), _count(at, "at", least=1): Nothing()}, mode=mode, warmup=warmup)

    def milestone_at(self, step: int) -> int:
        """Return the milestone that a step comes after, or is."""
        return self.milestones[self._index(step)][0]

    def policy_at(self, step: int) -> FreezePolicy:
        """Return the policy that holds at a step.

        Raises:
            FreezeArgumentError: the step is not a whole number from 0.
        """
        return self.milestones[self._index(step)][1]

    def text_at(self, step: int) -> str:
        """Return ``repr(policy_at(step))``, which plans carry; it is made once."""
        return self._texts[self._index(step)]

    def rate_at(self, step: int, milestone: int) -> float:
        """Return the factor of the learning rate, at a step, of what thawed at a milestone."""
        return min(1.0, (step - milestone + 1) / self.warmup) if self.warmup else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as JSON types.

        Raises:
            FreezeArgumentError: a policy has no string, as ``Encoder() & ~Match("*.bias")`` has none.

        >>> import bundles
        >>> schedule = bundles.UnfreezeSchedule({0: "last:2", 500: "none"})
        >>> schedule.to_dict()
        {'milestones': [[0, 'last:2'], [500, 'none']], 'mode': 'eval', 'warmup': 0}
        >>> bundles.UnfreezeSchedule.from_dict(schedule.to_dict()) == schedule
        True
        """
        mode = str(self.mode) if str(self.mode) in PRESETS else vars(self.mode)
        milestones = [[step, _string(policy)] for step, policy in self.milestones]
        return {"milestones": milestones, "mode": mode, "warmup": self.warmup}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` made.

        Raises:
            FreezeArgumentError: it is something else.
        """
        try:
            mode = data["mode"]
            made = {
                "mode": mode if isinstance(mode, str) else FreezeMode(**mode),
                "warmup": data["warmup"],
            }
            return cls(dict(data["milestones"]), **made)
        except (KeyError, TypeError, ValueError) as error:
            raise FreezeArgumentError(
                f"{shown(data)} is not a schedule written by to_dict(): {error}"
            ) from error

    def __repr__(self) -> str:
        milestones = ", ".join(f"{step}: {policy!r}" for step, policy in self.milestones)
        mode = repr(str(self.mode)) if str(self.mode) in PRESETS else repr(self.mode)
        return f"{type(self).__name__}({{{milestones}}}, mode={mode}, warmup={self.warmup})"

    def _index(self, step: int) -> int:
        return bisect_right(self._steps, _count(step, "step")) - 1

    @cached_property
    def _steps(self) -> tuple[int, ...]:
        return tuple(step for step, _ in self.milestones)

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        return tuple(repr(policy) for _, policy in self.milestones)


def _count(value: Any, name: str, *, least: int = 0) -> int:
    """Return a whole number, of numpy's or torch's, too."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < least:
        raise FreezeArgumentError(f"The {name} {shown(value)} is not a whole number from {least}.")
    return number


_STRINGS: dict[FreezePolicy, str] = {
    Encoder(): "encoder",
    Head(): "head",
    All(): "all",
    Nothing(): "none",
    Loaded(): "loaded",
    parse_policy("feature_extractor"): "feature_extractor",
}


def _string(policy: FreezePolicy) -> str:
    """Return the string that ``parse_policy`` makes this policy of."""
    match policy:
        case ExceptLast(n):
            return f"last:{n}"
        case First(n):
            return f"first:{n}"
        case Blocks(indices):
            return f"blocks:{','.join(map(str, indices))}"
        case Match(glob):
            return f"match:{glob}"
    if policy in _STRINGS:
        return _STRINGS[policy]
    raise FreezeArgumentError(
        f"The policy {shown(policy)} has no string, so it cannot be written: pickle the schedule, or make "
        f"it anew where it is needed."
    )
