"""Find the line on which a key of a TOML file stands, which the standard library's parser forgets."""

from __future__ import annotations

import re
from collections.abc import Iterable

Path = tuple[str, ...]

_BLANK = re.compile(r"[ \t\r\n]+|#[^\n]*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\n#]*")
_STRINGS = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'", re.DOTALL
)


class KeyLines:
    r"""The lines of all keys of a text that is known to be good TOML.

    >>> KeyLines('[A]\nweights = {size = 3}').of(("A", "weights", "size"))
    2
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._places: dict[Path, int] = {}
        self._scan()

    def of(self, path: Path, inherits: Iterable[Path] = ()) -> int:
        """Return the line of a key: of an inherited one where it is defined, of a missing one its table's.

        Args:
            path: of the key, the bundle's name first.
            inherits: paths of the tables that the bundle inherits, the first wins.
        """
        candidates = [path, *((*table, *path[1:]) for table in inherits if len(path) > 1)]
        candidates += [path[:length] for length in range(len(path) - 1, 0, -1)]
        place = next((self._places[key] for key in candidates if key in self._places), 0)
        return self._text.count("\n", 0, place) + 1

    def _scan(self) -> None:
        table: Path = ()
        while self._skip_blank():
            start = self._at
            if self._text[start] == "[":
                double = self._text.startswith("[[", start)
                self._at += 1 + double
                table = self._keys()
                self._at += 1 + double
                self._note(table, start)
            else:
                self._pair(table)

    def _pair(self, table: Path) -> None:
        start = self._at
        path = table + self._keys()
        self._note(path, start)
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip_blank()
        opening = self._text[self._at]
        if opening in "[{":
            self._at += 1
            while self._skip_blank() and self._text[self._at] not in "]}":
                if self._text[self._at] == ",":
                    self._at += 1
                elif opening == "{":
                    self._pair(path)
                else:
                    self._value(path)
            self._at += 1
        elif not self._take(_STRINGS):
            self._take(_SCALAR)

    def _keys(self) -> Path:
        keys = []
        while True:
            self._take(_SPACE)
            quoted = self._take(_STRINGS)
            keys.append(_unquoted(quoted) if quoted else self._take(_BARE))
            self._take(_SPACE)
            if self._text[self._at] != ".":
                return tuple(keys)
            self._at += 1

    def _note(self, path: Path, place: int) -> None:
        for length in range(1, len(path) + 1):
            self._places.setdefault(path[:length], place)

    def _skip_blank(self) -> bool:
        while self._take(_BLANK):
            pass
        return self._at < len(self._text)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found.group()


def _unquoted(key: str) -> str:
    import tomllib

    return next(iter(tomllib.loads(f"{key} = 0")))
