"""How the names in a weight file become those of a model: declared in a card, so that none needs code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from bundles.errors import BuildError
from bundles.spec.values import FrozenDict, shown


@dataclass(frozen=True)
class KeyMap:
    """A translation of tensor names, and of the few tensors that hold more rows than the model.

    Args:
        rename: ending of a name in the file -> its ending in the model, as
            ``{".weight_g": ".parametrizations.weight.original0"}``.
        drop_rows: name in the file -> rows (first dimension) that the model does not have, as the
            label slots of fairseq's dictionary that no transcript uses.
        strip: beginning of names in the file that the model's names lack, as ``"roberta."`` where a
            checkpoint of a whole model fills its encoder alone; names without it stay as they are.
        ignore: globs on names in the file that the model has no place for, as ``"lm_head.*"``.

    Raises:
        BuildError: one of them is something else.

    >>> KeyMap(rename={".gamma": ".weight"}).name_of("norm.gamma")
    'norm.weight'
    """

    rename: Mapping[str, str] = field(default_factory=FrozenDict)
    drop_rows: Mapping[str, tuple[int, ...]] = field(default_factory=FrozenDict)
    strip: str = ""
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = {key: getattr(self, key) for key in _WRONG}
        for key, problem in key_map_problems(given):
            raise BuildError(f"{key}= of a KeyMap: {problem}.")
        object.__setattr__(self, "rename", FrozenDict(self.rename))
        object.__setattr__(self, "drop_rows", FrozenDict(self.drop_rows))
        object.__setattr__(self, "ignore", tuple(self.ignore))

    def name_of(self, name: str) -> str | None:
        """Return what a tensor of the file is called in the model, ``None`` where it is to be ignored."""
        if any(fnmatchcase(name, pattern) for pattern in self.ignore):
            return None
        name = name.removeprefix(self.strip)
        for old, new in self.rename.items():
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name


def key_map_problems(keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong with it) for the ``keys`` table of a card."""
    for key, value in keys.items():
        if key not in _WRONG:
            yield key, f"is not a key of keys; there is {', '.join(_WRONG)}"
        elif _WRONG[key](value):
            yield key, f"{shown(value)} is not {_WANTED[key]}"


_WANTED = {
    "rename": "a table of endings of names, as {'.weight_g' = '.parametrizations.weight.original0'}",
    "drop_rows": "a table of lists of row numbers, as {'aux.weight' = [1, 2, 3]}",
    "strip": "a dotted prefix, as 'roberta.'",
    "ignore": "a list of at most 100 globs on names, as ['lm_head.*']",
}


def _is_wrong_rename(value: Any) -> bool:
    return not isinstance(value, Mapping) or not all(
        isinstance(new, str) and old for old, new in value.items()
    )


def _is_wrong_rows(value: Any) -> bool:
    lists = isinstance(value, Mapping) and all(
        isinstance(rows, list | tuple) and 0 < len(rows) < 10_000 for rows in value.values()
    )
    return not lists or not all(
        type(row) is int and 0 <= row < 2**31 for rows in value.values() for row in rows
    )


def _is_wrong_prefix(value: Any) -> bool:
    return not isinstance(value, str) or bool(value and not all(value.removesuffix(".").split(".")))


def _is_wrong_ignore(value: Any) -> bool:
    return not isinstance(value, list | tuple) or not (
        len(value) <= 100
        and all(isinstance(glob, str) and glob.strip("*?") and glob.count("*") <= 8 for glob in value)
    )


_WRONG = {
    "rename": _is_wrong_rename,
    "drop_rows": _is_wrong_rows,
    "strip": _is_wrong_prefix,
    "ignore": _is_wrong_ignore,
}
