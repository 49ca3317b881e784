"""Tables on stdout and hints on stderr, without colour where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from bundles.display import rich_table

_PIPE_WIDTH = 200  # in a pipe no line is 80 columns long, and a folded name is of no use


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(rich_table(columns, rows))


def hint(text: str) -> None:
    """Print a line for people on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text, style="dim"))
