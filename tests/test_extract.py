"""Extraction: the same bytes however it went, nothing computed twice, and what goes wrong is named."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import Dataset, IterableDataset

import bundles
from bundles.errors import (
    BundlesWarning,
    CacheError,
    FeatureError,
    FeatureStoreError,
    FreezeArgumentError,
    InputError,
    NotDeterministicError,
    UnreadableInputWarning,
)
from bundles.features.engines.accelerator import make_fed
from bundles.features.engines.everywhere import as_everywhere
from bundles.features.engines.maker import ShardMaker
from bundles.features.engines.source import source_of
from bundles.features.engines.tasks import Tasks
from bundles.features.engines.travel import without_main
from bundles.features.engines.window import Made
from bundles.features.extract import extract_features, prepare
from bundles.features.inputs.item import Item, identity_of
from bundles.features.inputs.open import Inputs
from bundles.features.inputs.preprocess import Preprocessing
from bundles.features.inputs.stamps import Stamps
from bundles.features.store.shard import write_shard
from bundles.features.store.store import FeatureStore
from bundles.spec.source import WeightSource

FRAMES = Preprocessing("frames")


class Net(nn.Module):
    """Three blocks over frames; counts its calls, and ends a worker on an input that says so."""

    def __init__(self, *, weight_norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        first = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([first, nn.Linear(8, 8), nn.Linear(8, 6)])
        if weight_norm:  # cannot be pickled, so that workers are forked
            parametrizations.weight_norm(first)
        self._calls = 0
        self._pid = os.getpid()

    @property
    def calls(self) -> int:
        return self._calls

    def forward(self, x: Tensor) -> Tensor:
        self._calls += 1
        if os.getpid() != self._pid and bool((x == -1e9).any()):
            os._exit(9)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def items(count: int = 40, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (count,), generator=generator).tolist()
    return [torch.randn(length, 4, generator=generator) for length in lengths]


def extract(model: Any, dataset: Any, out: Path, **options: Any) -> FeatureStore:
    if isinstance(model, nn.Module):
        options.setdefault("preprocessing", FRAMES)
    return extract_features(model, dataset, out, progress=False, **{"num_workers": 1, **options})


def feed(
    dataset: Any,
    out: Path,
    readers: int,
    *,
    shard_size: int,
    on_error: Any = "raise",
    model: Any = "WAV2VEC2_NANO_DIGITS",
) -> list[Made]:
    """What the engine for accelerators makes, here with a model on the CPU."""
    source = source_of(model, freeze=True, freeze_mode=None, device="cpu", options={})
    preprocessing = FRAMES if isinstance(model, nn.Module) else None
    how: Any = {"layers": None, "batch_size": 8, "dtype": "float16", "engine": "local"}
    how["preprocessing"] = preprocessing
    recipe, inputs = prepare(source, dataset, out, on_error=on_error, **how)
    assert isinstance(inputs, Inputs)
    return [*make_fed(ShardMaker(recipe), inputs, Tasks(inputs, shard_size), readers)]


def written(store: FeatureStore) -> dict[str, tuple[int, int]]:
    """When and where every shard was written."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in store.path.glob("0*")}


@pytest.fixture
def pinned(tmp_path: Path) -> bundles.Bundle:
    """A bundle whose weights are in a file that a test may remove."""
    import hashlib
    import shutil

    assert bundles.WAV2VEC2_NANO_DIGITS.weights is not None
    kept = Path(bundles.__file__).parent / "weights" / "wav2vec2_nano_digits.safetensors"
    path = tmp_path / "weights.safetensors"
    shutil.copy(kept, path)
    from dataclasses import replace

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = WeightSource(f"file:{path}", digest, path.stat().st_size)
    made: bundles.Bundle = replace(bundles.WAV2VEC2_NANO_DIGITS, name="MINE", weights=source)
    return made


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(24):
        soundfile.write(folder / f"{index:02d}.wav", torch.randn(3000 + 10 * index).numpy() / 9, 16000)
    return folder


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    from bundles.features.inputs.waveform import read_audio

    names: list[str] = []

    def listening(data: Any) -> Any:
        names.append(Path(data).name)
        return read_audio(data)

    monkeypatch.setattr("bundles.features.inputs.prepare.read_audio", listening)
    return names


# --- what is stored -------------------------------------------------------------------------------


def test_features_are_what_the_model_returns_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    net, dataset = Net().eval(), items()
    store = extract(net, dataset, tmp_path, dtype=torch.float32, batch_size=1)
    assert len(store) == len(dataset)
    assert store.names == tuple(str(index) for index in range(len(dataset)))
    with torch.no_grad():
        assert all(torch.equal(store[i], net(x[None])[0]) for i, x in enumerate(dataset))


def test_batches_differ_from_items_alone_by_no_more_than_the_store_says(tmp_path: Path) -> None:
    net, dataset = Net().eval(), items(100)
    store = extract(net, dataset, tmp_path, dtype="float32", batch_size=16)
    with torch.no_grad():
        alone = [net(x[None])[0] for x in dataset]
    far = max(float((store[i] - x).abs().max() / x.abs().max()) for i, x in enumerate(alone))
    assert far <= max(store.manifest.bound, 1e-6)
    assert store.manifest.batch_size == 16


def test_layers_of_a_bundle_are_stored_under_their_names(tmp_path: Path) -> None:
    waves = [torch.randn(4000), torch.randn(4800)]
    store = extract("WAV2VEC2_NANO_DIGITS", waves, tmp_path, layers=[-1, 0], dtype="float32", batch_size=1)
    model = bundles.WAV2VEC2_NANO_DIGITS.get_model()
    last = len(bundles.layer_groups(model).blocks) - 1
    assert store.layers == ("block.0", f"block.{last}")
    with torch.inference_mode():
        states, _ = model.extract_features(waves[0][None])
    assert torch.equal(store.read(0, "block.0"), states[0][0])


def test_the_more_layers_the_fewer_items_are_in_memory(tmp_path: Path) -> None:
    dataset = [torch.ones(1, 4)] * 1000
    sizes = [
        extract(Net(), dataset, tmp_path, layers=[*range(n)], batch_size=64).manifest.shard_size
        for n in (1, 2, 3)
    ]
    assert sizes == [63, 63, 42]


@pytest.mark.parametrize("layers", ["prefix", ["block.1"], 1])
def test_one_layer_is_said_in_several_ways(layers: Any, tmp_path: Path) -> None:
    net = bundles.freeze(Net(), "first:2")
    assert extract(net, items(3), tmp_path, layers=layers).layers == ("block.1",)


def test_a_stream_gives_what_a_list_gives(tmp_path: Path) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield from items()

    listed = extract(Net(), items(), tmp_path / "list", shard_size=8)
    streamed = extract(Net(), Stream(), tmp_path / "stream", shard_size=8)
    assert streamed.digest == listed.digest
    assert streamed.manifest.count == 40


# --- however many workers -------------------------------------------------------------------------


class Unpicklable(Dataset[Tensor]):
    def __init__(self) -> None:
        self.get: Callable[[int], Tensor] = lambda index: torch.randn(3000 + 40 * index)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        torch.manual_seed(index)
        return self.get(index)


def test_two_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    dataset = Unpicklable()  # is read here, and handed over
    one = extract("WAV2VEC2_NANO_DIGITS", dataset, tmp_path / "1")
    two = extract("WAV2VEC2_NANO_DIGITS", dataset, tmp_path / "2", num_workers=2)
    assert two.digest == one.digest
    assert [path.read_bytes() for path in sorted(two.path.glob("0*"))] == [
        path.read_bytes() for path in sorted(one.path.glob("0*"))
    ]


@pytest.mark.parametrize("workers", [2, 3])
def test_a_module_that_no_pickle_holds_is_inherited(workers: int, tmp_path: Path) -> None:
    net = Net(weight_norm=True)
    one = extract(net, items(100), tmp_path / "1", shard_size=7)
    many = extract(net, items(100), tmp_path / "many", shard_size=7, num_workers=workers)
    assert many.digest == one.digest
    assert multiprocessing.active_children() == []


def test_a_process_that_may_start_none_computes_itself(tmp_path: Path) -> None:
    def run() -> None:
        with pytest.raises(
            FeatureError, match="2 workers cannot be started here: this process may have none"
        ):
            extract(Net(), items(), tmp_path, num_workers=2)
        extract(Net(), items(), tmp_path, num_workers=None)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert len(FeatureStore(tmp_path)) == 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_an_item_travels_bit_for_bit_without_the_rest_of_its_storage(dtype: torch.dtype) -> None:
    for tensor in (torch.randn(3, 1000).to(dtype)[1, 2:50], torch.ones(6, 4).to(dtype).t(), torch.ones(0, 3)):
        item = pickle.loads(pickle.dumps(Item("a", tensor, identity_of(tensor))))
        assert (item.tensor.dtype, identity_of(item.tensor)) == (tensor.dtype, item.identity)
        assert len(pickle.dumps(item)) < 600 + tensor.nbytes


def test_threads_and_the_training_flag_are_as_before(tmp_path: Path) -> None:
    net = Net().train()
    torch.set_num_threads(2)
    extract(net, items(4), tmp_path)
    assert (torch.get_num_threads(), net.training) == (2, True)


class Sensitive(Net):
    """Computes otherwise where the process is set otherwise, and tells how it was."""

    def __init__(self, *, weight_norm: bool = False) -> None:
        super().__init__(weight_norm=weight_norm)
        self.big = nn.Linear(6, 512)
        self.seen: set[tuple[int, str]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((torch.get_num_threads(), torch.get_float32_matmul_precision()))
        wide: Tensor = self.big(super().forward(x)) * torch.tensor(0.1)
        squared: Tensor = wide @ wide.transpose(-1, -2)
        return squared.sum(-1, keepdim=True)


@pytest.fixture
def set_otherwise() -> Iterator[None]:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_default_dtype()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])
    torch.set_default_dtype(before[2])


@pytest.mark.parametrize("how", ["here", "together", "fed"])
def test_how_this_process_is_set_decides_nothing(
    how: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dataset, net = items(60), Sensitive(weight_norm=True)
    plain = extract(net, dataset, tmp_path / "plain", shard_size=5)
    request.getfixturevalue("set_otherwise")
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        if how == "fed":
            made = feed(dataset, tmp_path / "set", 0, shard_size=5, model=net)
            found = [each.shard for each in made]
        else:
            workers = {"here": 1, "together": 2}[how]
            store = extract(net, dataset, tmp_path / "set", shard_size=5, num_workers=workers)
            found = [*store.manifest.shards]
        assert torch.is_autocast_enabled("cpu")
    assert found == [*plain.manifest.shards]
    assert net.seen == {(1, "highest")}
    assert (torch.get_num_threads(), torch.get_default_device().type) == (2, "meta")
    assert (torch.get_float32_matmul_precision(), torch.get_default_dtype()) == ("medium", torch.float64)


def test_the_default_device_of_a_block_is_as_before() -> None:
    with torch.device("meta"):
        with as_everywhere():
            assert torch.empty(1).device.type == "cpu"
        assert torch.empty(1).device.type == "meta"
    assert (torch.empty(1).device.type, torch.get_default_device().type) == ("cpu", "cpu")


def test_what_a_model_keeps_of_its_first_call_can_be_trained_through(tmp_path: Path) -> None:
    class Keeps(Net):
        kept: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.kept = torch.ones(6) if self.kept is None else self.kept
            return super().forward(x) * self.kept

    net = Keeps()
    with torch.inference_mode():
        extract(net, items(4), tmp_path)
    net(torch.ones(1, 4)).sum().backward()
    assert net.blocks[0].weight.grad is not None


def test_threads_that_start_processes_leave_the_script_as_it_is() -> None:
    main, entered, leave = sys.modules["__main__"], threading.Event(), threading.Event()

    def first() -> None:
        with without_main():
            entered.set()
            leave.wait(5)

    def second() -> None:
        entered.wait(5)
        with without_main():
            pass

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    threads[1].join(0.2)
    assert threads[1].is_alive()  # it waits, or it would put back the first one's stand-in
    leave.set()
    for thread in threads:
        thread.join()
    assert sys.modules["__main__"] is main


@pytest.mark.parametrize("readers", [0, 2])
def test_what_is_read_ahead_and_written_behind_is_the_same(
    readers: int, recordings: Path, tmp_path: Path
) -> None:
    one = extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "one", shard_size=5)
    made = feed(recordings, tmp_path / "fed", readers, shard_size=5)
    assert [each.shard for each in made] == list(one.manifest.shards)
    again = feed(recordings, tmp_path / "fed", readers, shard_size=5)
    assert [each.shard for each in again] == list(one.manifest.shards)
    assert [len(each.stamps) for each in again] == [5, 5, 5, 5, 4]


class Elsewhere(Dataset[Tensor]):
    """Tells which processes read it; and ends one of them, if it is told to."""

    def __init__(self, *, dies: bool = False, pickles: bool = True) -> None:
        self.pid, self.dies = os.getpid(), dies
        self.readers = multiprocessing.get_context("fork").Queue()
        self.extra = None if pickles else (lambda: None)

    def __getstate__(self) -> dict[str, Any]:
        if self.extra is not None:
            raise TypeError("an open file")
        return {**self.__dict__, "readers": None}

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        if self.dies and os.getpid() != self.pid:
            os._exit(9)
        return torch.full((3, 4), float(os.getpid() != self.pid))


def test_only_a_dataset_that_pickles_is_read_ahead(tmp_path: Path) -> None:
    """A fork would share the place in a file that it has open with the others."""
    for pickles in (True, False):
        feed(Elsewhere(pickles=pickles), tmp_path / str(pickles), 2, shard_size=5, model=Net())
        shard = sorted(tmp_path.joinpath(str(pickles)).rglob("0*"))[0]
        ahead = Net()(torch.full((3, 4), float(pickles))).half()
        assert torch.equal(load_file(shard)["output"][:3], ahead)


def test_a_reader_that_dies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"A worker that reads died \(DataLoader worker .* num_workers="):
        feed(Elsewhere(dies=True), tmp_path, 2, shard_size=5, model=Net())


@pytest.mark.parametrize("readers", [0, 2])
def test_what_cannot_be_read_ahead_is_an_error_or_left_out(
    readers: int, recordings: Path, tmp_path: Path
) -> None:
    (recordings / "07.wav").write_bytes(b"no sound")
    before = torch.random.get_rng_state()
    with pytest.raises(InputError, match=r"07\.wav cannot be read") as caught:
        feed(recordings, tmp_path / "raises", readers, shard_size=5)
    assert caught.value.inputs == ("07.wav",)
    made = feed(recordings, tmp_path / "skips", readers, shard_size=5, on_error="skip")
    assert [name for each in made for name, _ in each.unreadable] == ["07.wav"]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_a_script_that_needs_a_guard_is_not_run_twice(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch, bundles\n"
        "from bundles.features.inputs.preprocess import Preprocessing\n"
        "class Net(torch.nn.Linear): pass\n"
        "frames = [torch.ones(3, 4) * i for i in range(400)]\n"
        "how = dict(preprocessing=Preprocessing('frames'), shard_size=2, num_workers=2, progress=False)\n"
        "bundles.extract_features(Net(4, 5), frames, sys.argv[1], **how)\n"
        "print('here the training would begin')\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert "A worker died" in done.stderr
    assert "has to begin its work under `if __name__ == '__main__':`" in done.stderr


@pytest.mark.slow
def test_a_module_that_pickles_travels(tmp_path: Path) -> None:
    one = extract(Net(), items(100), tmp_path / "1", shard_size=7)
    two = extract(Net(), items(100), tmp_path / "2", shard_size=7, num_workers=2)
    assert two.digest == one.digest


@pytest.mark.slow
def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch, bundles\n"
        "waves = [torch.ones(4000) * i for i in range(20)]\n"
        "out = sys.argv[1]\n"
        "print(len(bundles.extract_features('WAV2VEC2_NANO_DIGITS', waves, out, num_workers=2)))\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr


def test_an_empty_stream_is_an_error(tmp_path: Path) -> None:
    class Empty(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield from ()

    with pytest.raises(InputError, match="The dataset holds nothing"):
        extract(Net(), Empty(), tmp_path)


# --- asking again ---------------------------------------------------------------------------------


def test_asking_again_computes_nothing(tmp_path: Path) -> None:
    net = Net()
    store = extract(net, items(), tmp_path)
    manifest = (store.path / "store.json").stat()
    calls, before = net.calls, written(store)
    again = extract(net, items(), tmp_path)
    assert (net.calls, written(again), again.manifest) == (calls, before, store.manifest)
    assert (store.path / "store.json").stat().st_mtime_ns == manifest.st_mtime_ns


def test_asking_again_builds_no_model(pinned: bundles.Bundle, tmp_path: Path) -> None:
    waves = [torch.randn(4000) for _ in range(3)]
    store = extract(pinned, waves, tmp_path / "out")
    assert pinned.weights is not None
    Path(pinned.weights.address).unlink()
    assert extract(pinned, waves, tmp_path / "out").digest == store.digest
    with pytest.raises(bundles.SourceError, match=r"weights\.safetensors"):
        extract(pinned, waves[:2], tmp_path / "out")


def test_files_that_look_as_they_did_are_not_read_again(heard: list[str], tmp_path: Path) -> None:
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", torch.randn(4000).numpy() / 9, 16000)
        os.utime(tmp_path / f"{name}.wav", (1, 1))
    store = extract("WAV2VEC2_NANO_DIGITS", f"{tmp_path}/*.wav", tmp_path / "out")
    before = written(store)
    assert {*heard} == {"a.wav", "b.wav", "c.wav"}
    heard.clear()
    again = extract("WAV2VEC2_NANO_DIGITS", f"{tmp_path}/*.wav", tmp_path / "out")
    assert (written(again), again.names, heard) == (before, ("a.wav", "b.wav", "c.wav"), [])


def test_one_input_that_changed_costs_its_window(tmp_path: Path) -> None:
    net, dataset = Net(), items(40)
    store = extract(net, dataset, tmp_path, shard_size=8)
    before, calls = written(store), net.calls
    dataset[20] = dataset[20] + 1
    again = extract(net, dataset, tmp_path, shard_size=8)
    assert again.digest != store.digest
    assert again.path == store.path
    kept = {shard.name for shard in again.manifest.shards} & before.keys()
    assert len(kept) == 4
    assert written(again).items() >= before.items()
    assert net.calls - calls == calls - 4  # one batch for a window, and the trial of whether there may be one
    assert torch.equal(again[19], store[19])
    assert not torch.equal(again[20], store[20])


def test_a_file_that_was_renamed_has_its_new_name(recordings: Path, tmp_path: Path) -> None:
    old = extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "out", shard_size=8)
    (recordings / "09.wav").rename(recordings / "09a.wav")
    new = extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "out", shard_size=8)
    assert (old.names[9], new.names[9]) == ("09.wav", "09a.wav")
    assert torch.equal(new[9], old[9])


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [1]},
        {"dtype": "bfloat16"},
        {"preprocessing": Preprocessing("waveform")},
        {"plan": True},
        {"weights": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changed_is_another_store(change: dict[str, Any], tmp_path: Path) -> None:
    class Waves(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(*x.shape[:-1], -1, 4))

    net, dataset = Waves(), [torch.randn(16), torch.randn(20)]
    store = extract(net, dataset, tmp_path)
    if change.pop("plan", False):
        bundles.freeze(net, "all", "features")
    if change.pop("weights", False):
        with torch.no_grad():
            next(net.parameters()).add_(1)
    other = extract(net, dataset, tmp_path, **change)
    assert other.facts.key != store.facts.key
    assert list(store.facts.differences(other.facts))
    assert other.digest != store.digest
    with pytest.raises(FeatureStoreError, match="2"):
        FeatureStore(tmp_path)


def test_batch_size_and_number_of_workers_are_no_other_store(tmp_path: Path) -> None:
    net = Net(weight_norm=True)
    store = extract(net, items(), tmp_path)
    calls = net.calls
    again = extract(net, items(), tmp_path, batch_size=2, num_workers=2)
    assert (again.digest, again.manifest.batch_size, net.calls) == (store.digest, 8, calls)


# --- damage ---------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, truncate])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_named_and_made_anew(
    damage: Callable[[Path], None], finished: bool, tmp_path: Path
) -> None:
    net = Net()
    store = extract(net, items(), tmp_path, shard_size=8)
    shard = store.path / store.manifest.shards[2].name
    whole = shard.read_bytes()
    damage(shard)
    if finished:
        with pytest.raises(FeatureStoreError, match=shard.name):
            store.verify()
    else:  # as after a kill
        (store.path / "store.json").unlink()
    before, calls = written(store), net.calls
    with pytest.warns(BundlesWarning, match=f"{shard.name} in .* was damaged, and was made anew"):
        again = extract(net, items(), tmp_path, shard_size=8)
    assert shard.read_bytes() == whole
    assert again.digest == store.digest
    assert {name for name, facts in written(again).items() if before[name] != facts} == {shard.name}
    assert net.calls > calls
    again.verify()


def test_a_shard_that_is_missing_is_made_anew(tmp_path: Path) -> None:
    store = extract(Net(), items(), tmp_path)
    (store.path / store.manifest.shards[0].name).unlink()
    again = extract(Net(), items(), tmp_path)
    assert again.digest == store.digest
    again.verify()


# --- inputs that cannot be read -------------------------------------------------------------------


def test_an_unreadable_item_stops_and_what_is_finished_is_kept(recordings: Path, tmp_path: Path) -> None:
    good = (recordings / "20.wav").read_bytes()
    (recordings / "20.wav").write_text("no audio")
    with pytest.raises(InputError, match=r"20\.wav") as caught:
        extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "out", shard_size=8)
    assert caught.value.inputs == ("20.wav",)
    assert len([*(tmp_path / "out").rglob("0*.safetensors")]) == 2
    assert not [*(tmp_path / "out").rglob("store.json")]
    (recordings / "20.wav").write_bytes(good)
    assert len(extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "out", shard_size=8)) == 24


def test_files_of_what_is_finished_are_not_read_again_after_an_error(
    recordings: Path, heard: list[str], tmp_path: Path
) -> None:
    good = (recordings / "20.wav").read_bytes()
    (recordings / "20.wav").write_bytes(b"no sound")
    for path in recordings.iterdir():
        os.utime(path, (1, 1))  # long ago, or the next write might look the same
    with pytest.raises(InputError, match=r"20\.wav cannot be read"):
        extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "out", shard_size=8)
    (recordings / "20.wav").write_bytes(good)
    whole = extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "whole", shard_size=8)
    heard.clear()
    store = extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "out", shard_size=8)
    assert store.digest == whole.digest
    assert {*heard} == {f"{index:02d}.wav" for index in range(16, 24)}


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, True), (3600.0, False)])
def test_what_is_known_of_files_is_saved_at_times(
    seconds: float, saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundles.features.inputs.stamps._OFTEN", seconds)
    stamps = Stamps(tmp_path)
    stamps.note(("/data/a.wav", 44, 0, 0), bytes(32))
    stamps.save_at_times()
    assert (Stamps(tmp_path).identity(("/data/a.wav", 44, 0, 0)) == bytes(32)) is saved


def test_an_unreadable_item_is_left_out_and_listed(recordings: Path, tmp_path: Path) -> None:
    whole = extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "whole", shard_size=8)
    good = (recordings / "03.wav").read_bytes()
    (recordings / "03.wav").write_bytes(b"")
    with pytest.warns(UnreadableInputWarning, match=r"1 of 24 items .* 03\.wav is empty"):
        store = extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "out", shard_size=8, on_error="skip")
    assert (len(store), store.manifest.count) == (23, 24)
    assert [name for name, _ in store.manifest.unreadable] == ["03.wav"]
    assert "03.wav" not in store.names
    (recordings / "03.wav").write_bytes(good)
    mended = extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "out", shard_size=8, on_error="skip")
    assert mended.digest == whole.digest


def test_what_the_model_does_not_take_is_left_out_and_stays_so(
    pinned: bundles.Bundle, tmp_path: Path
) -> None:
    waves = [torch.randn(4000), torch.randn(10), torch.randn(5000)]
    with pytest.raises(
        InputError, match=r"^1: The Wav2Vec2Model does not take inputs of shape \[10\]"
    ) as caught:
        extract(pinned, waves, tmp_path / "out")
    assert caught.value.inputs == ("1",)
    with pytest.warns(UnreadableInputWarning, match="1 of 3 items"):
        store = extract(pinned, waves, tmp_path / "out", on_error="skip")
    assert store.names == ("0", "2")
    assert pinned.weights is not None
    Path(pinned.weights.address).unlink()  # whoever computed now would fail
    with pytest.warns(UnreadableInputWarning, match="1 of 3 items"):
        again = extract(pinned, waves, tmp_path / "out", on_error="skip")
    assert (again.digest, again.manifest.unreadable[0][0]) == (store.digest, "1")


@pytest.mark.parametrize("has_manifest", [True, False])
def test_of_files_that_the_model_does_not_take_is_told_again(
    has_manifest: bool, recordings: Path, tmp_path: Path
) -> None:
    soundfile.write(recordings / "03.wav", torch.zeros(9).numpy(), 16000)
    for path in recordings.iterdir():
        os.utime(path, (1, 1))
    told = []
    for _ in range(3):
        with pytest.warns(UnreadableInputWarning, match="1 of 24 items"):
            store = extract("WAV2VEC2_NANO_DIGITS", recordings, tmp_path / "out", on_error="skip")
        told.append(store.manifest.unreadable)
        if not has_manifest:
            (store.path / "store.json").unlink()
    assert told[1] == told[2]
    assert [name for name, _ in told[0]] == ["03.wav"]
    assert "does not take inputs of shape [9]" in told[0][0][1]
    assert (told[1] == told[0]) is has_manifest


def test_what_batches_changed_is_known_of_shards_that_an_earlier_run_made(tmp_path: Path) -> None:
    waves = [torch.randn(4000 + 137 * index) * 0.1 for index in range(24)]
    name = "WAV2VEC2_NANO_DIGITS"
    whole = extract(name, waves, tmp_path, dtype="float32", shard_size=8)
    assert whole.manifest.bound > 0
    (whole.path / "store.json").unlink()  # as a kill before it leaves it
    whole.path.joinpath(whole.manifest.shards[0].name).unlink()
    alone = extract(name, waves, tmp_path, dtype="float32", shard_size=8, batch_size=1)
    assert (alone.manifest.batch_size, alone.manifest.bound) == (8, whole.manifest.bound)
    others = extract(name, [wave * 0.5 for wave in waves], tmp_path, dtype="float32", batch_size=1)
    assert (others.manifest.batch_size, others.manifest.bound) == (1, 0.0)


def test_a_shard_that_another_process_made_meanwhile_is_kept(tmp_path: Path) -> None:
    """Which may have had other batches, and so other last bits."""
    store = extract(Net(), items(8), tmp_path, shard_size=8)
    theirs = store.manifest.shards[0]
    item = Item("0", items(1)[0], identity_of(items(1)[0]))
    ours = write_shard(
        store.path, theirs.name, ["0"], [item.identity], [{"output": torch.zeros(2, 6)}], replace=False
    )
    assert ours == theirs
    store.verify()
    anew = write_shard(store.path, theirs.name, ["0"], [item.identity], [{"output": torch.zeros(2, 6)}])
    assert anew != theirs
    with pytest.raises(FeatureStoreError, match="is whole, and the manifest speaks of another"):
        store.verify()


def test_a_folder_of_weights_may_be_moved(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    tokens = [torch.tensor([1, 2, 3])]
    stores = [extract(f"file:{tmp_path / name}", tokens, tmp_path / "out") for name in ("here", "there")]
    assert (stores[0].path, stores[0].digest) == (stores[1].path, stores[1].digest)
    assert str(tmp_path) not in stores[0].facts.model


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="None of the 2 items can be read; the first: "):
        extract("WAV2VEC2_NANO_DIGITS", [torch.zeros(0)] * 2, tmp_path, on_error="skip")
    assert not [*tmp_path.rglob("store.json")]


# --- ends that nobody planned ---------------------------------------------------------------------


def run_in_a_fork(out: Path, dataset: list[Tensor], size: int = 40) -> multiprocessing.process.BaseProcess:
    """Start an extraction that can be killed, with two workers of its own."""

    def run() -> None:
        os.setsid()
        extract(Net(weight_norm=True), dataset, out, shard_size=size, num_workers=2)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def members_of(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def count_shards(out: Path) -> int:
    return len([*out.rglob("0*.safetensors")])


def wait_for_shards(out: Path, more_than: int) -> None:
    deadline = time.monotonic() + 20
    while count_shards(out) <= more_than and time.monotonic() < deadline:
        time.sleep(0.005)


def wait_until_gone(session: int) -> bool:
    deadline = time.monotonic() + 20
    while members_of(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not members_of(session)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize(("kills", "size"), [(3, 40), pytest.param(12, 10, marks=pytest.mark.slow)])
def test_a_killed_extraction_goes_on_and_ends_in_the_same_store(
    kills: int, size: int, tmp_path: Path
) -> None:
    dataset, chance = items(2000), random.Random(7)
    whole = extract(Net(weight_norm=True), dataset, tmp_path / "whole", shard_size=size)
    counts = [0]
    for _ in range(kills):
        process = run_in_a_fork(tmp_path / "out", dataset, size)
        assert process.pid is not None
        wait_for_shards(tmp_path / "out", more_than=counts[-1])
        time.sleep(chance.uniform(0, 0.5 / kills))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert wait_until_gone(process.pid)  # its workers noticed
        counts.append(count_shards(tmp_path / "out"))
    assert counts == sorted(counts)
    assert not [*tmp_path.glob("out/*/store.json")]
    store = extract(Net(weight_norm=True), dataset, tmp_path / "out", shard_size=size)
    assert store.digest == whole.digest
    store.verify()


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes as Linux shows them")
def test_an_interrupt_ends_the_workers_and_keeps_what_is_finished(tmp_path: Path) -> None:
    process = run_in_a_fork(tmp_path, items(5000))
    assert process.pid is not None
    wait_for_shards(tmp_path, more_than=0)
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 1  # KeyboardInterrupt came out
    assert wait_until_gone(process.pid)
    assert [*tmp_path.rglob("0*.safetensors")]
    assert not [*tmp_path.rglob("store.json")]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes as Linux shows them")
def test_an_interrupt_while_others_start_is_told_once(tmp_path: Path) -> None:
    script = (
        "import torch, bundles\n"
        "waves = [torch.ones(16000 * 20) * i for i in range(80)]\n"
        f"bundles.extract_features('WAV2VEC2_NANO_DIGITS', waves, {str(tmp_path)!r}, num_workers=2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 30
    while len(members_of(process.pid)) < 3 and time.monotonic() < deadline:  # with the resource tracker
        time.sleep(0.01)
    time.sleep(0.3)  # it imports
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=20)[1].decode()
    assert told.count("KeyboardInterrupt") == 1
    assert wait_until_gone(process.pid)


def test_a_worker_that_dies_is_an_error_and_what_is_finished_is_kept(tmp_path: Path) -> None:
    dataset = items(40)
    dataset[9] = torch.full((5, 4), -1e9)  # of the second window, which this process does not make
    with pytest.raises(FeatureError, match=r"A worker died, .* pass a smaller num_workers= or batch_size="):
        extract(Net(weight_norm=True), dataset, tmp_path, shard_size=8, num_workers=2)
    assert len([*tmp_path.rglob("0*.safetensors")]) >= 2
    assert multiprocessing.active_children() == []


# --- what is refused ------------------------------------------------------------------------------


def test_what_is_not_deterministic_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(NotDeterministicError, match="mc") as caught:
        extract("WAV2VEC2_NANO_DIGITS", [torch.randn(4000)], tmp_path / "out", freeze_mode="mc")
    assert caught.value.modules
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is no number of at least 1"),
        ({"num_workers": -1}, "num_workers=-1 is no number of at least 1"),
        ({"shard_size": True}, "shard_size=True is no number of at least 1"),
        ({"engine": "spark"}, "engine='spark' is none of 'local', 'ray'"),
        ({"on_error": "ignore"}, "on_error='ignore' is none of 'raise', 'skip'"),
        ({"dtype": "int8"}, "dtype='int8' is none of 'float16', 'bfloat16', 'float32'"),
        ({"freeze": "last:1"}, "A module is taken as it is"),
        ({"normalize": "batch"}, "A module is taken as it is"),
        ({"engine": "ray"}, "engine='ray' sends no model to its workers"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=message):
        extract(Net(), items(2), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_layer_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FreezeArgumentError, match="block"):
        extract(Net(), items(2), tmp_path, layers=[7])


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="A int is neither a bundle, nor the name of one"):
        extract(7, items(2), tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written"):
        extract(Net(), items(2), tmp_path / "file" / "out")
