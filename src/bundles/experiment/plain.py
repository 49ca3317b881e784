"""Turn a mapping of somebody else's config into plain data, or say what in it is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bundles.spec.values import shown

Path = tuple[str, ...]
Problems = list[tuple[Path, str]]  # where, and what is wrong there

# A model's table has three levels and about thirty values; anchors of YAML can make billions of ten lines.
_DEEPEST, _MOST = 6, 500
_CALLS = frozenset(
    ("_target_", "_args_", "_partial_", "_recursive_", "_convert_", "class_path", "init_args", "dict_kwargs")
)


def read_plain(value: Any) -> tuple[Any, Problems]:
    """Return ``value`` as dicts, lists, text, numbers, true and false, and where it holds something else.

    What is wrong is ``None`` in the result, or left out of its mapping.

    >>> read_plain({"freeze": True, "dtype": "${precision}"})
    ({'freeze': True, 'dtype': None}, [(('dtype',), "'${precision}' was not resolved: do that first")])
    """
    walk = _Walk()
    return walk.of(value, ()), walk.problems


class _Walk:
    def __init__(self) -> None:
        self.problems: Problems = []
        self._count = 0

    def of(self, value: Any, path: Path) -> Any:
        self._count += 1
        if len(path) > _DEEPEST or self._count > _MOST:
            if self._count <= _MOST + 1:
                self._wrong(path, "is part of more levels or values than a model's table has")
                self._count = _MOST + 1
            return None
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return [self._item(value, place, (*path, str(place))) for place in range(len(value))]
        return self._scalar(value, path)

    def _mapping(self, items: Mapping[Any, Any], path: Path) -> dict[str, Any]:
        plain = {}
        for key in self._resolved(lambda: list(items), path) or ():
            where = (*path, key if isinstance(key, str) else shown(key))
            if not isinstance(key, str):
                self._wrong(where, f"the key is a {type(key).__name__} and not text: quote it")
            elif key in _CALLS:
                self._wrong(
                    where,
                    f"{_read(items, key)} would be called, and a model's table is plain data: leave it out, "
                    f"or let it call bundles.get_model",
                )
            else:
                plain[key] = self._item(items, key, where)
        return plain

    def _item(self, items: Any, key: Any, where: Path) -> Any:
        return self.of(self._resolved(lambda: items[key], where), where)

    def _resolved(self, read: Callable[[], Any], where: Path) -> Any:
        try:
            return read()
        except Exception as error:  # noqa: BLE001 - OmegaConf resolves when it is asked, with errors of its own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self._wrong(where, f"cannot be resolved: {reason[0][:200]}")
            return None

    def _scalar(self, value: Any, path: Path) -> Any:
        if isinstance(value, str):
            if "${" in value:
                self._wrong(path, f"{shown(value)} was not resolved: do that first")
            elif value.startswith("!"):
                self._wrong(
                    path, f"{shown(value)} is a tag of YAML, and tags name code to call: give the value"
                )
            else:
                return str(value)
        elif value is None or type(value) in (bool, int, float):
            return value
        elif hasattr(value, "isoformat"):
            self._wrong(path, f"{value} was read as a date: quote it")
        else:
            self._wrong(
                path,
                f"a {type(value).__name__} is no plain data: give text, a number, true, false or a table; "
                f"objects are for bundles.get_model in Python",
            )
        return None

    def _wrong(self, path: Path, problem: str) -> None:
        self.problems.append((path, problem))


def _read(items: Mapping[Any, Any], key: str) -> str:
    try:
        return shown(items[key])
    except Exception:  # noqa: BLE001 - it is refused whatever it would be
        return "unresolved"
