"""Experiment files and their locks: lock, sync, verify, outdated, and the models that come of it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result

import bundles
from bundles.cli.main import group
from bundles.errors import (
    BundlesError,
    CacheError,
    ChecksumError,
    OfflineError,
    PinError,
    PinMismatchError,
    SourceError,
    UnpinnedSourceWarning,
    VersionMismatchWarning,
)
from bundles.experiment.file import write_text
from bundles.spec.lock import read_lock, write_lock
from hub import Hub, Repo
from hubbing import hub_at

PITCH = """
# what people write
lr = 1e-4
[model]
bundle = "CREPE_TINY"
freeze = "last:1"
head = { type = "Linear", out_features = 5 }

[trainer]
epochs = 3
"""
BOTH = """
[models.text]
bundle = "hf:me/bert"
freeze = "last:1"
dtype = "float64"

[models.pitch]
bundle = "CREPE_TINY"
freeze = true
freeze_mode = { noise = "follow" }
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def lock(path: Path, *options: str) -> Path:
    done = run("lock", path, *options)
    assert done.exit_code == 0, done.output + repr(done.exception)
    return path.with_name(path.name.replace(".toml", ".lock.toml"))


def digest(model: torch.nn.Module) -> str:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    parts = (name.encode() + value.detach().numpy().tobytes() for name, value in sorted(tensors.items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(autouse=True)
def _never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundles.experiment.load._told", set())


@pytest.fixture
def pitch(tmp_path: Path) -> Path:
    path = tmp_path / "pitch.toml"
    path.write_text(PITCH)
    return path


class World:
    """A hub with a text encoder, whose weights a second repository has, too; and an experiment with it."""

    def __init__(self, hub: Hub, tmp_path: Path) -> None:
        self.hub, self.tmp_path = hub, tmp_path
        made = tmp_path / "made"
        torch.manual_seed(3)
        config = transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
        )
        transformers.BertModel(config).save_pretrained(made)
        self.files = {path.name: path.read_bytes() for path in made.iterdir()}
        self.repo: Repo = hub.repo("me/bert")
        self.first = self.repo.commit(self.files, lfs={"model.safetensors"})
        self.repo.info["cardData"] = {"license": "mit"}
        self.copy = hub.repo("you/copy").commit(self.files, lfs={"model.safetensors"})
        self.path = tmp_path / "both.toml"
        self.path.write_text(BOTH)

    @property
    def fetched(self) -> list[str]:
        """The names of the files whose bytes were asked for; large ones go by their digests."""
        names = {hashlib.sha256(data).hexdigest(): name for name, data in self.files.items()}
        asked = [request.path.rpartition("/")[2] for request in self.hub.requests if request.kind == "body"]
        return sorted(names.get(name, name) for name in asked)

    def move(self) -> str:
        """Let main have other weights."""
        other = self.files["model.safetensors"][:-4] + b"\0\0\0\1"
        return self.repo.commit({"model.safetensors": other}, lfs={"model.safetensors"})

    def forget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Wipe both caches."""
        for variable, name in (("BUNDLES_CACHE", "empty-cache"), ("HF_HOME", "hf")):
            shutil.rmtree(self.tmp_path / name, ignore_errors=True)
            monkeypatch.setenv(variable, str(self.tmp_path / name))
        self.hub.forget()


@pytest.fixture
def world(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with hub_at(tmp_path, monkeypatch) as hub:
        yield World(hub, tmp_path)


# --- the story ------------------------------------------------------------------------------------


def outputs(path: Path) -> tuple[dict[str, str], torch.Tensor, torch.Tensor]:
    experiment = bundles.load_experiment(path, strict=True, locked=True)
    models = {name: experiment[name].get_model() for name in experiment}
    torch.manual_seed(0)
    frames, tokens = torch.randn(4, 1024), torch.arange(12).view(2, 6)
    with torch.no_grad():
        text = models["text"](input_ids=tokens).last_hidden_state
        return {name: digest(model) for name, model in models.items()}, models["pitch"](frames), text


def test_lock_wipe_sync_go_offline_rebuild(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    locked = lock(world.path)
    before = outputs(world.path)
    world.forget(monkeypatch)
    world.move()  # main has other bytes by now
    assert run("sync", locked).exit_code == 0
    assert world.fetched == ["config.json", "model.safetensors"]
    world.hub.forget()
    assert outputs(world.path)[0] == before[0]
    assert world.hub.requests == []  # present and pinned: nobody is asked, also with a network
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    after = outputs(world.path)
    assert after[0] == before[0]
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[2], before[2])
    assert after[2].dtype == torch.float64
    assert world.hub.requests == []
    assert run("verify", locked).exit_code == 0


def test_a_folder_made_by_sync_serves_a_machine_without_network(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    locked = lock(world.path)
    before = outputs(world.path)
    done = run("sync", locked, "--to", tmp_path / "air")
    assert done.exit_code == 0, done.output
    world.forget(monkeypatch)
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    with pytest.raises(OfflineError, match="BUNDLES_OFFLINE is set"):
        outputs(world.path)
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", str(tmp_path / "air"))
    assert outputs(world.path)[0] == before[0]
    assert world.hub.requests == []


def test_main_moves_history_is_squashed_the_repository_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = lock(world.path)
    before = outputs(world.path)
    world.move()
    world.forget(monkeypatch)
    assert outputs(world.path)[0] == before[0]
    world.repo.squash()
    world.forget(monkeypatch)
    with pytest.raises(SourceError, match=world.first):
        outputs(world.path)
    text = locked.read_text()
    for name in ("config.json", "model.safetensors"):
        source = f'source = "hf:me/bert@{world.first}#{name}"\n'
        assert source in text
        text = text.replace(source, f'{source}alternates = [\n    "hf:you/copy@{world.copy}#{name}",\n]\n')
    locked.write_text(text)
    assert outputs(world.path)[0] == before[0]
    world.hub.delete("me/bert")
    world.forget(monkeypatch)
    assert run("sync", locked).exit_code == 0
    assert outputs(world.path)[0] == before[0]


# --- bundles lock ---------------------------------------------------------------------------------


def test_locking_from_the_hub_downloads_no_weights_and_twice_gives_the_same_bytes(world: World) -> None:
    locked = lock(world.path)
    assert world.fetched == ["config.json"]
    text = locked.read_bytes()
    written = locked.stat().st_mtime_ns
    lock(world.path)
    assert locked.stat().st_mtime_ns == written
    locked.unlink()
    lock(world.path)
    assert locked.read_bytes() == text
    assert write_lock(read_lock(text.decode(), "lock")).encode() == text
    for word in (str(world.tmp_path), "127.0.0.1", "localhost", os.uname().nodename, "2026"):
        assert word not in text.decode()
    assert text.endswith(b"\n")
    assert b"\r" not in text


def test_the_lock_says_what_was_got(world: World) -> None:
    pins = read_lock(lock(world.path).read_text(), "lock").models
    text = pins["text"]
    assert text.bundle == f"hf:me/bert@{world.first}"
    assert text.extra == {"asked": "hf:me/bert"}
    weights = text.file("weights")
    assert weights is not None
    assert weights.sha256 == hashlib.sha256(world.files["model.safetensors"]).hexdigest()
    assert weights.size == len(world.files["model.safetensors"])
    assert (text.license, text.gated, text.dtype) == ("mit", False, "float64")
    model = bundles.load_experiment(world.path)["text"].get_model()
    assert text.parameters == sum(p.numel() for p in model.parameters())
    assert text.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert text.plan == plan.digest


def test_pins_stay_until_an_upgrade_and_what_changed_is_printed(world: World) -> None:
    locked = lock(world.path)
    before = locked.read_bytes()
    head = world.move()
    assert lock(world.path).read_bytes() == before
    assert run("lock", world.path, "--upgrade", "pitch").exit_code == 0
    assert locked.read_bytes() == before
    done = run("lock", world.path, "--upgrade", "text", "--check")
    assert done.exit_code == 1
    assert locked.read_bytes() == before
    done = run("lock", world.path, "--upgrade", "text")
    assert f"text.bundle: 'hf:me/bert@{world.first}' → 'hf:me/bert@{head}'" in done.stdout
    assert "text.files: model.safetensors sha256 " in done.stdout
    assert f"@{head}#model.safetensors" in locked.read_text()
    with pytest.raises(PinError, match="has no model 'txt' to upgrade: did you mean 'text'"):
        group(["lock", str(world.path), "--upgrade", "txt"], standalone_mode=False)


def test_another_freeze_is_locked_without_moving_the_bytes(world: World) -> None:
    locked = lock(world.path)
    world.move()
    world.path.write_text(BOTH.replace('"last:1"', '"encoder"'))
    assert run("lock", world.path, "--locked").exit_code == 1
    done = run("lock", world.path)
    assert "text.freeze: 'last:1' → 'encoder'" in done.stdout
    assert "text.plan: sha256:" in done.stdout
    frozen = next(line for line in done.stdout.splitlines() if line.startswith("text.frozen: "))
    assert frozen.startswith("text.frozen: newly frozen encoder.layer.1.attention.output.LayerNorm.bias, ")
    assert "text.bundle" not in done.stdout
    assert f"@{world.first}#model.safetensors" in locked.read_text()


def test_check_writes_nothing_and_says_what_it_would(pitch: Path) -> None:
    done = run("lock", pitch, "--check")
    assert (done.exit_code, list(pitch.parent.glob("*.lock.toml"))) == (1, [])
    locked = lock(pitch)
    assert run("lock", pitch, "--check").exit_code == 0
    before = locked.read_bytes()
    pitch.write_text(PITCH.replace("out_features = 5", "out_features = 6"))
    done = run("lock", pitch, "--check")
    assert done.exit_code == 1
    assert "model.head: the file says { out_features = 6, type = 'Linear' }" in done.stdout or (
        "model.head: the file says { type = 'Linear', out_features = 6 }" in done.stdout
    )
    assert locked.read_bytes() == before


KILLED = """
import os, signal, sys
from pathlib import Path
{do}
left = int(sys.argv[2])
def hook(event, arguments):
    global left
    if event in {events} and ".lock" in str(arguments[0]):
        left -= 1
        if left < 0: os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
{then}
"""


def test_a_kill_at_any_point_leaves_the_old_lock_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x.lock.toml"
    new = "new" * 100_000
    code = KILLED.format(
        do="from bundles.experiment.file import write_text",
        events=("open", "os.rename", "os.chmod", "os.remove"),
        then="write_text(Path(sys.argv[1]), 'new' * 100_000)",
    )
    ends = []
    for point in range(9):
        path.write_text("old")
        done = subprocess.run([sys.executable, "-c", code, str(path), str(point)], check=False)
        ends.append((done.returncode, path.read_text()))
        if done.returncode == 0:
            break
    assert ends[-1] == (0, new)
    assert {code for code, _ in ends[:-1]} == {-signal.SIGKILL}
    assert {text for _, text in ends[:3]} == {"old"}
    assert {text for _, text in ends} == {"old", new}


def test_a_killed_command_leaves_the_old_lock(pitch: Path) -> None:
    locked = lock(pitch)
    old = locked.read_bytes()
    pitch.write_text(PITCH.replace("last:1", "last:2"))
    code = KILLED.format(
        do="from bundles.cli.main import main", events=("os.rename",), then="main(['lock', sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(pitch), "0"], check=False)
    assert (done.returncode, locked.read_bytes()) == (-signal.SIGKILL, old)
    named = [name for name in os.listdir(pitch.parent) if not name.startswith(".lock-")]
    assert sorted(named) == ["pitch.lock.toml", "pitch.toml"]
    lock(pitch)
    assert locked.read_bytes() != old


def test_what_cannot_be_written_leaves_the_old_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock.toml"
    path.write_text("old")
    with pytest.raises(CacheError, match="cannot be written"):
        write_text(tmp_path / "absent" / "x.lock.toml", "new")
    write_text(path, "new\n")
    assert (path.read_bytes(), sorted(os.listdir(tmp_path))) == (b"new\n", ["x.lock.toml"])


def test_line_ends_order_of_keys_and_a_missing_newline_do_not_count(pitch: Path) -> None:
    locked = lock(pitch)
    text = locked.read_text()
    moved = text.replace('created-by = "bundles 0.1.0"\n', "", 1).rstrip("\n")
    locked.write_bytes(moved.replace("\n", "\r\n").encode())
    bundles.load_experiment(pitch)
    assert run("lock", pitch, "--check").exit_code == 0


# --- load_experiment ------------------------------------------------------------------------------


def test_without_a_lock_it_works_and_warns_once(pitch: Path) -> None:
    with pytest.warns(UnpinnedSourceWarning, match=r"has no lock.*type `bundles lock "):
        model: Any = bundles.load_experiment(pitch).get_model()
    assert model.classifier.out_features == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundles.load_experiment(pitch)
    assert sorted(os.listdir(pitch.parent)) == ["pitch.toml"]
    with pytest.raises(PinError, match=r"has no lock pitch\.lock\.toml: type `bundles lock "):
        bundles.load_experiment(pitch, locked=True)


def test_a_locked_model_is_the_one_that_get_model_gives(pitch: Path) -> None:
    lock(pitch)
    experiment = bundles.load_experiment(pitch)
    assert experiment.names == ("model",)
    model: Any = experiment.get_model()
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert plan.digest == read_lock(pitch.with_name("pitch.lock.toml").read_text(), "x").models["model"].plan
    whole: Any = bundles.CREPE_TINY.get_model()
    assert torch.equal(model.conv1.weight, whole.conv1.weight)
    assert [n for n, p in model.named_parameters() if p.requires_grad][-1] == "classifier.bias"
    with pytest.raises(PinMismatchError, match=r"conv5\.weight was frozen and is not"):
        experiment.get_model(freeze="last:2")
    own: Any = experiment["model"].bundle.get_model(head=torch.nn.Identity())
    assert isinstance(own.classifier, torch.nn.Identity)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"CREPE_TINY"', '"CREPE_FULL"', "model.bundle: the file says 'CREPE_FULL', the lock 'CREPE_TINY'"),
        ('"last:1"', '"last:2"', "model.freeze: the file says 'last:2', the lock 'last:1'"),
        ('"last:1"', "true", "model.freeze: the file says true, the lock 'last:1'"),
        ('freeze = "last:1"\n', "", "model.freeze: the file says false, the lock 'last:1'"),
        (
            '"last:1"',
            '"last:1"\nfreeze_mode = "features"',
            "model.freeze_mode: the file says 'features', the lock 'eval'",
        ),
        ("out_features = 5", "out_features = 6", "model.head: the file says {"),
        (
            "[trainer]",
            'dtype = "float16"\n[trainer]',
            "model.dtype: the file says 'float16', the lock nothing",
        ),
        ("[model]", "[models.a]", "models.a: is in the file and not in the lock"),
        ("[model]", "[models.a]", "model: is in the lock and not in the file"),
    ],
)
def test_file_and_lock_disagree(pitch: Path, old: str, new: str, says: str) -> None:
    locked = lock(pitch)
    before = locked.read_bytes()
    text = PITCH.replace("\n[trainer]", "[trainer]").replace(old, new)
    pitch.write_text(text)
    with pytest.raises(PinMismatchError, match="disagree") as caught:
        bundles.load_experiment(pitch)
    assert says in str(caught.value)
    assert f"`bundles lock {pitch}`" in str(caught.value)
    assert run("sync", pitch).exit_code == 1
    assert run("lock", pitch, "--locked").exit_code == 1
    assert locked.read_bytes() == before
    lock(pitch)
    bundles.load_experiment(pitch)


def test_words_that_come_to_the_same_agree(pitch: Path) -> None:
    pitch.write_text('[model]\nbundle = "CREPE_TINY"\nfreeze = "encoder"\n')
    lock(pitch)
    pitch.write_text('[model]\nbundle = "CREPE_TINY"\nfreeze = true\nfreeze_mode = { noise = "off" }\n')
    model: Any = bundles.load_experiment(pitch).get_model()
    assert not any(p.requires_grad for p in model.conv1.parameters())
    assert run("lock", pitch, "--check").exit_code == 0


def test_another_plan_or_card_than_was_locked_is_refused(pitch: Path) -> None:
    locked = lock(pitch)
    good = locked.read_text()
    pin = read_lock(good, "lock").models["model"]
    locked.write_text(
        good.replace(str(pin.plan), "sha256:" + "0" * 64).replace('"conv1.bias"', '"conv0.bias"')
    )
    with pytest.raises(PinMismatchError, match=r"conv0\.bias was frozen and is not") as caught:
        bundles.load_experiment(pitch).get_model()
    assert str(pin.plan) in str(caught.value)
    assert "0" * 64 in str(caught.value)
    locked.write_text(good.replace(pin.card, "sha256:" + "1" * 64))
    with pytest.raises(PinMismatchError, match="card of CREPE_TINY is another one") as caught:
        bundles.load_experiment(pitch).get_model()
    assert pin.card in str(caught.value)
    assert run("verify", locked).exit_code == 1


def test_other_versions_warn_and_strict_refuses(pitch: Path) -> None:
    locked = lock(pitch)
    text = locked.read_text()
    torch_line = next(line for line in text.splitlines() if line.startswith("torch = "))
    locked.write_text(text.replace(torch_line, 'torch = "1.0"'))
    with pytest.warns(VersionMismatchWarning, match=r"torch .*, recorded 1\.0"):
        bundles.load_experiment(pitch).get_model()
    with pytest.raises(PinMismatchError, match=r"recorded 1\.0"):
        bundles.load_experiment(pitch, strict=True).get_model()


def test_two_models_share_a_bundle_and_differ(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(
        '[models.a]\nbundle = "CREPE_TINY"\nfreeze = "last:1"\n'
        '[models.b]\nbundle = "CREPE_TINY"\nfreeze = "all"\nfreeze_mode = "features"\n'
    )
    lock(path)
    experiment = bundles.load_experiment(path)
    counts = {
        name: sum(p.numel() for p in experiment[name].get_model().parameters() if p.requires_grad)
        for name in experiment.names
    }
    assert counts["a"] > counts["b"] == 0
    with pytest.raises(PinError, match=r"has the models a, b: take one, as experiment\['a'\]"):
        experiment.get_model()
    with pytest.raises(KeyError, match="did you mean 'a'"):
        experiment["A"]


def test_a_pin_string_and_a_folder_are_bundles_of_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.export("CREPE_TINY", tmp_path / "configs" / "mine")
    path = tmp_path / "configs" / "mine.toml"
    pin = bundles.CREPE_TINY.pin()
    path.write_text(f'[models.own]\nbundle = "file:mine"\n[models.pinned]\nbundle = "{pin}"\n')
    locked = lock(path)
    assert str(tmp_path) not in locked.read_text()
    text = path.read_text()
    path.write_text(text.replace(pin, pin[:-1] + ("0" if pin[-1] != "0" else "1")))
    with pytest.raises(PinMismatchError, match=r"models\.pinned\.bundle: the file says"):
        bundles.load_experiment(path)
    assert isinstance(run("lock", path).exception, PinMismatchError)
    path.write_text(text)
    monkeypatch.chdir("/")
    experiment = bundles.load_experiment(path)
    models = [experiment[name].get_model() for name in ("own", "pinned")]
    assert digest(models[0]) == digest(models[1])
    shutil.move(tmp_path / "configs", tmp_path / "elsewhere")
    assert digest(bundles.load_experiment(tmp_path / "elsewhere" / "mine.toml")["own"].get_model()) == digest(
        models[0]
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr = 1\n", r"needs a table \[model\], or tables \[models\.NAME\], and has neither"),
        ('[model]\nbundle = "A"\n[models.b]\nbundle = "C"\n', "and has both"),
        ("models = 3\n", r"models of .* is 3"),
        ("[model\n", "is no TOML"),
        ('[model]\nbundle = "CREPE_TINY"\nbundle = "CREPE_FULL"\n', "is no TOML"),
        ('[model]\nbundle = "CREPE_TINNY"\n', "model.bundle: .*CREPE_TINY"),
        ('[model]\nbundle = "CREPE_TINY"\nlock = "x"\n', "model.lock: "),
        ('[model]\nbundle = "CREPE_TINY"\n_target_ = "os.system"\n', "model._target_: "),
    ],
)
def test_a_file_that_asks_for_nothing_that_there_is(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(PinError, match=says):
        bundles.load_experiment(path)
    assert run("lock", path).exit_code == 1
    assert os.listdir(tmp_path) == ["x.toml"]


def test_all_problems_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        '[models.a]\nbundle = "CREPE_TINY"\nfreze = true\n[models.b]\nbundle = 3\ndtype = "float23"\n'
    )
    with pytest.raises(PinError, match=r"models\.a\.freze") as caught:
        bundles.load_experiment(path)
    assert len(vars(caught.value)["problems"]) == 3
    with pytest.raises(PinError, match="cannot be read"):
        bundles.load_experiment(tmp_path / "absent.toml")


def test_a_lock_that_others_may_write_warns(pitch: Path) -> None:
    locked = lock(pitch)
    locked.chmod(0o666)
    with pytest.warns(UnpinnedSourceWarning, match="writable for everybody"):
        bundles.load_experiment(pitch)
    locked.chmod(0o644)
    locked.rename(pitch.parent / "elsewhere.toml")
    locked.symlink_to(pitch.parent / "elsewhere.toml")
    with pytest.warns(UnpinnedSourceWarning, match="is a link"):
        bundles.load_experiment(pitch)


# --- sync, verify, outdated -----------------------------------------------------------------------


def test_sync_fetches_what_the_lock_names_and_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.repo.commit({"extra.bin": b"x" * 1000, "README.md": b"# hello"}, lfs={"extra.bin"})
    locked = lock(world.path)
    world.forget(monkeypatch)
    done = run("sync", locked, "--frozen")
    assert done.exit_code == 0, done.output
    assert world.fetched == ["config.json", "model.safetensors"]
    assert not [r for r in world.hub.requests if r.kind == "api"]  # nothing is resolved
    assert done.stdout.splitlines()[-1].startswith("3 files, ")
    world.hub.forget()
    assert run("sync", locked).exit_code == 0
    assert world.hub.requests == []


def test_sync_refuses_wrong_bytes_and_names_everything_that_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = lock(world.path)
    world.forget(monkeypatch)
    world.hub.fault("corrupt", match=hashlib.sha256(world.files["model.safetensors"]).hexdigest())
    done = run("sync", locked)
    assert isinstance(done.exception, ChecksumError)
    assert "pitch" not in str(done.exception)
    assert "CREPE_TINY weights" in done.stdout
    assert run("verify", locked).exit_code == 1


def test_verify_lists_all_that_is_wrong_or_absent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = lock(world.path)
    world.forget(monkeypatch)
    done = run("verify", locked)
    assert isinstance(done.exception, PinMismatchError)
    said = str(done.exception)
    assert "text: model.safetensors: is not on this machine" in said
    assert "text: config.json: is not on this machine" in said
    assert f"Type `bundles sync {locked}`" in said
    assert world.hub.requests == []
    run("sync", locked)
    assert run("verify", locked).exit_code == 0
    size = len(world.files["model.safetensors"])
    (blob,) = [p for p in (world.tmp_path / "hf").rglob("blobs/*") if p.stat().st_size == size]
    status = blob.stat()
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    done = run("verify", locked)
    assert isinstance(done.exception, PinMismatchError)
    assert "text: model.safetensors: " in str(done.exception)
    assert "config.json" not in str(done.exception)


def test_outdated_says_how_far_and_whether_bytes_and_licence_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = lock(world.path)
    done = run("outdated", locked, "--check")
    assert done.exit_code == 0, done.output
    assert f"text: hf:me/bert@main is still at {world.first[:12]}" in done.stdout
    docs = world.repo.commit({"README.md": b"# more"})
    done = run("outdated", locked, "--check")
    assert done.exit_code == 1
    assert f"text: hf:me/bert@main moved by 1 commit from {world.first[:12]} to {docs[:12]}" in done.stdout
    assert "text: model.safetensors has the same bytes" in done.stdout
    assert "text: config.json has the same bytes" in done.stdout
    world.move()
    world.repo.info["cardData"] = {"license": "cc-by-nc-4.0"}
    world.hub.forget()
    done = run("outdated", locked)
    assert done.exit_code == 0
    assert "text: model.safetensors has other bytes: sha256 " in done.stdout
    assert "text: license: mit → cc-by-nc-4.0" in done.stdout
    assert set(world.fetched) <= {"config.json"}
    assert "me/bert@main moved by 2 commits from " in done.stdout
    world.repo.squash()
    done = run("outdated", locked)
    assert "moved on, and its history has the pinned commit no more, from " in done.stdout
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    world.hub.forget()
    done = run("outdated", locked, "--check")
    assert (done.exit_code, world.hub.requests) == (1, [])
    assert "cannot be asked" in done.stdout
    monkeypatch.delenv("BUNDLES_OFFLINE")
    world.hub.delete("me/bert")
    done = run("outdated", locked, "--check")
    assert done.exit_code == 1
    assert "text: " in done.stdout
    assert "me/bert" in done.stdout


@pytest.mark.parametrize("command", ["sync", "verify", "outdated", "doctor"])
def test_a_missing_or_broken_lock_is_one_sentence(command: str, tmp_path: Path, pitch: Path) -> None:
    done = run(command, pitch)
    assert isinstance(done.exception, PinError)
    assert str(done.exception).endswith(f"type `bundles lock {pitch}`.")
    broken = tmp_path / "b.lock.toml"
    broken.write_text('lock-version = 99\ncreated-by = "bundles 7.0"\n')
    done = run(command, broken)
    assert isinstance(done.exception, BundlesError)
    assert "bundles>=7.0" in str(done.exception)
    assert run("sync", pitch, "--locked", "--frozen").exit_code == 2


def test_check_sees_a_lock_whose_plan_or_count_is_not_that_of_today(tmp_path: Path) -> None:
    """As after an upgrade of a library, or an edit of a card; not only where the file was edited."""
    file = tmp_path / "one.toml"
    file.write_text('[model]\nbundle = "CREPE_TINY"\nfreeze = true\n')
    runner = CliRunner()
    assert runner.invoke(group, ["lock", str(file)]).exit_code == 0
    assert runner.invoke(group, ["lock", str(file), "--check"]).exit_code == 0
    lock = tmp_path / "one.lock.toml"
    text = lock.read_text()
    lock.write_text(re.sub(r"(?m)^trainable = \d+", "trainable = 7", text))
    assert lock.read_text() != text
    done = runner.invoke(group, ["lock", str(file), "--check"])
    assert (done.exit_code, "trainable: 7" in done.output) == (1, True)


def test_verify_warns_of_other_versions_and_strict_refuses_them(tmp_path: Path) -> None:
    file, lock = tmp_path / "one.toml", tmp_path / "one.lock.toml"
    file.write_text('[model]\nbundle = "CREPE_TINY"\nfreeze = true\n')
    runner = CliRunner()
    assert runner.invoke(group, ["lock", str(file)]).exit_code == 0
    assert runner.invoke(group, ["verify", str(lock), "--strict"]).exit_code == 0
    text = lock.read_text()
    lock.write_text(re.sub(r'(?m)^torch = ".*"', 'torch = "1.0.0"', text))
    assert lock.read_text() != text
    with pytest.warns(bundles.VersionMismatchWarning, match="torch .* recorded 1.0.0"):
        assert runner.invoke(group, ["verify", str(lock)]).exit_code == 0
    done = runner.invoke(group, ["verify", str(lock), "--strict"])
    assert isinstance(done.exception, bundles.BundlesError)
    assert "recorded 1.0.0" in str(done.exception)
