"""Processes of one thread each that make shards beside this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any

from bundles.errors import BundlesWarning, FeatureError
from bundles.features.engines.everywhere import as_everywhere
from bundles.features.engines.maker import ShardMaker
from bundles.features.engines.tasks import Task
from bundles.features.engines.travel import context_for, needs_main, out_of_reach, pickled, without_main
from bundles.features.engines.window import Made, Recipe
from bundles.features.inputs.open import Inputs


class Helpers:
    """Processes that make shards; they end when the ``with`` block or this process does, however it ends.

    Args:
        recipe: of the shards.
        inputs: the dataset.
        count: how many.
    """

    def __init__(self, recipe: Recipe, inputs: Inputs, count: int) -> None:
        context = context_for(recipe)
        self._count, self._inputs = count, inputs
        self._dataset = pickled(inputs)
        self._needs_main = needs_main(recipe)
        self._alive = context.Pipe(duplex=False)
        with _starting():
            given = _given(context, count, recipe, self._dataset)
        self._pool = ProcessPoolExecutor(count, context, _start, (given, *self._alive))
        self._pending: set[Future[Made]] = set()

    def __enter__(self) -> Helpers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._pool.shutdown()
        for end in self._alive:
            end.close()  # ends what still computes
        self._pool.shutdown(cancel_futures=True)

    def has_room(self, left: int | None) -> bool:
        """Whether they can be given a window, so that none of them idles.

        Each has one in reserve, but for the last of a dataset, which whoever is ready first shall have.

        Args:
            left: windows that nobody has yet; ``None`` if that is not known.
        """
        each = 2 if left is None or left > self._count else 1
        return len(self._pending) < each * self._count

    def give(self, task: Task) -> None:
        """Have a window made.

        Raises:
            FeatureError: one of them died.
        """
        if self._dataset is None:
            task = task.with_items(self._inputs)
        script = contextlib.nullcontext() if self._needs_main else without_main()
        with self._telling_why(), _starting(), out_of_reach(), script:
            self._pending.add(self._pool.submit(_make, task))

    def done(self) -> Iterator[Made]:
        """Yield what is made by now.

        Raises:
            FeatureError: one of them died.
            InputError, NotDeterministicError, FeatureError, CacheError: as :meth:`ShardMaker.make`.
        """
        yield from self._results({future for future in self._pending if future.done()})

    def rest(self) -> Iterator[Made]:
        """Yield everything else, in the order in which it is made; raises as :meth:`done`."""
        while self._pending:
            yield from self._results(wait(self._pending, return_when=FIRST_COMPLETED).done)

    def _results(self, done: set[Future[Made]]) -> Iterator[Made]:
        self._pending -= done
        with self._telling_why():
            yield from (future.result() for future in done)

    @contextlib.contextmanager
    def _telling_why(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            guard = " The script has to begin its work under `if __name__ == '__main__':`." * self._needs_main
            raise FeatureError(
                f"A worker died, as where memory is short: pass a smaller num_workers= or batch_size=."
                f"{guard} What is finished is kept, and asking again goes on from there."
            ) from error


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise
    except (RuntimeError, OSError) as error:
        raise FeatureError(
            f"Another process cannot be started ({error}), as where /dev/shm is small: pass num_workers=1, "
            f"which goes on from what is finished."
        ) from error


def _given(context: Any, count: int, *what: Any) -> Callable[[], Any]:
    """Return what tells a process that has just started what to do.

    A fork inherits it. A process that is spawned asks for it: what it is started with is written before it
    runs, and one that ends at once, for want of a guard, would leave its parent waiting for it to read more
    than a pipe holds.
    """
    if context.get_start_method() == "fork":
        return lambda: what
    queue = context.SimpleQueue()
    each = [bytes(ForkingPickler.dumps(what)) for _ in range(count)]  # what is shared is fetched once
    threading.Thread(target=lambda: [queue.put(one) for one in each], daemon=True).start()
    return partial(_fetch, queue)


def _fetch(queue: Any) -> Any:
    return pickle.loads(queue.get())  # noqa: S301 - by the process that started this one


# --- in such a process ----------------------------------------------------------------------------

_maker: ShardMaker
_dataset: bytes | None
_inputs: Inputs | None = None


def _start(given: Callable[[], Any], alive: Connection, parents_end: Connection) -> None:
    global _maker, _dataset
    parents_end.close()  # so that the parent alone holds it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not blocked
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    warnings.simplefilter("ignore", BundlesWarning)  # the parent has built the model, and warned
    recipe, _dataset = given()
    _maker = ShardMaker(recipe)


def _end_with_parent(alive: Connection) -> None:
    parent = multiprocessing.parent_process()
    wait_for_any([alive, parent.sentinel] if parent else [alive])
    os._exit(1)


def _make(task: Task) -> Made:
    global _inputs
    if _inputs is None and _dataset is not None:
        _inputs = pickle.loads(_dataset)  # noqa: S301 - by the process that started this one
    with as_everywhere():
        return _maker.make(task, _inputs)
