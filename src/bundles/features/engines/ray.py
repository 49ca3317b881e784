"""The Ray engine: actors of a cluster, each of which builds the bundle by its name and digests.

No model travels. Weights come from the cache, which nodes share by ``BUNDLES_CACHE`` or
``BUNDLES_SHARED_CACHE``, or which each fills by itself; shards go to a folder that all nodes see.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bundles.builders.require import require
from bundles.errors import BundlesError, FeatureError
from bundles.features.engines.everywhere import as_everywhere
from bundles.features.engines.maker import ShardMaker
from bundles.features.engines.rows import item_of, rows_of
from bundles.features.engines.source import ModuleSource, Source
from bundles.features.engines.table import table_of
from bundles.features.engines.tasks import Task
from bundles.features.engines.window import Made, Recipe
from bundles.features.inputs.item import Item
from bundles.features.inputs.open import Inputs
from bundles.features.inputs.preprocess import Preprocessing

_SETTINGS = ("BUNDLES_", "HF_")  # of the environment, that a worker has if its node says nothing else
_UNPLACED = 10**17  # number of a window until it is known which it is


@dataclass(frozen=True)
class RayRows:
    """A ``ray.data.Dataset`` as inputs; it is read by the cluster."""

    dataset: Any = field(repr=False)
    preprocessing: Preprocessing
    count: None = None


def is_ray_dataset(dataset: object) -> bool:
    """Whether it is one of Ray's, which is not imported for this."""
    return any(cls.__module__ == "ray.data.dataset" for cls in type(dataset).__mro__)


def check_source(source: Source) -> None:
    """Refuse a module: no pickle of a model travels.

    Raises:
        FeatureError: it is one.
    """
    if isinstance(source, ModuleSource):
        raise FeatureError(
            "engine='ray' sends no model to its workers, which build it by its name: pass a bundle, or use "
            "engine='local' for this module."
        )


def make_on_ray(recipe: Recipe, inputs: Inputs, tasks: Iterator[Task], workers: int | None) -> Iterator[Made]:
    """Yield what each window of a dataset came to, in order.

    Raises:
        FeatureError: the dataset cannot travel, or Ray gave up.
        InputError, NotDeterministicError, FeatureError, CacheError: as :meth:`ShardMaker.make`.
    """
    yield from _results(map_windows(recipe, inputs, tasks, workers))


def map_windows(
    recipe: Recipe, inputs: Inputs, tasks: Iterator[Task], workers: int | None, *, as_table: bool = False
) -> Any:
    """Return a dataset of Ray of what the windows of a dataset come to."""
    ray = _ray()
    if inputs.count is None:
        raise FeatureError(
            "A stream cannot be read by several machines: give engine='ray' a dataset with random access, or "
            "one of ray.data; engine='local' takes streams."
        )
    rows = [{"number": task.number, "start": task.indices.start, "stop": task.indices.stop} for task in tasks]
    windows = ray.data.from_items(rows, override_num_blocks=len(rows))
    actor = {"inputs": _pickled(inputs), "folder": os.getcwd(), "as_table": as_table}
    return _mapped(windows, _Windows, actor, recipe, workers or _slots(recipe), batch_size=1)


def map_rows(recipe: Recipe, rows: RayRows, size: int, workers: int | None, *, as_table: bool = False) -> Any:
    """Return a dataset of Ray of what so many rows of one at a time come to."""
    _ray()
    windows = rows.dataset.repartition(target_num_rows_per_block=size, strict=True)
    actor = {"preprocessing": rows.preprocessing, "as_table": as_table}
    slots = workers or max(1, _slots(recipe) - 1)  # one is left for what reads
    return _mapped(windows, _Blocks, actor, recipe, slots, batch_size=None)


def make_of_rows(recipe: Recipe, rows: RayRows, size: int, workers: int | None) -> Iterator[Made]:
    """Yield what each window of a ``ray.data.Dataset`` came to, in order.

    Which window it has in hand an actor does not know: it names a shard by its content, and here each gets
    its number.
    """
    results = (made for made in _results(map_rows(recipe, rows, size, workers)) if made.seen)
    for number, made in enumerate(results):
        if made.shard is None:
            yield replace(made, number=number)
            continue
        name = f"{number:05d}-{made.shard.name.partition('-')[2]}"
        if name != made.shard.name:
            _place(recipe.folder / made.shard.name, recipe.folder / name)
        yield replace(made, number=number, shard=replace(made.shard, name=name))
    for left in recipe.folder.glob(f"{_UNPLACED}-*.safetensors"):
        left.unlink(missing_ok=True)


def _mapped(
    windows: Any, actor: type, arguments: Mapping[str, Any], recipe: Recipe, size: int, **batches: Any
) -> Any:
    """Return a dataset of what actors make of one of windows; Ray starts an actor anew that died."""
    import ray.data

    gpus = {"num_gpus": 1} if torch.device(recipe.source.device).type == "cuda" else {}
    made = windows.map_batches(
        actor,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=size),
        fn_constructor_kwargs={"recipe": recipe, "settings": _settings(), **arguments},
        num_cpus=1,
        **gpus,
        **batches,
    )
    made.context.enable_progress_bars = False  # there is one of ours
    made.context.execution_options.preserve_order = True
    return made


def _results(made: Any) -> Iterator[Made]:
    """Yield what actors returned, or raise what they met."""
    with telling_why():
        for row in made.iter_rows():
            result = pickle.loads(row["made"])  # noqa: S301 - by an actor that this process started
            if isinstance(result, BundlesError):
                raise result
            yield result


@contextlib.contextmanager
def telling_why() -> Iterator[None]:
    """Say in a sentence why Ray gave up, which it says in a page.

    Raises:
        FeatureError: it did.
    """
    errors: Any = require("ray.exceptions")
    try:
        yield
    except errors.RayError as error:
        told = str(error).partition("The above exception")[0].strip().splitlines()
        raise FeatureError(
            f"Ray gave up ({told[-1] if told else type(error).__name__}): its logs say more. What is "
            f"finished is kept, and asking again goes on from there."
        ) from error


def _ray() -> Any:
    """Return Ray, connected to the cluster of ``RAY_ADDRESS``, or to one of its own on this machine."""
    require("ray.data")
    ray = require("ray")
    if not ray.is_initialized():
        ray.init()
    return ray


def _slots(recipe: Recipe) -> int:
    """How many actors the cluster has room for."""
    ray: Any = require("ray")
    kind = "GPU" if torch.device(recipe.source.device).type == "cuda" else "CPU"
    return max(1, int(ray.cluster_resources().get(kind, 1)))


def _pickled(inputs: Inputs) -> bytes:
    cloudpickle: Any = require("ray.cloudpickle")
    try:
        return bytes(cloudpickle.dumps(inputs))
    except Exception as error:  # whatever a class of the user's raises
        raise FeatureError(
            f"The dataset cannot be pickled ({error}), so no other machine can read it: give paths, or a "
            f"dataset of ray.data."
        ) from error


def _settings() -> dict[str, str]:
    settings = {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}
    return {name: value for name, value in settings.items() if "TOKEN" not in name}


def _place(shard: Path, target: Path) -> None:
    """Give a shard a second name, which is its own."""
    temporary = target.with_suffix(".incomplete")
    temporary.unlink(missing_ok=True)
    try:
        os.link(shard, temporary)
    except OSError:  # a file system without links
        shutil.copy2(shard, temporary)
    os.replace(temporary, target)


# --- in an actor ----------------------------------------------------------------------------------


class _Actor:
    """Computes in a process of a cluster, on one thread, as the local engine's workers do."""

    def __init__(self, recipe: Recipe, settings: Mapping[str, str], as_table: bool) -> None:
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        self.maker = ShardMaker(recipe)
        self.as_table = as_table

    def answer(self, task: Task, inputs: Inputs | None = None) -> Any:
        """Return a table of features; or a row with what a window came to, or with the error that it met."""
        with as_everywhere():
            return table_of(self.maker, task, inputs) if self.as_table else self._row(task, inputs)

    def _row(self, task: Task, inputs: Inputs | None) -> dict[str, list[bytes]]:
        try:
            made: Made | BundlesError = self.maker.make(task, inputs)
        except BundlesError as error:
            made = error
        return {"made": [pickle.dumps(made)]}


class _Windows(_Actor):
    """Reads the windows of a dataset that it has, by number."""

    def __init__(self, *, inputs: bytes, folder: str, **common: Any) -> None:
        super().__init__(**common)
        with contextlib.suppress(OSError):
            os.chdir(folder)  # paths are as they are where the extraction was started
        self.inputs: Inputs = pickle.loads(inputs)  # noqa: S301 - by the process that started this one

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        number, start, stop = (int(batch[name][0]) for name in ("number", "start", "stop"))
        return self.answer(Task(number, range(start, stop)), self.inputs)


class _Blocks(_Actor):
    """Is given the rows of a window, and not its number."""

    def __init__(self, *, preprocessing: Preprocessing, **common: Any) -> None:
        super().__init__(**common)
        self.preprocessing = preprocessing

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        items = tuple(item_of(row, self.preprocessing) for row in rows_of(batch))
        known = [item for item in items if isinstance(item, Item)]
        name = self.maker.name(_UNPLACED, [item.identity for item in known], [item.name for item in known])
        there = sorted(self.maker.recipe.folder.glob(f"*-{name.partition('-')[2]}"))
        number = int(there[0].name.partition("-")[0]) if there else _UNPLACED
        return self.answer(Task(number, items=items))
