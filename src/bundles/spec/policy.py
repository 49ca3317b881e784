"""Which parameters are frozen: policies as values that can be combined, printed and compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import ClassVar

from bundles.errors import FreezeArgumentError
from bundles.spec.groups import LayerGroup, LayerGroups
from bundles.spec.selection import Selection
from bundles.spec.suggest import accepted
from bundles.spec.values import shown


@dataclass(frozen=True)
class Candidates:
    """What a policy chooses from: names, their groups, which came from a weight file, and their shapes."""

    names: tuple[str, ...]
    groups: LayerGroups
    loaded: frozenset[str] = frozenset()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class FreezePolicy:
    """Base of every policy. ``a | b``, ``a & b`` and ``~a`` are policies too, element by element.

    A policy of your own overrides :meth:`select`; one that freezes parts of tensors, :meth:`choose`.

    >>> Encoder() & ~Match("*.bias")
    Encoder() & ~Match('*.bias')
    """

    unsettled: ClassVar[bool] = False  # True where assemble has to turn it into another one first

    def select(self, candidates: Candidates) -> frozenset[str]:
        """Return the names of the tensors that are frozen as a whole."""
        raise NotImplementedError

    def choose(self, candidates: Candidates) -> Selection:
        """Return what is frozen, down to single elements."""
        return Selection(self.select(candidates), {})

    def __or__(self, other: FreezePolicy) -> FreezePolicy:
        return Either(self, other) if isinstance(other, FreezePolicy) else NotImplemented

    def __and__(self, other: FreezePolicy) -> FreezePolicy:
        return Both(self, other) if isinstance(other, FreezePolicy) else NotImplemented

    def __invert__(self) -> FreezePolicy:
        return Other(self)

    def __repr__(self) -> str:
        values = ", ".join(repr(getattr(self, field.name)) for field in fields(self))
        return f"{type(self).__name__}({values})"


class Encoder(FreezePolicy):
    """Every group whose role is ``"encoder"``."""

    def select(self, candidates: Candidates) -> frozenset[str]:
        return _members(candidates, lambda group: group.role == "encoder")


class Head(FreezePolicy):
    """Every group whose role is ``"head"``."""

    def select(self, candidates: Candidates) -> frozenset[str]:
        return _members(candidates, lambda group: group.role == "head")


class All(FreezePolicy):
    """Every parameter."""

    def select(self, candidates: Candidates) -> frozenset[str]:
        return frozenset(candidates.names)


class Nothing(FreezePolicy):
    """No parameter; the one policy that may select nothing."""

    def select(self, candidates: Candidates) -> frozenset[str]:
        return frozenset()


class Loaded(FreezePolicy):
    """Exactly the tensors that came from pretrained weights."""

    def select(self, candidates: Candidates) -> frozenset[str]:
        return candidates.loaded.intersection(candidates.names)


@dataclass(frozen=True, repr=False)
class ExceptLast(FreezePolicy):
    """All but the last ``n`` blocks, the final norm after them and the head."""

    n: int

    def __post_init__(self) -> None:
        _check_count("ExceptLast", self.n)

    def select(self, candidates: Candidates) -> frozenset[str]:
        blocks = _first_blocks(candidates, self.n, repr(self))
        kept = blocks[: len(blocks) - self.n]
        return _members(candidates, lambda group: group.kind == "stem" or group in kept)


@dataclass(frozen=True, repr=False)
class First(FreezePolicy):
    """The stem and the first ``n`` blocks."""

    n: int

    def __post_init__(self) -> None:
        _check_count("First", self.n)

    def select(self, candidates: Candidates) -> frozenset[str]:
        kept = _first_blocks(candidates, self.n, repr(self))[: self.n]
        return _members(candidates, lambda group: group.kind == "stem" or group in kept)


@dataclass(frozen=True, repr=False, init=False)
class Blocks(FreezePolicy):
    """These blocks, counted from 0, contiguous or not.

    >>> Blocks(range(3), 6)
    Blocks(0, 1, 2, 6)
    """

    indices: tuple[int, ...]

    def __init__(self, *indices: int | Iterable[int]) -> None:
        flat: set[int] = set()
        for entry in indices:
            flat.update([entry] if isinstance(entry, int) else entry)
        if not flat or any(type(index) is not int or index < 0 for index in flat):
            raise FreezeArgumentError(
                f"Blocks{indices!r} is not a list of block numbers from 0, as in Blocks(0, 1) or "
                f"Blocks(range(4))."
            )
        object.__setattr__(self, "indices", tuple(sorted(flat)))

    def select(self, candidates: Candidates) -> frozenset[str]:
        blocks = _first_blocks(candidates, self.indices[-1] + 1, repr(self))
        kept = [blocks[index] for index in self.indices]
        return _members(candidates, lambda group: group in kept)

    def __repr__(self) -> str:
        return f"Blocks({', '.join(map(str, self.indices))})"


@dataclass(frozen=True, repr=False)
class Group(FreezePolicy):
    """One layer group, by its name: ``Group("feature_extractor")``."""

    name: str

    def select(self, candidates: Candidates) -> frozenset[str]:
        if self.name not in candidates.groups.names:
            raise FreezeArgumentError(
                f"The model has no layer group {self.name!r}; its groups are "
                f"{', '.join(candidates.groups.names)}."
            )
        return _members(candidates, lambda group: group.name == self.name)


@dataclass(frozen=True, repr=False)
class Match(FreezePolicy):
    """A glob on the parameter's name, or on any dotted prefix of it."""

    glob: str

    def __post_init__(self) -> None:
        if not isinstance(self.glob, str) or not self.glob:
            raise FreezeArgumentError(
                f"Match({self.glob!r}) needs a pattern, as in Match('encoder.*.attention')."
            )

    def select(self, candidates: Candidates) -> frozenset[str]:
        return frozenset(name for name in candidates.names if self._takes(name))

    def _takes(self, name: str) -> bool:
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
        return any(fnmatchcase(prefix, self.glob) for prefix in prefixes)


class ElementPolicy(FreezePolicy):
    """Base of policies that say what they freeze by :meth:`choose`, element by element."""

    def select(self, candidates: Candidates) -> frozenset[str]:
        return self.choose(candidates).whole

    def choose(self, candidates: Candidates) -> Selection:
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Either(ElementPolicy):
    """What one or the other selects: ``a | b``."""

    left: FreezePolicy
    right: FreezePolicy

    def choose(self, candidates: Candidates) -> Selection:
        return self.left.choose(candidates) | self.right.choose(candidates)

    def __repr__(self) -> str:
        return f"{_operand(self.left)} | {_operand(self.right)}"


@dataclass(frozen=True, repr=False)
class Both(ElementPolicy):
    """What both select: ``a & b``."""

    left: FreezePolicy
    right: FreezePolicy

    def choose(self, candidates: Candidates) -> Selection:
        return self.left.choose(candidates) & self.right.choose(candidates)

    def __repr__(self) -> str:
        return f"{_operand(self.left)} & {_operand(self.right)}"


@dataclass(frozen=True, repr=False)
class Other(ElementPolicy):
    """What the policy does not select: ``~a``."""

    policy: FreezePolicy

    def choose(self, candidates: Candidates) -> Selection:
        return self.policy.choose(candidates).outside(candidates.names)

    def __repr__(self) -> str:
        return f"~{_operand(self.policy)}"


WORDS: dict[str, Callable[[], FreezePolicy]] = {
    "encoder": Encoder,
    "head": Head,
    "all": All,
    "none": Nothing,
    "loaded": Loaded,
    "feature_extractor": lambda: Group("feature_extractor"),
}
PREFIXES: dict[str, tuple[str, Callable[[str], FreezePolicy]]] = {
    "last": (r"\d{1,4}", lambda count: ExceptLast(int(count))),
    "first": (r"\d{1,4}", lambda count: First(int(count))),
    "blocks": (r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", lambda numbers: Blocks(*_ranges(numbers))),
    "match": (r".+", Match),
    "fit": (r"\d.*", lambda text: _fit(text)),
}
EXAMPLES = (*WORDS, "last:2", "first:6", "blocks:0-3,6", "match:encoder.*.attention", "fit:8GB")


def parse_policy(policy: str | FreezePolicy) -> FreezePolicy:
    """Return the policy that a string stands for; a policy is returned as it is.

    Raises:
        FreezeArgumentError: the string is none of those accepted.

    >>> parse_policy("blocks:0-3,6")
    Blocks(0, 1, 2, 3, 6)
    """
    if isinstance(policy, FreezePolicy):
        return policy
    if isinstance(policy, str):
        if policy in WORDS:
            return WORDS[policy]()
        prefix, _, rest = policy.partition(":")
        pattern, make = PREFIXES.get(prefix, ("(?!)", Match))
        if re.fullmatch(pattern, rest):
            return make(rest)
    raise FreezeArgumentError(
        f"Freeze policy {shown(policy)} is not known: give one of {accepted(str(policy), EXAMPLES)}, "
        f"or a FreezePolicy."
    )


def _fit(text: str) -> FreezePolicy:
    from bundles.spec.fit import Fit  # rare, and it needs this module

    return Fit.parse(text)


def _members(candidates: Candidates, wanted: Callable[[LayerGroup], bool]) -> frozenset[str]:
    return frozenset(name for group in candidates.groups if wanted(group) for name in group.parameters)


def _first_blocks(candidates: Candidates, needed: int, policy: str) -> tuple[LayerGroup, ...]:
    blocks = candidates.groups.blocks
    if needed > len(blocks):
        raise FreezeArgumentError(
            f"{policy} needs {needed} blocks and the model has {len(blocks)}; its groups are "
            f"{', '.join(candidates.groups.names)}."
        )
    return blocks


def _check_count(policy: str, count: object) -> None:
    if type(count) is not int or count < 0:
        raise FreezeArgumentError(f"{policy}({count!r}) needs a number of blocks, as in {policy}(2).")


def _ranges(text: str) -> list[range]:
    pairs = (part.partition("-") for part in text.split(","))
    ranges = [range(int(first), int(last or first) + 1) for first, _, last in pairs]
    if not all(ranges):
        raise FreezeArgumentError(f"'blocks:{text}' counts backwards: write the smaller number first.")
    return ranges


def _operand(policy: FreezePolicy) -> str:
    return f"({policy!r})" if isinstance(policy, Either | Both) else repr(policy)
