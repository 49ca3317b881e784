"""Ask 23 real architectures, frozen by us, by habit and by our peers, whether they are frozen.

python benchmarks/architectures.py            # prints the tables
python benchmarks/architectures.py --write    # and writes them into docs/peers.md
"""

from __future__ import annotations

import sys
import warnings

import marked
import torch
from peers import WAYS, NothingOfItsOwn

from freeze_checks import CHECKS, Way
from real_models import REAL, Real

PACKAGES = ("torch", "torchaudio", "timm", "transformers", "pytorch-lightning", "fastai")


def measure() -> dict[str, dict[str, dict[str, str]]]:
    """Return way -> architecture -> check -> word."""
    return {
        name: {f"{real.library}: {architecture}": _ask_all(real, way) for architecture, real in REAL.items()}
        for name, way in WAYS.items()
    }


def _ask_all(real: Real, way: Way) -> dict[str, str]:
    words = {}
    for check, ask in CHECKS.items():
        try:
            words[check] = {True: "yes", False: "no", None: marked.NONE}[ask(real, way)]
        except NothingOfItsOwn:
            words[check] = marked.NONE
        except Exception as error:  # noqa: BLE001 - whatever a peer's freeze does to a model is the answer
            words[check] = type(error).__name__
    return words


def main() -> None:
    """Measure, print, and store and write the page where asked."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {"versions": marked.versions(*PACKAGES), "verdicts": measure()}
    print(marked.architectures(results))
    if "--write" in sys.argv:
        marked.store("architectures", results)


if __name__ == "__main__":
    main()
