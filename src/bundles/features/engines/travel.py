"""What can be sent to another process, and how such a process is started."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import pickle
import signal
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch.multiprocessing  # noqa: F401 - teaches the pickler of processes to pass tensors by shared memory
from torch import Tensor

from bundles.features.inputs.open import Inputs

_MAIN = b"__main__"
_SWAPPED = threading.Lock()  # or two threads each put back what the other took away
_LARGEST = 1 << 24  # bytes of a pickled dataset; a larger one is read here, and its items are handed over


def context_for(thing: object) -> Any:
    """Return how processes are started that can be given a model, ``None`` where nothing serves.

    They are spawned, since a fork of a process with threads may hang. A module that cannot be pickled, as one
    with ``weight_norm``, is inherited by a fork, as datasets are by ``DataLoader``.
    """
    if not may_start_others():
        return None
    pickled = _structure(thing)
    is_known = pickled is not None and (_MAIN not in pickled or hasattr(sys.modules["__main__"], "__file__"))
    if is_known:
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("fork") if sys.platform == "linux" else None


def is_run_again() -> bool:
    """Whether a process that was just started runs the script of the user again, for want of a guard."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


def may_start_others() -> bool:
    """Whether this process may start others; a daemon, as the workers of a ``DataLoader`` are, may not."""
    return not multiprocessing.current_process().daemon


def needs_main(thing: object) -> bool:
    """Whether a value is of a class that the user's script defines, which is then run again."""
    return _MAIN in (_structure(thing) or b"")


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Start processes that do not run the user's script again, which needs no ``if __name__ == ...`` then."""
    with _SWAPPED:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def out_of_reach() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, which their parent is told, and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def pickled(inputs: Inputs, *, knows_main: bool = False) -> bytes | None:
    """A dataset for other processes to read from; ``None`` of one that has to be read here.

    That is a large one, one that cannot be pickled, as one with an open file, and, unless the others know the
    user's script, one whose class is in it.
    """
    if inputs.count is None:
        return None
    out = _Limited()
    try:
        pickle.Pickler(out).dump(inputs)
    except Exception:  # noqa: BLE001 - of a class of the user's, which may raise anything
        return None
    found = out.getvalue()
    return found if knows_main or _MAIN not in found else None


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


class _Limited(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > _LARGEST:
            raise OverflowError
        return super().write(data)
