"""``url:`` over real connections: right bytes or a named error, whatever the server does, and no debris."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import bundles
from bundles.errors import (
    BundlesError,
    CacheError,
    ChecksumError,
    DownloadError,
    SourceAccessError,
    SourceNotFoundError,
)
from bundles.sources import cache
from bundles.sources.fetch import fetch
from bundles.sources.options import Options
from bundles.sources.web import partial
from bundles.sources.web.answers import read_answer
from bundles.sources.web.hashing import Hasher
from bundles.sources.web.ranges import Ranges
from bundles.spec.source import WeightSource
from downloading import DATA, QUICK, SEVERAL, contents, isolate, pinned, sha256, spans, state, unpinned
from loopback import Loopback


@pytest.fixture
def server(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    isolate(tmp_path, monkeypatch)
    with Loopback(DATA) as running:
        yield running


# --- the good ways ---------------------------------------------------------------------------------


def test_a_download_is_checked_placed_and_found_again(
    server: Loopback, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(pinned(server))
    assert path == empty_cache / "files" / sha256(DATA)
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o444
    assert contents(empty_cache) == [f"files/{sha256(DATA)}"]
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    for verify in ("once", "always"):
        assert fetch(pinned(server), verify=verify) == path
        assert fetch(pinned(server, "elsewhere.bin"), verify=verify) == path  # the digest is the identity
    assert len(server.requests) == 1


def test_the_warm_path_asks_nothing_locks_nothing_and_writes_nothing(
    server: Loopback, empty_cache: Path
) -> None:
    for source in (pinned(server), unpinned(server, "other.bin")):
        fetch(source)
        server.forget()
        before = state(empty_cache)
        fetch(source)
        assert state(empty_cache) == before
        assert server.requests == []


def test_a_download_is_not_hashed_again_when_it_is_used(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(pinned(server))
    monkeypatch.setattr("bundles.sources.verify.sha256_of", lambda path: pytest.fail(f"hashed {path}"))
    fetch(pinned(server))


SIZES = (1, 4_095, 19_999, 20_000, 20_001, 59_999, 60_000, 100_001, 150_000)


@pytest.mark.parametrize("options", [QUICK, SEVERAL], ids=["one connection", "several"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_arrives_whole(
    size: int, ranges: bool, options: Options, server: Loopback, empty_cache: Path
) -> None:
    server.body, server.ranges = DATA[:size], ranges
    for source in (pinned(server, data=server.body), unpinned(server, "other.bin")):
        path = fetch(source, options=options)
        assert path.read_bytes() == server.body
        assert path.name == sha256(server.body)
        path.unlink()
    assert server.sent == 2 * size
    assert not list(empty_cache.glob("files/.partial/*"))


def test_an_empty_file_is_only_believed_with_its_digest(server: Loopback) -> None:
    server.body = b""
    assert fetch(pinned(server, data=b""), options=QUICK).read_bytes() == b""
    with pytest.raises(DownloadError, match="it sends an empty file"):
        fetch(unpinned(server, "other.bin"), options=QUICK)


def test_small_files_take_one_request_and_larger_ones_ask_for_each_byte_once(server: Loopback) -> None:
    server.body = DATA[:20_000]
    fetch(pinned(server, data=server.body), options=QUICK)
    assert len(server.requests) == 1
    server.forget()
    server.body = DATA
    fetch(pinned(server), options=QUICK)
    assert spans(server) == [(0, 20_000), (20_000, len(DATA))]
    server.forget()
    server.body = DATA[::-1]
    fetch(pinned(server, data=server.body), options=SEVERAL)
    assert sorted(spans(server))[0] == (0, 20_000)
    assert sum(stop - start for start, stop in spans(server)) == len(Ranges(spans(server))) == len(DATA)
    assert len(spans(server)) > 6


def test_a_fast_connection_is_left_alone(server: Loopback) -> None:
    fetch(pinned(server), options=replace(SEVERAL, parallel_below=1.0))
    assert spans(server) == [(0, 20_000), (20_000, len(DATA))]


def test_several_connections_are_faster_where_each_is_limited(server: Loopback) -> None:
    server.rate = 200_000
    began = time.monotonic()
    fetch(pinned(server), options=SEVERAL)
    assert time.monotonic() - began < 0.8 * len(DATA) / server.rate


def test_the_hash_follows_while_parts_come_out_of_order(server: Loopback) -> None:
    server.rate = 400_000
    for seed in range(3):
        server.body = random.Random(seed).randbytes(120_000)
        path = fetch(unpinned(server, f"{seed}.bin"), options=replace(SEVERAL, connections=7))
        assert path.name == sha256(server.body) == sha256(path.read_bytes())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@pytest.mark.parametrize("options", [QUICK, SEVERAL], ids=["one connection", "several"])
def test_over_tls_the_certificate_is_checked(
    options: Options, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path, monkeypatch)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=loopback", "-addext", "subjectAltName=IP:127.0.0.1"]
    form = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run([*form, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Loopback(DATA, tls=context) as server:
        with pytest.raises(DownloadError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(unpinned(server), options=options)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        server.script = ["good", "cut"]
        assert fetch(unpinned(server), options=options).read_bytes() == DATA


def test_a_pickled_checkpoint_becomes_a_model(server: Loopback, tmp_path: Path) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    torch.save(state, tmp_path / "model.pth")
    server.body = (tmp_path / "model.pth").read_bytes()
    weights = unpinned(server, "releases/model.pth")
    bundle = bundles.Bundle("REMOTE", lambda: torch.nn.Linear(3, 2), weights=weights)
    for _ in range(2):
        assert torch.equal(bundle.get_model().get_parameter("weight"), state["weight"])
    assert len(server.requests) == 1


def test_a_safetensors_file_becomes_a_model(server: Loopback) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    server.body = save(dict(state))
    source = pinned(server, "releases/model.safetensors", server.body)
    model = bundles.Bundle("REMOTE", lambda: torch.nn.Linear(3, 2), weights=source).get_model()
    assert torch.equal(model.get_parameter("weight"), state["weight"])


# --- faults that pass --------------------------------------------------------------------------------

PASSING = (
    *("cut", "cut at 10", "reset", "drop", "html", "disguised html", "stall", "hang", "gzip", "empty"),
    *("ignored range", "misplaced range", "excessive range", "refused range", "cut chunked"),
    *("500", "503", "429", "416", "redirect", "redirect loop", "redirect to http", "redirect to a file"),
)
SEEN_BY_THE_DIGEST = ("wrong", "lying range", "short", "no length")


@pytest.mark.parametrize("options", [QUICK, SEVERAL], ids=["one connection", "several"])
@pytest.mark.parametrize("place", [0, 1], ids=["opening", "later"])
@pytest.mark.parametrize("fault", [*PASSING, *SEEN_BY_THE_DIGEST])
def test_after_a_fault_the_right_bytes_come(
    fault: str, place: int, options: Options, server: Loopback, empty_cache: Path
) -> None:
    server.script = ["good"] * place + [fault]
    assert fetch(pinned(server), options=options).read_bytes() == DATA
    assert contents(empty_cache) == [f"files/{sha256(DATA)}"]
    assert server.script == []


@pytest.mark.parametrize("options", [QUICK, SEVERAL], ids=["one connection", "several"])
@pytest.mark.parametrize("fault", PASSING)
def test_after_a_fault_the_right_bytes_are_recorded(
    fault: str, options: Options, server: Loopback, empty_cache: Path
) -> None:
    server.script = [fault]
    assert fetch(unpinned(server), options=options).read_bytes() == DATA
    key = cache.key(server.uri())
    assert contents(empty_cache) == [f"files/{sha256(DATA)}", f"records/{key}.json"]


@pytest.mark.parametrize("seed", range(6))
def test_after_many_faults_the_right_bytes_come(seed: int, server: Loopback) -> None:
    chance = random.Random(seed)
    names = [name for name in PASSING if name not in ("stall", "hang")]
    server.script = [name for _ in range(3) for name in (*chance.sample(names, 2), "good")]
    assert fetch(pinned(server), options=replace(SEVERAL, attempts=9)).read_bytes() == DATA


def test_what_came_before_a_fault_is_not_asked_for_again(server: Loopback) -> None:
    server.script = ["good", "cut", "reset", "cut"]
    fetch(pinned(server), options=QUICK)
    assert len(Ranges(spans(server))) == len(DATA)
    assert server.sent <= 1.01 * len(DATA)
    assert all(request.headers.get("if-range") == '"v1"' for request in server.requests[1:])


def test_a_redirect_is_asked_for_once_and_again_when_it_has_run_out(server: Loopback) -> None:
    server.script = ["redirect", "good", "403"]
    assert fetch(pinned(server), options=QUICK).read_bytes() == DATA
    paths = [request.path for request in server.requests]
    assert paths == ["/model.bin", "/elsewhere", "/elsewhere", "/model.bin", "/model.bin"]


def test_a_server_that_takes_few_connections_is_served_by_those(server: Loopback) -> None:
    server.script = ["good", "503", "503", "good", "503"]
    assert fetch(pinned(server), options=SEVERAL).read_bytes() == DATA
    assert server.sent == len(DATA)


# --- faults that stay --------------------------------------------------------------------------------

STAYING: dict[str, tuple[type[BundlesError], str]] = {
    "cut at 10": (DownloadError, "peer closed connection"),
    "drop": (DownloadError, "reset by peer"),
    "html": (DownloadError, "it answers with an HTML page"),
    "disguised html": (DownloadError, "it sends an HTML page"),
    "hang": (DownloadError, "ReadTimeout: timed out"),
    "drip": (DownloadError, "it sends less than 4.1 kB in 1 s"),
    "gzip": (DownloadError, "bytes encoded as 'gzip'"),
    "no length": (DownloadError, "does not say how long the file is"),
    "empty": (DownloadError, "it sends an empty file"),
    "500": (DownloadError, "it answers with HTTP 500"),
    "503": (DownloadError, "it answers with HTTP 503"),
    "429": (DownloadError, "it answers with HTTP 429"),
    "429 for an hour": (DownloadError, "HTTP 429 and asks to come back in 3600 s"),
    "redirect loop": (DownloadError, "TooManyRedirects"),
    "redirect to http": (DownloadError, "redirects to http://example.invalid/model.bin, and only https"),
    "redirect to a file": (DownloadError, "redirects to file:"),
    "redirect to https": (DownloadError, "Connect"),
    "404": (SourceNotFoundError, r"There is nothing at .* \(HTTP 404\)"),
    "410": (SourceNotFoundError, r"There is nothing at .* \(HTTP 410\)"),
    "401": (SourceAccessError, r"may not be read \(HTTP 401\)"),
    "403": (SourceAccessError, r"may not be read \(HTTP 403\)"),
    "huge": (CacheError, r"needs 10\.0 TB and the disk of .* has .* free"),
}


@pytest.mark.parametrize("fault", STAYING)
def test_a_fault_that_stays_is_a_named_error_and_leaves_nothing(
    fault: str, server: Loopback, empty_cache: Path
) -> None:
    server.default = fault
    options = replace(QUICK, read_timeout=0.1, connect_timeout=0.3, deadline=1.0)
    kind, words = STAYING[fault]
    began = time.monotonic()
    with pytest.raises(kind, match=words) as caught:
        fetch(unpinned(server), options=options)
    assert time.monotonic() - began < 3
    assert type(caught.value) is kind
    assert server.url() in str(caught.value) or kind is CacheError
    assert contents(empty_cache) == []
    if kind is not DownloadError:
        assert len(server.requests) == 1  # asking again would not help
    server.default, server.body = "good", DATA
    assert fetch(unpinned(server), options=QUICK).read_bytes() == DATA


@pytest.mark.parametrize("options", [QUICK, SEVERAL], ids=["one connection", "several"])
@pytest.mark.parametrize("fault", ["wrong", "lying range"])
def test_wrong_bytes_of_the_right_length_are_refused_and_leave_nothing(
    fault: str, options: Options, server: Loopback, empty_cache: Path
) -> None:
    server.default = fault
    with pytest.raises(ChecksumError, match=f"expected sha256 {sha256(DATA)}, found sha256 ") as caught:
        fetch(pinned(server), options=options)
    assert (caught.value.source, caught.value.expected) == (server.uri(), f"sha256 {sha256(DATA)}")
    assert contents(empty_cache) == []
    assert not list(empty_cache.glob("files/.partial/*"))


def test_a_page_in_place_of_a_pinned_file_is_called_a_page(server: Loopback, empty_cache: Path) -> None:
    server.default = "disguised html"
    with pytest.raises(DownloadError, match="it sends an HTML page"):
        fetch(WeightSource(server.uri(), sha256(DATA)), options=QUICK)
    assert contents(empty_cache) == []


@pytest.mark.parametrize("body", [DATA[:-1], DATA + b"x", b""], ids=["short", "long", "empty"])
def test_a_size_that_contradicts_the_pin_is_refused_before_a_byte_is_written(
    body: bytes, server: Loopback, empty_cache: Path
) -> None:
    server.body = body
    with pytest.raises(ChecksumError, match=f"expected {len(DATA)} bytes, found {len(body)} bytes"):
        fetch(pinned(server), options=QUICK)
    assert len(server.requests) == QUICK.attempts
    assert contents(empty_cache) == []


def test_a_body_that_turns_out_longer_than_pinned_is_cut_off(server: Loopback, empty_cache: Path) -> None:
    server.body, server.default = DATA + DATA, "chunked"
    with pytest.raises(DownloadError, match="it sends more than the 150000 bytes that were to come"):
        fetch(pinned(server), options=QUICK)
    assert contents(empty_cache) == []


def test_only_what_can_be_continued_stays_after_an_error(server: Loopback, empty_cache: Path) -> None:
    server.script, server.default = ["good"], "drop"
    with pytest.raises(DownloadError, match="reset by peer"):
        fetch(unpinned(server), options=QUICK)
    assert [name.rpartition("/")[2] for name in contents(empty_cache)] == ["data", "done", "version.json"]
    server.default = "good"
    server.forget()
    assert fetch(unpinned(server), options=QUICK).read_bytes() == DATA
    assert min(spans(server)) == (20_000, 40_000)
    assert not list(empty_cache.glob("files/.partial/*"))


def test_what_cannot_be_continued_does_not_stay(server: Loopback, empty_cache: Path) -> None:
    server.ranges, server.default = False, "cut"
    with pytest.raises(DownloadError, match="the connection was closed 75000 bytes too early"):
        fetch(unpinned(server), options=QUICK)
    assert contents(empty_cache) == []


def test_an_error_says_what_happened_last_and_what_to_do(server: Loopback) -> None:
    server.default = "503"
    with pytest.raises(DownloadError) as caught:
        fetch(unpinned(server), options=QUICK)
    assert str(caught.value) == (
        f"{server.url()} cannot be downloaded (attempt 4: it answers with HTTP 503): try again, or name "
        f"another server in BUNDLES_MIRROR."
    )
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value.__cause__, DownloadError)


def test_no_server_at_all_is_a_download_error(server: Loopback) -> None:
    with Loopback() as other:
        port = other.port
    with pytest.raises(DownloadError, match="Connection refused"):
        fetch(WeightSource(f"url:http://127.0.0.1:{port}/x"), options=QUICK)


# --- versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "options"), [(1, QUICK), (1, SEVERAL), (2, SEVERAL), (5, SEVERAL)])
def test_versions_are_never_mixed(place: int, options: Options, server: Loopback) -> None:
    server.script = ["good"] * place + ["other version"]
    assert fetch(unpinned(server), options=options).read_bytes() == DATA[::-1]


@pytest.mark.parametrize("options", [QUICK, SEVERAL], ids=["one connection", "several"])
@pytest.mark.parametrize("make", [pinned, unpinned])
def test_servers_that_tag_one_file_differently_give_it_in_one_piece(
    make: Any, options: Options, server: Loopback
) -> None:
    server.default = "other tag"
    assert fetch(make(server), options=options).read_bytes() == DATA
    assert "range" not in server.requests[-1].headers


def test_a_version_that_changed_between_calls_is_not_continued(server: Loopback) -> None:
    server.script, server.default = ["good", "good"], "drop"
    with pytest.raises(DownloadError):
        fetch(unpinned(server), options=SEVERAL)
    server.body, server.etag, server.default = DATA[::-1], '"v2"', "good"
    assert fetch(unpinned(server), options=SEVERAL).read_bytes() == DATA[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'], ids=["none", "weak"])
def test_without_a_strong_tag_an_unpinned_file_comes_in_one_piece(etag: str | None, server: Loopback) -> None:
    server.etag = etag
    assert fetch(unpinned(server), options=SEVERAL).read_bytes() == DATA
    assert "range" not in server.requests[-1].headers
    server.forget()
    server.body = DATA[::-1]
    fetch(pinned(server, data=server.body), options=SEVERAL)  # here the digest would tell
    assert len(spans(server)) > 6


def test_a_date_stands_in_for_a_tag(server: Loopback) -> None:
    server.etag, server.headers = None, {"Last_Modified": "Tue, 14 Jun 2022 00:00:00 GMT"}
    assert fetch(unpinned(server), options=QUICK).read_bytes() == DATA
    assert server.requests[-1].headers["if-range"] == "Tue, 14 Jun 2022 00:00:00 GMT"


# --- answers, decided without a network --------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_range", "error"),
    [
        ("bytes 0-9/100", None),
        ("bytes 0-4/100", None),
        ("bytes 0-10/100", "bytes 0-10 of 100; 0-9 were asked for"),
        ("bytes 5-9/100", "bytes 5-9 of 100"),
        ("bytes 0-9/5", "bytes 0-9 of 5"),
        ("bytes 9-0/100", "bytes 9-0"),
        ("bytes 0-9/*", "does not say which"),
        ("bytes */100", "does not say which"),
        ("", "does not say which"),
        ("items 0-9/100", "does not say which"),
        ("bytes 0-99999999999999999999/100", "does not say which"),
    ],
)
def test_every_content_range(content_range: str, error: str | None) -> None:
    def read() -> Any:
        return read_answer(206, {"Content-Range": content_range}, (0, 10), "x")

    if error is None:
        assert read().version.total == 100
    else:
        with pytest.raises(DownloadError, match=error):
            read()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("7", 7), ("", None), ("soon", None), ("-1", None), ("Tue, 14 Jun 2022 00:00:00 GMT", 0)],
)
def test_every_retry_after(text: str, seconds: float | None) -> None:
    with pytest.raises(DownloadError) as caught:
        read_answer(503, {"Retry-After": text}, None, "x")
    assert getattr(caught.value, "retry_after") == seconds  # noqa: B009 - no attribute of the class


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "abc", ""])
def test_a_length_that_makes_no_sense_is_none(length: str) -> None:
    assert read_answer(200, {"Content-Length": length}, None, "x").length is None


# --- ranges ------------------------------------------------------------------------------------------


def test_ranges_are_the_set_of_their_positions() -> None:
    chance = random.Random(0)
    for _ in range(300):
        ranges, positions = Ranges(), set[int]()
        for _ in range(chance.randrange(8)):
            start, stop = chance.randrange(30), chance.randrange(30)
            ranges.add(start, stop)
            positions |= set(range(start, stop))
        assert {p for start, stop in ranges for p in range(start, stop)} == positions
        assert len(ranges) == len(positions)
        assert {p for start, stop in ranges.gaps(25) for p in range(start, stop)} == set(
            range(25)
        ) - positions
        assert ranges.prefix == next(p for p in range(31) if p not in positions)
        pairs = list(ranges)
        assert all(a[1] < b[0] for a, b in pairwise(pairs))


# --- the disk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [QUICK, SEVERAL], ids=["one connection", "several"])
def test_a_disk_that_fills_up_is_a_cache_error_and_leaves_nothing(
    options: Options, server: Loopback, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = partial.Partial.add

    def add(self: partial.Partial, start: int, stop: int) -> None:
        if start > 30_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, start, stop)

    monkeypatch.setattr(partial.Partial, "add", add)
    with pytest.raises(CacheError, match=r"cannot be written \(No space left on device\): set BUNDLES_CACHE"):
        fetch(pinned(server), options=options)
    assert contents(empty_cache) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_is_a_cache_error(
    server: Loopback, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = partial.Partial.begin

    def begin(self: partial.Partial, version: partial.Version) -> None:
        original(self, version)
        self.data.unlink()
        self.data.symlink_to("/dev/full")

    monkeypatch.setattr(partial.Partial, "begin", begin)
    with pytest.raises(CacheError, match="No space left on device"):
        fetch(pinned(server), options=QUICK)
    assert contents(empty_cache) == []


def test_room_is_asked_for_before_a_byte_is_written(
    server: Loopback, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100_000))
    with pytest.raises(CacheError, match=r"needs 150 kB and the disk of .* has 100 kB free") as caught:
        fetch(pinned(server), options=QUICK)
    assert (getattr(caught.value, "needed"), getattr(caught.value, "free")) == (150_000, 100_000)  # noqa: B009
    assert contents(empty_cache) == []


def test_what_cannot_be_read_back_is_a_cache_error(
    server: Loopback, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Hasher, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Hasher, "_advance", fail)
    with pytest.raises(CacheError, match=r"cannot be read back \(.*Input/output error\): set BUNDLES_CACHE"):
        fetch(pinned(server), options=QUICK)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_shared_cache_that_nobody_may_look_into_is_passed_over(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", str(tmp_path / "closed"))
    for _ in range(2):
        assert fetch(unpinned(server), options=QUICK).read_bytes() == DATA


def unwritable(tmp_path: Path) -> list[Path]:
    (tmp_path / "regular").write_text("a file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return [tmp_path / "regular", tmp_path / "regular/below", tmp_path / "loop/x", Path("/proc/nowhere")]


@pytest.mark.parametrize("index", range(4), ids=["a file", "below a file", "link loop", "read-only"])
def test_an_unwritable_cache_is_named_before_anything_is_asked(
    index: int, server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unwritable(tmp_path)[index]
    if folder.is_relative_to("/proc") and sys.platform != "linux":
        pytest.skip("there is no /proc here")
    monkeypatch.setenv("BUNDLES_CACHE", str(folder))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CacheError, match=rf"cache folder {folder}.* cannot be written .*set BUNDLES_CACHE"):
        fetch(pinned(server), options=QUICK)
    assert sorted(tmp_path.rglob("*")) == before
    assert server.requests == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("options", [QUICK, SEVERAL], ids=["one connection", "several"])
def test_an_interrupt_ends_a_download_at_once_and_it_can_be_continued(
    options: Options, server: Loopback, empty_cache: Path, interruptible: None
) -> None:
    server.script, server.default = ["good"], "stall"
    options = replace(options, read_timeout=30.0)
    before = set(threading.enumerate())
    timer = threading.Timer(0.4, lambda: os.kill(os.getpid(), 2))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch(pinned(server), options=options)
    timer.join()
    assert time.monotonic() - began < 3
    own = set(threading.enumerate()) - before
    assert not [thread for thread in own if thread.name.startswith("bundles-")]
    server.default = "good"
    server.forget()
    assert fetch(pinned(server), options=options).read_bytes() == DATA
    assert server.sent < len(DATA) - 20_000


# --- what people see ---------------------------------------------------------------------------------


def test_without_a_terminal_one_line_is_logged(server: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bundles")
    fetch(pinned(server), options=QUICK)
    fetch(pinned(server), options=QUICK)
    assert [r.getMessage() for r in caplog.records if r.name == "bundles"] == [
        "Downloading model.bin (150 kB) from 127.0.0.1"
    ]


def test_it_can_be_quiet(
    server: Loopback, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "bundles")
    fetch(pinned(server), progress=False, options=QUICK)
    monkeypatch.setattr("bundles.sources.progress.enabled", False)
    fetch(unpinned(server, "other.bin"), options=QUICK)
    assert [record for record in caplog.records if record.name == "bundles"] == []


def test_on_a_terminal_there_is_one_bar_with_name_size_and_rate(server: Loopback, tmp_path: Path) -> None:
    import pty

    server.rate = 300_000
    main, end = pty.openpty()
    code = (
        "import sys; from bundles.sources.fetch import fetch; from bundles.spec.source import WeightSource\n"
        "from bundles.sources.options import Options\n"
        f"print(fetch(WeightSource({server.uri('a/[red]model.bin')!r}), options=Options(block=4096)))"
    )
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "24"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=end, env=environment
    ) as process:
        os.close(end)
        seen = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while piece := os.read(main, 4096):
                seen += piece
        os.close(main)
        assert process.stdout is not None
        assert Path(process.stdout.read().decode().strip()).read_bytes() == DATA
    text = seen.decode()
    assert "[red]model.bin" in text
    assert "150.0/150.0 kB" in text
    assert "kB/s" in text
