"""Write the index beside the built-in cards; run it after editing a card (a test checks it)."""

from __future__ import annotations

import json
from pathlib import Path

import bundles.registry
from bundles.registry.origins import INDEX, build_index


def main() -> None:
    """Write ``registry/cards/index.json``."""
    folder = Path(bundles.registry.__file__).parent / "cards"
    index = build_index(str(folder))
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
