"""Stored features: what writing and warm random reads cost in a ``FeatureStore`` and in what people use.

Every reader returns one utterance as a tensor in memory of its own, utterances
come in random order, and the file system has all of them in memory. Rivals run in turn. ``memcpy`` copies an
utterance in memory to a buffer that is warm. A ``FeatureStore`` is written with digests and waits for the
disk, which nobody else does: "its shards" are written without waiting, "their bytes alone" without digests.

    python benchmarks/feature_reads.py [--folder DIR] [--utterances 400] [--rounds 5]
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from interleaved import measure
from safetensors.torch import load_file, save_file
from torch import Tensor

from bundles.builders.mapped import map_tensors
from bundles.display import text_table
from bundles.features.store.manifest import Manifest, write_manifest
from bundles.features.store.packing import pack
from bundles.features.store.shard import Shard, shard_name, write_shard
from bundles.features.store.store import FeatureStore
from bundles.spec.features import FeatureFacts

DIM, PER_SHARD, PER_GROUP = 768, 25, 16
FACTS = FeatureFacts("state:00", None, ("output",), "float16")
Items = Sequence[Tensor]
Read = Callable[[int], Tensor]


def windows(items: Items) -> Iterator[tuple[int, Items, list[str], list[bytes]]]:
    """Yield number, items, names and identities of each shard."""
    for number, start in enumerate(range(0, len(items), PER_SHARD)):
        cut = items[start : start + PER_SHARD]
        names = [str(start + i) for i in range(len(cut))]
        yield number, cut, names, [name.zfill(32).encode() for name in names]


def write_store(folder: Path, items: Items) -> None:
    """Write a store as one process of ``extract_features`` does."""
    shards = tuple(write_shards(folder, items))
    write_manifest(folder, Manifest(FACTS, "state", len(items), PER_SHARD, shards))


def write_shards(folder: Path, items: Items) -> list[Shard]:
    """Write the shards of a store, with their digests."""
    return [
        write_shard(
            folder,
            shard_name(number, FACTS.key, identities),
            names,
            identities,
            [{"output": item} for item in cut],
        )
        for number, cut, names, identities in windows(items)
    ]


def write_files_alone(folder: Path, items: Items) -> None:
    """Write what the shards of a store hold."""
    for number, cut, names, identities in windows(items):
        packed = pack(names, identities, [{"output": item} for item in cut])
        with (folder / f"{number:05d}.safetensors").open("wb") as file:
            file.write(packed.header(""))
            for part in packed.parts():
                file.write(part)


def open_mapped(folder: Path, items: Items) -> Read:
    """Map the shards, and copy what is read."""
    tensors = [map_tensors(path) or {} for path in sorted(folder.glob("*.safetensors"))]
    offsets = [each["offsets:output"].tolist() for each in tensors]

    def read(index: int) -> Tensor:
        shard, item = divmod(index, PER_SHARD)
        return tensors[shard]["output"][offsets[shard][item] : offsets[shard][item + 1]].clone()

    return read


def write_arrow(folder: Path, items: Items) -> None:
    """Write a list of numbers per utterance, 16 of them to a batch, as an Arrow file."""
    table = arrow_table(items)
    with pa.OSFile(str(folder / "all.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=PER_GROUP)


def open_arrow(folder: Path, items: Items) -> Read:
    """Map the Arrow file."""
    reader = pa.ipc.open_file(pa.memory_map(str(folder / "all.arrow")))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    return lambda i: from_arrow(batches[i // PER_GROUP].column(0), i % PER_GROUP)


def write_parquet(folder: Path, items: Items) -> None:
    """Write the bytes of each utterance as Parquet: lists of numbers are far slower."""
    table = pa.table({"features": pa.array([item.numpy().tobytes() for item in items], pa.large_binary())})
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, folder / "all.parquet", row_group_size=PER_GROUP, **options)


def open_parquet(folder: Path, items: Items) -> Read:
    """Read the row group that an utterance is in."""
    file = pq.ParquetFile(folder / "all.parquet")

    def read(index: int) -> Tensor:
        value = file.read_row_group(index // PER_GROUP).column(0)[index % PER_GROUP]
        return torch.frombuffer(bytearray(value.as_buffer()), dtype=torch.float16).view(-1, DIM)

    return read


def arrow_table(items: Items) -> pa.Table:
    """Return a table of one column, copied."""
    stops = np.cumsum([0, *(item.numel() for item in items)])
    flat = pa.array(np.concatenate([item.numpy().ravel() for item in items]))
    return pa.table({"features": pa.LargeListArray.from_arrays(pa.array(stops), flat)})


def from_arrow(column: Any, item: int) -> Tensor:
    """Return a copy of one utterance."""
    start, stop = column.offsets[item].as_py(), column.offsets[item + 1].as_py()
    return torch.from_numpy(np.array(column.values.slice(start, stop - start).to_numpy())).view(-1, DIM)


def per_utterance(
    suffix: str, write: Callable[[Tensor, Path], Any], read: Callable[[Path], Tensor]
) -> tuple[Callable[[Path, Items], None], Callable[[Path, Items], Read]]:
    """Return writer and reader of a file per utterance."""

    def write_all(folder: Path, items: Items) -> None:
        for i, item in enumerate(items):
            write(item, folder / f"{i}.{suffix}")

    return write_all, lambda folder, items: lambda i: read(folder / f"{i}.{suffix}")


LAYOUTS: dict[str, tuple[Callable[[Path, Items], object], Callable[[Path, Items], Read]]] = {
    "FeatureStore": (write_store, lambda folder, items: FeatureStore(folder).__getitem__),
    "its shards, mapped, copied": (write_shards, open_mapped),
    "their bytes alone, mapped, copied": (write_files_alone, open_mapped),
    "torch.save per utterance": per_utterance("pt", torch.save, torch.load),
    "npy per utterance, np.load": per_utterance(
        "npy", lambda item, path: np.save(path, item.numpy()), lambda path: torch.from_numpy(np.load(path))
    ),
    "npy per utterance, memmap": per_utterance(
        "npy",
        lambda item, path: np.save(path, item.numpy()),
        lambda path: torch.from_numpy(np.array(np.load(path, mmap_mode="r"))),
    ),
    "safetensors per utterance": per_utterance(
        "safetensors",
        lambda item, path: save_file({"x": item}, path),
        lambda path: load_file(path)["x"],
    ),
    "Arrow IPC, mapped": (write_arrow, open_arrow),
    "Parquet, bytes, 16 per row group": (write_parquet, open_parquet),
}


def seconds(run: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rewriting(folder: Path, write: Callable[[Path, Items], object], items: Items) -> Callable[[], float]:
    """Return what writes to an empty folder and says how long that took."""

    def run() -> float:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return seconds(lambda: write(folder, items))

    return run


def reading(read: Callable[[int], object], order: Sequence[int]) -> Callable[[], float]:
    """Return what reads every utterance and says how long that took."""

    def read_all() -> None:
        for index in order:
            read(index)

    return lambda: seconds(read_all)


def main() -> None:
    """Write, check that every layout gives the same bits, read, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="on the disk to measure; a temporary one by default")
    parser.add_argument("--utterances", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(0)
    items = [torch.randn(draw.randint(200, 1020), DIM).half() for _ in range(arguments.utterances)]
    order = draw.sample(range(len(items)), len(items))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        run(Path(name), items, order, arguments.rounds)


def run(folder: Path, items: Items, order: Sequence[int], rounds: int) -> None:
    """Measure in a folder."""
    gigabytes = sum(item.nbytes for item in items) / 1e9
    writers = {
        name: rewriting(folder / str(i), write, items) for i, (name, (write, _)) in enumerate(LAYOUTS.items())
    }
    written = measure(writers, max(rounds // 2, 1))
    readers = {name: opened(folder / str(i), items) for i, (name, (_, opened)) in enumerate(LAYOUTS.items())}
    for read in readers.values():
        assert all(torch.equal(read(i), item) for i, item in enumerate(items))
    buffer = torch.empty(max(len(item) for item in items), DIM, dtype=torch.float16)
    rivals = {"memcpy": lambda i: buffer[: len(items[i])].copy_(items[i]), **readers}
    read_in = measure({name: reading(read, order) for name, read in rivals.items()}, rounds)
    rows = []
    for name, times in read_in.items():
        ratios = [ours / theirs for ours, theirs in zip(times, read_in["memcpy"], strict=True)]
        best = min(times) / min(read_in["memcpy"])
        write = f"{gigabytes / statistics.median(written[name]):.2f}" if name in written else ""
        speed = gigabytes / statistics.median(times)
        rows.append((name, write, f"{speed:.2f}", f"{statistics.median(ratios):.2f}", f"{best:.2f}"))
    print(f"{len(items)} utterances, {gigabytes * 1e9 / 2**20:.0f} MiB of float16, {rounds} rounds")
    print(text_table(("layout", "#write GB/s", "#read GB/s", "#time / memcpy", "#of the best rounds"), rows))


if __name__ == "__main__":
    main()
