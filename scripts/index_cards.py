"""Write the index beside the built-in cards; run it after editing a card (a test checks it)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bundles.registry
from bundles.registry.origins import INDEX, build_index


def main() -> None:
    """Write ``registry/cards/index.json``."""
    folder = Path(bundles.registry.__file__).parent / "cards"
    index = build_index(str(folder))
    # A card in a line: half as long as with a line for each of its keys, and read in half the time.
    files = (f"{json.dumps(file)}: {_lines(entry)}" for file, entry in index.items())
    (folder / INDEX).write_text("{\n" + ",\n".join(files) + "\n}\n", encoding="utf-8")


def _lines(entry: dict[str, Any]) -> str:
    cards = (f" {json.dumps(name)}: {_compact(card)}" for name, card in entry["cards"].items())
    return f'{{"crc32": {entry["crc32"]}, "cards": {{\n' + ",\n".join(cards) + "}}"


def _compact(card: dict[str, Any]) -> str:
    return json.dumps(card, separators=(",", ":"))


if __name__ == "__main__":
    main()
