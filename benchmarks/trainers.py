"""Train a frozen model in every trainer that there is an adapter for, with it and without.

python benchmarks/trainers.py            # prints the table
python benchmarks/trainers.py --write    # and writes it into docs/trainers.md

Each row is asked by ``trial`` of ``tests/adapter_checks.py``: four epochs at once, and two and two.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import marked
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # whose models and checks are asked

from adapter_checks import BUFFERS, FROZEN, MOVED, NOISE, RESUME, trial

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "transformers",
    "accelerate",
    "speechbrain",
    "fastai",
    "keras",
    "skorch",
)
DROPOUT = {"head_dropout": 0.5}  # for trainers that keep random states


def run(
    module: str, recipe: str, model: dict[str, Any] | None = None, **options: Any
) -> Callable[[Path], Any]:
    """Return what tries a recipe of a test module, which is imported then."""
    return lambda folder: trial(
        partial(getattr(import_module(module), recipe), **options), folder, **(model or {})
    )


def fastais_own(folder: Path) -> dict[str, bool]:
    """``Learner.freeze`` over two groups, as its documentation has it."""
    halves = {"splitter": lambda model: [list(model.encoder.parameters()), list(model.head.parameters())]}
    recipe = partial(import_module("test_adapters_fastai").recipe, ours=False, options=halves)
    return trial(recipe, folder)


def skorchs_own(folder: Path) -> dict[str, bool]:
    """Its ``Freezer``."""
    freezer = import_module("skorch.callbacks").Freezer("encoder.*")
    return trial(partial(import_module("test_adapters_skorch").recipe, own=freezer), folder)


def keras(freeze: Callable[[Any], object]) -> Callable[[Path], dict[str, bool]]:
    """Return what tries Keras, of which a model is no ``nn.Module`` of the other rows."""

    def ask(folder: Path) -> dict[str, bool]:
        os.environ["KERAS_BACKEND"] = "torch"
        library, tests = import_module("keras"), import_module("test_adapters_keras")
        inputs, labels = tests.data(8)

        class Seeds(library.callbacks.Callback):  # type: ignore[misc,name-defined]
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                torch.manual_seed(epoch)  # Keras keeps no random states of torch

        def made() -> Any:
            library.utils.set_random_seed(0)
            model = tests.flat(library)
            freeze(model)
            return model

        whole, half = made(), made()
        before = tests.values(whole)
        tests.fit(whole, inputs, labels, epochs=4, callbacks=[Seeds()])
        moved = tests.moved(whole, before)
        tests.fit(half, inputs, labels, epochs=2, callbacks=[Seeds()])
        half.save(folder / "half.keras")
        again = library.models.load_model(folder / "half.keras")
        freeze(again)
        tests.fit(again, inputs, labels, epochs=4, initial_epoch=2, callbacks=[Seeds()])
        body = library.Model(whole.inputs, whole.get_layer("two").output)
        settled = body(torch.from_numpy(inputs), training=False).detach()
        return {
            FROZEN: not moved - tests.HEAD - tests.STATISTICS,
            BUFFERS: not moved & tests.STATISTICS,
            MOVED: moved >= tests.HEAD,
            NOISE: torch.equal(tests.in_training(body, inputs), settled),
            RESUME: list(tests.values(again).values()) == list(tests.values(whole).values()),
        }

    return ask


def keras_ours(model: Any) -> None:
    """Freeze a Keras model."""
    import_module("bundles.adapters.keras").freeze(model)


def keras_own(model: Any) -> None:
    """As Keras' guide on transfer learning says."""
    for layer in model.layers[:-1]:
        layer.trainable = False


LIGHTNING, HF, LOOP = "test_adapters_lightning", "test_adapters_transformers", "test_adapters_accelerate"

# What is frozen by what, in which trainer -> what asks it, in a folder that it may fill.
TRAINERS: dict[str, Callable[[Path], dict[str, bool]]] = {
    "Lightning: `FreezeCallback`": run(LIGHTNING, "ours"),
    "Lightning: `FreezeCallback(delta=True)`": run(LIGHTNING, "ours", delta=True),
    "Lightning: `requires_grad_(False)`": run(LIGHTNING, "by_hand"),
    "Lightning: the same and `eval()` before `fit()`": run(LIGHTNING, "by_hand_and_eval"),
    "Lightning: its `BaseFinetuning`": run(LIGHTNING, "finetuning"),
    "transformers: `FreezeCallback`": run(HF, "ours", DROPOUT),
    "transformers: `requires_grad_(False)`": run(HF, "by_hand", DROPOUT),
    "transformers: the same and `eval()` before `train()`": run(HF, "by_hand_and_eval", DROPOUT),
    "accelerate: `FrozenState`": run(LOOP, "ours", DROPOUT),
    "accelerate: `requires_grad_(False)`": run(LOOP, "by_hand", DROPOUT),
    "SpeechBrain: `FreezeBrain`": run("test_adapters_speechbrain", "recipe", freeze="encoder"),
    "SpeechBrain: `requires_grad_(False)` and `eval()`": run("test_adapters_speechbrain", "by_hand"),
    "fastai: `FreezeCallback`": run("test_adapters_fastai", "recipe", freeze="encoder"),
    "fastai: its `Learner.freeze`": fastais_own,
    "Keras: `freeze`": keras(keras_ours),
    "Keras: `trainable = False`": keras(keras_own),
    "skorch: `FreezeCallback`": run("test_adapters_skorch", "recipe", freeze="encoder"),
    "skorch: its `Freezer`": skorchs_own,
}


def measure() -> dict[str, dict[str, str]]:
    """Return row -> question -> word."""
    found = {}
    for name, ask in TRAINERS.items():
        with tempfile.TemporaryDirectory() as folder:
            answers = ask(Path(folder))
        found[name] = {question: "yes" if answer else "no" for question, answer in answers.items()}
    return found


def main() -> None:
    """Measure, print, and store and write the page where asked."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    results = {"versions": marked.versions(*PACKAGES), "verdicts": measure()}
    print(marked.trainers(results))
    if "--write" in sys.argv:
        marked.store("trainers", results)


if __name__ == "__main__":
    main()
