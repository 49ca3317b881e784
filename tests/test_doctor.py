"""``bundles doctor``: what it says of this machine, and of a lock on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import bundles
from bundles.cli.main import group
from bundles.experiment.doctor import examine, examine_folder, library_of
from bundles.spec.architectures import ARCHITECTURES
from downloading import contents
from hub import Hub
from hubbing import hub_at


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


@pytest.fixture
def hub(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_at(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    (tmp_path / "pitch.toml").write_text('[model]\nbundle = "CREPE_TINY"\nfreeze = "last:1"\n')
    assert run("lock", tmp_path / "pitch.toml").exit_code == 0
    return tmp_path / "pitch.lock.toml"


@pytest.fixture
def remote(hub: Hub, tmp_path: Path) -> Path:
    """The lock of a bundle on the Hub, of which nothing but card and listing is here."""
    exported = bundles.export("CREPE_TINY", tmp_path / "exported")
    files = {path.name: path.read_bytes() for path in exported.iterdir()}
    commit = hub.repo("me/pitch").commit(files, lfs={"model.safetensors"})
    (tmp_path / "remote.toml").write_text(f'[models.far]\nbundle = "hf:me/pitch@{commit}"\n')
    assert run("lock", tmp_path / "remote.toml").exit_code == 0
    return tmp_path / "remote.lock.toml"


def test_it_prints_versions_and_caches_and_writes_nothing(empty_cache: Path) -> None:
    done = run("doctor")
    assert done.exit_code == 0, done.output
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["bundles"] == bundles.__version__
    assert lines["Python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert lines["torch"][0].isdigit()
    assert lines["cache"] == f"{empty_cache} (made at the first download)"
    assert not empty_cache.exists()


def test_of_a_lock_it_says_what_is_pinned_and_present(locked: Path) -> None:
    done = run("doctor", locked)
    assert done.exit_code == 0, done.output
    assert "model: CREPE_TINY, 486,552 parameters, 223,784 train, " in done.stdout
    assert "freezes last:1 in mode eval; license MIT" in done.stdout
    assert "model: 1 of 1 files are here" in done.stdout


def test_what_would_be_downloaded_is_told_and_asks_nobody(remote: Path, hub: Hub, tmp_path: Path) -> None:
    hub.forget()
    before = contents(tmp_path)
    done = run("doctor", remote)
    assert done.exit_code == 0, done.output
    assert "model.safetensors (2.0 MB) is not here, would be downloaded from hf:me/pitch@" in done.stdout
    assert f"type `bundles sync {remote}`" in done.stdout
    assert hub.requests == []
    assert contents(tmp_path) == before
    assert run("sync", remote).exit_code == 0
    assert "far: 2 of 2 files are here" in run("doctor", remote).stdout


def test_offline_and_absent_cannot_work(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    done = run("doctor", remote)
    assert done.exit_code == 1
    assert "network: careful: switched off" in done.stdout
    assert "far: wrong: model.safetensors (2.0 MB) is not here and the network is off" in done.stdout


def test_other_versions_and_another_card_are_told(locked: Path) -> None:
    text = locked.read_text()
    card = next(line for line in text.splitlines() if line.startswith("card = "))
    torch = next(line for line in text.splitlines() if line.startswith("torch = "))
    locked.write_text(text.replace(torch, 'torch = "1.0"').replace(card, f'card = "sha256:{"0" * 64}"'))
    done = run("doctor", locked)
    assert done.exit_code == 1
    assert "model: careful: was locked with torch 1.0, here is " in done.stdout
    assert "type `pip install torch==1.0`" in done.stdout
    assert "model: wrong: the card of CREPE_TINY comes to sha256:" in done.stdout


def test_a_missing_library_is_named_with_the_line_to_type(
    locked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcrepe", None)
    done = run("doctor", locked)
    assert done.exit_code == 1
    assert "model: wrong: torchcrepe cannot be imported: " in done.stdout


def test_a_torchaudio_that_does_not_fit_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken" / "torchaudio"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(
        "raise RuntimeError('PyTorch and TorchAudio were compiled with different CUDA versions.')"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(broken.parent)
    done = run("doctor")
    assert done.exit_code == 1
    assert "torchaudio: wrong: torchaudio cannot be imported: torch " in done.stdout
    assert "type `pip install " in done.stdout


def test_a_cache_that_everybody_may_write_and_one_that_nobody_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("BUNDLES_CACHE", str(folder))
    done = run("doctor")
    assert done.exit_code == 0
    assert (
        f"cache: careful: {folder} can be written by everybody on this machine: type `chmod o-w"
        in done.stdout
    )
    folder.chmod(0o755)
    assert "careful" not in run("doctor").stdout
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        monkeypatch.setenv("BUNDLES_CACHE", str(path))
        done = run("doctor")
        assert done.exit_code == 1
        assert "set BUNDLES_CACHE to a folder that can be written" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache_cannot_take_anything_new(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        found = list(examine_folder("cache", tmp_path, is_written=True))
    finally:
        tmp_path.chmod(0o755)
    assert [finding.kind for finding in found] == ["fact", "wrong"]


def test_a_shared_cache_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", str(tmp_path / "absent"))
    assert any(
        finding.kind == "careful" and finding.text.endswith("check BUNDLES_SHARED_CACHE")
        for finding in examine()
    )


def test_the_token_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("BUNDLES_MIRROR", "https://a.org/=https://me:hf_secret@b.org/")
    done = run("doctor")
    assert "HF_TOKEN: is set" in done.stdout
    assert "hf_secret" not in done.output


def test_every_builder_belongs_to_a_package() -> None:
    packages = {library_of(builder) for builder in ARCHITECTURES}
    assert packages == {"timm", "torchaudio", "torchcrepe", "torchvision", "transformers"}
