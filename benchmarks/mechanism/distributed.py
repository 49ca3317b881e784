"""Rows that need two processes: DDP and FSDP2 on gloo."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from parts import MECHANISMS, Mechanism, Model, batch, fresh, wanted
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def _encoded(model: nn.Module, encoder: nn.Module) -> list[Tensor]:
    """What the encoder makes in two training steps of the whole model."""
    made: list[Tensor] = []
    handle = encoder.register_forward_hook(lambda module, inputs, output: made.append(output.detach()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.3)
    for seed in (1, 2):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(batch()).square().sum().backward()
        optimizer.step()
    handle.remove()
    return made


def _stays(model: nn.Module, encoder: nn.Module) -> bool:
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    equal = all(torch.equal(made, wanted()) for made in _encoded(model.train(), encoder))
    return equal and all(torch.equal(buffers[name], buffer) for name, buffer in encoder.named_buffers())


def _shard(model: Model) -> Model:
    mesh = init_device_mesh("cpu", (2,))
    for block in model.encoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def ddp(mechanism: Mechanism) -> bool:
    """DDP, gloo, 2 processes."""
    model = mechanism.frozen()
    return _stays(DistributedDataParallel(model), model.encoder)


def freeze_then_shard(mechanism: Mechanism) -> bool:
    """FSDP2, CPU gloo × 2: freeze, then `fully_shard`."""
    model = _shard(mechanism.frozen())
    return _stays(model, model.encoder)


def shard_then_freeze(mechanism: Mechanism) -> bool:
    """FSDP2, CPU gloo × 2: `fully_shard`, then freeze."""
    model = _shard(fresh())
    mechanism.freeze(model, "encoder")
    return _stays(model, model.encoder)


def undo_beneath_shards(mechanism: Mechanism) -> bool:
    """FSDP2: undo after freeze, then shard."""
    model = _shard(mechanism.frozen())
    mechanism.undo(model, "encoder")
    model.train()
    follows = all(module.training for module in model.modules())
    return follows and all(p.requires_grad for p in model.parameters()) and not _stays(model, model.encoder)


ROWS: tuple[Callable[[Mechanism], bool], ...] = (
    ddp,
    freeze_then_shard,
    shard_then_freeze,
    undo_beneath_shards,
)


def ask(name: str) -> dict[str, str]:
    """Ask a mechanism all of it in two processes; a row's answer is that of the worse rank."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (name, folder), nprocs=2)
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(2)]
    return {row: min(answers[row] for answers in ranks) for row in ranks[0]}  # errors < no < yes


def _rank(rank: int, name: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    answers = {}
    for row in ROWS:
        try:
            answers[row.__name__] = "yes" if row(MECHANISMS[name]) else "no"
        except Exception as error:  # noqa: BLE001 - what goes wrong is the answer
            answers[row.__name__] = type(error).__name__
    (Path(folder) / f"{rank}.json").write_text(json.dumps(answers))
    dist.destroy_process_group()
