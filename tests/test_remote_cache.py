"""Remote caches: a real S3 server on loopback, folders, and every way in which they fail."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import fsspec
import pytest
from botocore.client import BaseClient
from moto.server import ThreadedMotoServer

from bundles.errors import DownloadError
from bundles.sources import remote
from bundles.sources.fetch import fetch
from bundles.sources.options import Options
from bundles.spec.source import WeightSource
from downloading import DATA, QUICK, contents, isolate, pinned, sha256, unpinned
from hub import Hub
from loopback import Loopback

DIGEST = sha256(DATA)
KEY = f"models/files/{DIGEST}"
# Slow machines take a second to import an S3 client; a cache that hangs is given up after this.
PATIENT = replace(QUICK, read_timeout=10.0, deadline=10.0)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def origin(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr(remote, "_asleep", {})
    monkeypatch.setattr(remote, "_told", set())
    with Loopback(DATA) as running:
        yield running


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseClient:
    """An empty bucket named ``shared``, and the variables by which s3fs finds its server."""
    use_s3(s3_server, tmp_path, monkeypatch)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shared")
    for entry in client.list_objects_v2(Bucket="shared").get("Contents", []):
        client.delete_object(Bucket="shared", Key=entry["Key"])
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", "s3://shared/models")
    return client


def use_s3(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # of botocore; its waits are not what is tested


def objects(client: BaseClient) -> dict[str, bytes]:
    listed = client.list_objects_v2(Bucket="shared").get("Contents", [])
    return {e["Key"]: client.get_object(Bucket="shared", Key=e["Key"])["Body"].read() for e in listed}


def bring(source: WeightSource, options: Options = PATIENT) -> bytes:
    return fetch(source, progress=False, options=options).read_bytes()


def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str = "another") -> Path:
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / name))
    return tmp_path / name


# --- S3 -------------------------------------------------------------------------------------------


def test_what_one_machine_downloads_the_others_have_from_the_bucket(
    origin: Loopback, bucket: BaseClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bring(pinned(origin)) == DATA
    assert objects(bucket) == {KEY: DATA}
    folder = another_machine(tmp_path, monkeypatch)
    origin.forget()
    assert bring(pinned(origin)) == DATA
    assert origin.requests == []
    assert contents(folder) == [f"files/{DIGEST}"]


def test_the_bucket_serves_while_the_origin_is_gone(origin: Loopback, bucket: BaseClient) -> None:
    bucket.put_object(Bucket="shared", Key=KEY, Body=DATA)
    origin.default = "drop"
    assert bring(pinned(origin)) == DATA


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"?" + DATA[1:], f"has the sha256 {sha256(b'?' + DATA[1:])}"),
        (DATA[:-1], f"has {len(DATA) - 1} bytes instead of {len(DATA)}"),
        (b"", f"has 0 bytes instead of {len(DATA)}"),
    ],
    ids=["wrong", "truncated", "empty"],
)
def test_a_wrong_object_is_named_not_used_and_replaced(
    origin: Loopback, bucket: BaseClient, body: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put_object(Bucket="shared", Key=KEY, Body=body)
    assert bring(pinned(origin)) == DATA
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"The file s3://shared/{KEY} of a remote cache {words} and is not used"
    ]
    assert objects(bucket) == {KEY: DATA}


def test_a_truncated_object_of_a_source_without_a_size_is_not_used(
    origin: Loopback, bucket: BaseClient, empty_cache: Path
) -> None:
    bucket.put_object(Bucket="shared", Key=KEY, Body=DATA[:-1])
    assert bring(WeightSource(origin.uri(), DIGEST)) == DATA
    assert contents(empty_cache) == [f"files/{DIGEST}"]


def test_a_bucket_that_does_not_exist_is_said_once_and_harms_nothing(
    origin: Loopback, bucket: BaseClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", "s3://nowhere/models")
    assert bring(pinned(origin)) == DATA
    assert bring(pinned(origin, "b.bin", DATA)) == DATA
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith("The remote cache s3://nowhere/models cannot be written (")


def test_read_only_by_wish_writes_nothing(
    origin: Loopback, bucket: BaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE_READONLY", "1")
    assert bring(pinned(origin)) == DATA
    assert objects(bucket) == {}


def test_a_source_without_a_digest_passes_by(origin: Loopback, bucket: BaseClient) -> None:
    assert bring(unpinned(origin)) == DATA
    assert objects(bucket) == {}


def test_offline_the_bucket_is_not_asked(
    origin: Loopback, bucket: BaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put_object(Bucket="shared", Key=KEY, Body=DATA)
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="BUNDLES_OFFLINE is set"):
        bring(pinned(origin))


def test_what_is_here_already_asks_nobody(
    origin: Loopback, bucket: BaseClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(pinned(origin))
    with Loopback() as s3:
        use_s3(s3.url("").rstrip("/"), tmp_path, monkeypatch)
        origin.forget()
        assert bring(pinned(origin)) == DATA
        assert (origin.requests, s3.requests) == ([], [])


# --- a server that fails, in the place of S3 -----------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "patience"),
    [
        *((fault, 10.0) for fault in ("403", "503", "drop", "cut", "wrong", "huge")),
        *((fault, 1.0) for fault in ("hang", "stall", "drip")),
    ],
)
def test_a_failing_server_costs_a_moment_and_the_origin_serves(
    fault: str,
    patience: float,
    origin: Loopback,
    empty_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Loopback(DATA) as s3:
        s3.default = fault
        use_s3(s3.url("").rstrip("/"), tmp_path, monkeypatch)
        monkeypatch.setenv("BUNDLES_REMOTE_CACHE", "s3://shared/models")
        options = replace(QUICK, read_timeout=patience, deadline=patience)
        begin = time.monotonic()
        assert bring(pinned(origin), options) == DATA
        assert time.monotonic() - begin < 2 * patience + 5  # it is asked for the file, and given it
        asked = len(s3.requests)
        (empty_cache / "files" / DIGEST).unlink()
        assert bring(pinned(origin), options) == DATA
        is_answer = fault in ("403", "wrong")
        assert is_answer or len(s3.requests) <= asked + 1  # by now it is left alone
    assert contents(empty_cache) == [f"files/{DIGEST}"]
    assert "s3://shared/models" in caplog.text
    assert "secret" not in caplog.text


def test_a_server_that_is_gone_is_asked_once(
    origin: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Loopback() as gone:
        url = gone.url("").rstrip("/")
    use_s3(url, tmp_path, monkeypatch)
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", "s3://shared/models")
    assert bring(pinned(origin), replace(QUICK, read_timeout=2.0)) == DATA
    begin = time.monotonic()
    assert bring(pinned(origin, "b.bin", DATA)) == DATA
    assert time.monotonic() - begin < 1.0
    assert caplog.text.count("The remote cache s3://shared/models cannot be read") == 1


# --- other places ---------------------------------------------------------------------------------


def test_a_folder_is_a_remote_cache_and_files_are_moved_into_place(
    origin: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", shared.as_uri())
    assert bring(pinned(origin)) == DATA
    assert contents(shared) == [f"files/{DIGEST}"]
    another_machine(tmp_path, monkeypatch)
    origin.forget()
    assert bring(pinned(origin)) == DATA
    assert origin.requests == []


def test_several_are_asked_in_order_and_all_are_filled(
    origin: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", ", ".join(folder.as_uri() for folder in folders))
    assert bring(pinned(origin)) == DATA
    assert [contents(folder) for folder in folders] == [[f"files/{DIGEST}"]] * 2
    (folders[0] / "files" / DIGEST).unlink()
    another_machine(tmp_path, monkeypatch)
    origin.default = "drop"
    assert bring(pinned(origin)) == DATA


def test_files_of_the_hub_go_through_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", (tmp_path / "shared").as_uri())
    with Hub() as hub:
        commit = hub.repo("me/model").commit({"model.safetensors": DATA}, lfs={"model.safetensors"})
        source = WeightSource(f"hf:me/model@{commit}#model.safetensors", DIGEST, len(DATA))
        for machine in ("one", "two"):
            for name, value in hub.env(tmp_path / machine).items():
                monkeypatch.setenv(name, value)
            another_machine(tmp_path, monkeypatch, f"{machine}-cache")
            hub.forget()
            assert bring(source) == DATA
            assert bool(hub.requests) == (machine == "one")


def test_memory_is_a_remote_cache(origin: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", "memory://shared")
    bring(pinned(origin))
    assert fsspec.filesystem("memory").cat(f"/shared/files/{DIGEST}") == DATA
    another_machine(tmp_path, monkeypatch)
    origin.default = "drop"
    assert bring(pinned(origin)) == DATA


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written_harms_nothing(
    origin: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o555)
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", shared.as_uri())
    assert bring(pinned(origin)) == DATA
    assert caplog.text.count("cannot be written (PermissionError") == 1


@pytest.mark.parametrize(
    "url", ["nosuch://bucket/prefix", "://", "::", "s3://", "s3:/x", "x", "file:///dev/null"]
)
def test_an_address_that_nobody_knows_is_said_and_harms_nothing(
    url: str, origin: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", url)
    assert bring(pinned(origin)) == DATA
    assert f"The remote cache {url} cannot be" in caplog.text


def test_a_password_in_the_address_is_not_logged(
    origin: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", "nosuch://user:password@bucket/prefix?token=1")
    assert bring(pinned(origin)) == DATA
    assert "The remote cache nosuch://…@bucket/prefix?… cannot be read" in caplog.text
    assert "password" not in caplog.text
    assert "token" not in caplog.text


def test_without_the_library_the_line_to_type_is_logged(
    origin: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", "s3://shared/models")
    assert bring(pinned(origin)) == DATA
    assert "type `pip install 'pretrained-bundles[s3]'`" in caplog.text


def test_an_origin_that_fails_is_the_error_that_is_raised(
    origin: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLES_REMOTE_CACHE", (tmp_path / "shared").as_uri())
    origin.default = "503"
    with pytest.raises(DownloadError, match="503"):
        bring(pinned(origin), QUICK)
    assert not (tmp_path / "shared").exists()


def test_readers_never_see_half_a_file(
    origin: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who looks all the time sees no file of that name, or the whole of it."""
    shared = tmp_path / "shared"
    seen: set[int] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.add((shared / "files" / DIGEST).stat().st_size)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        monkeypatch.setenv("BUNDLES_REMOTE_CACHE", shared.as_uri())
        for name in ("a", "b", "c", "d"):
            another_machine(tmp_path, monkeypatch, name)
            (shared / "files" / DIGEST).unlink(missing_ok=True)
            bring(pinned(origin))
    finally:
        ended.set()
        thread.join()
    assert seen <= {len(DATA)}


def test_without_the_variable_nothing_is_imported(origin: Loopback, tmp_path: Path) -> None:
    code = (
        "import sys; from bundles.sources.fetch import fetch; from bundles.spec.source import WeightSource\n"
        "fetch(WeightSource(*eval(sys.argv[1])), progress=False)\n"
        "print({'fsspec', 's3fs', 'bundles.sources.remote'} & {*sys.modules})"
    )
    env = {**os.environ, "BUNDLES_CACHE": str(tmp_path / "fresh")}
    done = subprocess.run(
        [sys.executable, "-c", code, repr((origin.uri(), DIGEST))],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    assert done.stdout == "set()\n"
