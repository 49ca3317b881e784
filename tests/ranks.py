"""Two processes that run checks together, over gloo and a file: no ports, and torch is imported once a pair.

A check is a function of a module here that is called on both ranks, at the same time, with a folder of its
own; it asserts. The module is run once, by ``run``, and each of its checks is a test in
``test_distributed.py``.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore

from toys import as_bytes

WORLD = 2
_PATIENCE = timedelta(seconds=60)  # a rank that failed leaves the other waiting
Check = Callable[[Path], None]


def checks_of(module: str) -> dict[str, Check]:
    """Return the checks of a module, in order: its own public functions."""
    members = vars(importlib.import_module(module)).items()
    return {
        name: value
        for name, value in members
        if inspect.isfunction(value) and value.__module__ == module and not name.startswith("_")
    }


def run(module: str, folder: Path, cache: Path) -> dict[str, str]:
    """Run the checks of a module on two ranks, and return what went wrong in each, empty if nothing did."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BUNDLES_CACHE": str(cache)}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, module, str(folder), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    found = [_read(folder / f"{rank}.json") for rank in range(WORLD)]
    return {name: "\n".join(map(_said, found, said, [name] * WORLD)).strip() for name in checks_of(module)}


def _said(outcomes: dict[str, str], text: str, name: str) -> str:
    """What went wrong in a check on one rank; its last words where it never came so far."""
    return outcomes.get(name, "not reached" if any(outcomes.values()) else f"not reached: {text[-3000:]}")


# --- what checks are made of ----------------------------------------------------------------------


def on_all(value: Any) -> list[Any]:
    """Return what each rank has of a value."""
    values: list[Any] = [None] * WORLD
    dist.all_gather_object(values, value)
    return values


def agree(value: Any) -> bool:
    """Whether every rank has the same value."""
    return all(other == value for other in on_all(value))


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor, gathered where it is sharded."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().clone()  # numpy would fix the size of a storage that FSDP wants to free


def contents(model: nn.Module) -> dict[str, bytes]:
    """Return the bytes of every parameter and buffer, gathered where they are sharded."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: as_bytes(whole(tensor)) for name, tensor in tensors}


def moved(model: nn.Module, before: dict[str, bytes]) -> set[str]:
    """Return the names of what is not as it was."""
    return {name for name, value in contents(model).items() if before[name] != value}


def batches(shape: tuple[int, ...], count: int) -> Iterator[Tensor]:
    """Yield batches, others on each rank."""
    generator = torch.Generator().manual_seed(100 + dist.get_rank())
    for _ in range(count):
        yield torch.randn(shape, generator=generator)


# --- the child ------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _outcome(check: Check, folder: Path) -> str:
    """Call a check, and return its traceback if it fails."""
    torch.manual_seed(0)
    try:
        folder.mkdir(exist_ok=True)
        check(folder)
    except BaseException:  # noqa: BLE001 - whatever it is, the test reports it
        return f"rank {dist.get_rank()}: {traceback.format_exc()}"
    return ""


def _child(module: str, folder: Path, rank: int) -> None:
    """Run every check until one fails on either rank, after which the two are not in step any more."""
    torch.set_num_threads(1)
    store = FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=_PATIENCE)
    outcomes: dict[str, str] = {}
    for name, check in checks_of(module).items():
        outcomes[name] = _outcome(check, folder / name)
        (folder / f"{rank}.json").write_text(json.dumps(outcomes))
        if not all(outcome == "" for outcome in _shared(store, name, outcomes[name])):
            os._exit(1)  # without waiting for the other one
    dist.destroy_process_group()


def _shared(store: FileStore, name: str, outcome: str) -> list[str]:
    """Tell the other rank through the file, since a collective may be what failed."""
    store.set(f"{name}/{dist.get_rank()}", outcome)
    return [store.get(f"{name}/{rank}").decode() for rank in range(WORLD)]


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
