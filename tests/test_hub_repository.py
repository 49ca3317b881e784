"""Listings of repositories, pins without a download, and uploads, by the real client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles.errors import (
    BundlesError,
    ChecksumError,
    DownloadError,
    OfflineError,
    SourceAccessError,
    SourceNotFoundError,
    UnpinnedSourceWarning,
)
from bundles.sources.fetch import fetch
from bundles.sources.hub.cache import repository_folder
from bundles.sources.hub.client import upload_folder
from bundles.sources.hub.repository import RepoFile, pin, repository
from bundles.spec.hub import parse_hub
from hub import TOKEN, Hub
from hubbing import CONFIG, DATA, OTHER, RAPID, at, filled, hub_at, sha


@pytest.fixture
def hub(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_at(tmp_path, monkeypatch) as running:
        yield running


def test_a_listing_says_what_there_is_and_is_asked_for_once(hub: Hub) -> None:
    repo, commit = filled(hub)
    repo.info |= {"cardData": {"license": "mit"}, "tags": ["audio"], "pipeline_tag": "fill-mask"}
    repo.info |= {"library_name": "transformers", "gated": "auto"}
    found = repository(parse_hub("owner/name"), options=RAPID)
    assert found.address == parse_hub(f"owner/name@{commit}")
    assert found.files == {
        "config.json": RepoFile("config.json", len(CONFIG)),
        "model.safetensors": RepoFile("model.safetensors", len(DATA), sha(DATA)),
    }
    said = (found.license, found.tags, found.pipeline_tag, found.library_name, found.gated)
    assert said == ("mit", ("audio",), "fill-mask", "transformers", True)
    assert found.source("model.safetensors") == at(commit, data=DATA)
    assert len(hub.requests) == 1
    assert repository(found.address, options=RAPID) == found
    assert len(hub.requests) == 1  # a commit never changes
    repo.commit({"more.txt": b"x"})
    assert set(repository(parse_hub("owner/name"), options=RAPID).files) == {*found.files, "more.txt"}


def test_offline_the_kept_listing_answers_and_else_what_is_in_the_clients_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, commit = filled(hub)
    fetch(at(commit, "config.json"), options=RAPID)
    hub.forget()
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    part = repository(parse_hub(f"owner/name@{commit}"), options=RAPID)
    assert (set(part.files), part.is_complete) == ({"config.json"}, False)
    with pytest.raises(OfflineError, match="Nothing of hf:owner/other is on this machine"):
        repository(parse_hub("owner/other"), options=RAPID)
    monkeypatch.delenv("BUNDLES_OFFLINE")
    whole = repository(parse_hub(f"owner/name@{commit}"), options=RAPID)
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    assert repository(parse_hub(f"owner/name@{commit}"), options=RAPID) == whole
    assert whole.is_complete
    assert len(hub.requests) == 1


@pytest.mark.parametrize("address", ["owner/name", "owner/name@main"])
def test_offline_a_branch_is_what_it_was_when_it_was_last_asked_for(
    address: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, first = filled(hub)
    with pytest.warns(UnpinnedSourceWarning, match="names no commit"):
        fetch(at("main", "config.json"), options=RAPID)  # the client notes what main is
    assert (repository_folder("owner/name") / "refs" / "main").read_text() == first
    second = repo.commit({"more.txt": b"x"})
    assert repository(parse_hub(address), options=RAPID).address.commit == second
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    found = repository(parse_hub(address), options=RAPID)
    assert (found.address.commit, found.is_complete) == (second, True)
    assert "more.txt" in found.files


def test_a_hub_that_fails_leaves_what_is_in_the_clients_cache(hub: Hub) -> None:
    _, commit = filled(hub)
    fetch(at(commit, "config.json"), options=RAPID)
    hub.fault("status", on="api")
    assert not repository(parse_hub(f"owner/name@{commit}"), options=RAPID).is_complete
    assert [request.kind for request in hub.requests].count("api") == 4


def test_an_endpoint_that_is_no_address_is_named_and_not_tried_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    _, commit = filled(hub)
    for ask in (
        lambda: repository(parse_hub("owner/name")),
        lambda: fetch(at(commit, data=DATA)),
        lambda: upload_folder("owner/name", Path("."), message="First", private=True),
    ):
        with pytest.raises(SourceAccessError, match=r"^HF_ENDPOINT='huggingface\.co' is no address of a Hub"):
            ask()


@pytest.mark.parametrize("how", [{"name": "status"}, {"name": "drop"}, {"name": "bad_json"}], ids=str)
def test_a_listing_is_asked_for_again(how: dict[str, Any], hub: Hub) -> None:
    filled(hub)
    hub.fault(how["name"], on="api", times=3)
    assert repository(parse_hub("owner/name"), options=RAPID).is_complete
    hub.fault(how["name"], on="api")
    with pytest.raises(DownloadError, match="cannot be had"):
        repository(parse_hub("owner/name"), options=RAPID)


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("gated", SourceAccessError, "is gated: accept its terms"),
        ("disabled", SourceAccessError, "was disabled"),
        ("repo_not_found", SourceNotFoundError, "no repository owner/name"),
        ("revision_not_found", SourceNotFoundError, "has no revision"),
    ],
)
def test_a_listing_that_is_refused_is_asked_for_once(
    name: str, error: type[BundlesError], match: str, hub: Hub
) -> None:
    hub.fault(name)
    with pytest.raises(error, match=match):
        repository(parse_hub("owner/name"), options=RAPID)
    assert len(hub.requests) == 1


BAD_NAMES = [
    "../../x",
    "/etc/passwd",
    "a/../b",
    "C:\\x",
    "c:/x",
    "\\\\server\\x",
    "a//b",
    "con",
    "a\x00b",
    "x" * 300,
]


@pytest.mark.parametrize("path", BAD_NAMES, ids=ascii)
def test_d33_a_listing_with_a_hostile_name_is_refused_whole(path: str, hub: Hub, tmp_path: Path) -> None:
    hub.fault("evil_tree", paths=("config.json", path))
    with pytest.raises(SourceAccessError, match="is not followed"):
        repository(parse_hub("owner/name"), options=RAPID)
    assert len(hub.requests) == 1
    assert not list(tmp_path.rglob("listings"))


def test_d33_names_that_differ_in_case_are_one_file_on_many_disks(hub: Hub) -> None:
    hub.fault("evil_tree", paths=("Config.json", "config.json"))
    with pytest.raises(SourceAccessError, match=r"Config\.json and config\.json are one file on many disks"):
        repository(parse_hub("owner/name"), options=RAPID)


def test_d33_a_listing_of_a_hundred_thousand_files_is_refused_in_time(hub: Hub) -> None:
    hub.fault("evil_tree", paths=tuple(f"{index}.bin" for index in range(100_000)))
    began = time.monotonic()
    with pytest.raises(SourceAccessError, match="has 100000 files"):
        repository(parse_hub("owner/name"), options=RAPID)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "said", [{"sha": "main"}, {"sha": None}, {"siblings": [{"rfilename": "x", "size": -1}]}], ids=str
)
def test_a_listing_that_makes_no_sense_is_refused(said: dict[str, Any], hub: Hub) -> None:
    hub.fault("evil_tree", **said)
    with pytest.raises((DownloadError, SourceAccessError), match="owner/name"):
        repository(parse_hub("owner/name"), options=RAPID)


def test_a_listing_for_another_commit_is_refused(hub: Hub) -> None:
    hub.fault("evil_tree", paths=("config.json",))
    with pytest.raises(DownloadError, match="with the commit 'aaaa"):
        repository(parse_hub("owner/name@" + "b" * 40), options=RAPID)


def test_a_kept_listing_that_is_damaged_is_asked_for_again(hub: Hub, empty_cache: Path) -> None:
    _, commit = filled(hub)
    address = parse_hub(f"owner/name@{commit}")
    found = repository(address, options=RAPID)
    (kept,) = (empty_cache / "listings").iterdir()
    kept.chmod(0o644)
    for text in ("", "[]", "{}", json.dumps({**json.loads(kept.read_text()), "commit": "c" * 40})):
        kept.unlink()
        kept.write_text(text)
        assert repository(address, options=RAPID) == found
    assert len(hub.requests) == 5


# --- pins ------------------------------------------------------------------------------------------


def test_a_large_file_is_pinned_without_its_bytes(hub: Hub) -> None:
    _, commit = filled(hub)
    assert pin(parse_hub("owner/name#model.safetensors"), options=RAPID) == at(commit, data=DATA)
    assert [request.kind for request in hub.requests] == ["api"]


def test_a_small_file_is_brought_and_hashed(hub: Hub) -> None:
    _, commit = filled(hub)
    assert pin(parse_hub("owner/name@main#config.json"), options=RAPID) == at(commit, "config.json", CONFIG)
    hub.forget()
    hub.fault("corrupt", on="body")
    hub.repo("owner/name").commit({"config.json": b"other"})
    with pytest.raises(ChecksumError, match="the Hub calls"):
        pin(parse_hub("owner/name#config.json"), options=RAPID)


def test_an_index_is_pinned_with_its_shards(hub: Hub) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"metadata": {}, "weight_map": {"a": names[0], "b": names[1]}}).encode()
    files = {"sub/model.safetensors.index.json": index, f"sub/{names[0]}": DATA, f"sub/{names[1]}": OTHER}
    commit = hub.repo("owner/name").commit(files, lfs={f"sub/{name}" for name in names})
    source = pin(parse_hub("owner/name#sub/model.safetensors.index.json"), options=RAPID)
    assert source.sha256 == sha(index)
    assert source.shard(names[1]) == at(commit, f"sub/{names[1]}", OTHER)
    assert source.shard(names[0]) == at(commit, f"sub/{names[0]}", DATA)


@pytest.mark.parametrize("index", [b"\xff", b"[]", b'{"weight_map": 1}', b"[" * 100_000], ids=range(4))
def test_an_index_that_is_none_is_pinned_as_it_is(index: bytes, hub: Hub) -> None:
    hub.repo("owner/name").commit({"model.safetensors.index.json": index})
    source = pin(parse_hub("owner/name#model.safetensors.index.json"), options=RAPID)
    assert (source.sha256, dict(source.shards)) == (sha(index), {})


def test_offline_what_is_in_the_clients_cache_is_pinned_by_its_bytes(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, commit = filled(hub)
    fetch(at(commit), options=RAPID)
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    assert pin(parse_hub(f"owner/name@{commit}#model.safetensors"), options=RAPID) == at(commit, data=DATA)


def test_a_file_that_is_not_there_cannot_be_pinned(hub: Hub) -> None:
    filled(hub)
    with pytest.raises(SourceNotFoundError, match=r"has no file 'model\.bin'"):
        pin(parse_hub("owner/name#model.bin"), options=RAPID)


# --- uploads -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "export" / "sub").mkdir(parents=True)
    (tmp_path / "export" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (tmp_path / "export" / "sub" / "model.safetensors").write_bytes(DATA)
    return tmp_path / "export"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own, of its library
@pytest.mark.parametrize("is_large", [False, True])
def test_a_folder_is_uploaded_and_comes_back(
    is_large: bool, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.lfs_uploads = is_large
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = upload_folder("owner/new", folder, message="First", private=True)
    assert hub.repo("owner/new").head == commit
    assert hub.repo("owner/new").is_private
    found = repository(parse_hub("owner/new"), options=RAPID)
    assert {"README.md", "sub/model.safetensors"} <= set(found.files)
    assert fetch(found.source("sub/model.safetensors"), options=RAPID).read_bytes() == DATA
    (folder / "README.md").write_text("# Another\n")
    assert upload_folder("owner/new", folder, message="Second", private=True) != commit


def test_an_upload_that_nobody_may_make_says_how_to_log_in(folder: Path, hub: Hub) -> None:
    with pytest.raises(SourceAccessError, match="hf auth login"):
        upload_folder("owner/new", folder, message="First", private=True)
    assert "owner/new" not in hub.repos


def test_an_upload_to_a_hub_that_fails_is_an_error_of_ours(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fault("status", on="upload", code=500)
    with pytest.raises(DownloadError, match=r"cannot be put on hf:owner/new \(.*HTTP 500\): try again"):
        upload_folder("owner/new", folder, message="First", private=True)


def test_the_folder_of_a_repository_is_where_the_client_puts_it(hub: Hub) -> None:
    _, commit = filled(hub)
    path = fetch(at(commit, data=DATA), options=RAPID)
    assert repository_folder("owner/name") in path.parents
