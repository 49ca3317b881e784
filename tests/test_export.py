"""Export and push: a folder of its own that gives the same model, bit for bit."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from click.testing import CliRunner
from safetensors import safe_open
from torch import nn

import bundles
from bundles.assemble.describe import card_of, layers_of, without_null
from bundles.cli.main import group, main
from bundles.errors import BuildError, CacheError, CardError, ChecksumError, StateDictMismatchError
from bundles.registry.cards import read_card_file, to_bundle
from bundles.registry.schema import problems_of
from bundles.spec.bundle import Bundle
from bundles.spec.groups import LayerGroups, match_layers, parse_rules
from bundles.spec.keys import KeyMap
from bundles.spec.values import plain_value
from hub import TOKEN, Hub

hf: Any = transformers
FRAMES = torch.randn(3, 1024, generator=torch.Generator().manual_seed(1))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what is exported is what is read back -------------------------------------------------------


def test_an_exported_bundle_gives_the_same_outputs_and_the_same_plan(tmp_path: Path) -> None:
    folder = bundles.export("CREPE_TINY", tmp_path / "crepe")
    found = bundles.get_bundle(f"file:{folder}")
    ours, theirs = found.get_model(), bundles.CREPE_TINY.get_model()
    assert same_state(ours, theirs)
    assert torch.equal(ours(FRAMES), theirs(FRAMES))
    assert found.plan() == bundles.CREPE_TINY.plan()
    assert found.metadata == bundles.CREPE_TINY.metadata
    assert (found.head_slot, found.num_features) == ("classifier", 256)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (bundles.export("CREPE_TINY", tmp_path / name) for name in ("one", "two"))
    assert snapshot(one) == snapshot(two)
    assert sorted(snapshot(one)) == ["bundle.toml", "model.safetensors"]


def test_the_card_passes_the_parser_and_names_digest_and_size(tmp_path: Path) -> None:
    folder = bundles.export("CREPE_TINY", tmp_path / "crepe")
    found = read_card_file(str(folder / "bundle.toml"))
    assert found.problems == []
    weights = found.cards["CREPE_TINY"]["weights"]
    assert weights["source"] == "file:model.safetensors"
    (folder / "model.safetensors").chmod(0o644)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(ChecksumError, match=f"expected sha256 {weights['sha256']}"):
        bundles.get_bundle(f"file:{folder}").get_model()


def test_the_weights_are_mapped_and_say_that_they_are_torchs(tmp_path: Path) -> None:
    folder = bundles.export("CREPE_TINY", tmp_path / "crepe")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(bundles.CREPE_TINY.get_model().state_dict())
    assert (folder / "model.safetensors").stat().st_mode & 0o222 == 0


def test_a_model_that_was_trained_frozen_is_exported_as_it_is(tmp_path: Path) -> None:
    model = bundles.CREPE_TINY.get_model(freeze="last:2").train()
    optimizer = torch.optim.AdamW(filter(lambda p: p.requires_grad, model.parameters()), lr=0.1)
    model(FRAMES).sum().backward()
    optimizer.step()
    folder = bundles.export("CREPE_TINY", tmp_path / "tuned", model=model, name="MY_CREPE")
    assert model.training
    again = bundles.get_bundle(f"file:{folder}").get_model()
    assert same_state(again, model)
    assert torch.equal(again(FRAMES), model.eval()(FRAMES))
    assert "[MY_CREPE]" in (folder / "bundle.toml").read_text()


WAV2VEC2 = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [[8, 10, 5], [8, 8, 4]],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 16,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 32,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.1,
    "aux_num_out": 7,
    "normalize": "batch",
}


def small_wav2vec2(**changes: Any) -> Bundle:
    """A bundle of a family whose builder wraps the model, so that it has a prefix."""
    wrapped: Bundle = bundles.WAV2VEC2_ASR_LARGE_LV60K_960H
    return replace(
        wrapped,
        name="SMALL",
        weights=None,
        architecture={**WAV2VEC2, **changes},
        num_features=16,
        keys=KeyMap(),
    )


def test_a_bundle_with_a_prefix_is_exported_without_one(tmp_path: Path) -> None:
    bundle = small_wav2vec2(log_softmax=False)
    assert bundle.prefix
    model = bundle.get_model(pretrained=False)
    folder = bundles.export(bundle, tmp_path / "small", model=model)
    found = bundles.get_bundle(f"file:{folder}")
    waves = torch.randn(2, 4000)
    again = found.get_model()
    assert torch.equal(again(waves)[0], model.eval()(waves)[0])
    assert found.prefix == ""
    assert found.plan(freeze="last:1").trainable == bundle.plan(freeze="last:1").trainable
    assert found.get_labels() == bundle.get_labels()
    assert found.get_model(head=nn.Linear(16, 3))(waves)[0].shape[-1] == 3


def test_a_new_head_is_exported_under_a_bundle_that_has_it(tmp_path: Path) -> None:
    tuned = small_wav2vec2().get_model(pretrained=False, head=nn.Linear(16, 3))
    with pytest.raises(StateDictMismatchError, match=r"aux.weight .*dataclasses.replace") as caught:
        bundles.export(small_wav2vec2(), tmp_path / "no", model=tuned)
    assert len(caught.value.mismatched) == 2
    assert list(tmp_path.iterdir()) == []
    folder = bundles.export(small_wav2vec2(aux_num_out=3), tmp_path / "yes", model=tuned)
    assert same_state(bundles.get_bundle(f"file:{folder}").get_model(), tuned)


def bert(**more: Any) -> Any:
    config = hf.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=50,
        **more,
    )
    return hf.BertForMaskedLM(config).eval()


def t5() -> Any:
    config = hf.T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
    return hf.T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("make", [bert, t5], ids=["bert", "t5"])
def test_a_repository_is_exported_with_its_ties_stored_once(make: Callable[[], Any], tmp_path: Path) -> None:
    upstream = make()
    upstream.save_pretrained(tmp_path / "upstream")
    bundle = bundles.get_bundle(f"file:{tmp_path / 'upstream'}")
    folder = bundles.export(bundle, tmp_path / "exported")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    state = upstream.state_dict(keep_vars=True)
    assert len(stored) == len({id(tensor) for tensor in state.values()}) < len(state)
    found = bundles.get_bundle(f"file:{folder}")
    again: Any = found.get_model()
    assert type(again) is type(upstream)
    first: Any = bundle.get_model()
    assert again.config.to_dict() == first.config.to_dict()
    words = {"input_ids": torch.arange(6)[None] + 3}
    if "t5" in str(type(upstream)).lower():
        words["decoder_input_ids"] = torch.arange(4)[None]
    assert torch.equal(again(**words).logits, upstream(**words).logits)
    assert found.plan(freeze="last:1") == bundle.plan(freeze="last:1")


def test_a_vision_repository_is_exported(tmp_path: Path) -> None:
    config = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
    )
    upstream = hf.ViTForImageClassification(config).eval()
    upstream.save_pretrained(tmp_path / "upstream")
    folder = bundles.export(f"file:{tmp_path / 'upstream'}", tmp_path / "exported", name="VIT")
    images = torch.randn(1, 3, 32, 32)
    again: Any = bundles.get_bundle(f"file:{folder}").get_model()
    assert torch.equal(again(images).logits, upstream(images).logits)


def test_an_image_model_of_timm_is_exported_with_its_preprocessing(tmp_path: Path) -> None:
    upstream = timm.create_model("test_resnet", num_classes=10).eval()
    timm.models.save_for_hf(upstream, str(tmp_path / "upstream"), safe_serialization=True)
    bundle = bundles.get_bundle(f"file:{tmp_path / 'upstream'}")
    found = bundles.get_bundle(f"file:{bundles.export(bundle, tmp_path / 'exported')}")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(found.get_model()(images), upstream(images))
    assert str(found.transforms()) == str(bundle.transforms())
    assert found.plan() == bundle.plan()


@pytest.mark.parametrize("name", bundles.list_bundles())
def test_every_built_in_bundle_can_be_written_as_a_card(name: str) -> None:
    bundle = bundles.get_bundle(name)
    card = card_of(bundle, LayerGroups(()))
    assert list(problems_of(card)) == []
    again = to_bundle(name, card, "card.toml")
    assert again.metadata == bundle.metadata
    assert again.rules == bundle.rules
    assert (again.default_policy, again.default_mode) == (bundle.default_policy, bundle.default_mode)
    assert plain_value(again.architecture) == without_null(plain_value(bundle.architecture))
    assert again.num_features == bundle.num_features
    assert again.head_slot == (bundle.prefix + bundle.head_slot if bundle.head_slot else None)


# --- assets, metadata, layers ---------------------------------------------------------------------


def test_assets_go_along_under_names_of_their_own(tmp_path: Path) -> None:
    places = {}
    for key, text in (("a", "one"), ("b", "two"), ("c", "three")):
        (tmp_path / key).mkdir()
        places[key] = tmp_path / key / ("model.safetensors" if key == "c" else "tokens.txt")
        places[key].write_text(text)
    assets = {key: bundles.WeightSource(f"file:{path}") for key, path in places.items()}
    folder = bundles.export(replace(bundles.CREPE_TINY, assets=assets), tmp_path / "out")
    names = ["a", "b", "c"]
    found = bundles.get_bundle(f"file:{folder}").assets
    assert [Path(found[name].address).read_text() for name in names] == ["one", "two", "three"]
    assert [Path(found[name].address).name for name in names] == [
        "tokens.txt",
        "b-tokens.txt",
        "c-model.safetensors",
    ]
    assert all(found[name].sha256 for name in names)


def test_metadata_that_a_card_has_no_place_for_are_left_out(tmp_path: Path) -> None:
    odd = {"recorded_in": "studio 2", "tags": ("a", "b"), "labels": ("x", "y"), "paper": ""}
    bundle = replace(bundles.CREPE_TINY, metadata={**bundles.CREPE_TINY.metadata, **odd})
    found = bundles.get_bundle(f"file:{bundles.export(bundle, tmp_path / 'out')}")
    assert (found.recorded_in, found.labels) == ("studio 2", ("x", "y"))
    assert "tags" not in found.metadata


@pytest.mark.parametrize("name", ["small", "RESNET18_IMAGENET1K_V1"])
def test_derived_layers_are_said_as_patterns(name: str) -> None:
    bundle = replace(small_wav2vec2() if name == "small" else bundles.get_bundle(name), layers={})
    groups = bundles.layer_groups(bundle.get_model(pretrained=False, device="meta"))
    assert len(groups.blocks) > 1
    said = match_layers(parse_rules(layers_of(bundle, groups)), [n for g in groups for n in g.parameters])
    assert [(g.name, g.role, set(g.parameters)) for g in said] == [
        (g.name, g.role, set(g.parameters)) for g in groups
    ]


def test_derived_layers_that_no_pattern_says_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"no pattern says its blocks, block.0, .*: give it layers="):
        bundles.export(replace(bundles.CREPE_TINY, layers={}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bundle", "words"),
    [
        (Bundle("MY", builder=lambda: nn.Linear(2, 2)), "its builder is a function"),
        (
            replace(bundles.CREPE_TINY, default_policy=bundles.Encoder() & ~bundles.Match("*.bias")),
            r"freeze=Encoder\(\) & ~Match\('\*.bias'\) is no word",
        ),
        (
            replace(bundles.CREPE_TINY, default_mode=bundles.FreezeMode(noise="on", stats="follow")),
            "is no preset",
        ),
    ],
    ids=["function", "policy", "mode"],
)
def test_what_a_card_cannot_say_is_refused_before_anything_is_written(
    bundle: Bundle, words: str, tmp_path: Path
) -> None:
    with pytest.raises(CardError, match=words):
        bundles.export(bundle, tmp_path / "out", model=bundles.CREPE_TINY.get_model(pretrained=False))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", ["encoder", "last:2", "first:3", "blocks:0-2,5", "match:conv1*", "all"])
def test_every_policy_that_has_a_word_is_kept(policy: str, tmp_path: Path) -> None:
    bundle = replace(bundles.CREPE_TINY, default_policy=policy, default_mode="features")
    model = bundles.CREPE_TINY.get_model(pretrained=False)
    found = bundles.get_bundle(f"file:{bundles.export(bundle, tmp_path / 'out', model=model)}")
    assert (found.default_policy, found.default_mode) == (bundle.default_policy, bundle.default_mode)


# --- whole or not at all --------------------------------------------------------------------------


def test_a_default_policy_that_the_model_has_no_blocks_for_is_refused(tmp_path: Path) -> None:
    to = str(tmp_path / "out")
    with pytest.raises(bundles.FreezeArgumentError, match="needs 77 blocks and the model has 6"):
        group(["export", "CREPE_TINY", "--to", to, "--freeze", "last:77"], standalone_mode=False)
    assert not os.path.exists(to)


def test_a_folder_that_is_not_empty_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is not empty: name another one, or .*--force"):
        bundles.export("CREPE_TINY", tmp_path)
    assert snapshot(tmp_path) == {"diary.txt": b"mine"}
    bundles.export("CREPE_TINY", tmp_path, force=True)
    assert sorted(snapshot(tmp_path)) == ["bundle.toml", "diary.txt", "model.safetensors"]
    bundles.export("CREPE_TINY", tmp_path, force=True, name="AGAIN")
    assert bundles.get_bundle(f"file:{tmp_path}").get_model() is not None
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (bundles.export("CREPE_TINY", tmp_path / "empty") / "bundle.toml").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file"):
        bundles.export("CREPE_TINY", tmp_path / "file")


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = {"tokens": bundles.WeightSource("file:/no/such/file")}
    with pytest.raises(FileNotFoundError, match="/no/such/file"):
        bundles.export(replace(bundles.CREPE_TINY, assets=asset), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_it_writes_leaves_no_folder_of_that_name(tmp_path: Path) -> None:
    code = (
        "import os, sys, bundles\n"
        "import bundles.assemble.export as e\n"
        "e._write_card = lambda *_: os.kill(os.getpid(), 9)\n"
        "bundles.export('CREPE_TINY', sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False, timeout=60)
    assert done.returncode == -9
    assert not (tmp_path / "out").exists()
    assert (bundles.export("CREPE_TINY", tmp_path / "out") / "bundle.toml").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_place_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(CacheError, match="cannot be written"):
        bundles.export("CREPE_TINY", tmp_path / "out")


def test_a_place_below_a_file_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"out cannot be written \(.*\): name another one"):
        bundles.export("CREPE_TINY", tmp_path / "file" / "out")


def test_models_that_no_file_can_hold_are_refused(tmp_path: Path) -> None:
    model = bundles.CREPE_TINY.get_model(pretrained=False, device="meta")
    with pytest.raises(BuildError, match=r"cannot hold .*conv1"):
        bundles.export("CREPE_TINY", tmp_path / "out", model=model)
    with pytest.raises(CardError, match=r"'2 fast' is not a name"):
        bundles.export("CREPE_TINY", tmp_path / "out", name="2 fast")


def test_a_copy_of_a_frozen_model_in_a_wrapper_is_exported(tmp_path: Path) -> None:
    model = copy.deepcopy(bundles.CREPE_TINY.get_model(freeze=True))
    folder = bundles.export("CREPE_TINY", tmp_path / "out", model=nn.DataParallel(model))
    assert same_state(bundles.get_bundle(f"file:{folder}").get_model(), model)


# --- the command line -----------------------------------------------------------------------------


def test_the_command_writes_a_folder_and_sets_the_default_policy(tmp_path: Path) -> None:
    to = str(tmp_path / "out")
    done = CliRunner().invoke(
        group, ["export", "CREPE_TINY", "--to", to, "--freeze", "last:2", "--name", "MINE"]
    )
    assert done.exit_code == 0, done.output
    assert f"{to}/model.safetensors (2.0 MB)" in done.stdout
    assert bundles.get_bundle(f"file:{to}").default_policy == bundles.ExceptLast(2)
    again = CliRunner().invoke(group, ["export", "CREPE_TINY", "--to", to])
    assert again.exit_code == 2
    assert "is not empty" in again.output
    assert CliRunner().invoke(group, ["export", "CREPE_TINY", "--to", to, "--force"]).exit_code == 0


# --- push -----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        for name, value in running.env(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield running


def test_a_pushed_bundle_is_had_back_by_its_address(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    main_ok(["push", "CREPE_TINY", "me/crepe", "--message", "First"])
    address = capsys.readouterr().out.strip()
    assert address.startswith("hf:me/crepe@")
    again = bundles.get_model(address)
    assert torch.equal(again(FRAMES), bundles.CREPE_TINY.get_model()(FRAMES))


def test_an_exported_folder_is_pushed_as_it_is(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = bundles.export("CREPE_TINY", tmp_path / "out")
    main_ok(["push", str(folder), "me/private", "--private"])
    address = capsys.readouterr().out.strip()
    commit = address.rpartition("@")[2]
    files = hub.repos["me/private"].commits[commit]
    assert {name: file.data for name, file in files.items() if name != ".gitattributes"} == snapshot(folder)
    assert hub.repos["me/private"].is_private


@pytest.mark.parametrize("repo", ["crepe", "me/crepe@main", "me/crepe#x", "../me/crepe", "me/"])
def test_a_repository_that_has_no_such_name_is_refused(
    repo: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["push", "CREPE_TINY", repo])
    assert "owner/" in capsys.readouterr().err
    assert hub.requests == []


def test_who_is_not_logged_in_is_told_how(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["push", "CREPE_TINY", "me/crepe"])
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert "hf auth login" in told.err
    assert told.out == ""


def test_a_broken_card_is_not_pushed(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle.toml").write_text("[MY]\nbuilder = 'evil.module'\n")
    with pytest.raises(SystemExit):
        main(["push", str(tmp_path), "me/crepe"])
    assert "is not a builder" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.parametrize("switch", ["BUNDLES_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_pushed_and_nobody_asked(
    switch: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv(switch, "1")
    with pytest.raises(SystemExit):
        main(["push", "CREPE_TINY", "me/crepe"])
    assert "Nothing is uploaded while BUNDLES_OFFLINE" in capsys.readouterr().err
    assert hub.requests == []


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
