"""Pins: the same bytes, the same frozen set, next year and elsewhere, or an error that says what differs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bundles
from bundles.assemble.digests import filled
from bundles.assemble.locked import Locked
from bundles.assemble.pinned import apply_pin, pinned_bundle
from bundles.assemble.pins import pin_bundle, versions_of
from bundles.errors import (
    BuildError,
    ChecksumError,
    OfflineError,
    PinError,
    PinMismatchError,
    SourceNotFoundError,
    UnpinnedSourceWarning,
    VersionMismatchWarning,
)
from bundles.sources.fetch import fetch
from bundles.spec.canonical import canonical, card_digest
from bundles.spec.lock import Lock, read_lock, write_lock
from bundles.spec.pin import ModelPin
from bundles.spec.source import WeightSource
from downloading import DATA, QUICK, contents, sha256
from hub import Hub, Repo
from hubbing import hub_at
from loopback import Loopback

WEIGHTS = {"model.safetensors"}
HEAD = {"type": "Linear", "out_features": 3}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a repository of transformers: a configuration and weights."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    settings: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_labels": 5}
    torch.manual_seed(2)
    config = BertConfig(**settings, num_attention_heads=2, intermediate_size=64)
    BertForSequenceClassification(config).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Iterator[Hub]:
    with hub_at(tmp_path, monkeypatch) as hub:
        yield hub


def locked(pin: ModelPin, path: Path) -> Path:
    """A lock of one model."""
    path.write_text(write_lock(Lock({"model": pin}, single=True)))
    return path


def pushed(hub: Hub, bert: dict[str, bytes], name: str = "owner/name") -> tuple[Repo, str]:
    repo = hub.repo(name)
    return repo, repo.commit(bert, lfs=WEIGHTS)


def other(bert: dict[str, bytes], tmp_path: Path) -> bytes:
    """Weights of the same names and shapes, and other values."""
    path = tmp_path / "other.safetensors"
    path.write_bytes(bert["model.safetensors"])
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return path.read_bytes()


def wipe(tmp_path: Path) -> None:
    for name in ("hf", "empty-cache"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)


def same(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def downloads(hub: Hub, files: dict[str, bytes]) -> int:
    """How often weights were asked for, rather than asked about."""
    digests = [sha256(data) for name, data in files.items() if name.endswith(".safetensors")]
    return sum(r.method == "GET" and any(digest in r.path for digest in digests) for r in hub.requests)


# --- one-line pins --------------------------------------------------------------------------------


def test_a_pin_stands_wherever_a_name_does() -> None:
    pin = bundles.CREPE_TINY.pin()
    assert re.fullmatch(r"CREPE_TINY@sha256:[0-9a-f]{64}", pin)
    assert bundles.get_bundle(pin).name == "CREPE_TINY"
    model = bundles.get_model(pin, freeze=True)
    assert same(model, bundles.CREPE_TINY.get_model())
    part = bundles.CREPE_TINY.get_model(pretrained=False)
    assert bundles.load_into(part, pin).missing == ()
    assert same(part, model)


def test_every_built_in_card_has_a_canonical_form() -> None:
    digests = {name: card_digest(bundles.get_bundle(name)) for name in bundles.list_bundles()}
    json.dumps([canonical(bundles.get_bundle(name)) for name in digests], allow_nan=False)
    assert len(set(digests.values())) > len(digests) / 2


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {"model": "full"}},
        {"layers": {"blocks": "conv{i}", "head": "classifier"}},
        {"default_policy": "last:1"},
        {"default_mode": "weights"},
        {"prefix": "model."},
        {"head_slot": None},
        {"num_features": 3},
        {"metadata": {"sample_rate": 8000}},
        {"keys": {"strip": "model."}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_the_result_is_pinned(change: dict[str, Any]) -> None:
    bundle = bundles.CREPE_TINY
    assert card_digest(replace(bundle, **change)) != card_digest(bundle)
    assert replace(bundle, **change).pin() != bundle.pin()


def test_what_people_read_is_not(default: bundles.Registry) -> None:
    bundle = bundles.CREPE_TINY
    said = {**bundle.metadata, "description": "x", "license": "y", "paper": "z", "task": "t"}
    digest = bundle.pin().partition("@")[2]
    assert replace(bundle, metadata=said, origin="elsewhere").pin().partition("@")[2] == digest
    assert replace(bundle, name="MINE").pin().partition("@")[2] == digest


def test_another_card_under_the_same_name_is_refused(default: bundles.Registry) -> None:
    pin = bundles.CREPE_TINY.pin()
    default.add(replace(bundles.CREPE_TINY, default_policy="all"), override=True)
    with pytest.raises(PinMismatchError, match=rf"pinned is {pin.partition('@')[2]}, found sha256:"):
        bundles.get_bundle(pin)


def test_a_function_cannot_be_pinned() -> None:
    bundle = bundles.Bundle("MINE", builder=nn.Linear)
    with pytest.raises(PinError, match="built by a Python function"):
        bundle.pin()
    odd = replace(bundles.CREPE_TINY, architecture={"model": "tiny", "rate": object()})
    with pytest.raises(PinError, match="What JSON cannot hold cannot be pinned"):
        odd.pin()


def test_other_bytes_at_an_address_without_digest_are_refused(
    tmp_path: Path, empty_cache: Path, default: bundles.Registry
) -> None:
    """What is not known at the look-up is compared before it is loaded."""
    path = tmp_path / "crepe.safetensors"
    save_file(bundles.CREPE_TINY.get_model().state_dict(), path)
    first = path.read_bytes()
    save_file({n: t + 1 for n, t in load_file(path).items()}, path)
    with Loopback(first) as one, Loopback(path.read_bytes()) as two:
        default.add(replace(bundles.CREPE_TINY, name="MINE", weights=one.uri("crepe.safetensors")))
        pin = bundles.get_bundle("MINE").pin()
        assert one.sent == len(first)
        shutil.rmtree(empty_cache)
        bundle = bundles.get_bundle(pin)
        assert one.sent == len(first), "a look-up downloads no weights"
        assert same(bundle.get_model(), bundles.CREPE_TINY.get_model())
        assert bundle.get_model(pretrained=False) is not None
        default.add(
            replace(bundles.CREPE_TINY, name="MINE", weights=two.uri("crepe.safetensors")), override=True
        )
        moved = bundles.get_bundle(pin)
        with pytest.raises(PinMismatchError, match="MINE is not what was pinned"):
            moved.get_model()
        with pytest.raises(PinMismatchError, match="MINE is not what was pinned"):
            bundles.load_into(nn.Linear(2, 2), moved)


# --- alternates -----------------------------------------------------------------------------------


def alternate(first: str, *others: str, data: bytes = DATA) -> WeightSource:
    return WeightSource(first, sha256(data), len(data), alternates=others)


@pytest.mark.parametrize("fault", ["404", "403", "corrupt"])
def test_an_alternate_is_served_where_the_first_place_fails(
    fault: str, empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = bytes(len(DATA)) if fault == "corrupt" else DATA
    with Loopback(bad) as gone, Loopback(DATA) as there:
        gone.default = "good" if fault == "corrupt" else fault
        source = alternate(gone.uri("a.bin"), there.uri("b.bin"))
        assert fetch(source, options=QUICK).read_bytes() == DATA
        assert "an alternate gave the same bytes" in caplog.text
        asked = len(gone.requests), len(there.requests)
        fetch(source, options=QUICK)
        assert asked == (len(gone.requests), len(there.requests)), "what is here is asked of nobody"


def test_alternates_with_other_bytes_are_passed_over(empty_cache: Path) -> None:
    with Loopback(bytes(len(DATA))) as first, Loopback(bytes(9)) as second, Loopback(DATA) as third:
        source = alternate(first.uri("a"), second.uri("b"), third.uri("c"))
        assert fetch(source, options=QUICK).read_bytes() == DATA
        third.body = bytes(7)
        (empty_cache / "files" / str(source.sha256)).unlink()
        with pytest.raises(ChecksumError, match=r"None of its alternates helps: .*; .*: What"):
            fetch(source, options=QUICK)
    assert not [name for name in contents(empty_cache) if name.startswith("files/")]


def test_an_alternate_that_is_here_comes_before_a_download(tmp_path: Path, empty_cache: Path) -> None:
    (tmp_path / "model.bin").write_bytes(DATA)
    with Loopback(DATA) as server:
        source = alternate(server.uri("a.bin"), f"file:{tmp_path}/model.bin")
        assert fetch(source, options=QUICK) == tmp_path / "model.bin"
        assert not server.requests


def test_a_damaged_file_is_replaced_from_an_alternate(tmp_path: Path, empty_cache: Path) -> None:
    (tmp_path / "model.bin").write_bytes(DATA[:-1] + b"x")
    with Loopback(DATA) as server:
        source = alternate(f"file:{tmp_path}/model.bin", server.uri("a.bin"))
        assert fetch(source, options=QUICK).read_bytes() == DATA


def test_offline_no_alternate_is_asked(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback(DATA) as server:
        source = alternate(server.uri("a.bin"), server.uri("b.bin"))
        monkeypatch.setenv("BUNDLES_OFFLINE", "1")
        with pytest.raises(OfflineError, match="None of its alternates helps"):
            fetch(source)
        assert not server.requests


def test_alternates_need_a_digest() -> None:
    with pytest.raises(PinError, match="alternates need a sha256"):
        WeightSource("file:a", alternates=("file:b",))
    with pytest.raises(PinError, match="does not read 'scheme:address'"):
        WeightSource("file:a", "0" * 64, alternates=("b",))
    with pytest.raises(PinError, match="are not a list of addresses"):
        WeightSource("file:a", "0" * 64, alternates="file:b")  # type: ignore[arg-type]


def test_shards_lie_beside_their_index_in_every_place() -> None:
    index = WeightSource(
        "url:https://a.org/m/model.safetensors.index.json",
        "0" * 64,
        shards={"one.safetensors": {"sha256": "1" * 64}, "two.safetensors": {}},
        alternates=("file:/b/model.safetensors.index.json",),
    )
    assert index.shard("one.safetensors").alternates == ("file:/b/one.safetensors",)
    assert index.shard("two.safetensors").alternates == ()


def test_a_card_names_alternates(tmp_path: Path, default: bundles.Registry, empty_cache: Path) -> None:
    save_file(bundles.CREPE_TINY.get_model().state_dict(), tmp_path / "crepe.safetensors")
    digest = sha256((tmp_path / "crepe.safetensors").read_bytes())
    text = f"""
[MINE]
builder = "torchcrepe"
architecture.model = "tiny"
layers = {{ blocks = "conv{{i}}", head = "classifier" }}
weights.source = "file:gone.safetensors"
weights.sha256 = "{digest}"
weights.alternates = ["file:crepe.safetensors"]
"""
    (tmp_path / "mine.toml").write_text(text)
    bundles.register_cards(tmp_path)
    assert same(default["MINE"].get_model(), bundles.CREPE_TINY.get_model())
    (tmp_path / "mine.toml").write_text(text.replace("weights.sha256", "# "))
    with pytest.raises(bundles.CardError, match="alternates needs a sha256, without which"):
        bundles.register_cards(tmp_path, override=True)


# --- locks of what is installed -------------------------------------------------------------------


def test_a_lock_says_what_was_asked_for_and_nothing_of_this_machine(tmp_path: Path) -> None:
    pin = pin_bundle("CREPE_TINY", freeze="last:1", head=HEAD, dtype="float64", folder=tmp_path)
    again = pin_bundle("CREPE_TINY", freeze="last:1", head=HEAD, dtype="float64", folder=tmp_path)
    text = write_lock(Lock({"model": pin}, single=True))
    assert text == write_lock(Lock({"model": again}, single=True))
    import getpass
    import socket

    for word in (str(Path.home()), socket.gethostname(), str(tmp_path), f'"{getpass.getuser()}"'):
        assert word not in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)
    model = bundles.get_model("CREPE_TINY", lock=locked(pin, tmp_path / "x.lock.toml"))
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert plan.digest == pin.plan
    assert model.get_submodule("classifier").weight.shape == (3, 256)
    assert model.get_submodule("classifier").weight.dtype == torch.float64
    assert sum(p.numel() for p in model.parameters()) == pin.parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == pin.trainable


def test_a_lock_in_another_process_is_the_same_text(tmp_path: Path) -> None:
    code = (
        "from bundles.assemble.pins import pin_bundle; from bundles.spec.lock import Lock, write_lock; "
        "print(write_lock(Lock({'model': pin_bundle('CREPE_TINY', freeze=True)}, single=True)), end='')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == write_lock(Lock({"model": pin_bundle("CREPE_TINY", freeze=True)}, single=True))


MODES = ["eval", "weights", "mc", bundles.FreezeMode(noise="follow", stats="follow")]


@pytest.mark.parametrize(
    "freeze", [True, "all", "first:2", "blocks:0-1,3", "match:conv*.bias", "none", False]
)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.filterwarnings("ignore::bundles.NothingTrainableWarning")
def test_policies_and_modes_come_back_from_their_text(
    freeze: bool | str, mode: str | bundles.FreezeMode, tmp_path: Path
) -> None:
    said: dict[str, Any] = {"freeze": freeze} | ({"freeze_mode": mode} if freeze else {})
    pin = pin_bundle("CREPE_TINY", **said)
    again = read_lock(write_lock(Lock({"model": pin}, single=True)), "x").models["model"]
    model = bundles.get_model("CREPE_TINY", lock=Locked(again, tmp_path))
    plan = bundles.freeze_plan(model)
    assert (plan and plan.digest) == pin.plan
    assert (pin.freeze is None) == (freeze in ("none", False))
    assert (pin.plan is None) == (freeze in ("none", False, "fit:1GB:16"))  # of which all fits


def test_the_default_policy_is_written_out() -> None:
    bundle = replace(bundles.CREPE_TINY, default_policy="last:2", default_mode="weights")
    pin = pin_bundle(bundle, freeze=True)
    assert (pin.freeze, pin.freeze_mode) == ("last:2", "weights")


def test_a_call_that_comes_to_something_else_is_refused(tmp_path: Path) -> None:
    lock = locked(pin_bundle("CREPE_TINY", freeze="last:1"), tmp_path / "x.lock.toml")
    bundles.get_model("CREPE_TINY", lock=lock, freeze="last:1")
    with pytest.raises(PinMismatchError, match=r"conv5.bias was frozen and is not") as caught:
        bundles.get_model("CREPE_TINY", lock=lock, freeze="last:2")
    assert len(caught.value.moved) == 4
    with pytest.raises(PinMismatchError, match="of other shapes or held otherwise"):
        bundles.get_model("CREPE_TINY", lock=lock, freeze_mode="weights")
    with pytest.raises(PinMismatchError, match=r"has .* parameters and was locked with"):
        bundles.get_model("CREPE_TINY", lock=lock, head=nn.Linear(256, 2))
    other = locked(pin_bundle("CREPE_TINY", dtype="float16"), tmp_path / "y.lock.toml")
    with pytest.raises(PinMismatchError, match=r"locked in float16 and is asked for in torch.float32"):
        bundles.get_model("CREPE_TINY", lock=other, dtype=torch.float32)
    with pytest.raises(PinMismatchError, match="locked is nothing, asked for is Encoder"):
        bundles.get_model("CREPE_TINY", lock=other, freeze=True)


def test_an_upstream_rename_that_would_freeze_less_is_refused(tmp_path: Path) -> None:
    """As if the library now called conv1 something else: the locked names are others."""
    pin = pin_bundle("CREPE_TINY", freeze=True)
    then = replace(
        pin, plan="sha256:" + "0" * 64, frozen=tuple(n.replace("conv1.", "stem.") for n in pin.frozen)
    )
    words = r"conv1.weight is frozen and was not|stem.weight was frozen and is not"
    with pytest.raises(PinMismatchError, match=words) as caught:
        bundles.get_model("CREPE_TINY", lock=locked(then, tmp_path / "x.lock.toml"))
    assert caught.value.locked == then.plan
    assert caught.value.found == pin.plan


def test_another_card_is_refused_with_both_digests(tmp_path: Path, default: bundles.Registry) -> None:
    pin = pin_bundle("CREPE_TINY")
    lock = locked(pin, tmp_path / "x.lock.toml")
    default.add(replace(bundles.CREPE_TINY, default_policy="all"), override=True)
    found = card_digest(default["CREPE_TINY"])
    with pytest.raises(PinMismatchError, match=rf"locked is {pin.card}, found {found}"):
        bundles.get_model("CREPE_TINY", lock=lock)


def test_other_versions_warn_and_can_be_refused(tmp_path: Path) -> None:
    pin = pin_bundle("CREPE_TINY")
    assert dict(pin.versions) == versions_of(bundles.CREPE_TINY)
    old = replace(pin, versions={**pin.versions, "torch": "1.0", "bundles": "0.0.1", "gone": "1"})
    with pytest.warns(VersionMismatchWarning, match=r"gone is absent, recorded 1; torch .*, recorded 1.0"):
        bundles.get_model("CREPE_TINY", lock=locked(old, tmp_path / "x.lock.toml"))
    with pytest.raises(PinMismatchError, match=r"torch .*, recorded 1.0. Install those"):
        bundles.get_model("CREPE_TINY", lock=Locked(old, tmp_path, strict=True))


def test_other_bytes_of_an_installed_file_are_refused(tmp_path: Path) -> None:
    pin = pin_bundle("CREPE_TINY")
    other = replace(pin, files=(replace(pin.files[0], sha256="0" * 64),))
    with pytest.raises(ChecksumError, match="expected sha256 0000"):
        bundles.get_model("CREPE_TINY", lock=locked(other, tmp_path / "x.lock.toml"))
    other = replace(pin, files=(replace(pin.files[0], size=9),))
    with pytest.raises(ChecksumError, match="expected 9 bytes"):
        bundles.get_model("CREPE_TINY", lock=locked(other, tmp_path / "x.lock.toml"))


def test_what_a_pickle_is_converted_to_is_locked_too(tmp_path: Path) -> None:
    pin = pin_bundle("CREPE_TINY")
    assert pin.converted is not None
    other = replace(pin, converted={**pin.converted, "sha256": "0" * 64})
    with pytest.raises(PinMismatchError, match="converted weights of CREPE_TINY are not those"):
        bundles.get_model("CREPE_TINY", lock=locked(other, tmp_path / "x.lock.toml"))
    older = replace(other, converted={"converter": 1, "sha256": "0" * 64})
    bundles.get_model("CREPE_TINY", lock=locked(older, tmp_path / "x.lock.toml"))


def test_which_entry_of_a_lock(tmp_path: Path) -> None:
    one, two = pin_bundle("CREPE_TINY", freeze="last:1"), pin_bundle("CREPE_TINY", freeze="all", head=HEAD)
    path = tmp_path / "x.lock.toml"
    path.write_text(write_lock(Lock({"a": one, "b": two}, single=False)))
    with pytest.raises(PinMismatchError, match="pins CREPE_TINY more than once, as a, b"):
        bundles.get_model("CREPE_TINY", lock=path)
    with pytest.raises(PinMismatchError, match="pins CREPE_TINY and not CREPE_FULL"):
        bundles.CREPE_FULL.get_model(lock=path)
    path.write_text(write_lock(Lock({"a": one, "b": one}, single=False)))
    assert same(bundles.CREPE_TINY.get_model(lock=str(path)), bundles.CREPE_TINY.get_model())
    bundles.get_model(bundles.CREPE_TINY.pin(), lock=path)
    with pytest.raises(PinMismatchError, match="CREPE_TINY is not what was pinned"):
        bundles.get_model("CREPE_TINY@sha256:" + "0" * 64, lock=path)


@pytest.mark.parametrize("content", [None, b"\xff", b"x" * (17 << 20)], ids=["absent", "no text", "huge"])
def test_a_lock_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.lock.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PinError, match=r"cannot be read|is not UTF-8|larger than 16 MiB"):
        bundles.get_model("CREPE_TINY", lock=path)


# --- files on this machine ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, bert: dict[str, bytes]) -> Path:
    """An experiment's folder with a model in it."""
    (tmp_path / "lab" / "models" / "bert").mkdir(parents=True)
    for name, data in bert.items():
        (tmp_path / "lab" / "models" / "bert" / name).write_bytes(data)
    return tmp_path / "lab"


def test_a_folder_beside_the_lock_moves_with_it(folder: Path, tmp_path: Path) -> None:
    pin = pin_bundle(f"file:{folder}/models/bert", freeze=True, folder=folder)
    copied = replace(pin, files=tuple(replace(f, alternates=("file:copy/x",)) for f in pin.files))
    assert pin_bundle(f"file:{folder}/models/bert", freeze=True, folder=folder, previous=copied) == copied
    assert pin.bundle == "file:models/bert"
    assert {file.source for file in pin.files} == {
        "file:models/bert/config.json",
        "file:models/bert/model.safetensors",
    }
    locked(pin, folder / "x.lock.toml")
    first = bundles.get_model(f"file:{folder}/models/bert", lock=folder / "x.lock.toml")
    folder.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert same(first, bundles.get_model(f"file:{moved}/models/bert", lock=moved / "x.lock.toml"))
    weights = moved / "models" / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ChecksumError, match="expected sha256"):
        bundles.get_model(f"file:{moved}/models/bert", lock=moved / "x.lock.toml")


def test_files_outside_the_folder_of_the_lock_are_refused(folder: Path) -> None:
    with pytest.raises(PinError, match=r"lies outside of .*: put it there, or name it by url: or hf:"):
        pin_bundle(f"file:{folder}/models/bert", folder=folder / "models" / "bert" / "deeper")
    with pytest.raises(PinError, match="place on one machine"):
        Lock({"model": pin_bundle(f"file:{folder}/models/bert")}, single=True)


def test_a_changed_configuration_is_another_card(folder: Path) -> None:
    lock = locked(pin_bundle(f"file:{folder}/models/bert", folder=folder), folder / "x.lock.toml")
    config = folder / "models" / "bert" / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    with pytest.raises(PinMismatchError, match="The card of file:models/bert is another one"):
        bundles.get_model(f"file:{folder}/models/bert", lock=lock)


# --- the web ------------------------------------------------------------------------------------------


def on_the_web(server: Loopback, path: Path, default: bundles.Registry) -> None:
    """CREPE, as safetensors on a server, and a card that does not know its digest."""
    save_file(bundles.CREPE_TINY.get_model().state_dict(), path)
    server.body = path.read_bytes()
    default.add(replace(bundles.CREPE_TINY, name="MINE", weights=server.uri("crepe.safetensors")))


def test_a_server_with_other_bytes_is_refused(
    tmp_path: Path, empty_cache: Path, default: bundles.Registry
) -> None:
    with Loopback() as server:
        on_the_web(server, tmp_path / "crepe.safetensors", default)
        pin = pin_bundle("MINE", freeze="last:1", folder=tmp_path)
        assert pin_bundle("MINE", freeze="last:1", folder=tmp_path) == pin
        lock = locked(pin, tmp_path / "x.lock.toml")
        wipe(tmp_path)
        first = bundles.get_model("MINE", lock=lock)
        server.body = bytes(len(server.body))
        server.etag = '"v2"'
        assert same(first, bundles.get_model("MINE", lock=lock))
        wipe(tmp_path)
        with pytest.raises(ChecksumError, match="expected sha256"):
            bundles.get_model("MINE", lock=lock)
        assert not [name for name in contents(empty_cache) if name.startswith("files/")]


def test_an_earlier_pin_saves_the_conversion_of_a_pickle(
    tmp_path: Path, empty_cache: Path, default: bundles.Registry
) -> None:
    """What is known of the same bytes needs no download, so that a check costs none."""
    torch.save(bundles.CREPE_TINY.get_model().state_dict(), tmp_path / "crepe.pth")
    data = (tmp_path / "crepe.pth").read_bytes()
    with Loopback(data) as server:
        weights = WeightSource(server.uri("crepe.pth"), sha256(data), len(data))
        default.add(replace(bundles.CREPE_TINY, name="MINE", weights=weights))
        pin = pin_bundle("MINE")
        assert pin.converted is not None
        wipe(tmp_path)
        server.forget()
        assert pin_bundle("MINE", previous=pin) == pin
        assert not server.requests


def test_a_card_that_says_everything_is_locked_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    known = []
    for bundle in map(bundles.get_bundle, bundles.list_bundles()):
        sources = [source for source in (bundle.weights, *bundle.assets.values()) if source is not None]
        if all(s.sha256 and s.size and not s.is_index for s in sources):
            assert filled(bundle) == bundle
            known.append(bundle.name)
    assert len(known) > 20


# --- repositories that move, are squashed, go, or lie ------------------------------------------------


def test_locking_from_the_hub_downloads_no_weights(hub: Hub, bert: dict[str, bytes], tmp_path: Path) -> None:
    _, commit = pushed(hub, bert)
    pin = pin_bundle(f"hf:owner/name@{commit}", freeze="last:1", folder=tmp_path)
    assert [file.role for file in pin.files] == ["weights", "card"]
    assert pin.files[0].sha256 == sha256(bert["model.safetensors"])
    assert pin.files[0].source == f"hf:owner/name@{commit}#model.safetensors"
    assert pin.files[1].sha256 == sha256(bert["config.json"])
    assert not downloads(hub, bert)
    wipe(tmp_path)
    assert pin_bundle(f"hf:owner/name@{commit}", freeze="last:1", folder=tmp_path) == pin


def test_a_branch_is_locked_as_the_commit_that_it_means(
    hub: Hub, bert: dict[str, bytes], tmp_path: Path
) -> None:
    _, commit = pushed(hub, bert)
    with pytest.warns(UnpinnedSourceWarning, match=f"means hf:owner/name@{commit} now"):
        pin = pin_bundle("hf:owner/name@main")
    assert pin.bundle == f"hf:owner/name@{commit}"
    lock = locked(replace(pin, extra={"asked": "hf:owner/name@main"}), tmp_path / "x.lock.toml")
    for address in ("hf:owner/name", "hf:owner/name@main", pin.bundle):
        assert bundles.get_model(address, lock=lock) is not None
    for address in ("hf:owner/name@other", "hf:owner/name@" + "0" * 40, "hf:owner"):
        with pytest.raises(PinMismatchError, match=f"pins hf:owner/name@{commit} and not {address}"):
            bundles.get_model(address, lock=lock)
    with pytest.warns(UnpinnedSourceWarning, match="means hf:owner/name"):
        assert bundles.get_bundle("hf:owner/name").pin().startswith(f"hf:owner/name@{commit}@sha256:")


def test_main_moves_and_the_lock_gives_the_old_bytes(
    hub: Hub, bert: dict[str, bytes], tmp_path: Path
) -> None:
    repo, commit = pushed(hub, bert)
    lock = locked(pin_bundle(f"hf:owner/name@{commit}", freeze="last:1"), tmp_path / "x.lock.toml")
    first = bundles.get_model("hf:owner/name", lock=lock)
    repo.commit({"model.safetensors": other(bert, tmp_path), "config.json": b"{}"}, lfs=WEIGHTS)
    wipe(tmp_path)
    assert same(first, bundles.get_model("hf:owner/name", lock=lock))
    asked = len(hub.requests)
    assert same(first, bundles.get_model("hf:owner/name", lock=lock))
    assert len(hub.requests) == asked, "with a pin and the files here nobody is asked"


def test_a_pin_string_of_a_repository(hub: Hub, bert: dict[str, bytes], tmp_path: Path) -> None:
    repo, commit = pushed(hub, bert)
    pin = bundles.get_bundle(f"hf:owner/name@{commit}").pin()
    assert not downloads(hub, bert), "the Hub says the digests"
    model = bundles.get_model(pin)
    assert downloads(hub, bert) == 1
    hub.fault("corrupt", match=sha256(bert["model.safetensors"]))
    wipe(tmp_path)
    with pytest.raises(ChecksumError, match=r"model.safetensors"):
        bundles.get_model(pin)
    hub.faults.clear()
    assert same(bundles.get_model(pin), model)
    digest = pin.rpartition("@")[2]
    new = repo.commit({"model.safetensors": other(bert, tmp_path)}, lfs=WEIGHTS)
    with pytest.raises(PinMismatchError, match=f"pinned is {digest}, found sha256:"):
        bundles.get_bundle(f"hf:owner/name@{new}@{digest}")


def test_fetch_takes_a_pin_for_a_machine_without_a_network(
    hub: Hub, bert: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, commit = pushed(hub, bert)
    pin = bundles.get_bundle(f"hf:owner/name@{commit}").pin()
    found = bundles.fetch(pin, to=tmp_path / "shared", progress=False)
    assert {item.path.name for item in found if item.path} == {"config.json", "model.safetensors"}
    first = bundles.get_model(pin)
    wipe(tmp_path)
    hub.delete("owner/name")
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", str(tmp_path / "shared"))
    assert same(first, bundles.get_model(pin))


def mirrored(pin: ModelPin, commit: str, name: str = "other/copy") -> ModelPin:
    """The pin with the same files of another repository as alternates."""
    files = [replace(f, alternates=(f"hf:{name}@{commit}#{f.path}",)) for f in pin.files]
    return replace(pin, files=tuple(files))


@pytest.mark.parametrize("how", ["squashed", "deleted", "gated", "disabled"])
def test_a_repository_that_is_gone_is_served_from_an_alternate(
    how: str, hub: Hub, bert: dict[str, bytes], tmp_path: Path
) -> None:
    repo, commit = pushed(hub, bert)
    pin = pin_bundle(f"hf:owner/name@{commit}", freeze="last:1")
    first = bundles.get_model(f"hf:owner/name@{commit}", lock=locked(pin, tmp_path / "x.lock.toml"))
    _, copied = pushed(hub, bert, "other/copy")
    ways: dict[str, Callable[[], object]] = {
        "squashed": repo.squash,
        "deleted": lambda: hub.delete("owner/name"),
        "gated": repo.gate,
        "disabled": repo.disable,
    }
    ways[how]()
    wipe(tmp_path)
    lock = locked(mirrored(pin, copied), tmp_path / "x.lock.toml")
    assert same(first, bundles.get_model("hf:owner/name", lock=lock))
    asked = len(hub.requests)
    bundles.get_model("hf:owner/name", lock=lock)
    assert len(hub.requests) == asked, "what came from an alternate is here, too"


@pytest.mark.parametrize("how", ["squashed", "deleted"])
def test_a_repository_that_is_gone_without_an_alternate_is_named_with_its_commit(
    how: str, hub: Hub, bert: dict[str, bytes], tmp_path: Path
) -> None:
    repo, commit = pushed(hub, bert)
    lock = locked(pin_bundle(f"hf:owner/name@{commit}"), tmp_path / "x.lock.toml")
    if how == "squashed":
        repo.squash()
    else:
        hub.delete("owner/name")
    wipe(tmp_path)
    with pytest.raises(SourceNotFoundError, match=commit):
        bundles.get_model("hf:owner/name", lock=lock)


def test_a_mirror_with_wrong_bytes_is_refused(hub: Hub, bert: dict[str, bytes], tmp_path: Path) -> None:
    _, commit = pushed(hub, bert)
    _, copied = pushed(hub, {**bert, "model.safetensors": other(bert, tmp_path)}, "other/copy")
    pin = mirrored(pin_bundle(f"hf:owner/name@{commit}"), copied)
    lock = locked(pin, tmp_path / "x.lock.toml")
    hub.delete("owner/name")
    wipe(tmp_path)
    with pytest.raises(
        SourceNotFoundError, match=r"None of its alternates helps: .*other/copy.* is not what"
    ):
        bundles.get_model("hf:owner/name", lock=lock)


def test_lock_wipe_fetch_go_offline_rebuild(
    hub: Hub, bert: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, commit = pushed(hub, bert)
    lock = locked(pin_bundle(f"hf:owner/name@{commit}", freeze=True), tmp_path / "x.lock.toml")
    first = bundles.get_model("hf:owner/name", lock=lock)
    wipe(tmp_path)
    bundle = pinned_bundle(read_lock(lock.read_text(), "x").models["model"], tmp_path)
    assert bundle.weights is not None
    fetch(bundle.weights)
    assert bundle.weights.sha256 == sha256(bert["model.safetensors"])
    fetch(replace(bundle.weights, uri=f"hf:owner/name@{commit}#config.json", sha256=None, size=None))
    hub.delete("owner/name")
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    again = bundles.get_model("hf:owner/name", lock=lock)
    ids = torch.arange(8)[None]
    assert same(first, again)
    assert torch.equal(first(input_ids=ids).logits, again(input_ids=ids).logits)


def test_alternates_of_an_earlier_pin_stay_while_the_bytes_are_the_same(
    hub: Hub, bert: dict[str, bytes], tmp_path: Path
) -> None:
    repo, commit = pushed(hub, bert)
    _, copied = pushed(hub, bert, "other/copy")
    old = mirrored(pin_bundle(f"hf:owner/name@{commit}"), copied)
    assert pin_bundle(f"hf:owner/name@{commit}", previous=old) == old
    new = repo.commit({"model.safetensors": other(bert, tmp_path)}, lfs=WEIGHTS)
    found = pin_bundle(f"hf:owner/name@{new}", previous=old)
    assert [bool(file.alternates) for file in found.files] == [False, True]


def test_a_sharded_checkpoint_is_locked_shard_by_shard(hub: Hub, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    settings: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    model = BertModel(BertConfig(**settings, num_attention_heads=2, intermediate_size=64))
    model.save_pretrained(tmp_path / "bert", max_shard_size="40KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "bert").iterdir()}
    large = {name for name in files if name.endswith(".safetensors")}
    repo = hub.repo("owner/name")
    commit = repo.commit({**files, "stray.safetensors": b"x"}, lfs=large | {"stray.safetensors"})
    pin = pin_bundle(f"hf:owner/name@{commit}")
    assert {file.path for file in pin.files if file.role == "shard"} == large
    assert not downloads(hub, files)
    lock = locked(pin, tmp_path / "x.lock.toml")
    first = bundles.get_model("hf:owner/name", lock=lock)
    assert torch.equal(first.state_dict()["pooler.dense.weight"], model.state_dict()["pooler.dense.weight"])
    shard = next(file for file in pin.files if file.role == "shard")
    other = [replace(file, sha256="0" * 64) if file is shard else file for file in pin.files]
    wipe(tmp_path)
    with pytest.raises(ChecksumError, match="sha256 0000"):
        bundles.get_model("hf:owner/name", lock=locked(replace(pin, files=tuple(other)), lock))


def test_a_card_that_a_repository_carries(hub: Hub, tmp_path: Path) -> None:
    save_file(bundles.CREPE_TINY.get_model().state_dict(), tmp_path / "crepe.safetensors")
    card = b"""
[MINE]
builder = "torchcrepe"
architecture.model = "tiny"
layers = { blocks = ["conv{i}", "conv{i}_BN"], head = "classifier" }
weights.source = "file:crepe.safetensors"
license = "MIT"
"""
    data = (tmp_path / "crepe.safetensors").read_bytes()
    repo = hub.repo("owner/name")
    commit = repo.commit({"bundle.toml": card, "crepe.safetensors": data}, lfs={"crepe.safetensors"})
    pin = pin_bundle(f"hf:owner/name@{commit}", freeze="last:1")
    assert (pin.license, [file.path for file in pin.files]) == ("MIT", ["crepe.safetensors", "bundle.toml"])
    lock = locked(pin, tmp_path / "x.lock.toml")
    assert same(bundles.get_model("hf:owner/name", lock=lock), bundles.CREPE_TINY.get_model())
    hub.delete("owner/name")
    assert same(bundles.get_model("hf:owner/name", lock=lock), bundles.CREPE_TINY.get_model())


def test_the_hub_has_other_bytes_than_the_card_says(hub: Hub, bert: dict[str, bytes]) -> None:
    _, commit = pushed(hub, bert)
    weights = WeightSource("hf:owner/name#model.safetensors", "0" * 64)
    with pytest.raises(ChecksumError, match=r"expected sha256 0000.*, found sha256"):
        filled(replace(bundles.CREPE_TINY, weights=weights))
    assert commit


def test_a_pin_that_misses_a_file_of_the_card(tmp_path: Path) -> None:
    pin = replace(pin_bundle("CREPE_TINY"), files=())
    with pytest.raises(PinMismatchError, match="has weights, of which nothing was locked"):
        apply_pin(bundles.CREPE_TINY, pin, tmp_path)


def test_a_repository_of_which_the_card_was_not_locked(
    hub: Hub, bert: dict[str, bytes], tmp_path: Path
) -> None:
    _, commit = pushed(hub, bert)
    pin = pin_bundle(f"hf:owner/name@{commit}")
    pin = replace(pin, files=pin.files[:1])
    with pytest.raises(BuildError, match=r"neither bundle.toml nor config.json"):
        bundles.get_model("hf:owner/name", lock=locked(pin, tmp_path / "x.lock.toml"))


def test_a_lock_that_is_no_path_is_named() -> None:
    with pytest.raises(bundles.PinError, match=r"lock=3 is no path"):
        bundles.get_model("CREPE_TINY", lock=3)  # type: ignore[arg-type]
