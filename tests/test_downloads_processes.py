"""Many processes, killed processes, locks that lock and locks that do not: never a wrong byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles.errors import BundlesError
from bundles.sources import cache
from bundles.sources.fetch import fetch
from bundles.sources.options import Options
from bundles.sources.web import leftovers
from bundles.sources.web.partial import Partial, machine
from bundles.spec.source import WeightSource
from downloading import DATA, QUICK, SEVERAL, contents, isolate, pinned, sha256, spans, unpinned
from loopback import Loopback

# A light process that fetches: it imports no torch. What it is told to do comes on the command line.
CHILD = """
import sys
uri, digest, lock, options = sys.argv[1:]
if lock == "no lock":
    import fcntl
    fcntl.flock = lambda *arguments: None
import httpx2, filelock, bundles.sources.web.download
from bundles.sources.fetch import fetch
from bundles.sources.options import Options
from bundles.spec.source import WeightSource
assert "torch" not in sys.modules and "numpy" not in sys.modules
print("ready", flush=True)
sys.stdin.readline()
inf = float("inf")
print(fetch(WeightSource(uri, digest or None), progress=False, options=eval(options)))
"""


@pytest.fixture
def server(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    isolate(tmp_path, monkeypatch)
    with Loopback(DATA) as running:
        yield running


class Child:
    """A process that is ready to fetch a source, and does when told."""

    def __init__(self, source: WeightSource, options: Options, lock: str = "lock") -> None:
        arguments = [source.uri, source.sha256 or "", lock, repr(options)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def path(self) -> Path:
        output, _ = self.process.communicate()
        assert self.process.returncode == 0
        return Path(output.strip())


def crowd(source: WeightSource, count: int, lock: str) -> list[Path]:
    """Fetch a source in several processes at once."""
    children = [Child(source, SEVERAL, lock) for _ in range(count)]
    for child in children:
        child.ready()
    for child in children:
        child.go()
    return [child.path() for child in children]


# --- crowds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pinned, unpinned])
def test_eight_processes_get_the_right_bytes_from_one_download(
    make: object, server: Loopback, empty_cache: Path
) -> None:
    server.rate = 500_000
    source = pinned(server) if make is pinned else unpinned(server)
    paths = crowd(source, 8, "lock")
    assert {path.read_bytes() for path in paths} == {DATA}
    assert server.sent == len(DATA)
    assert not list(empty_cache.glob("files/.partial/*"))


@pytest.mark.parametrize("make", [pinned, unpinned])
def test_eight_processes_get_the_right_bytes_where_locks_lock_nothing(
    make: object, server: Loopback, empty_cache: Path
) -> None:
    server.rate = 500_000
    source = pinned(server) if make is pinned else unpinned(server)
    paths = crowd(source, 8, "no lock")
    assert {path.read_bytes() for path in paths} == {DATA}
    assert len(DATA) <= server.sent <= 8 * len(DATA)
    assert not list(empty_cache.glob("files/.partial/*"))


def test_threads_share_one_download_too(server: Loopback) -> None:
    paths: list[Path] = []
    source = unpinned(server)
    threads = [
        threading.Thread(target=lambda: paths.append(fetch(source, options=replace(QUICK, lock_patience=9))))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in paths] == [DATA] * 6
    assert server.sent == len(DATA)


# --- locks -------------------------------------------------------------------------------------------


def test_a_lock_that_is_held_for_nothing_is_not_waited_for(
    server: Loopback, empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from filelock import FileLock

    path = empty_cache / "locks" / f"{cache.key(server.uri())}.lock"
    path.parent.mkdir(parents=True)
    with FileLock(path):
        began = time.monotonic()
        assert fetch(pinned(server), options=QUICK).read_bytes() == DATA
        assert QUICK.lock_patience <= time.monotonic() - began < 5
    assert f"holds {path} and shows no progress" in caplog.text


def test_a_lock_is_waited_for_while_its_holder_gets_on(server: Loopback) -> None:
    server.rate = 100_000  # 1.5 s, three times the patience
    options = replace(QUICK, lock_patience=0.5)
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(fetch(pinned(server), options=options)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in paths] == [DATA] * 2
    assert server.sent == len(DATA)


def test_a_download_needs_no_lock(server: Loopback, empty_cache: Path) -> None:
    empty_cache.mkdir()
    (empty_cache / "locks").write_text("not a folder")
    assert fetch(pinned(server), options=QUICK).read_bytes() == DATA


def test_what_others_are_at_is_not_touched_without_the_lock(server: Loopback, empty_cache: Path) -> None:
    with Partial(cache.key(server.uri()), QUICK, lambda there, total: None) as alive:
        from filelock import FileLock

        path = empty_cache / "locks" / f"{cache.key(server.uri())}.lock"
        path.parent.mkdir(parents=True)
        with FileLock(path):
            fetch(pinned(server), options=QUICK)
        assert alive.data.exists()


# --- killed processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_after_a_kill_the_next_call_succeeds_and_asks_only_for_the_rest(
    seed: int, server: Loopback, empty_cache: Path
) -> None:
    chance = random.Random(seed)
    options = chance.choice([QUICK, SEVERAL])
    source = chance.choice([pinned, unpinned])(server)
    moment = chance.uniform(0, 1.02) * len(DATA)
    server.rate = 1_000_000
    child = Child(source, options)
    child.ready()
    child.go()
    while server.sent < min(moment, len(DATA)) and child.process.poll() is None:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.005))
    child.kill()
    before, server.rate = server.sent, None
    assert fetch(source, options=options).read_bytes() == DATA
    # Lost is what was under way: a block per connection, and what the kernels still held.
    lost = options.connections * (options.block + 40_000)
    assert server.sent - before <= max(0, len(DATA) - before) + lost
    assert not list(empty_cache.glob("files/.partial/*"))


def test_a_process_killed_again_and_again_gets_there(server: Loopback) -> None:
    server.rate = 400_000
    source = pinned(server)
    for part in (0.2, 0.4, 0.6, 0.8):
        child = Child(source, QUICK)
        child.ready()
        child.go()
        while server.sent < part * len(DATA):
            time.sleep(0.001)
        child.kill()
    server.rate = None
    assert fetch(source, options=QUICK).read_bytes() == DATA
    assert server.sent < 1.6 * len(DATA)


# --- what was left ------------------------------------------------------------------------------------


def leave(
    server: Loopback,
    done: str,
    data: bytes = DATA,
    total: int = len(DATA),
    tag: str = '"v1"',
    ranged: bool = True,
    where: str | None = None,
    idle: float = 0.0,
) -> Path:
    """Make what a killed process leaves."""
    folder = cache.root() / "files" / ".partial" / f"{cache.key(server.uri())}.{where or machine()}.left"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(data)
    (folder / "done").write_text(done)
    version = {"total": total, "tag": tag, "ranged": ranged}
    (folder / "version.json").write_text(json.dumps(version))
    then = time.time() - idle
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))
    return folder


def test_only_what_is_missing_is_asked_for(server: Loopback) -> None:
    leave(server, "0 50000\n60000 100000\n50000 55000\n")
    assert fetch(unpinned(server), options=QUICK).read_bytes() == DATA
    assert spans(server) == [(55_000, 60_000), (100_000, 150_000)]


def test_what_is_complete_is_not_asked_for_at_all(server: Loopback) -> None:
    leave(server, "0 150000\n")
    assert fetch(pinned(server), options=QUICK).read_bytes() == DATA
    assert server.requests == []


@pytest.mark.parametrize(
    "done",
    [
        "",
        "0 500",
        "0 50000\n0 1500",
        "0 50000\nx y\n",
        "0 50000 1\n",
        "0 999999\n",
        "-5 9\n",
        "9 0\n",
        "\xff\n",
    ],
)
def test_notes_that_make_no_sense_are_not_believed(done: str, server: Loopback, empty_cache: Path) -> None:
    leave(server, done, data=b"\0" * len(DATA) if not done.startswith("0 50000\n0") else DATA)
    assert fetch(unpinned(server), options=QUICK).read_bytes() == DATA
    assert not list(empty_cache.glob("files/.partial/*"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"total": 1}', '{"total": "x", "tag": 1, "ranged": true}'])
def test_a_version_that_makes_no_sense_is_not_believed(text: str, server: Loopback) -> None:
    folder = leave(server, "0 50000\n", data=DATA[::-1])
    (folder / "version.json").write_text(text)
    assert fetch(pinned(server), options=QUICK).read_bytes() == DATA


@pytest.mark.parametrize(
    ("left", "is_used"),
    [
        ({}, True),
        ({"tag": '"v0"'}, False),
        ({"total": 140_000}, False),
        ({"ranged": False}, False),
        ({"where": "another machine"}, False),  # its owner may be alive
        ({"where": "another machine", "idle": 999.0}, True),
        ({"where": "host-another", "idle": 999.0}, True),
    ],
)
def test_what_is_taken_up_of_a_pinned_file(left: dict[str, object], is_used: bool, server: Loopback) -> None:
    leave(server, "0 100000\n", **left)  # type: ignore[arg-type]
    assert fetch(pinned(server), options=QUICK).read_bytes() == DATA
    assert (server.sent < len(DATA)) is is_used


@pytest.mark.parametrize(
    ("left", "is_used"),
    [({}, True), ({"tag": '"v0"'}, False), ({"where": "another start", "idle": 999.0}, False)],
)
def test_without_a_digest_only_what_this_machine_wrote_since_its_start_is_taken_up(
    left: dict[str, object], is_used: bool, server: Loopback
) -> None:
    leave(server, "0 100000\n", **left)  # type: ignore[arg-type]
    assert fetch(unpinned(server), options=QUICK).read_bytes() == DATA
    assert (server.sent < len(DATA)) is is_used


def test_where_the_machine_cannot_be_told_nothing_unpinned_is_taken_up(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "machine", lambda: "host-here")
    leave(server, "0 100000\n", where="host-here")
    assert fetch(unpinned(server), options=QUICK).read_bytes() == DATA
    assert server.sent == len(DATA)


def test_wrong_bytes_that_were_left_are_replaced_by_the_right_ones(
    server: Loopback, empty_cache: Path
) -> None:
    leave(server, "0 100000\n", data=DATA[::-1])
    assert fetch(pinned(server), options=QUICK).read_bytes() == DATA
    assert contents(empty_cache) == [f"files/{sha256(DATA)}"]


def test_an_owner_who_is_alive_after_all_writes_into_nothing_that_was_published(server: Loopback) -> None:
    folder = leave(server, "0 100000\n")
    with (folder / "data").open("r+b") as alive:
        path = fetch(pinned(server), options=QUICK)
        alive.write(b"x" * 50_000)
        alive.flush()
        assert path.read_bytes() == DATA


def test_without_room_for_a_copy_the_download_starts_over(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = leave(server, "0 100000\n")
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=99_999 if folder.exists() else 10**9)
    )
    assert fetch(pinned(server), options=QUICK).read_bytes() == DATA
    assert server.sent == len(DATA)


def test_what_nobody_came_back_for_is_removed_at_last(server: Loopback, empty_cache: Path) -> None:
    old = leave(server, "0 10\n", idle=QUICK.stale_after + 10)
    old = old.rename(old.with_name("another-source.machine.left"))
    fresh = leave(server, "0 10\n", idle=QUICK.stale_after - 99).rename(
        old.with_name("a-third-source.machine.left")
    )
    fetch(pinned(server), options=QUICK)
    assert not old.exists()
    assert fresh.exists()


# --- everything at once ------------------------------------------------------------------------------

FAULTS = ["cut", "reset", "drop", "html", "disguised html", "503", "wrong", "lying range", "misplaced range"]
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("fetch"), st.sampled_from(["pinned", "unpinned"]), st.lists(st.sampled_from(FAULTS))
        ),
        st.tuples(st.sampled_from(["damage", "shorten", "delete", "forget the record", "leave"])),
    ),
    max_size=8,
)


@settings(max_examples=30, deadline=None)
@given(steps=STEPS, several=st.booleans())
def test_whatever_happens_a_path_has_the_right_digest(
    steps: list[tuple[object, ...]], several: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("steps")
    with pytest.MonkeyPatch.context() as patch, Loopback(DATA) as server:
        isolate(folder, patch)
        patch.setenv("BUNDLES_CACHE", str(folder / "cache"))
        for step in [*steps, ("fetch", "pinned", []), ("fetch", "unpinned", [])]:
            take(step, server, replace(SEVERAL if several else QUICK, first_wait=0.001), folder / "cache")


def take(step: tuple[object, ...], server: Loopback, options: Options, root: Path) -> None:
    """Take one step, and look whether what it gives is right."""
    match step:
        case ("fetch", str(pin), list(script)):
            source = pinned(server) if pin == "pinned" else unpinned(server)
            # Without a digest nobody can tell wrong bytes of the right length at first.
            server.script = [
                fault for fault in script if pin == "pinned" or fault not in ("wrong", "lying range")
            ]
            try:
                assert fetch(source, options=options).read_bytes() == DATA
            except BundlesError:
                assert len(script) > 1  # one fault is overcome
            server.script = []
        case ("leave",):
            if not list(root.glob("files/.partial/*.left")):
                leave(server, "0 50000\n100000 120000\n")
        case _:
            change(str(step[0]), root)


def change(what: str, root: Path) -> None:
    """Do to the cache what disks and people do."""
    for path in root.glob("records/*" if what == "forget the record" else f"files/{sha256(DATA)}"):
        path.chmod(0o644)
        if what == "damage":
            path.write_bytes(DATA[::-1])
        elif what == "shorten":
            path.write_bytes(DATA[:-1])
        else:
            path.unlink()


# --- what is imported ---------------------------------------------------------------------------------


def test_listing_and_warm_fetches_import_neither_client_nor_lock(server: Loopback) -> None:
    fetch(unpinned(server))
    code = (
        "import sys, bundles; bundles.list_bundles()\n"
        "from bundles.sources.fetch import fetch; from bundles.spec.source import WeightSource\n"
        f"fetch(WeightSource({server.uri()!r})); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"httpx2", "filelock", "rich", "torch", "numpy", "huggingface_hub", "ssl", "concurrent.futures"}
    assert heavy.isdisjoint(done.stdout.split())
