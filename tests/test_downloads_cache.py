"""What a download leaves, and what is used instead of one: records, mirrors, other caches."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bundles.errors import (
    ChecksumError,
    DownloadError,
    OfflineError,
    SourceAccessError,
    SourceNotFoundError,
    UnpinnedSourceWarning,
)
from bundles.sources import cache
from bundles.sources.fetch import fetch
from bundles.sources.records import known, record
from bundles.sources.torch_hub import hub_folder
from bundles.sources.web.mirror import mirrored
from bundles.spec.source import WeightSource
from downloading import DATA, QUICK, contents, isolate, pinned, sha256, state, unpinned
from loopback import Loopback

WRONG = DATA[::-1]


@pytest.fixture
def server(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    isolate(tmp_path, monkeypatch)
    with Loopback(DATA) as running:
        yield running


def get(source: WeightSource, **arguments: Any) -> Path:
    return fetch(source, options=QUICK, **arguments)


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


# --- records: the digest of a first download ----------------------------------------------------------


def test_a_first_download_is_recorded(server: Loopback, empty_cache: Path) -> None:
    path = get(unpinned(server))
    file = empty_cache / "records" / f"{cache.key(server.uri())}.json"
    assert json.loads(file.read_text()) == {
        "uri": server.uri(),
        "sha256": sha256(DATA),
        "size": len(DATA),
        "etag": '"v1"',
    }
    assert file.stat().st_mode & 0o777 == 0o444
    assert path == empty_cache / "files" / sha256(DATA)


def test_what_is_recorded_works_offline_like_what_is_pinned(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = get(unpinned(server))
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    assert get(unpinned(server)) == get(unpinned(server), verify="always") == path
    assert len(server.requests) == 2  # the opening and the rest


def test_a_lost_file_comes_again_and_must_be_the_same(server: Loopback, empty_cache: Path) -> None:
    source, file = unpinned(server), empty_cache / "records" / f"{cache.key(server.uri())}.json"
    get(source).unlink()
    assert get(source).read_bytes() == DATA
    get(source).unlink()
    server.body, server.etag = WRONG, '"v2"'
    with pytest.raises(ChecksumError) as caught:
        get(source)
    assert str(caught.value) == (
        f"What {server.url()} sends is not what {server.uri()} gave at first, as recorded in {file}: "
        f"expected sha256 {sha256(DATA)}, found sha256 {sha256(WRONG)}; the file is of no known "
        f"format. To accept the new bytes, delete that record and fetch again."
    )
    assert contents(empty_cache) == [str(file.relative_to(empty_cache))]
    file.unlink()
    assert get(source).read_bytes() == WRONG
    assert known(source).source.sha256 == sha256(WRONG)


def test_another_size_than_recorded_is_refused_before_it_is_sent(server: Loopback) -> None:
    get(unpinned(server)).unlink()
    server.body = WRONG[:-1]
    server.forget()
    with pytest.raises(
        ChecksumError, match=rf"as recorded in .*: expected {len(DATA)} bytes, found 149999 bytes"
    ):
        get(unpinned(server))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"sha256": "x", "size": 1}', b'{"sha256": null, "size": null}'],
)
def test_a_damaged_record_is_as_good_as_none(text: bytes, server: Loopback, empty_cache: Path) -> None:
    get(unpinned(server))
    overwrite(empty_cache / "records" / f"{cache.key(server.uri())}.json", text)
    assert known(unpinned(server)).record is None
    assert get(unpinned(server)).read_bytes() == DATA
    assert known(unpinned(server)).source.sha256 == sha256(DATA)


def test_whoever_records_first_has_said_it(empty_cache: Path) -> None:
    source = WeightSource("url:https://example.org/x.pth")
    assert record(source, sha256(DATA), 1, None).source.sha256 == sha256(DATA)
    assert record(source, sha256(WRONG), 2, None).source.sha256 == sha256(DATA)
    assert contents(empty_cache) == [f"records/{cache.key(source.uri)}.json"]


def test_a_race_for_the_record_that_is_lost_is_an_error(
    server: Loopback, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(source: WeightSource, *facts: Any) -> Any:
        record(source, sha256(WRONG), len(DATA), None)
        return record(source, *facts)

    monkeypatch.setattr("bundles.sources.web.download.record", slower)
    with pytest.raises(ChecksumError, match=f"expected sha256 {sha256(WRONG)}, found sha256 {sha256(DATA)}"):
        get(unpinned(server))
    assert contents(empty_cache) == [f"records/{cache.key(server.uri())}.json"]


def test_the_whole_address_is_the_key_and_never_its_last_part(server: Loopback) -> None:
    """torchaudio keeps MMS_FA as ``model.pt``, and loads anybody's."""
    first = get(unpinned(server, "mine/model.pt"))
    server.body = WRONG
    second = get(unpinned(server, "yours/model.pt"))
    third = get(unpinned(server, "mine/model.pt?version=2"))
    assert (first.read_bytes(), second.read_bytes(), third.read_bytes()) == (DATA, WRONG, WRONG)
    assert get(unpinned(server, "mine/model.pt")) == first


def test_a_pin_does_not_ask_the_record(server: Loopback) -> None:
    get(unpinned(server))
    server.body = WRONG
    assert get(pinned(server, data=WRONG)).read_bytes() == WRONG
    assert get(unpinned(server)).read_bytes() == DATA


def test_no_token_is_written_anywhere(
    server: Loopback, empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get(unpinned(server, "model.bin?token=secret"))
    texts = [
        path.read_bytes() for path in empty_cache.rglob("*") if path.is_file() and path.stat().st_size < 9999
    ]
    server.default = "404"
    with pytest.raises(SourceNotFoundError) as caught:
        get(unpinned(server, "other.bin?token=secret"))
    assert all(b"secret" not in text for text in texts)
    assert "secret" not in str(caught.value)
    assert "secret" not in "".join(r.getMessage() for r in caplog.records if r.name == "bundles")


def test_verify_off_warns_and_checks_the_size_only(server: Loopback) -> None:
    overwrite(path := get(pinned(server)), WRONG)
    with pytest.warns(UnpinnedSourceWarning, match=f"nobody knows what {server.uri()} gives"):
        assert get(pinned(server), verify="off") == path
    overwrite(path, WRONG[:-1])
    with pytest.warns(UnpinnedSourceWarning):
        assert get(pinned(server), verify="off").read_bytes() == DATA  # what is short is fetched again


# --- offline -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BUNDLES_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("make", [pinned, unpinned])
def test_offline_refuses_before_asking(
    name: str, make: Any, server: Loopback, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(
        OfflineError, match=rf"is not in the cache {empty_cache} .*BUNDLES_SHARED_CACHE"
    ) as caught:
        get(make(server))
    assert isinstance(caught.value, ConnectionError)
    assert server.requests == []
    assert not empty_cache.exists()


# --- damage and shared caches ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pinned, unpinned])
@pytest.mark.parametrize("bad", [WRONG, DATA[:-1], b""], ids=["wrong", "short", "empty"])
def test_a_damaged_file_is_fetched_again(bad: bytes, make: Any, server: Loopback, empty_cache: Path) -> None:
    path = get(make(server))
    overwrite(path, bad)
    assert get(make(server)) == path
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_damaged_file_is_an_error_offline(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    path = get(pinned(server))
    overwrite(path, WRONG)
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    with pytest.raises(
        ChecksumError, match=f"The file {path} is not what .* pins: expected sha256 {sha256(DATA)}"
    ):
        get(pinned(server))
    assert path.read_bytes() == WRONG


@pytest.fixture
def shared(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared cache that has the file and its record, and a cache of one's own that is empty."""
    folder = tmp_path / "shared"
    monkeypatch.setenv("BUNDLES_CACHE", str(folder))
    get(unpinned(server))
    server.forget()
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", os.pathsep.join([str(tmp_path / "none"), "", str(folder)]))
    return folder


@pytest.mark.parametrize("make", [pinned, unpinned])
def test_a_shared_cache_is_read_first_and_never_written(
    make: Any, shared: Path, server: Loopback, tmp_path: Path
) -> None:
    before = state(shared)
    assert get(make(server)) == shared / "files" / sha256(DATA)
    assert server.requests == []
    server.body = WRONG
    assert get(make(server, "other.bin") if make is unpinned else pinned(server, data=WRONG)) == (
        tmp_path / "own" / "files" / sha256(WRONG)
    )
    assert state(shared) == before
    assert not (tmp_path / "none").exists()


def test_a_shared_record_is_enforced(shared: Path, server: Loopback, tmp_path: Path) -> None:
    (shared / "files" / sha256(DATA)).unlink()
    server.body = WRONG
    with pytest.raises(ChecksumError, match=f"as recorded in {shared}"):
        get(unpinned(server))
    server.body = DATA
    assert get(unpinned(server)).parent.parent == tmp_path / "own"
    assert contents(tmp_path / "own") == [f"files/{sha256(DATA)}"]


def test_a_damaged_file_in_a_shared_cache_hides_no_good_one(
    shared: Path, server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overwrite(shared / "files" / sha256(DATA), WRONG)
    path = get(pinned(server))
    assert path.parent.parent == tmp_path / "own"
    server.forget()
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    assert get(pinned(server)) == get(unpinned(server)) == path
    assert (shared / "files" / sha256(DATA)).read_bytes() == WRONG
    path.unlink()
    with pytest.raises(ChecksumError, match=f"The file {shared}"):
        get(pinned(server))


@pytest.mark.parametrize("make", [pinned, unpinned])
def test_a_shared_cache_serves_when_ones_own_cannot_be_written(
    make: Any, shared: Path, server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "regular").write_text("a file")
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "regular" / "x"))
    assert get(make(server)).parent.parent == shared
    assert server.requests == []


# --- mirrors and plain http --------------------------------------------------------------------------

MIRROR = "https://a.org=https://m.org/a, https://a.org/deep = https://deep.org,http://c.org/=http://m.org/c/"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.org/x/y.pth?z=1", "https://m.org/a/x/y.pth?z=1"),
        ("https://a.org/deep/y.pth", "https://deep.org/y.pth"),
        ("https://a.org/deeper/y.pth", "https://m.org/a/deeper/y.pth"),
        ("https://a.org/deep?z", "https://deep.org?z"),
        ("https://a.org.evil.org/x", "https://a.org.evil.org/x"),
        ("http://a.org/x", "http://a.org/x"),
        ("http://c.org/x", "http://m.org/c/x"),
        ("https://other.org/https://a.org/x", "https://other.org/https://a.org/x"),
    ],
)
def test_the_longest_prefix_that_fits_is_replaced(
    url: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mirrored(url) == url
    monkeypatch.setenv("BUNDLES_MIRROR", MIRROR)
    assert mirrored(url) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("https://a.org", "https://a.org=", "=https://m.org", "a.org=m.org", "https://a.org=file:///x"),
        *(
            "https://a.org=https://me:secret@m.org",
            "https://a.org https://m.org",
            "https://a.org=https://m.org,x",
        ),
    ],
)
def test_a_malformed_mirror_is_an_error_that_shows_how(
    text: str, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLES_MIRROR", text)
    with pytest.raises(DownloadError, match=r"BUNDLES_MIRROR is malformed: .* 'FROM=TO'") as caught:
        get(pinned(server))
    assert "secret" not in str(caught.value)
    assert server.requests == []


def test_a_mirror_is_asked_and_the_cache_knows_the_original(
    server: Loopback, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = WeightSource("url:https://example.invalid/models/x.pth")
    monkeypatch.setenv("BUNDLES_MIRROR", f"https://example.invalid/models={server.url('copy')}")
    path = get(source)
    assert path.read_bytes() == DATA
    assert {request.path for request in server.requests} == {"/copy/x.pth"}
    monkeypatch.delenv("BUNDLES_MIRROR")
    assert get(source) == path
    assert contents(empty_cache) == [f"files/{sha256(DATA)}", f"records/{cache.key(source.uri)}.json"]


@pytest.mark.parametrize(("fault", "error"), [("404", SourceNotFoundError), ("503", DownloadError)])
def test_what_a_mirror_does_not_give_names_both_addresses(
    fault: str, error: type[Exception], server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLES_MIRROR", f"https://example.invalid={server.url('copy')}")
    server.default = fault
    with pytest.raises(
        error, match=rf"{server.url('copy/x.pth')} \(in place of url:https://example.invalid/x.pth\)"
    ):
        get(WeightSource("url:https://example.invalid/x.pth"))


def test_plain_http_without_a_digest_is_refused_unless_somebody_chose_it(server: Loopback) -> None:
    with pytest.raises(SourceAccessError, match=r"is plain http and has no sha256.*: use https, or pin"):
        get(WeightSource("url:http://example.invalid/x.pth"))
    assert get(WeightSource(server.uri())).read_bytes() == DATA


def test_plain_http_with_a_digest_goes_through_the_proxy(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    source = WeightSource("url:http://example.invalid/x.pth", sha256(DATA))
    assert get(source).read_bytes() == DATA
    assert {request.path for request in server.requests} == {"http://example.invalid/x.pth"}


def test_no_proxy_keeps_loopback_direct(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert get(unpinned(server)).read_bytes() == DATA


# --- torch's hub cache -------------------------------------------------------------------------------


@pytest.fixture
def hub(server: Loopback, tmp_path: Path) -> Path:
    folder = tmp_path / "torch" / "hub"
    for place in ("checkpoints/model.bin", "torchaudio/models/model.bin"):
        (folder / place).parent.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("a/model.bin", "checkpoints/model.bin"),
        ("a/model.bin?download=1", "checkpoints/model.bin"),
        ("torchaudio/models/model.bin", "torchaudio/models/model.bin"),
        ("torchaudio/models/model.bin", "checkpoints/model.bin"),
    ],
)
def test_a_file_of_torchs_with_the_right_digest_is_used_in_place(
    path: str, place: str, server: Loopback, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub / place).write_bytes(DATA)
    before = state(hub)
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    for _ in range(2):
        assert get(pinned(server, path)) == hub / place
    assert server.requests == []
    assert state(hub) == before


def test_a_file_of_torchs_with_another_digest_is_left_alone(
    server: Loopback, hub: Path, empty_cache: Path
) -> None:
    (hub / "checkpoints/model.bin").write_bytes(WRONG)
    assert get(pinned(server)) == empty_cache / "files" / sha256(DATA)
    assert (hub / "checkpoints/model.bin").read_bytes() == WRONG


def test_a_file_of_torchs_is_checked_even_where_nothing_is(
    server: Loopback, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub / "checkpoints/model.bin").write_bytes(WRONG)
    with pytest.warns(UnpinnedSourceWarning):
        assert get(pinned(server), verify="off").read_bytes() == DATA
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    with pytest.raises(OfflineError):  # that torch has another file of that name is no damage
        get(pinned(server, data=b"x" * len(DATA)))


def test_without_a_digest_torchs_cache_is_not_believed(server: Loopback, hub: Path) -> None:
    (hub / "checkpoints/model.bin").write_bytes(WRONG)
    path = get(unpinned(server))
    assert path.read_bytes() == DATA
    path.unlink()
    (hub / "checkpoints/model.bin").write_bytes(DATA)
    assert get(unpinned(server)) == hub / "checkpoints/model.bin"  # there is a record now


def test_an_address_cannot_lead_out_of_torchs_cache(server: Loopback, hub: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(DATA)
    path = get(pinned(server, "torchaudio/../../../model.bin"))
    assert path.parent.name == "files"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TORCH_HOME": "/a"},
        {"TORCH_HOME": "~/a", "XDG_CACHE_HOME": "/b"},
        {"XDG_CACHE_HOME": "/b"},
        {"XDG_CACHE_HOME": ""},
    ],
)
def test_the_hub_folder_is_torchs(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert str(hub_folder()) == os.path.normpath(torch.hub.get_dir())
