"""The Ray engine: the bytes of the local one, also after a worker died; what Ray reads, and Parquet."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from bundles.errors import FeatureError, InputError, UnreadableInputWarning
from bundles.features.extract import extract_features
from bundles.features.parquet import extract_to_parquet
from bundles.features.store.store import FeatureStore

ray: Any = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for all tests; its folder has a short name, since sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="ray")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # or it leaves a token in the user's home
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _temp_dir=folder,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
    )
    yield
    ray.shutdown()
    del os.environ["RAY_AUTH_MODE"]
    shutil.rmtree(folder, ignore_errors=True)


def extract(dataset: Any, out: Path, **options: Any) -> FeatureStore:
    return extract_features("WAV2VEC2_NANO_DIGITS", dataset, out, progress=False, **options)


class Waves(Dataset[Tensor]):
    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(3000 + 40 * index, generator=torch.Generator().manual_seed(index))


def test_the_store_is_that_of_the_local_engine_also_after_a_worker_died(
    cluster: None, tmp_path: Path
) -> None:
    here = os.getpid()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

    class Deadly(Waves):
        def __getitem__(self, index: int) -> Tensor:
            if os.getpid() != here and index == 13 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    local = extract(Waves(), tmp_path / "local", num_workers=1)
    store = extract(Deadly(), tmp_path / "ray", engine="ray", num_workers=1)
    assert (tmp_path / "died").exists()
    assert store.digest == local.digest
    store.verify()
    assert extract(Waves(), tmp_path / "ray").digest == local.digest  # and is a hit of the other engine


def parquet_of(folder: Path, count: int) -> Path:
    """A Parquet file as ``datasets`` writes audio: encoded files, with their names."""
    import io

    import pyarrow
    import pyarrow.parquet
    import soundfile

    rows = []
    for index, wave in enumerate(Waves(count)[i] for i in range(count)):
        file = io.BytesIO()
        soundfile.write(file, wave.numpy() / 9, 16000, format="WAV")
        rows.append({"id": f"utterance {index}", "audio": {"bytes": file.getvalue(), "path": None}})
    path = folder / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    return path


def test_a_dataset_of_ray_gives_the_store_of_its_file(cluster: None, tmp_path: Path) -> None:
    path = parquet_of(tmp_path, 20)
    local = extract(str(path), tmp_path / "local", num_workers=1, shard_size=8)
    rows = ray.data.read_parquet(str(path))
    store = extract(rows, tmp_path / "ray", engine="ray", shard_size=8, num_workers=1)
    assert store.digest == local.digest
    assert store.names[:2] == ("utterance 0", "utterance 1")


@pytest.mark.slow
def test_asking_again_of_ray_writes_nothing(cluster: None, tmp_path: Path) -> None:
    rows = ray.data.read_parquet(str(parquet_of(tmp_path, 20)))
    store = extract(rows, tmp_path / "ray", engine="ray", shard_size=8)
    before = {shard: os.stat(store.path / shard.name).st_mtime_ns for shard in store.manifest.shards}
    again = extract(rows, tmp_path / "ray", engine="ray", shard_size=8)
    assert {shard: os.stat(again.path / shard.name).st_mtime_ns for shard in again.manifest.shards} == before
    assert len([*again.path.glob("*.safetensors")]) == 3


@pytest.mark.slow
def test_files_that_ray_reads_are_named_by_their_paths(cluster: None, tmp_path: Path) -> None:
    import soundfile

    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", Waves()[index].numpy() / 9, 16000)
    (tmp_path / "3.wav").write_text("no audio")
    files = ray.data.read_binary_files(str(tmp_path), file_extensions=["wav"], include_paths=True)
    with pytest.warns(UnreadableInputWarning, match=r"1 of 4 items .*3\.wav"):
        store = extract(files, tmp_path / "out", engine="ray", on_error="skip")
    assert [Path(name).name for name in store.names] == ["0.wav", "1.wav", "2.wav"]
    with pytest.raises(InputError, match=r"3\.wav"):
        extract(files, tmp_path / "other", engine="ray")


@pytest.mark.slow
def test_audio_that_ray_decodes_is_resampled(cluster: None, tmp_path: Path) -> None:
    import soundfile

    for index in range(2):
        soundfile.write(tmp_path / f"{index}.wav", Waves()[index].numpy() / 9, 8000)
    sounds = ray.data.read_audio(str(tmp_path), include_paths=True)
    local = extract(str(tmp_path), tmp_path / "local")
    store = extract(sounds, tmp_path / "out", engine="ray")
    assert [torch.equal(store[i], local[i]) for i in range(2)] == [True, True]


@pytest.mark.slow
def test_parquet_holds_what_a_store_does(cluster: None, tmp_path: Path) -> None:
    import pyarrow.parquet

    waves = [Waves()[0], torch.randn(9), Waves()[2]]
    names = ["first", "short", "last"]
    rows = [{"id": name, "audio": wave.tolist()} for name, wave in zip(names, waves, strict=True)]
    bundle, layers = "WAV2VEC2_NANO_DIGITS", ["block.0", "block.3"]
    for given in (ray.data.from_items(rows), waves):
        out = tmp_path / type(given).__name__
        extract_to_parquet(bundle, given, str(out), layers=layers, on_error="skip", num_workers=1)
        table = pyarrow.parquet.read_table(out).to_pydict()
        store = extract([waves[0], waves[2]], tmp_path / "store", layers=layers)
        assert table["frames"] == [len(store[0]["block.0"]), len(store[1]["block.0"]), None]
        assert table["error"][:2] == [None, None]
        assert "does not take inputs of shape [9]" in table["error"][2]
        for layer in layers:
            assert table[layer][:2] == [store[i][layer].flatten().tolist() for i in range(2)]
        assert table["name"] == (["first", "last", "short"] if given is not waves else ["0", "2", "1"])
    with pytest.raises(FeatureError, match=r"Ray gave up .*does not take inputs of shape \[9\]"):
        extract_to_parquet(bundle, waves, str(tmp_path / "none"), num_workers=1)


def test_a_stream_is_refused(cluster: None, tmp_path: Path) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield Waves()[0]

    with pytest.raises(FeatureError, match="A stream cannot be read by several machines"):
        extract(Stream(), tmp_path, engine="ray")


def test_a_dataset_of_ray_needs_the_engine(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="engine='ray'"):
        extract(ray.data.range(3), tmp_path)
