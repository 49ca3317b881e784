"""Tables for people: plain text for logs and terminals, HTML for notebooks.

What is shown may come from somebody's card, so control characters never reach a terminal and markup
never reaches a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def safe(text: object, limit: int = 200) -> str:
    r"""Return text without control and direction characters, cut to ``limit``.

    >>> safe("red \x1b[31malert")
    'red [31malert'
    """
    import unicodedata

    kept = "".join(c for c in str(text) if unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"))
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def rich_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table to print; a column whose name starts with ``#`` holds numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        number = column.startswith("#")
        table.add_column(
            column.lstrip("#"),
            justify="right" if number else "left",
            no_wrap=number or index == 0,  # names and numbers stay whole where the terminal is narrow
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    return table


def text_table(columns: Sequence[str], rows: Iterable[Sequence[object]], width: int = 160) -> str:
    """Return a table as plain text, without colour."""
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(rich_table(columns, rows))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as HTML, every cell escaped."""
    from html import escape

    def line(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(safe(cell))}</{tag}>" for cell in cells) + "</tr>"

    head = line("th", [column.lstrip("#") for column in columns])
    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
