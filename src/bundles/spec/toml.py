"""Values as TOML text, of the shapes that a lock has; reading is ``tomllib``'s."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_key(key: str) -> str:
    """Return a key as TOML writes it.

    >>> print(toml_key("torch"), toml_key("hf:owner/repo"))
    torch "hf:owner/repo"
    """
    return key if _BARE.fullmatch(key) else _text(key)


def toml_value(value: Any) -> str:
    """Return a value on one line, tables in order of key.

    >>> print(toml_value({"type": "Linear", "sizes": (2, 3), "bias": True}))
    { bias = true, sizes = [2, 3], type = "Linear" }
    """
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return _text(value)
        case Mapping():
            items = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in sorted(value.items()))
            return f"{{ {items} }}" if items else "{}"
    return f"[{', '.join(map(toml_value, value))}]"


def toml_lines(key: str, value: Any) -> list[str]:
    r"""Return ``key = value``, of a list one item per line.

    >>> print("\n".join(toml_lines("alternates", ["url:https://example.org/a"])))
    alternates = [
        "url:https://example.org/a",
    ]
    """
    if isinstance(value, tuple | list) and value:
        return [f"{toml_key(key)} = [", *(f"    {toml_value(item)}," for item in value), "]"]
    return [f"{toml_key(key)} = {toml_value(value)}"]


def toml_problem(value: Any) -> str | None:
    """Return why TOML cannot hold a value so that it reads back the same, or ``None``.

    >>> toml_problem({"dropout": None})
    'dropout: None is no text, number, list or table'
    """
    match value:
        case bool():
            return None
        case int():
            return None if -(2**63) <= value < 2**63 else "an integer needs more than 64 bits"
        case float():
            return None if math.isfinite(value) else f"{value} is no finite number"
        case str():
            return _text_problem(value)
        case list() | tuple():
            return next((problem for item in value if (problem := toml_problem(item))), None)
        case Mapping():
            return next(filter(None, (_item_problem(key, item) for key, item in value.items())), None)
    return f"{value!r:.66} is no text, number, list or table"


def _item_problem(key: Any, item: Any) -> str | None:
    if not isinstance(key, str):
        return f"the key {key!r:.66} is no text"
    problem = _text_problem(key) or toml_problem(item)
    return f"{key}: {problem}" if problem else None


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text_problem(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{text!r:.66} is not Unicode text"
    return None
