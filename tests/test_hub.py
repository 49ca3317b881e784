"""``hf:`` by the real client from a hub on this machine: right bytes or a named error, and no debris."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import bundles
from bundles.errors import (
    BundlesError,
    CacheError,
    ChecksumError,
    DownloadError,
    OfflineError,
    PinError,
    SourceAccessError,
    SourceNotFoundError,
    UnpinnedSourceWarning,
)
from bundles.sources import cache
from bundles.sources.fetch import fetch
from bundles.sources.hub.cache import git_blob_id, hub_cache, repository_folder
from bundles.spec.source import WeightSource
from downloading import state
from hub import TOKEN, Hub
from hub_faults import FAULTS
from hubbing import CONFIG, DATA, OTHER, RAPID, at, debris, filled, hub_at, sha


@pytest.fixture
def hub(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_at(tmp_path, monkeypatch) as running:
        yield running


def _write(file: BinaryIO) -> None:
    file.write(DATA)


def kinds(hub: Hub) -> list[str]:
    return [request.kind for request in hub.requests]


# --- the good ways ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "data"), [("model.safetensors", DATA), ("config.json", CONFIG)])
@pytest.mark.parametrize("is_pinned", [True, False], ids=["digest", "commit only"])
def test_a_file_at_a_commit_is_brought_checked_and_found_again_without_a_request(
    path: str, data: bytes, is_pinned: bool, hub: Hub, tmp_path: Path
) -> None:
    _, commit = filled(hub)
    source = at(commit, path, data if is_pinned else None)
    found = fetch(source, options=RAPID)
    assert found.read_bytes() == data
    assert found == hub_cache() / "models--owner--name" / "snapshots" / commit / path
    assert kinds(hub) == ["head", "head", "body"]
    hub.forget()
    before = state(tmp_path)
    for verify in ("once", "always"):
        assert fetch(source, options=RAPID, verify=verify) == found
    assert hub.requests == []
    if path == "model.safetensors":  # stamped when it came; of a small file none is needed
        assert state(tmp_path) == before
    assert debris(tmp_path) == []


def test_the_clients_own_download_is_used_in_place_by_a_process_that_never_imports_the_client(
    hub: Hub, tmp_path: Path
) -> None:
    from huggingface_hub import hf_hub_download

    _, commit = filled(hub)
    brought = hf_hub_download(
        "owner/name", "model.safetensors", revision=commit, endpoint=hub.url, cache_dir=hub_cache()
    )
    hub.forget()
    code = (
        "import sys; from bundles.sources.fetch import fetch; from bundles.spec.source import WeightSource; "
        f"print(fetch(WeightSource('hf:owner/name@{commit}#model.safetensors', '{sha(DATA)}'))); "
        "print('huggingface_hub' in sys.modules, 'httpx2' in sys.modules, 'filelock' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == [brought, "False False False"]
    assert hub.requests == []
    locks = [path for path in tmp_path.rglob("*") if path.suffix == ".lock" and ".locks" not in path.parts]
    assert locks == []


def test_the_digest_is_the_identity_and_any_commit_of_the_same_bytes_will_do(hub: Hub) -> None:
    repo, first = filled(hub)
    fetch(at(first, data=DATA), options=RAPID)
    second = repo.commit({"config.json": b"{}"})
    hub.forget()
    assert fetch(at(second, data=DATA), options=RAPID).read_bytes() == DATA
    assert hub.requests == []


def test_main_may_move_and_a_commit_does_not(hub: Hub) -> None:
    repo, first = filled(hub)
    with pytest.warns(UnpinnedSourceWarning, match=f"write hf:owner/name@{first}#model.safetensors"):
        assert fetch(at(None), options=RAPID).read_bytes() == DATA
    repo.commit({"model.safetensors": OTHER}, lfs={"model.safetensors"})
    assert (
        fetch(at(None), options=RAPID).read_bytes() == OTHER
    )  # and no second warning: those are errors here
    assert fetch(at(first), options=RAPID).read_bytes() == DATA
    hub.forget()
    fetch(at(None), options=RAPID)
    assert "body" not in kinds(hub)


@pytest.mark.parametrize("revision", ["main", "v1", "refs/pr/1", None])
@pytest.mark.parametrize("name", ["BUNDLES_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_a_branch_or_tag_gives_what_it_gave_last(
    revision: str | None, name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, _ = filled(hub)
    repo.tag("v1")
    repo.branch("refs/pr/1")
    with pytest.warns(UnpinnedSourceWarning, match="names no commit"):
        found = fetch(at(revision), options=RAPID)
    hub.forget()
    monkeypatch.setenv(name, "1")
    assert fetch(at(revision), options=RAPID) == found
    with pytest.raises(OfflineError, match="is not in the cache"):
        fetch(at(revision, "config.json"), options=RAPID)
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_leaves_what_a_branch_gave_last(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    filled(hub)
    with pytest.warns(UnpinnedSourceWarning, match="names no commit"):
        found = fetch(at("main"), options=RAPID)
    hub.fault("status", on="head")
    assert fetch(at("main"), options=RAPID) == found
    assert "Using the copy of hf:owner/name@main#model.safetensors that is in the cache" in caplog.text
    hub.forget()
    hub.fault("gated")
    with pytest.raises(SourceAccessError, match="gated"):
        fetch(at("main"), options=RAPID)


def test_a_branch_with_a_digest_is_pinned_by_it_and_does_not_warn(hub: Hub) -> None:
    repo, _ = filled(hub)
    assert fetch(at("main", data=DATA), options=RAPID).read_bytes() == DATA
    repo.commit({"model.safetensors": OTHER}, lfs={"model.safetensors"})
    assert fetch(at("main", data=DATA), options=RAPID).read_bytes() == DATA


def test_the_endpoint_and_the_cache_are_those_of_the_environment_at_each_call(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, commit = filled(hub)
    fetch(at(commit, data=DATA), options=RAPID)
    with Hub() as second:
        filled(second)
        monkeypatch.setenv("HF_ENDPOINT", second.url + "/")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
        assert tmp_path / "elsewhere" in fetch(at(commit, data=DATA), options=RAPID).parents
        assert kinds(second) == ["head", "head", "body"]


def test_a_shared_cache_comes_before_the_clients(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "shared" / "files" / sha(DATA)
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA)
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", str(tmp_path / "shared"))
    assert fetch(at("f" * 40, data=DATA), options=RAPID) == place
    assert hub.requests == []


@pytest.mark.parametrize("where", ["own", "client"])
def test_a_damaged_file_in_a_shared_cache_hides_no_good_one(
    where: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, commit = filled(hub)
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", str(tmp_path / "shared"))
    bad = tmp_path / "shared" / "files" / sha(DATA)
    bad.parent.mkdir(parents=True)
    bad.write_bytes(OTHER)
    if where == "own":
        good = cache.place(f"files/{sha(DATA)}", _write)
    else:
        good = fetch(at(commit, data=DATA), options=RAPID)
    hub.forget()
    assert fetch(at(commit, data=DATA), options=RAPID) == good
    assert hub.requests == []


def test_only_one_file_knows_the_client() -> None:
    files = {
        file
        for file in Path(bundles.__file__).parent.rglob("*.py")
        if "import huggingface_hub" in (text := file.read_text()) or "from huggingface_hub" in text
    }
    assert [file.name for file in files] == ["client.py"]


def test_a_download_is_not_hashed_again_when_it_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _, commit = filled(hub)
    fetch(at(commit, data=DATA), options=RAPID)
    monkeypatch.setattr("bundles.sources.verify.sha256_of", lambda path: pytest.fail(f"hashed {path}"))
    fetch(at(commit, data=DATA))
    fetch(at(commit))


@pytest.mark.parametrize("progress", [True, False])
def test_a_download_is_told_in_one_line_or_not_at_all(
    progress: bool, hub: Hub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    _, commit = filled(hub)
    with caplog.at_level("INFO", logger="bundles"):
        fetch(at(commit, data=DATA), progress=progress, options=RAPID)
    line = "Downloading model.safetensors (40.0 kB) from 127.0.0.1"
    assert [record.message for record in caplog.records if record.name == "bundles"] == [line] * progress
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:.*cache-system uses symlinks:UserWarning")
def test_a_system_without_links_is_served_too(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SYMLINKS", True)
    _, commit = filled(hub)
    for path, data in (("model.safetensors", DATA), ("config.json", CONFIG)):
        found = fetch(at(commit, path), options=RAPID)
        assert not found.is_symlink()
        assert found.read_bytes() == data
    hub.forget()
    fetch(at(commit, data=DATA), options=RAPID)
    assert hub.requests == []
    _damage(found.parent / "model.safetensors", OTHER)
    assert fetch(at(commit, data=DATA), options=RAPID).read_bytes() == DATA


# --- faults ----------------------------------------------------------------------------------------

PASSES: list[tuple[str, dict[str, Any]]] = [
    ("corrupt", {"times": 1}),
    ("corrupt_all", {"times": 1}),
    ("short", {"times": 1}),
    ("captive", {"times": 1}),
    ("captive", {"times": 1, "on": "head"}),
    ("truncate", {"times": 1}),
    ("reset", {"times": 1}),
    ("drop", {"times": 1}),
    ("drop", {"times": 1, "on": "head"}),
    ("status", {"times": 1}),
    ("status", {"times": 3}),
    ("status", {"times": 1, "on": "head"}),
    ("status", {"times": 3, "on": "head"}),
    ("status", {"times": 1, "on": "head", "code": 500}),
    ("status", {"times": 1, "code": 403, "match": "^/owner/name/[0-9a-f]{64}$"}),
    ("ratelimit", {"times": 1, "seconds": 0}),
    ("stall", {"times": 1}),
    ("no_size", {}),
    ("no_commit", {"times": 1}),
    ("no_etag", {"times": 1}),
    ("redirect_loop", {"times": 3, "on": "head"}),
    ("etag", {"times": 1}),
    ("commit", {"times": 1}),
    ("encoded", {"times": 1}),
    ("encoded", {"times": 1, "size": 1 << 20}),
]


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(("name", "how"), PASSES, ids=str)
def test_what_passes_ends_in_the_right_bytes(
    name: str, how: dict[str, Any], path: str, hub: Hub, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if path == "config.json" and name in SLEEPS and not request.config.getoption("--slow"):
        pytest.skip("slow: run with --slow")
    _, commit = filled(hub)
    data = CONFIG if path == "config.json" else DATA
    hub.fault(name, **how)
    began = time.monotonic()
    assert fetch(at(commit, path, data), options=RAPID).read_bytes() == data
    assert time.monotonic() - began < 5
    assert debris(tmp_path) == []
    hub.forget()
    assert fetch(at(commit, path, data), options=RAPID).read_bytes() == data
    assert hub.requests == []


SLEEPS = ("stall", "truncate", "ratelimit")  # the client waits a second before it tries again

STAYS: list[tuple[str, dict[str, Any], type[BundlesError], str]] = [
    ("corrupt", {}, ChecksumError, "expected sha256 .* found sha256"),
    ("corrupt_all", {}, ChecksumError, "expected sha256 .* found sha256"),
    ("short", {}, DownloadError, "cannot be had"),
    ("captive", {}, DownloadError, "cannot be had"),
    ("captive", {"on": "head"}, DownloadError, "without a commit, as no Hub does"),
    ("reset", {}, DownloadError, "cannot be had"),
    ("drop", {}, DownloadError, "cannot be had"),
    ("drop", {"on": "head"}, DownloadError, "cannot be had"),
    ("status", {}, DownloadError, "HTTP 503"),
    ("status", {"on": "head"}, DownloadError, "HTTP 503"),
    ("status", {"code": 403}, DownloadError, "the place to which .* redirects answers with HTTP 403"),
    ("status", {"code": 403, "on": "head"}, SourceAccessError, "HTTP 403.*: log in by `hf auth login`"),
    ("status", {"code": 404, "on": "head"}, SourceNotFoundError, "HTTP 404"),
    ("ratelimit", {"seconds": 3600}, DownloadError, "no end after|HTTP 429"),
    ("ratelimit", {"seconds": 3600, "on": "head"}, DownloadError, "HTTP 429"),
    ("stall", {}, DownloadError, "no end after"),
    ("hang", {}, DownloadError, "no end after"),
    ("hang", {"on": "head"}, DownloadError, "cannot be had"),
    ("not_found", {}, SourceNotFoundError, "has no file model.safetensors"),
    ("repo_not_found", {}, SourceNotFoundError, "no repository owner/name"),
    ("revision_not_found", {}, SourceNotFoundError, "has no revision [0-9a-f]{40}"),
    ("gated", {}, SourceAccessError, "accept its terms at .*owner/name, then log in by `hf auth login`"),
    ("disabled", {}, SourceAccessError, "was disabled"),
    ("no_commit", {}, DownloadError, "without a commit"),
    ("no_etag", {}, DownloadError, "ETag None"),
    ("etag", {"value": '"../../x"'}, DownloadError, "which is none"),
    ("etag", {"value": '"a/b"'}, DownloadError, "which is none"),
    ("etag", {"value": '""'}, DownloadError, "which is none"),
    ("etag", {"value": '"' + "a" * 10_000 + '"'}, DownloadError, "which is none"),
    ("commit", {}, DownloadError, "without a commit"),
    ("size", {}, ChecksumError, "expected 40000 bytes, found 10000000000000 bytes"),
    ("redirect_loop", {"on": "head"}, DownloadError, "cannot be had"),
    ("redirect_off", {"to": "http://example.invalid/x"}, DownloadError, "only https is followed"),
    ("redirect_off", {"to": "file:///etc/passwd"}, DownloadError, "only https is followed"),
    ("slow", {}, DownloadError, "no end after"),
    ("encoded", {"size": 1 << 24}, DownloadError, "more than the 40000 bytes|cannot be had"),
]


@pytest.mark.parametrize(("name", "how", "error", "match"), STAYS, ids=lambda value: str(value)[:40])
def test_what_stays_ends_in_a_named_error_within_bounds(
    name: str,
    how: dict[str, Any],
    error: type[BundlesError],
    match: str,
    hub: Hub,
    tmp_path: Path,
) -> None:
    _, commit = filled(hub)
    hub.fault(name, **how)
    options = replace(RAPID, small_deadline=1.0)
    began = time.monotonic()
    with pytest.raises(error, match=match) as caught:
        fetch(at(commit, data=DATA), options=options)
    assert time.monotonic() - began < 3
    assert caught.value.__cause__ is not None or error in (ChecksumError, DownloadError)
    assert "your connection" not in str(caught.value)
    assert list(repository_folder("owner/name").glob("snapshots/*/*")) == []
    hub.forget()
    if name != "slow" and how != {"seconds": 3600}:  # the client goes on with those, its lock in hand
        assert fetch(at(commit, data=DATA), options=RAPID).read_bytes() == DATA


@pytest.mark.parametrize("fault", ["ignore_range", "bad_range"])
def test_a_resumed_download_ends_in_the_right_bytes(
    fault: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 8_192)
    _, commit = filled(hub)
    hub.fault("truncate", times=1)
    hub.fault(fault, times=1)
    assert fetch(at(commit, data=DATA), options=RAPID).read_bytes() == DATA
    assert "range" in hub.requests[3].headers


def test_every_fault_of_the_hub_is_met_somewhere() -> None:
    listings = {"bad_json", "evil_tree"}  # tests/test_hub_repository.py
    met = {name for name, *_ in (*PASSES, *STAYS)} | {"ignore_range", "bad_range"} | listings
    assert met == set(FAULTS)


@pytest.mark.parametrize("name", ["not_found", "gated", "disabled", "repo_not_found", "revision_not_found"])
def test_what_will_not_change_is_asked_once(name: str, hub: Hub) -> None:
    _, commit = filled(hub)
    hub.fault(name)
    with pytest.raises((SourceNotFoundError, SourceAccessError), match="owner/name"):
        fetch(at(commit, data=DATA), options=RAPID)
    assert len(hub.requests) == 1


def test_without_a_digest_the_name_that_the_hub_gives_is_held_against_the_bytes(hub: Hub) -> None:
    _, commit = filled(hub)
    for path in ("model.safetensors", "config.json"):
        hub.fault("corrupt")
        with pytest.raises(ChecksumError, match="is not what the Hub calls hf:owner/name"):
            fetch(at(commit, path), options=RAPID)
        hub.forget()
        hub.fault("corrupt", times=1)
        assert fetch(at(commit, path), options=RAPID).read_bytes() == (
            DATA if path == "model.safetensors" else CONFIG
        )


def test_other_bytes_at_the_address_are_refused_before_any_comes(hub: Hub) -> None:
    _, commit = filled(hub)
    with pytest.raises(ChecksumError, match=f"expected sha256 {sha(OTHER)}, found sha256 {sha(DATA)}"):
        fetch(at(commit, data=OTHER), options=RAPID)
    assert kinds(hub) == ["head"]


def test_a_file_for_which_there_is_no_room_is_not_begun(hub: Hub) -> None:
    _, commit = filled(hub)
    hub.fault("size")
    with pytest.raises(CacheError, match=r"needs 10\.0 TB"):
        fetch(at(commit), options=RAPID)
    assert kinds(hub) == ["head"]


def test_another_commit_than_was_asked_for_is_refused_unless_the_digest_tells(hub: Hub) -> None:
    _, commit = filled(hub)
    hub.fault("commit", value="b" * 40)
    with pytest.raises(DownloadError, match=r"with the commit b{40}"):
        fetch(at(commit), options=RAPID)
    assert fetch(at(commit, data=DATA), options=RAPID).read_bytes() == DATA


# --- what happens to repositories --------------------------------------------------------------------


def test_a_rewritten_history_leaves_the_cache_and_is_named_without_one(hub: Hub) -> None:
    repo, commit = filled(hub)
    found = fetch(at(commit, data=DATA), options=RAPID)
    repo.squash()
    assert fetch(at(commit, data=DATA), options=RAPID) == found
    with pytest.raises(
        SourceNotFoundError, match=f"no revision {commit}: .* history may have been rewritten"
    ):
        fetch(at(commit, "config.json"), options=RAPID)


def test_a_deleted_repository_and_a_missing_one_read_the_same(hub: Hub) -> None:
    _, commit = filled(hub)
    hub.delete("owner/name")
    with pytest.raises(SourceNotFoundError, match=r"no repository owner/name .* or it is private"):
        fetch(at(commit, data=DATA), options=RAPID)


def test_a_gated_repository_says_how_to_log_in_and_a_token_opens_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, commit = filled(hub)
    repo.gate()
    with pytest.raises(SourceAccessError, match="hf auth login"):
        fetch(at(commit, data=DATA), options=RAPID)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceAccessError, match="hf auth login"):
        fetch(at(commit, data=DATA), options=RAPID)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch(at(commit, data=DATA), options=RAPID).read_bytes() == DATA


def test_a_disabled_repository_is_not_a_bad_connection(hub: Hub) -> None:
    repo, commit = filled(hub)
    repo.disable()
    with pytest.raises(SourceAccessError, match="was disabled by") as caught:
        fetch(at(commit, data=DATA), options=RAPID)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "address", ["owner/name@0123abc#x", "owner/name@" + "A" * 40 + "#x", "owner/name#../x"]
)
def test_a_malformed_address_asks_nobody(address: str, hub: Hub) -> None:
    with pytest.raises(PinError, match="malformed"):
        WeightSource(f"hf:{address}")


# --- damage ----------------------------------------------------------------------------------------


def _damage(path: Path, data: bytes) -> None:
    blob = path.resolve()
    blob.chmod(0o644)
    blob.write_bytes(data)


@pytest.mark.parametrize("data", [OTHER, DATA[:-1], b""], ids=["other bytes", "truncated", "empty"])
@pytest.mark.parametrize("is_pinned", [True, False], ids=["digest", "commit only"])
def test_a_damaged_blob_is_brought_again_and_never_returned(
    data: bytes, is_pinned: bool, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, commit = filled(hub)
    source = at(commit, data=DATA if is_pinned else None)
    _damage(fetch(source, options=RAPID), data)
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    with pytest.raises(ChecksumError, match="is not what"):
        fetch(source, options=RAPID)
    monkeypatch.delenv("BUNDLES_OFFLINE")
    assert fetch(source, options=RAPID).read_bytes() == DATA


def test_a_damaged_blob_of_a_branch_is_brought_again(hub: Hub) -> None:
    filled(hub)
    with pytest.warns(UnpinnedSourceWarning, match="names no commit"):
        path = fetch(at("main"), options=RAPID)
    _damage(path, OTHER)
    assert fetch(at("main"), options=RAPID).read_bytes() == DATA


def test_wrong_bytes_do_not_stay_under_the_name_of_the_right_ones(hub: Hub) -> None:
    _, commit = filled(hub)
    hub.fault("corrupt")
    with pytest.raises(ChecksumError, match="expected sha256"):
        fetch(at(commit, data=DATA), options=RAPID)
    assert [
        path for path in hub_cache().rglob("*") if path.is_file() and path.stat().st_size == len(DATA)
    ] == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_planted_link_is_not_followed(
    what: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret" / "model.safetensors"
    secret.parent.mkdir()
    secret.write_bytes(DATA)
    _, commit = filled(hub)
    folder = repository_folder("owner/name") / "snapshots" / commit
    folder.parent.mkdir(parents=True)
    if what == "file":
        folder.mkdir()
        (folder / "model.safetensors").symlink_to(secret)
    else:
        folder.symlink_to(secret.parent)
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    with pytest.raises(SourceAccessError, match="is a link out of the cache"):
        fetch(at(commit, data=DATA), options=RAPID)
    monkeypatch.delenv("BUNDLES_OFFLINE")
    with pytest.raises(SourceAccessError, match="is a link out of the cache"):
        fetch(at(commit, data=DATA), options=RAPID)
    assert "body" not in kinds(hub)
    assert secret.read_bytes() == DATA


@pytest.mark.parametrize("what", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
@pytest.mark.parametrize("is_blob", [False, True], ids=["snapshot", "blob"])
def test_what_is_no_file_is_named_and_nobody_waits_for_it(
    what: Callable[[Path], None], is_blob: bool, hub: Hub
) -> None:
    _, commit = filled(hub)
    path = fetch(at(commit, data=DATA), options=RAPID)
    place = path.resolve() if is_blob else path
    place.unlink()
    what(place)
    with pytest.raises(CacheError, match="is no file: delete it"):
        fetch(at(commit), options=RAPID)
    if is_blob:
        with pytest.raises(CacheError, match="is no file: delete it"):
            fetch(at(commit, data=DATA), options=RAPID)
    else:  # the blob of that digest is as good
        assert fetch(at(commit, data=DATA), options=RAPID).read_bytes() == DATA


def test_verify_off_is_loud_and_still_checks_what_comes(hub: Hub) -> None:
    _, commit = filled(hub)
    hub.fault("corrupt", times=1)
    with pytest.warns(UnpinnedSourceWarning, match="verify='off'"):
        assert fetch(at(commit, data=DATA), verify="off", options=RAPID).read_bytes() == DATA


def test_gits_name_of_a_file_is_the_one_that_git_gives(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    assert git_blob_id(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"
