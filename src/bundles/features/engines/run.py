"""One run over a dataset: what is there is found, the rest is made, and the manifest comes last."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from bundles.errors import (
    BundlesWarning,
    FeatureError,
    InputError,
    UnreadableInputWarning,
    warn,
)
from bundles.features.encode.state import state_digest
from bundles.features.engines.accelerator import make_fed
from bundles.features.engines.everywhere import as_everywhere
from bundles.features.engines.local import make_here, make_together
from bundles.features.engines.maker import ShardMaker, encoder_of, refused_before
from bundles.features.engines.measured import Measured
from bundles.features.engines.progress import telling
from bundles.features.engines.ray import RayRows, make_of_rows, make_on_ray
from bundles.features.engines.tasks import Task, Tasks
from bundles.features.engines.travel import context_for, is_run_again, may_start_others
from bundles.features.engines.window import Made, Recipe
from bundles.features.inputs.open import Inputs
from bundles.features.inputs.stamps import Stamps
from bundles.features.store.manifest import FILE, Manifest, read_manifest, write_manifest
from bundles.features.store.store import FeatureStore

_SMALLEST, _LARGEST, _WINDOWS = 8, 128, 16  # items in a window, and how many windows there shall be
_PATIENCE = 3.0  # seconds that a process takes to start


class Extraction:
    """A run over a dataset.

    Args:
        recipe: what to make.
        inputs: of what; a dataset of Ray is read by its cluster.
        engine: ``"local"`` or ``"ray"``.
        shard_size: items in a window; ``None`` for that of the store that is there, or 16 windows.

    Raises:
        FeatureStoreError: the manifest that is there is malformed, or of a later version.
    """

    def __init__(
        self, recipe: Recipe, inputs: Inputs | RayRows, engine: str = "local", shard_size: int | None = None
    ) -> None:
        self._recipe = recipe
        self._inputs = inputs
        self._engine = engine
        self._before = _manifest_at(recipe.folder)
        default = _window_size(inputs.count, len(recipe.facts.layers))
        self._size = shard_size or (self._before.shard_size if self._before else default)
        self._stamps = Stamps(recipe.folder)
        self._measured = Measured(recipe.folder)
        self._state: str | None = self._before.state if self._before else None

    def run(self, num_workers: int | None, *, progress: bool) -> FeatureStore:
        """Return the finished store.

        Raises:
            InputError, NotDeterministicError, FeatureError, CacheError: as
                :func:`bundles.extract_features`.
        """
        if is_run_again():
            raise FeatureError(
                "This script is run again by a process that it started: let it begin its work under "
                "`if __name__ == '__main__':`."
            )
        made: list[Made] = []
        with (
            telling(self._recipe.source.name, self._inputs.count, show=progress) as tell,
            closing(self._windows(num_workers)) as windows,
            self._stamps,
        ):
            for each in windows:
                made.append(each)
                tell(each.seen)
                self._note(each)
                self._stamps.save_at_times()
        self._finish(sorted(made, key=lambda each: each.number))
        return FeatureStore(self._recipe.folder)

    def _windows(self, num_workers: int | None) -> Generator[Made, None, None]:
        """Yield what is there until something is not; from there on whoever makes shards looks first."""
        if isinstance(self._inputs, RayRows):
            self._build()
            yield from make_of_rows(self._recipe, self._inputs, self._size, num_workers)
            return
        maker, tasks = ShardMaker(self._recipe), Tasks(self._inputs, self._size)
        for task in tasks:
            with as_everywhere():
                found = self._find(maker, self._inputs, task)
            if found is None:
                tasks.put_back(task)
                yield from self._make(self._inputs, tasks, num_workers)
                return
            yield found

    def _find(self, maker: ShardMaker, inputs: Inputs, task: Task) -> Made | None:
        known = [self._stamps.identity(stamp) for stamp in task.stamps(inputs)]
        identities = [identity for identity in known if identity is not None]
        if known and len(identities) == len(known):
            names = [inputs.name(index) for index in task.indices]
            if found := maker.find_by(task.number, identities, names):
                return found
        return maker.find(maker.read(task, inputs))

    def _build(self) -> nn.Module:
        """Return the model, which also downloads what workers are about to read."""
        model = self._recipe.source.build()
        self._state = state_digest(model, self._recipe.facts.layers)
        return model

    def _make(self, inputs: Inputs, tasks: Tasks, num_workers: int | None) -> Iterator[Made]:
        model = self._build()
        if self._engine == "ray":
            yield from make_on_ray(self._recipe, inputs, tasks, num_workers)
            return
        maker = ShardMaker(self._recipe, encoder_of(self._recipe, model))
        others = self._others(num_workers, tasks.left)
        if torch.device(self._recipe.source.device).type != "cpu":
            yield from make_fed(maker, inputs, tasks, others)
            return
        if others and num_workers is None:
            yield from _until_it_lasts(make_here(maker, inputs, tasks), tasks)
        if others and tasks.left != 0:
            yield from make_together(maker, inputs, tasks, others)
        yield from make_here(maker, inputs, tasks)

    def _others(self, num_workers: int | None, left: int | None) -> int:
        """How many processes there are beside this one, which compute, or read for an accelerator."""
        is_fed = torch.device(self._recipe.source.device).type != "cpu"
        wanted = num_workers or (_readers() if is_fed else _cores())
        wanted = min(wanted, wanted if left is None else left) - 1
        if wanted < 1 or (is_fed and left is None):
            return 0
        can_start = may_start_others() if is_fed else context_for(self._recipe) is not None
        if can_start or num_workers is None:
            return wanted if can_start else 0
        raise FeatureError(
            f"{num_workers} workers cannot be started here: this process may have none, or the model "
            f"cannot be pickled. Pass num_workers=1, or a bundle in the place of the model."
        )

    def _note(self, made: Made) -> None:
        for stamp, identity in made.stamps:
            self._stamps.note(stamp, identity)
        if made.computed:
            self._measured.add(self._recipe.batch_size, made.bound or 0.0)
        if made.damaged and made.shard is not None:
            warn(
                f"The shard {made.shard.name} in {self._recipe.folder} was damaged, and was made anew.",
                BundlesWarning,
            )

    def _finish(self, made: Sequence[Made]) -> None:
        """Write the manifest, unless it says the same already."""
        unreadable = tuple(entry for each in made for entry in each.unreadable)
        if not any(each.shard for each in made):
            raise _nothing(unreadable)
        if all(each.computed for each in made):  # what earlier runs left is none of this store's
            self._measured.put(self._recipe.batch_size, max(each.bound or 0.0 for each in made))
        manifest = self._manifest(made, unreadable)
        if manifest != self._before:
            write_manifest(self._recipe.folder, manifest)
        if unreadable:
            _warn_of(manifest)

    def _manifest(self, made: Sequence[Made], unreadable: tuple[tuple[str, str], ...]) -> Manifest:
        recipe, before = self._recipe, self._before
        shards = tuple(each.shard for each in made if each.shard is not None)
        if self._state is None:  # all was there but the manifest
            self._build()
        same = before if before and {*shards} <= {*before.shards} else None
        if before and {*shards} & {*before.shards}:
            self._measured.add(before.batch_size, before.bound)
            told = dict(before.unreadable)  # a shard that is there does not say why it lacks an item
            unreadable = tuple(
                (n, told.get(n, why) if why == refused_before(n) else why) for n, why in unreadable
            )
        return Manifest(
            recipe.facts,
            self._state or "",
            sum(each.seen for each in made),
            self._size,
            shards,
            self._measured.batch_size or recipe.batch_size,
            self._measured.bound,
            unreadable,
            same.versions if same else recipe.source.versions(),
        )


def _until_it_lasts(windows: Iterator[Made], tasks: Tasks) -> Iterator[Made]:
    """Yield windows until it is clear that the rest lasts longer than other processes take to start."""
    start = time.monotonic()
    for done, made in enumerate(windows, 1):
        yield made
        spent = time.monotonic() - start
        rest = math.inf if tasks.left is None else spent / done * tasks.left
        if spent > _PATIENCE and rest > 3 * _PATIENCE:
            return


def _nothing(unreadable: Sequence[tuple[str, str]]) -> InputError:
    if not unreadable:
        return InputError("The dataset holds nothing: give at least one item.")
    return InputError(
        f"None of the {len(unreadable)} items can be read; the first: {unreadable[0][1]}",
        inputs=tuple(name for name, _ in unreadable),
    )


def _warn_of(manifest: Manifest) -> None:
    unreadable = manifest.unreadable
    more = f"; and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
    warn(
        f"{len(unreadable)} of {manifest.count} items could not be read and were left out: "
        f"{'; '.join(why.rstrip('.') for _, why in unreadable[:3])}{more}. All are in "
        f"store.manifest.unreadable.",
        UnreadableInputWarning,
    )


def _manifest_at(folder: Path) -> Manifest | None:
    return read_manifest(folder) if (folder / FILE).exists() else None


def _window_size(count: int | None, layers: int) -> int:
    """How many items there are in a window, whose features are in memory until it is written."""
    largest = max(_LARGEST // layers, 2 * _SMALLEST)
    return largest if count is None else min(max(math.ceil(count / _WINDOWS), _SMALLEST), largest)


def _readers() -> int:
    """How many processes there are by default where one computes on an accelerator."""
    return min(_cores(), 8) if sys.platform == "linux" else 1  # elsewhere a script needs a guard for them


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
