"""Layer groups: one ordered, named partition of a model's parameters.

Freezing by depth, learning-rate decay and reports all read this partition, so they cannot disagree
on what block 7 is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

from bundles.errors import BuildError, FreezeArgumentError
from bundles.spec.values import shown

Kind = Literal["stem", "block", "norm", "head"]
KINDS: tuple[Kind, ...] = ("stem", "block", "norm", "head")
_WILD = frozenset("*?{")
Always = Literal["noise"]  # what a part does in ``eval()``, too, because it asks no flag


@dataclass(frozen=True)
class LayerRule:
    """A line of a card's ``layers`` table: which parameters make up a group, or the row of blocks.

    A pattern is a dotted name with ``*`` and ``?``; it takes a parameter whose name, or any dotted
    prefix of it, it matches. ``{i}`` stands for a number, and makes one block per number; a rule of kind
    ``"block"`` without it, under a name of its own, is one block: what halves the image between stages.
    """

    name: str
    kind: Kind
    match: tuple[str, ...]
    always: Always | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FreezeArgumentError(
                f"The kind {self.kind!r} of layer group {self.name!r} is not one of {KINDS}."
            )
        if any(pattern.count("*") + pattern.count("?") > 8 for pattern in self.match):
            raise FreezeArgumentError(
                f"A pattern of layer group {self.name!r} has more than 8 wildcards, which no name needs."
            )
        counts = {pattern.count("{i}") for pattern in self.match}
        is_row = self.kind == "block" and (self.name in ("block", "blocks") or counts != {0})
        if counts != {int(is_row)}:
            raise FreezeArgumentError(
                f"The patterns {self.match} of layer group {self.name!r} must contain {{i}} once where "
                f"the kind is 'block', as in 'layers.{{i}}', and else not at all."
            )


@dataclass(frozen=True)
class LayerGroup:
    """A named part of a model, with the parameters in it.

    ``always="noise"`` says that it draws random numbers in ``eval()``, too, which no mode can change.
    """

    name: str
    kind: Kind
    match: tuple[str, ...]
    parameters: tuple[str, ...]
    always: Always | None = None

    @property
    def role(self) -> Literal["encoder", "head"]:
        """What the default policy asks: ``"head"`` stays trainable, ``"encoder"`` is frozen."""
        return "head" if self.kind == "head" else "encoder"

    def covers(self, module: str) -> bool:
        """Whether a module belongs here by its name, parameters or not."""
        return _take(self.match, module)


@dataclass(frozen=True)
class LayerGroups:
    """The partition, from the input of the model to its output.

    >>> groups = match_layers(parse_rules({"blocks": "conv{i}", "head": "fc"}),
    ...                       ["conv1.weight", "conv2.weight", "fc.weight"])
    >>> groups.names
    ('block.0', 'block.1', 'head')
    """

    groups: tuple[LayerGroup, ...]

    def __iter__(self) -> Iterator[LayerGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        """A line per group: name, role, tensors, the first of them."""
        return "\n".join(map(_line, self))

    @property
    def names(self) -> tuple[str, ...]:
        """The groups' names in order."""
        return tuple(group.name for group in self)

    @property
    def blocks(self) -> tuple[LayerGroup, ...]:
        """The groups of kind ``"block"``, in order."""
        return tuple(group for group in self if group.kind == "block")

    @cached_property
    def below(self) -> Mapping[str, tuple[str, ...]]:
        """For each module that has a parameter in or below it: the names of those parameters' groups."""
        found: dict[str, dict[str, None]] = {"": {}}
        for group in self:
            for name in group.parameters:
                while name:
                    name = name.rpartition(".")[0]
                    found.setdefault(name, {})[group.name] = None
        return {module: tuple(groups) for module, groups in found.items()}

    def of_module(self, module: str) -> LayerGroup | None:
        """Return the group whose patterns name a module, or ``None``."""
        return next((group for group in self if group.covers(module)), None)


def parse_rules(layers: Mapping[str, Any]) -> tuple[LayerRule, ...]:
    """Read a ``layers`` table: name -> pattern, list of patterns, or ``{match=, kind=, always=}``.

    The names ``stem``, ``blocks``, ``norm`` and ``head`` tell their kind; any other needs ``kind``. A
    second row of blocks, a decoder's after an encoder's, is one of another name with ``kind = "block"``.
    ``always = "noise"`` marks a part that is random in ``eval()``, too.

    Raises:
        FreezeArgumentError: an entry is none of these.
    """
    return tuple(_parse_rule(name, entry) for name, entry in layers.items())


def _parse_rule(name: str, entry: Any) -> LayerRule:
    if not isinstance(entry, Mapping):
        entry = {"match": entry}
    match = entry.get("match")
    match = (match,) if isinstance(match, str) else match
    kind = entry.get("kind", "block" if name == "blocks" else name)
    always = entry.get("always")
    unknown = set(entry) - {"match", "kind", "always"} or always not in (None, "noise")
    if not _are_patterns(match) or unknown or kind not in KINDS:
        raise FreezeArgumentError(
            f"The layer group {name!r} = {shown(entry)} is not a pattern, a list of patterns or "
            f"{{match=..., kind=...}} with a kind of {KINDS}."
        )
    is_row = kind == "block" and any("{i}" in pattern for pattern in match)
    return LayerRule("block" if is_row else name, kind, tuple(match), always)


def _line(group: LayerGroup) -> str:
    always = f", always {group.always}" if group.always else ""
    return f"{group.name}: {group.role}{always}, {len(group.parameters)} tensors, {group.parameters[0]} ..."


def _are_patterns(match: Any) -> bool:
    texts = isinstance(match, list | tuple) and match and all(isinstance(text, str) for text in match)
    return bool(texts and all(match))


def match_layers(
    rules: Iterable[LayerRule], parameters: Iterable[str], *, rest: str | None = None
) -> LayerGroups:
    """Sort parameter names into groups.

    Args:
        rules: in order from input to output.
        parameters: every parameter name of the model, in registration order.
        rest: the name of a head group for parameters that no rule takes; without it they are an error.

    Raises:
        BuildError: the rules do not partition the parameters; both lists are given.
    """
    rules, parameters = tuple(rules), tuple(parameters)
    taken = {name: [hit for rule in rules if (hit := _claim(rule, name))] for name in parameters}
    twice = [name for name, hits in taken.items() if len(hits) > 1]
    missed = [name for name, hits in taken.items() if not hits]
    if twice or (missed and rest is None):
        wrong = (("in no group: ", missed), ("in several: ", twice))
        listed = "; ".join(what + ", ".join(names) for what, names in wrong if names)
        raise BuildError(f"The layer groups do not partition the parameters; {listed}.")
    found = {name: hits[0] for name, hits in taken.items() if hits}
    groups: list[LayerGroup] = []
    for rule in rules:
        first = sum(group.kind == "block" for group in groups)  # a second row of blocks goes on counting
        groups += _collect(rule, found, first)
    if missed and rest is not None:
        groups.append(LayerGroup(rest, "head", (), tuple(missed)))
    return LayerGroups(tuple(groups))


def idle_patterns(rules: Iterable[LayerRule], names: Iterable[str]) -> list[str]:
    """Return the patterns that match none of these names: misspelt ones."""
    known = tuple(names)
    patterns = [pattern for rule in rules for pattern in rule.match]
    return [pattern for pattern in patterns if not any(_take((pattern,), name) for name in known)]


def with_rest(groups: LayerGroups, parameters: Iterable[str], rest: str) -> LayerGroups:
    """Return the groups as they are for these parameters now: those gone left out, new ones in ``rest``."""
    present = dict.fromkeys(parameters)
    known = {name for group in groups for name in group.parameters}
    kept = [replace(g, parameters=tuple(n for n in g.parameters if n in present)) for g in groups]
    if new := tuple(name for name in present if name not in known):
        kept.append(LayerGroup(rest, "head", (), new))
    return LayerGroups(tuple(group for group in kept if group.parameters))


def prefixed_rules(rules: Iterable[LayerRule], prefix: str) -> tuple[LayerRule, ...]:
    """Return the rules for the same model mounted at ``prefix`` (which ends in a dot, or is empty)."""
    return tuple(replace(rule, match=tuple(prefix + pattern for pattern in rule.match)) for rule in rules)


def _claim(rule: LayerRule, parameter: str) -> tuple[LayerRule, int] | None:
    if "{i}" not in rule.match[0]:
        return (rule, 0) if _take(rule.match, parameter) else None
    hits = (_regex(pattern).fullmatch(parameter) for pattern in rule.match)
    return next(((rule, int(hit.group(1))) for hit in hits if hit), None)


def _collect(rule: LayerRule, found: Mapping[str, tuple[LayerRule, int]], first: int) -> Iterator[LayerGroup]:
    members: dict[int, list[str]] = {}
    for parameter, (owner, number) in found.items():
        if owner is rule:
            members.setdefault(number, []).append(parameter)
    for index, number in enumerate(sorted(members), start=first):
        name = f"block.{index}" if rule.kind == "block" else rule.name
        match = tuple(pattern.replace("{i}", str(number)) for pattern in rule.match)
        yield LayerGroup(name, rule.kind, match, tuple(members[number]), rule.always)


def _take(match: tuple[str, ...], name: str) -> bool:
    plain, wild = _sorted(match)
    return f"{name}.".startswith(plain) or any(_regex(pattern).fullmatch(name) for pattern in wild)


@lru_cache(maxsize=1024)
def _sorted(match: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns without wildcards, each with a dot, and the others.

    Those of single blocks are plain, and too many to compile an expression for each.
    """
    plain = tuple(pattern for pattern in match if _WILD.isdisjoint(pattern))
    return tuple(f"{pattern}." for pattern in plain), tuple(p for p in match if p not in plain)


@lru_cache(maxsize=1024)
def _regex(pattern: str) -> re.Pattern[str]:
    glob = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".").replace(r"\{i\}", r"(\d+)")
    return re.compile(glob + r"(?:\..*)?", re.DOTALL)
