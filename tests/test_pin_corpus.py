"""Bad locks, experiments, configs and deltas, by the public ways in; and what has to load for ever."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from safetensors.torch import load
from torch import nn

import bundles
from bundles import PinError
from bundles.cli.main import main
from bundles.registry.registry import Registry
from bundles.spec.canonical import card_digest
from corpus.case import Case
from corpus.configs import CONFIGS, EXPERIMENTS
from corpus.deltas import DELTAS, FILE, GIVEN, REBUILT
from corpus.pins import FOLDER, LOCKS
from hub import Hub
from hubbing import hub_at

CASES = [*CONFIGS, *EXPERIMENTS, *LOCKS, *DELTAS, *REBUILT, *GIVEN]
TINY = (FOLDER / "cards" / "tiny.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def _prepared(default: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle of the fixture is known, and what is slow only the first time was done."""
    bundles.register_cards(FOLDER / "cards")
    bundles.CREPE_TINY.get_model()
    monkeypatch.setattr("bundles.experiment.load._told", set())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the fixture's folder."""
    return Path(shutil.copytree(FOLDER, tmp_path / "lock-v1"))


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def build_all(path: Path) -> dict[str, nn.Module]:
    experiment = bundles.load_experiment(path)
    return {name: experiment[name].get_model() for name in experiment}


def refused(case: Case, act: object) -> None:
    """The act is refused in time, in our words, which hold no control characters and are not endless."""
    assert callable(act)
    assert case.error is not None
    start = time.process_time()
    with pytest.raises(case.error, match=case.words) as caught:
        act()
    assert time.process_time() - start < 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", str(caught.value))
    assert len(str(caught.value)) < 5_000


def test_every_row_is_here_and_every_id_once() -> None:
    ids = [case.id for case in CASES]
    assert sorted({each for each in ids if ids.count(each) > 1}) == []
    elsewhere = {int(name[6:8]) for name in globals() if re.match(r"test_l\d\d_", name)}
    assert {int(number[1:3]) for number in ids if number[0] == "L"} | elsewhere == set(range(1, 14))
    assert [case.id for case in CASES if case.outcome == "R" and not case.words] == []


@pytest.mark.parametrize("case", CONFIGS, ids=str)
def test_a_config_of_the_corpus_comes_out_as_expected(case: Case) -> None:
    if case.outcome == "R":
        refused(case, lambda: bundles.from_config(yaml.safe_load(case.data())))
    else:
        assert isinstance(bundles.from_config(yaml.safe_load(case.data())), nn.Module)


@pytest.mark.parametrize("case", EXPERIMENTS, ids=str)
def test_an_experiment_of_the_corpus_is_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_bytes(case.data())
    before = state(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bundles.UnpinnedSourceWarning)
        refused(case, lambda: build_all(path))
    with pytest.raises(SystemExit, match=r"^[12]$"):
        main(["lock", str(path)])
    assert state(tmp_path) == before


@pytest.mark.parametrize("case", LOCKS, ids=str)
def test_a_lock_of_the_corpus_comes_out_as_expected(case: Case, folder: Path) -> None:
    (folder / "speech.lock.toml").write_bytes(case.data())
    before = state(folder)
    path = folder / "speech.toml"
    if case.outcome == "R":
        refused(case, lambda: build_all(path))
        if case.error is PinError:
            with pytest.raises(SystemExit, match=r"^1$"):
                main(["lock", str(path)])
    elif case.outcome == "W":
        assert case.error is not None
        assert issubclass(case.error, Warning)
        with pytest.warns(case.error, match=case.words):
            build_all(path)
        with pytest.raises(bundles.PinMismatchError, match=case.words):
            bundles.load_experiment(path, strict=True)["head"].get_model()
    else:
        build_all(path)
    assert state(folder) == before


@pytest.mark.parametrize("case", [*DELTAS, *REBUILT], ids=str)
def test_a_delta_of_the_corpus_is_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    path.write_bytes(case.data())
    refused(case, lambda: bundles.load_delta(path))
    assert state(tmp_path) == {path.name: case.data()}


@pytest.mark.parametrize("case", [*DELTAS, *GIVEN], ids=str)
def test_a_delta_of_the_corpus_leaves_a_given_model_as_it_was(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    path.write_bytes(case.data())
    model = speech()
    before, trained = digest_of(model), trains(model)
    refused(case, lambda: bundles.load_delta(path, model))
    assert (digest_of(model), trains(model)) == (before, trained)
    assert bundles.freeze_plan(model) is None


@pytest.mark.parametrize("case", [*DELTAS, *REBUILT, *GIVEN], ids=str)
def test_a_delta_of_the_corpus_is_merged_or_refused(case: Case, tmp_path: Path) -> None:
    path, to = tmp_path / "delta.safetensors", tmp_path / "whole.safetensors"
    path.write_bytes(case.data())
    to.write_bytes(b"mine")
    with pytest.raises(SystemExit) as caught:  # never anything else
        main(["delta", "merge", str(path), "--to", str(to)])
    if caught.value.code != 0:
        assert to.read_bytes() == b"mine"
    else:
        assert load(to.read_bytes()).keys() == load(TINY).keys()


def test_l04_an_upstream_renaming_shows_the_names_that_moved(folder: Path, default: Registry) -> None:
    card = folder / "cards" / "card.toml"
    text = card.read_text().replace('match = ["encoder.feature_projection", ', "match = [")
    card.write_text(text.replace('head = "aux"', 'head = ["aux", "encoder.feature_projection"]'))
    bundles.register_cards(folder / "cards", override=True)
    with pytest.raises(
        bundles.PinMismatchError, match="The card of TINY_SPEECH is another one than was locked"
    ):
        bundles.load_experiment(folder / "speech.toml")["masked"].get_model()
    lock = folder / "speech.lock.toml"
    lock.write_text(
        re.sub(
            r"^card = .*$",
            f'card = "{card_digest(bundles.TINY_SPEECH)}"',
            lock.read_text(),
            flags=re.MULTILINE,
        )
    )
    with pytest.raises(
        bundles.PinMismatchError, match=r"feature_projection\..* was frozen and is not"
    ) as caught:
        bundles.load_experiment(folder / "speech.toml")["masked"].get_model()
    assert caught.value.moved


def test_l11_a_lock_that_others_may_change_is_used_with_a_warning(folder: Path) -> None:
    lock = folder / "speech.lock.toml"
    (folder / "link.lock.toml").symlink_to(lock)
    shutil.copy(folder / "speech.toml", folder / "link.toml")
    for name, words in (("link", "is a link"), ("speech", "is writable for everybody")):
        lock.chmod(0o666)
        with pytest.warns(bundles.UnpinnedSourceWarning, match=words):
            bundles.load_experiment(folder / f"{name}.toml")["pickled"].get_model()
        with pytest.warns(bundles.UnpinnedSourceWarning, match=words):
            bundles.get_model("CREPE_TINY", lock=folder / f"{name}.lock.toml")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Iterator[Hub]:
    """A hub of its own, and nothing in any cache."""
    with hub_at(tmp_path, monkeypatch) as hub:
        yield hub


def on_hub(folder: Path, repo: str, commit: str) -> Path:
    """An experiment with the fixture's bundle at that place on the hub, and its lock."""
    card = (FOLDER / "cards" / "card.toml").read_text().replace("TINY_SPEECH", "HUB_SPEECH")
    cards = folder / "hub-cards"
    cards.mkdir()
    address = f"hf:{repo}@{commit}#tiny.safetensors"
    (cards / "card.toml").write_text(card.replace("file:tiny.safetensors", address))
    bundles.register_cards(cards)
    path = folder / "hub.toml"
    path.write_text("[model]\nbundle = 'HUB_SPEECH'\nfreeze = true\n")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["lock", str(path)])
    return path


def relocked(path: Path, old: str, new: str) -> None:
    """Write another text into the lock of an experiment."""
    lock = path.with_name("hub.lock.toml")
    assert old in lock.read_text()
    lock.write_text(lock.read_text().replace(old, new))


def test_l12_a_commit_of_another_repository_is_not_found(hub: Hub, folder: Path) -> None:
    commit = hub.repo("owner/name").commit({"tiny.safetensors": TINY}, lfs={"tiny.safetensors"})
    hub.repo("owner/other").commit({"tiny.safetensors": TINY[:-1]})
    path = on_hub(folder, "owner/other", commit)
    with pytest.raises(bundles.SourceNotFoundError, match=rf"owner/other.*{commit}"):
        bundles.load_experiment(path).get_model()


def test_l13_an_alternate_with_other_bytes_is_passed_over(hub: Hub, folder: Path) -> None:
    commit = hub.repo("owner/name").commit({"tiny.safetensors": TINY}, lfs={"tiny.safetensors"})
    path = on_hub(folder, "owner/name", commit)
    repo = hub.repo("owner/bad")
    bad = repo.commit({"tiny.safetensors": TINY[:-1] + b"x"}, lfs={"tiny.safetensors"})
    good = hub.repo("owner/good").commit({"tiny.safetensors": TINY}, lfs={"tiny.safetensors"})
    gone = f'source = "hf:owner/name@{"0" * 40}#tiny.safetensors"\nalternates = ['
    lines = [f'"hf:owner/bad@{bad}#tiny.safetensors"', f'"hf:owner/good@{good}#tiny.safetensors"']
    source = f'source = "hf:owner/name@{commit}#tiny.safetensors"'
    relocked(path, source, f"{gone}{lines[0]}]")
    hub.delete("owner/name")
    with pytest.raises(
        bundles.SourceError, match=r"None of its alternates helps: .*owner/bad.*(another file|sha256)"
    ):
        bundles.load_experiment(path).get_model()
    relocked(path, lines[0], ", ".join(lines))
    assert digest_of(bundles.load_experiment(path).get_model()) == digest_of(load(TINY))


# --- what was written by the first version --------------------------------------------------------


def speech() -> nn.Module:
    torch.manual_seed(1)
    return bundles.get_model("TINY_SPEECH", head=lambda n: nn.Linear(n, 5))


def trains(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def digest_of(model: nn.Module | dict[str, torch.Tensor], without: str = "-") -> str:
    """A digest over the tensors of a model, those of one module aside."""
    digest = hashlib.sha256()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    for name, tensor in sorted(state.items()):
        if not name.startswith(without):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def test_a_lock_of_version_1_loads() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bundles.VersionMismatchWarning)
        models = build_all(FOLDER / "speech.toml")
    stored = {name: tensor for name, tensor in load(TINY).items() if not name.startswith("aux.")}
    found = {name: digest_of(model, "aux." if name == "head" else "-") for name, model in models.items()}
    assert found == {
        "head": digest_of(stored),
        "masked": digest_of({name: tensor.double() for name, tensor in load(TINY).items()}),
        "package": "bbab8d9372e256d8",
        "pickled": "173bfb7ee7fd8e65",
    }
    trained = {name: len(trains(model)) for name, model in models.items()}
    assert trained == {"head": 2, "masked": 20, "package": 75, "pickled": 26}


def test_a_delta_of_version_1_loads() -> None:
    model = bundles.load_delta(FILE)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1.0)
    bundles.load_delta(FILE, model, optimizer=optimizer)
    assert digest_of(model) == "41a8b5f5a218980e"
    layer = "encoder.transformer.layers.1.final_layer_norm"
    assert trains(model) == [f"{layer}.weight", f"{layer}.bias", "aux.weight", "aux.bias"]
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(optimizer.state) == 4
    plan = bundles.freeze_plan(model)
    assert plan is not None
    assert plan.masks[f"{layer}.weight"].count == 8
