"""Write the JSON Schema of experiment files; run it where cards, policies or heads change (a test checks)."""

from __future__ import annotations

import json
from pathlib import Path

from bundles.experiment.schema import SCHEMA, schema


def main() -> None:
    """Write ``src/bundles/experiment/schema.json``."""
    Path(SCHEMA).write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
