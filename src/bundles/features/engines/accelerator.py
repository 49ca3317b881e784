"""One model on an accelerator: other processes read ahead of it, and a thread writes behind it."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader, Dataset

from bundles.errors import BundlesError, FeatureError
from bundles.features.engines.everywhere import as_everywhere
from bundles.features.engines.maker import ShardMaker
from bundles.features.engines.tasks import Task, Tasks
from bundles.features.engines.travel import pickled
from bundles.features.engines.window import Made, Window, read_window
from bundles.features.inputs.open import Inputs

_CONTEXT = "fork" if sys.platform == "linux" else None  # as a DataLoader has it
_BEHIND = 2  # windows of features in memory that are still to be written


def make_fed(maker: ShardMaker, inputs: Inputs, tasks: Tasks, readers: int) -> Iterator[Made]:
    """Yield what each window came to, those that are there already before those that are being written.

    Args:
        maker: whose model is on an accelerator, which else would wait for disk and decoding.
        inputs: the dataset.
        tasks: the windows; those of a stream are read here.
        readers: processes of a ``DataLoader``; with none the windows are read here, as they are of a dataset
            that cannot be pickled: forks would share the place in a file that it has open.

    Raises:
        FeatureError: a reader died.
        InputError, NotDeterministicError, FeatureError, CacheError: as :meth:`ShardMaker.make`.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1) as writer:
        for window in _read_ahead(maker, inputs, tasks, readers):
            if found := maker.find(window):
                yield found
                continue
            with as_everywhere():
                computed = maker.compute(window)
            waiting.append(writer.submit(maker.store, computed))
            if len(waiting) > _BEHIND:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _read_ahead(maker: ShardMaker, inputs: Inputs, tasks: Tasks, readers: int) -> Iterator[Window]:
    dataset = pickled(inputs, knows_main=_CONTEXT == "fork") if readers else None
    if dataset is None:
        for task in tasks:
            with as_everywhere():
                window = maker.read(task, inputs)
            yield window
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are more readers than cores
        loader = DataLoader(
            _Reader(dataset, skips=maker.recipe.skips),
            batch_size=None,
            sampler=list(tasks),
            num_workers=readers,
            generator=torch.Generator(),  # or it draws from the user's
            multiprocessing_context=_CONTEXT,
        )
    for answer in _answers(loader):
        found: Window | BundlesError = pickle.loads(answer)  # noqa: S301 - by a process of this one's
        if isinstance(found, BundlesError):
            raise found
        yield found


def _answers(loader: DataLoader[bytes]) -> Iterator[bytes]:
    answers = iter(loader)
    while True:
        try:
            answer = next(answers, None)
        except RuntimeError as error:
            raise FeatureError(
                f"A worker that reads died ({error}): pass a smaller num_workers=. What is finished is kept, "
                f"and asking again goes on from there."
            ) from error
        if answer is None:
            return
        yield answer


class _Reader(Dataset[bytes]):
    """Windows for a ``DataLoader``: pickled, since it would share every tensor in a file of its own."""

    def __init__(self, dataset: bytes, *, skips: bool) -> None:
        self._dataset, self._skips = dataset, skips
        self._inputs: Inputs | None = None

    def __getitem__(self, task: Task) -> bytes:
        if self._inputs is None:
            self._inputs = pickle.loads(self._dataset)  # noqa: S301 - by the process that started this one
        try:
            return pickle.dumps(read_window(task, self._inputs, skips=self._skips))
        except BundlesError as error:  # as it is, not as a DataLoader tells it
            return pickle.dumps(error)
