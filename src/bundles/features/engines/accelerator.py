"""One model on an accelerator: other processes read ahead of it, and a thread writes behind it."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader, Dataset

from bundles.errors import BundlesError
from bundles.features.engines.maker import ShardMaker
from bundles.features.engines.tasks import Task, Tasks
from bundles.features.engines.window import Made, Window, read_window
from bundles.features.inputs.open import Inputs

_BEHIND = 2  # windows of features in memory that are still to be written


def make_fed(maker: ShardMaker, inputs: Inputs, tasks: Tasks, readers: int) -> Iterator[Made]:
    """Yield what each window came to, in the order of the dataset.

    Args:
        maker: whose model is on an accelerator, which else would wait for disk and decoding.
        inputs: the dataset.
        tasks: the windows; those of a stream are read here.
        readers: processes of a ``DataLoader``; with none the windows are read here.

    Raises:
        InputError, NotDeterministicError, FeatureError, CacheError: as :meth:`ShardMaker.make`.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1) as writer:
        for window in _read_ahead(maker, inputs, tasks, readers):
            if found := maker.find(window):
                yield found
                continue
            waiting.append(writer.submit(maker.store, maker.compute(window)))
            if len(waiting) > _BEHIND:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _read_ahead(maker: ShardMaker, inputs: Inputs, tasks: Tasks, readers: int) -> Iterator[Window]:
    if not readers or tasks.left is None:
        yield from (maker.read(task, inputs) for task in tasks)
        return
    reader = _Reader(inputs, skips=maker.recipe.skips)
    own = torch.Generator()  # or each loader draws from the user's
    for read in DataLoader(reader, batch_size=None, sampler=list(tasks), num_workers=readers, generator=own):
        window: Window | BundlesError = pickle.loads(read)  # noqa: S301 - by a process of this one's
        if isinstance(window, BundlesError):
            raise window
        yield window


class _Reader(Dataset[bytes]):
    """Windows for a ``DataLoader``: pickled, since it would share every tensor in a file of its own."""

    def __init__(self, inputs: Inputs, *, skips: bool) -> None:
        self._inputs, self._skips = inputs, skips

    def __getitem__(self, task: Task) -> bytes:
        try:
            return pickle.dumps(read_window(task, self._inputs, skips=self._skips))
        except BundlesError as error:  # as it is, not as a DataLoader tells it
            return pickle.dumps(error)
