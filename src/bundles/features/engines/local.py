"""The local engine: processes of one thread each, so that the bits do not depend on how many there are."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import Any

import torch
import torch.multiprocessing  # teaches the pickler of processes to pass tensors by shared memory
from torch import Tensor

from bundles.errors import BundlesWarning, FeatureError
from bundles.features.engines.tasks import Task
from bundles.features.engines.window import Made, Recipe, ShardMaker
from bundles.features.inputs.open import Inputs

_MAIN = b"__main__"
_LARGEST = 1 << 24  # bytes of a pickled dataset; a larger one is read here, and its items are handed over


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread within a ``with`` block: how sums are split decides their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_here(maker: ShardMaker, inputs: Inputs, tasks: Iterable[Task]) -> Iterator[Made]:
    """Yield what each window came to, made in this process."""
    for task in tasks:
        with one_thread():
            made = maker.make(task, inputs)
        yield made


def make_in_processes(recipe: Recipe, inputs: Inputs, tasks: Iterable[Task], workers: int) -> Iterator[Made]:
    """Yield what each window came to, in the order in which they are finished.

    Workers end when this process does, however it ends.

    Raises:
        FeatureError: a worker died.
        InputError, NotDeterministicError, FeatureError, CacheError: as :meth:`ShardMaker.make`.
    """
    context = context_for(recipe)
    dataset = _pickled(inputs)
    needs_main = _MAIN in (_structure(recipe) or b"")
    alive = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start, (recipe, dataset, *alive))
    calls = ((_make, task) if dataset is not None else (_make_handed, task.handed(inputs)) for task in tasks)
    try:
        yield from _in_flight(pool, calls, 2 * workers, hide_main=not needs_main)
        pool.shutdown()
    except BrokenProcessPool as error:
        guard = " The script has to begin its work under `if __name__ == '__main__':`." if needs_main else ""
        raise FeatureError(
            f"A worker died, as where memory is short: pass a smaller num_workers= or batch_size=.{guard} "
            f"What is finished is kept, and asking again goes on from there."
        ) from error
    finally:
        for end in alive:
            end.close()  # ends what still computes
        pool.shutdown(cancel_futures=True)


def context_for(recipe: Recipe) -> Any:
    """Return how workers are started that can be given the model, ``None`` where nothing serves.

    They are spawned, since a fork of a process with threads may hang. A module that cannot be pickled, as one
    with ``weight_norm``, is inherited by a fork, as datasets are by ``DataLoader``. A daemon, as its workers
    are, may start none.
    """
    if multiprocessing.current_process().daemon:
        return None
    pickled = _structure(recipe)
    is_known = pickled is not None and (_MAIN not in pickled or hasattr(sys.modules["__main__"], "__file__"))
    if is_known:
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("fork") if sys.platform == "linux" else None


def _structure(thing: object) -> bytes | None:
    """Return how a value is pickled, but for tensors; ``None`` where it cannot be."""
    out = io.BytesIO()
    try:
        _WithoutTensors(out).dump(thing)
    except Exception:  # noqa: BLE001 - of a class of the user's, which may raise anything
        return None
    return out.getvalue()


class _WithoutTensors(pickle.Pickler):
    def persistent_id(self, value: Any) -> str | None:
        return "tensor" if isinstance(value, Tensor) else None


def _pickled(inputs: Inputs) -> bytes | None:
    """A dataset for the workers to read from; ``None`` of one that has to be read here.

    That is a large one, one that cannot be pickled, and one whose class only the user's script knows.
    """
    if inputs.count is None:
        return None
    out = _Limited()
    try:
        pickle.Pickler(out).dump(inputs)
    except Exception:  # noqa: BLE001 - of a class of the user's, which may raise anything
        return None
    found = out.getvalue()
    return None if _MAIN in found else found


class _Limited(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > _LARGEST:
            raise OverflowError
        return super().write(data)


def _in_flight(
    pool: ProcessPoolExecutor, calls: Iterator[tuple[Any, Any]], limit: int, *, hide_main: bool
) -> Iterator[Made]:
    """Keep some calls waiting, so that no worker does, and no more, so that memory lasts."""
    pending: set[Future[Made]] = set()
    for function, argument in calls:
        with _without_main() if hide_main else contextlib.nullcontext():
            pending.add(pool.submit(function, argument))
        if len(pending) >= limit:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not run the user's script again, which needs no ``if __name__ == ...`` then."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# --- in a worker ----------------------------------------------------------------------------------

_maker: ShardMaker
_dataset: bytes | None
_inputs: Inputs | None = None


def _start(recipe: Recipe, dataset: bytes | None, alive: Connection, parents_end: Connection) -> None:
    global _maker, _dataset
    parents_end.close()  # so that the parent alone holds it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends its workers
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    warnings.simplefilter("ignore", BundlesWarning)  # the parent has built the model, and warned
    torch.set_num_threads(1)
    _maker, _dataset = ShardMaker(recipe), dataset


def _end_with_parent(alive: Connection) -> None:
    parent = multiprocessing.parent_process()
    wait_for_any([alive, parent.sentinel] if parent else [alive])
    os._exit(1)


def _make(task: Task) -> Made:
    global _inputs
    if _inputs is None:
        assert _dataset is not None  # noqa: S101 - else items are handed over
        _inputs = pickle.loads(_dataset)  # noqa: S301 - by the process that started this one
    return _maker.make(task, _inputs)


def _make_handed(handed: bytes) -> Made:
    task: Task = pickle.loads(handed)  # noqa: S301 - by the process that started this one
    return _maker.make(task)
