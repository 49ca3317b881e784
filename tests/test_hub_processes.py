"""``hf:`` in many processes, killed ones, on read-only and full disks, and in any order of events."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundles.errors import BundlesError
from bundles.sources.fetch import fetch
from bundles.sources.hub.cache import hub_cache, repository_folder
from bundles.spec.source import WeightSource
from downloading import state
from hub import Hub
from hubbing import DATA, OTHER, RAPID, at, debris, filled, hub_at, sha

# A process that fetches when told, and prints the path or the error.
CHILD = """
import sys
import bundles.sources.hub.download, filelock, huggingface_hub
from bundles.errors import BundlesError
from bundles.sources.fetch import fetch
from bundles.sources.options import Options
from bundles.spec.source import WeightSource
if sys.argv[4:] == ["no lock"]:
    import fcntl
    fcntl.flock = lambda *arguments: None
print("ready", flush=True)
sys.stdin.readline()
try:
    path = fetch(WeightSource(sys.argv[1], sys.argv[2] or None), progress=False, options=eval(sys.argv[3]))
    print(path)
except BundlesError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def hub(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_at(tmp_path, monkeypatch) as running:
        yield running


class Child:
    """A process that is ready to fetch a source; in a mount namespace of its own if there is to be one."""

    def __init__(self, source: WeightSource, *more: str, mount: str = "") -> None:
        options = repr(replace(RAPID, small_deadline=20.0, lock_patience=20.0)).replace("inf", "1e9")
        command = [sys.executable, "-c", CHILD, source.uri, source.sha256 or "", options, *more]
        if mount:
            command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def go(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def told(self) -> str:
        output, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        return output.strip()


def alone(source: WeightSource, mount: str = "") -> str:
    child = Child(source, mount=mount)
    child.go()
    return child.told()


# --- crowds and killed processes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "lock", ["lock", pytest.param("no lock", marks=pytest.mark.slow)], ids=["lock", "no lock"]
)
def test_eight_cold_processes_get_the_right_bytes(lock: str, hub: Hub, tmp_path: Path) -> None:
    _, commit = filled(hub)
    children = [Child(at(commit, data=DATA), *(["no lock"] if lock == "no lock" else [])) for _ in range(8)]
    for child in children:
        child.go()
    paths = {child.told() for child in children}
    assert [Path(path).read_bytes() for path in paths] == [DATA]
    bodies = [request for request in hub.requests if request.kind == "body"]
    assert len(bodies) == 1 if lock == "lock" else 1 <= len(bodies) <= 8
    assert debris(tmp_path) == []


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]
)
def test_after_a_kill_the_next_call_succeeds(seed: int, hub: Hub) -> None:
    _, commit = filled(hub)
    draw = random.Random(seed)
    child = Child(at(commit, data=DATA))
    if seed % 2:
        hub.fault("stall", times=1)
    child.go()
    deadline = time.monotonic() + 10
    while seed % 2 and "body" not in [request.kind for request in hub.requests]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.06))
    child.process.kill()
    child.process.communicate()
    assert fetch(at(commit, data=DATA), options=RAPID).read_bytes() == DATA
    # What the client leaves of a killed process is one file that nothing takes up (`hf cache prune`).
    assert len(list(hub_cache().rglob("*.incomplete"))) <= 1


# --- disks ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _may_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mounts")
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if not shutil.which("unshare") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk of their own")


@pytest.mark.usefixtures("_may_mount")
def test_a_full_disk_is_named_and_left_as_it_was(hub: Hub) -> None:
    _, commit = filled(hub)
    hub_cache().mkdir(parents=True)
    mount = f"mount -t tmpfs -o size=24k tmpfs {hub_cache()}"
    told = alone(at(commit, data=DATA), mount + f' && trap "find {hub_cache()} -type f" EXIT')
    assert told.startswith("CacheError The download needs 40.0 kB and the disk of ")
    hub.fault("no_size")  # nobody says beforehand how much it is
    told = alone(WeightSource(f"hf:owner/name@{commit}#model.safetensors", sha(DATA)), mount)
    assert told.startswith(f"CacheError The cache folder {hub_cache()} cannot be written (No space left")


@pytest.mark.usefixtures("_may_mount")
def test_a_read_only_cache_serves_what_it_has_and_says_that_it_takes_no_more(
    hub: Hub, tmp_path: Path
) -> None:
    repo, commit = filled(hub)
    path = fetch(at(commit, data=DATA), options=RAPID)
    hub.forget()
    before = state(tmp_path)
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    assert alone(at(commit, data=DATA), mount) == str(path)
    assert hub.requests == []
    told = alone(at(commit, "config.json"), mount)
    assert told.startswith(
        f"CacheError The cache folder {hub_cache()} cannot be written (Read-only file system)"
    )
    repo.commit({"model.safetensors": OTHER}, lfs={"model.safetensors"})
    assert Path(alone(at("main", data=DATA), mount)).read_bytes() == DATA
    assert "your connection" not in told
    assert state(tmp_path) == before


@pytest.mark.parametrize("folder", ["a file", "in a file"])
def test_a_cache_that_is_no_folder_is_named(
    folder: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, commit = filled(hub)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / ("" if folder == "a file" else "x")))
    with pytest.raises(BundlesError, match="file"):
        fetch(at(commit, data=DATA), options=RAPID)


def test_a_dead_proxy_is_named_within_bounds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _, commit = filled(hub)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    began = time.monotonic()
    told = alone(at(commit, data=DATA))
    assert told.startswith("DownloadError hf:owner/name@")
    assert "ConnectError" in told or "ProxyError" in told
    assert "your connection" not in told
    assert time.monotonic() - began < 15


def test_a_dead_endpoint_is_named_within_bounds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(BundlesError, match=r"http://127\.0\.0\.1:9 does not give it \(ConnectError"):
        fetch(at("a" * 40, data=DATA), options=RAPID)
    assert time.monotonic() - began < 3


# --- any order of events -------------------------------------------------------------------------------

QUICK_FAULTS = ["corrupt", "corrupt_all", "short", "captive", "reset", "drop", "status", "gated", "not_found"]
STEPS = st.one_of(
    st.tuples(st.just("fetch"), st.integers(0, 3), st.sampled_from(["once", "always"])),
    st.tuples(
        st.just("fault"), st.sampled_from(QUICK_FAULTS), st.integers(1, 5), st.sampled_from(["head", "body"])
    ),
    st.tuples(st.just("move"), st.integers(0, 255)),
    st.sampled_from(
        [("main",), ("prune blobs",), ("prune snapshots",), ("prune all",), ("damage",), ("heal",)]
    ),
    st.sampled_from([("truncate",), ("squash",), ("offline",), ("online",), ("stamps",)]),
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=4, max_size=14))
@pytest.mark.filterwarnings("ignore::bundles.errors.UnpinnedSourceWarning")
def test_a_returned_path_has_the_pinned_digest(
    steps: list[tuple[object, ...]], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(steps, hub, tmp_path, monkeypatch)


@pytest.mark.slow
@settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=4, max_size=40))
@pytest.mark.filterwarnings("ignore::bundles.errors.UnpinnedSourceWarning")
def test_a_returned_path_has_the_pinned_digest_in_long_stories(
    steps: list[tuple[object, ...]], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(steps, hub, tmp_path, monkeypatch)


def play(steps: list[tuple[object, ...]], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the steps say with a new repository and new caches; whatever is returned must be right."""
    hub.forget()
    hub.repos.clear()
    shutil.rmtree(tmp_path / "hf", ignore_errors=True)
    shutil.rmtree(tmp_path / "empty-cache", ignore_errors=True)
    monkeypatch.delenv("BUNDLES_OFFLINE", raising=False)
    repo, first = filled(hub)
    pins, ever = [(first, DATA)], {DATA}
    for name, *how in steps:
        match name:
            case "fetch":
                commit, data = pins[int(str(how[0])) % len(pins)]
                with suppress(BundlesError):
                    path = fetch(at(commit, data=data), verify=how[1], options=RAPID)  # type: ignore[arg-type]
                    assert sha(path.read_bytes()) == sha(data)
            case "main":
                with suppress(BundlesError):
                    assert fetch(at("main"), options=RAPID).read_bytes() in ever
            case "fault":
                hub.fault(str(how[0]), times=int(str(how[1])), on=str(how[2]))
            case "heal":
                hub.faults.clear()
            case "move":
                data = bytes([int(str(how[0]))]) + OTHER[1:]
                pins.append((repo.commit({"model.safetensors": data}, lfs={"model.safetensors"}), data))
                ever.add(data)
            case "squash":
                repo.squash()
            case "offline":
                monkeypatch.setenv("BUNDLES_OFFLINE", "1")
            case "online":
                monkeypatch.delenv("BUNDLES_OFFLINE", raising=False)
            case _:
                disturb(str(name), tmp_path)
    # Whatever happened: with faults gone and the file at its commit, the right bytes come.
    monkeypatch.delenv("BUNDLES_OFFLINE", raising=False)
    hub.forget()
    last = repo.commit({"model.safetensors": DATA}, lfs={"model.safetensors"})
    assert fetch(at(last, data=DATA), options=RAPID).read_bytes() == DATA


def disturb(name: str, tmp_path: Path) -> None:
    """Do to the caches what people and disks do to them."""
    folder = repository_folder("owner/name")
    match name:
        case "prune blobs":
            shutil.rmtree(folder / "blobs", ignore_errors=True)
        case "prune snapshots":
            shutil.rmtree(folder / "snapshots", ignore_errors=True)
        case "prune all":
            shutil.rmtree(folder, ignore_errors=True)
        case "stamps":
            shutil.rmtree(tmp_path / "empty-cache", ignore_errors=True)
        case "damage" | "truncate":
            for blob in folder.glob("blobs/*"):
                data = blob.read_bytes()
                os.chmod(blob, 0o644)
                blob.write_bytes(data[: len(data) // 2] if name == "truncate" else data[::-1])
