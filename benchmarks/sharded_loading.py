"""Peak memory and time, per rank, until a sharded model has its weights: bundles against the usual ways.

    python benchmarks/sharded_loading.py [--ranks N] [--rounds N] [NAME]

Every run starts its ranks anew. In each, everything is imported and the process group stands before the
peak is reset; then the model is built, sharded block by block with ``fully_shard``, and filled, and each
rank reads its part once. All figures are above what the imports take.

bundles          built on the meta device and sharded; each rank maps the file and keeps its own part of it
bundles-trained  the same; all but the first block will train, so what each rank keeps of it is copied
each-whole       every rank loads the whole model as upstream does, then shards it
rank-0           torch's own recipe: rank 0 loads, and the others get their parts from it
                 (``set_model_state_dict`` with ``broadcast_from_rank0``)

Memory in pages of the mapped file (RssFile) is the page cache's: shared by all ranks of a machine, and given
back under pressure. Memory of the process's own (RssAnon) is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from typing import TYPE_CHECKING, Any

from load_once import memory, settle
from upstream import checkpoint

from bundles.display import text_table

if TYPE_CHECKING:
    from torch import nn

NAME = "WAV2VEC2_LARGE"
MEMORY = ("VmHWM", "RssAnon", "RssFile")
WAYS = ("bundles", "bundles-trained", "each-whole", "rank-0")


def fill(way: str, name: str) -> nn.Module:
    """Return the sharded model with its weights."""
    import bundles

    if way == "each-whole":
        return shard(upstream(name))
    model = shard(bundles.get_bundle(name).get_model(pretrained=False, device="meta"))
    if way == "rank-0":
        broadcast(model, name)
    else:
        bundles.load_into(model, name, freeze="first:1" if way == "bundles-trained" else False)
    return model


def upstream(name: str) -> nn.Module:
    """Load as torchaudio does."""
    import torchaudio

    model: nn.Module = getattr(torchaudio.pipelines, name).get_model()
    return model


def shard(model: nn.Module) -> nn.Module:
    """Shard each layer of the transformer, and then the rest."""
    from torch.distributed.fsdp import fully_shard

    for module in list(model.modules()):
        if type(module).__name__ == "EncoderLayer":
            fully_shard(module)
    fully_shard(model)
    return model


def broadcast(model: nn.Module, name: str) -> None:
    """Fill a model on the meta device from the state dict that rank 0 has loaded."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state = upstream(name).state_dict() if dist.get_rank() == 0 else {}
    model.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)


def be_rank(way: str, name: str, rank: int, ranks: int, folder: str) -> None:
    """Fill the model once, as one of the ranks, and print the figures."""
    import torch.distributed as dist
    from torch.distributed import checkpoint, fsdp

    warnings.simplefilter("ignore")
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    assert checkpoint is not None
    assert fsdp is not None
    settle(name)
    dist.barrier()
    before, start = {figure: memory(figure) for figure in MEMORY}, time.monotonic()
    model = fill(way, name)
    seconds = time.monotonic() - start
    for parameter in model.parameters():
        parameter.to_local().sum()  # type: ignore[operator]  # so that what is mapped counts, too
    after = {figure: memory(figure) for figure in MEMORY}
    above = {figure: after[figure] - before[figure] for figure in MEMORY}
    print(json.dumps({**above, "seconds": seconds, "digest": digest(model)}))
    dist.destroy_process_group()


def digest(model: nn.Module) -> str:
    """Return a digest of all weights, gathered one after another."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.full_tensor().detach().numpy())  # type: ignore[operator]
    return found.hexdigest()


def run(way: str, name: str, ranks: int) -> list[dict[str, Any]]:
    """Start the ranks and return the figures of each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, name, "--ranks", str(ranks), "--as", way, folder]
        started = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in range(ranks)
        ]
        answers = [process.communicate()[0] for process in started]
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def row(way: str, rounds: list[list[dict[str, Any]]]) -> tuple[str, ...]:
    """Return a line of the table: of the ranks the worst, of the rounds the median."""
    figures = [
        statistics.median(max(rank[figure] for rank in ranks) for ranks in rounds)
        for figure in (*MEMORY, "seconds")
    ]
    return way, *(f"{figure:.0f}" for figure in figures[:-1]), f"{figures[-1]:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", default=NAME)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as", dest="one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, folder, rank = arguments.one
        be_rank(way, arguments.name, int(rank), arguments.ranks, folder)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder, checkpoint(arguments.name, folder):
        found = {
            way: [run(way, arguments.name, arguments.ranks) for _ in range(arguments.rounds)] for way in WAYS
        }
    digests = {rank["digest"] for rounds in found.values() for ranks in rounds for rank in ranks}
    assert len(digests) == 1, "the ways do not load the same weights"
    title = f"{arguments.name} on {arguments.ranks} ranks, the worst of them"
    columns = (title, "#MiB at the peak", "#MiB of its own after", "#MiB of the file after", "#seconds")
    print(text_table(columns, [row(way, rounds) for way, rounds in found.items()]))


if __name__ == "__main__":
    main()
