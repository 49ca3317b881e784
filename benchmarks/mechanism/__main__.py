"""Put the mechanism through forty-one checks, beside the plain habit.

python benchmarks/mechanism            # prints the table
python benchmarks/mechanism --write    # and writes it into docs/peers.md
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import distributed
import graphs
import libraries
import marked
import modes
from parts import MECHANISMS, Mechanism

ROWS: tuple[Callable[[Mechanism], bool], ...] = (
    *(modes.behaviour, modes.layer_drop, modes.train_of_every_module, modes.direct_writes),
    *(modes.moved_elsewhere, modes.training_reads_false, modes.deep_copy, modes.shallow_copy, modes.replica),
    *(graphs.compiled_mode, modes.pickled, modes.saved, modes.keys, modes.strict_load, modes.parameters),
    *(modes.instances, modes.exact_types, modes.class_names),
    *(graphs.aot_eager, graphs.inductor, graphs.exported, graphs.scripted_then_train, graphs.scripted),
    *(graphs.traced, graphs.fx_then_train, modes.gradient, modes.averaged, *distributed.ROWS),
    *(libraries.bert, libraries.saves_with_frozen_base, libraries.saves_with_frozen_root),
    *(libraries.checkpointing, modes.signature, libraries.peft, libraries.fit, libraries.quantized),
    *(libraries.parametrization_removed, libraries.parametrization_copied),
)


def measure() -> dict[str, dict[str, str]]:
    """Return mechanism -> row -> word."""
    return {name: {**_ask_all(mechanism), **distributed.ask(name)} for name, mechanism in MECHANISMS.items()}


def _ask_all(mechanism: Mechanism) -> dict[str, str]:
    words = {}
    for row in ROWS:
        if row in distributed.ROWS:
            continue
        try:
            words[row.__name__] = "yes" if row(mechanism) else "no"
        except Exception as error:  # noqa: BLE001 - what goes wrong is the answer
            words[row.__name__] = type(error).__name__
            print(f"{row.__name__}: {error!r}"[:300], file=sys.stderr)
    return words


def main() -> None:
    """Measure, print, and store and write the page where asked."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {
        "versions": marked.versions("torch", "transformers", "peft", "pytorch-lightning"),
        "rows": {row.__name__: str(row.__doc__).rstrip(".") for row in ROWS},
        "answers": measure(),
    }
    print(marked.mechanism(results))
    if "--write" in sys.argv:
        marked.store("mechanism", results)


if __name__ == "__main__":
    main()
