"""Sharded checkpoints: an index, the files beside it, and everything that can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bundles
from bundles.assemble.weights import fetch_weights, read_weights
from bundles.builders import index as index_module
from bundles.builders.index import read_index
from bundles.builders.load import LoadReport
from bundles.sources.verify import sha256_of
from bundles.spec.source import WeightSource
from test_weights import is_mapped, on_linux

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


@pytest.fixture
def model() -> nn.Module:
    return make()


@pytest.fixture
def folder(tmp_path: Path, model: nn.Module) -> Path:
    """A sharded checkpoint of ``model``, as ``save_pretrained`` writes one."""
    state = model.state_dict()
    parts = {FIRST: ["0.weight", "0.bias"], SECOND: ["1.weight", "1.bias"]}
    for shard, names in parts.items():
        save_file({name: state[name] for name in names}, tmp_path / shard, metadata={"format": "pt"})
    places = {name: shard for shard, names in parts.items() for name in names}
    total = sum(tensor.nbytes for tensor in state.values())
    write(tmp_path, {"metadata": {"total_size": total}, "weight_map": places})
    return tmp_path


def write(folder: Path, entries: object) -> None:
    (folder / INDEX).write_text(json.dumps(entries))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit what an index says."""
    entries = json.loads((folder / INDEX).read_text())
    edit(entries)
    write(folder, entries)


def source(folder: Path, **facts: Any) -> WeightSource:
    return WeightSource(f"file:{folder / INDEX}", **facts)


def facts_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        shard: {"sha256": sha256_of(folder / shard), "size": (folder / shard).stat().st_size}
        for shard in (FIRST, SECOND)
    }


def load(folder: Path, **facts: Any) -> nn.Module:
    bundle = bundles.Bundle("SHARDED", builder=make, weights=source(folder, **facts))
    return bundle.get_model()


def load_into(folder: Path) -> LoadReport:
    return bundles.load_into(make(), folder / INDEX)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- what works -----------------------------------------------------------------------------------


def test_a_sharded_checkpoint_loads_as_a_whole_one(folder: Path, model: nn.Module) -> None:
    assert same(load(folder), model)


def test_digests_of_index_and_shards_are_checked(folder: Path, model: nn.Module) -> None:
    assert same(load(folder, sha256=sha256_of(folder / INDEX), shards=facts_of(folder)), model)


@pytest.mark.parametrize(
    "give", [Path, str, lambda path: f"file:{path}", lambda p: WeightSource(f"file:{p}")]
)
def test_load_into_takes_an_index(folder: Path, model: nn.Module, give: Callable[[Path], Any]) -> None:
    into = nn.Sequential(make(), nn.Linear(2, 1))
    report = bundles.load_into(into, give(folder / INDEX), prefix="0", freeze="loaded")
    assert same(into[0], model)
    assert len(report.loaded) == 4
    assert [parameter.requires_grad for parameter in into.parameters()] == [False] * 4 + [True] * 2


@on_linux
def test_shards_that_nobody_may_write_are_mapped(folder: Path) -> None:
    for shard in (FIRST, SECOND):
        (folder / shard).chmod(0o444)
    tensors, is_writable = read_weights(source(folder))
    assert not is_writable
    assert all(
        is_mapped(tensor, folder / (FIRST if n[0] == "0" else SECOND)) for n, tensor in tensors.items()
    )
    (folder / SECOND).chmod(0o644)
    tensors, is_writable = read_weights(source(folder))
    assert is_writable
    assert not is_mapped(tensors["1.weight"], folder / SECOND)


def test_one_writable_shard_is_copied(folder: Path, model: nn.Module) -> None:
    loaded = load(folder)
    save_file({"1.weight": torch.zeros(2, 8), "1.bias": torch.zeros(2)}, folder / SECOND)
    assert same(loaded, model)


def test_the_order_is_that_of_names_whatever_the_shards(folder: Path) -> None:
    names = list(read_weights(source(folder))[0])
    assert names == sorted(names) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_an_index_without_metadata_or_with_a_whole_float_is_read(folder: Path, model: nn.Module) -> None:
    change(folder, lambda entries: entries["metadata"].update(total_size=float(58 * 4)))
    assert same(load(folder), model)
    change(folder, lambda entries: entries.pop("metadata"))
    assert same(load(folder), model)


def test_fetching_an_index_gives_the_index(folder: Path) -> None:
    assert fetch_weights(source(folder)) == folder / INDEX


def test_what_transformers_writes_is_read_bit_for_bit(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = bundles.Bundle("BERT", builder=lambda: BertModel(config), weights=source(tmp_path)).get_model()
    theirs = BertModel.from_pretrained(tmp_path)
    theirs.train(False)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)


def test_a_tied_tensor_may_be_listed_under_names_that_no_file_holds(tmp_path: Path) -> None:
    """As in what the Hub's converter made of sharded pickles: two names dropped, and counted all the same."""
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2)
    config.pad_token_id = config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(tmp_path, max_shard_size="20KB")
    entries = json.loads((tmp_path / INDEX).read_text())
    shared = entries["weight_map"]["shared.weight"]
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        assert name not in entries["weight_map"]
        entries["weight_map"][name] = shared
        entries["metadata"]["total_size"] += 64 * 32 * 4
    write(tmp_path, entries)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path)
    theirs.train(False)
    ours = bundles.get_model(f"file:{tmp_path}")
    assert same(ours, theirs)
    into = T5EncoderModel(config)
    report = bundles.load_into(into, tmp_path / INDEX)
    assert report.missing == ()
    assert torch.equal(into.shared.weight, theirs.shared.weight)


def test_a_tensor_that_no_file_holds_is_missing(folder: Path) -> None:
    save_file({"1.weight": torch.zeros(2, 8)}, folder / SECOND)
    change(folder, lambda entries: entries.pop("metadata"))
    with pytest.raises(bundles.StateDictMismatchError, match=r"missing in the file: 1\.bias"):
        load(folder)
    into = make()
    assert bundles.load_into(into, folder / INDEX).missing == ("1.bias",)


def test_a_tensor_that_the_index_forgot_is_there(folder: Path, model: nn.Module) -> None:
    change(folder, lambda entries: entries["weight_map"].pop("1.bias"))
    assert same(load(folder), model)


# --- what is refused (S25) ------------------------------------------------------------------------


def no_shard(folder: Path) -> None:
    (folder / SECOND).unlink()


def elsewhere(name: object) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda entries: entries["weight_map"].update({"1.bias": name}))


def in_two(folder: Path) -> None:
    save_file({**load_file(folder / FIRST), "1.bias": torch.zeros(2)}, folder / FIRST)


def in_two_entries(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"0.bias"', f'"1.bias": "{FIRST}", "0.bias"'))


def in_two_and_not_listed(folder: Path) -> None:
    change(folder, lambda entries: entries["weight_map"].pop("1.bias"))
    in_two(folder)


def total(value: object) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda entries: entries["metadata"].update(total_size=value))


def content(value: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / INDEX).write_text(value)

    return replace


def damaged(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])


def a_page(folder: Path) -> None:
    (folder / SECOND).write_text("<!DOCTYPE html><title>502</title>")


OUTSIDE = "which is not the plain name of a file beside the index"
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing shard": (no_shard, f"names {SECOND}, which is not there"),
    "shard above": (elsewhere(f"../{SECOND}"), rf"'1.bias' is in '\.\./{SECOND}', {OUTSIDE}"),
    "shard below": (elsewhere(f"a/{SECOND}"), OUTSIDE),
    "absolute shard": (elsewhere("/etc/passwd"), OUTSIDE),
    "shard on a drive": (elsewhere("C:\\x.safetensors"), OUTSIDE),
    "shard of backslashes": (elsewhere("..\\x.safetensors"), OUTSIDE),
    "shard with a NUL": (elsewhere("a\0.safetensors"), OUTSIDE),
    "shard without a name": (elsewhere(""), OUTSIDE),
    "number for a shard": (elsewhere(2), OUTSIDE),
    "pickle for a shard": (elsewhere("pytorch_model.bin"), "which is no safetensors file"),
    "tensor in two shards": (in_two, rf"says that 1.bias is in {SECOND}, and \S*{FIRST} holds it"),
    "tensor in two entries": (in_two_entries, r"holds the key '1\.bias' twice"),
    "tensor in two shards and not listed": (in_two_and_not_listed, "1.bias is in .* and in another shard"),
    "total_size too large": (total(233), "says total_size = 233, and the shards hold 232 bytes"),
    "total_size negative": (total(-1), r"total_size = -1, which is no number of bytes"),
    "total_size of text": (total("232"), r"total_size = '232', which is no number of bytes"),
    "total_size true": (total(True), "total_size = True, which is no number of bytes"),
    "truncated shard": (damaged, f"{SECOND} is damaged"),
    "web page for a shard": (a_page, f"{SECOND} is an HTML page"),
    "empty": (content(""), "is empty and cannot be read as JSON"),
    "web page": (content("<!doctype html>"), "is an HTML page and cannot be read as JSON"),
    "list": (content("[]"), "is no table"),
    "no weight_map": (content("{}"), "has no weight_map"),
    "empty weight_map": (content('{"weight_map": {}}'), "has no weight_map"),
    "weight_map of text": (content('{"weight_map": "all"}'), "has no weight_map"),
    "nested deep": (content("[" * 100_000), "cannot be read as JSON"),
}


@pytest.mark.parametrize("read", [load, load_into], ids=["get_model", "load_into"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_index_is_refused_with_what_is_wrong(
    folder: Path, case: str, read: Callable[[Path], object]
) -> None:
    spoil, words = WRONG[case]
    spoil(folder)
    with pytest.raises(bundles.WeightsFileError, match=words):
        read(folder)


def test_an_index_in_another_encoding_is_refused(folder: Path) -> None:
    (folder / INDEX).write_bytes((folder / INDEX).read_text().encode("utf-16"))
    with pytest.raises(bundles.WeightsFileError, match="cannot be read as JSON"):
        load(folder)


def test_an_index_too_large_is_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_LARGEST", 1 << 20)
    (folder / INDEX).write_text(" " * (1 << 20) + "{}")
    with pytest.raises(bundles.WeightsFileError, match="has more than 1 MiB, which no index has"):
        read_index(folder / INDEX)


def test_too_many_shards_are_refused(folder: Path) -> None:
    change(folder, lambda e: e.update(weight_map={f"w{n}": f"m{n}.safetensors" for n in range(10_001)}))
    with pytest.raises(bundles.WeightsFileError, match="names more than 10000 files"):
        load(folder)


@pytest.mark.parametrize("shard", [FIRST, SECOND])
def test_another_shard_than_the_pinned_one_is_refused(folder: Path, shard: str) -> None:
    facts = facts_of(folder)
    state = load_file(folder / shard)
    save_file({name: tensor + 1 for name, tensor in state.items()}, folder / shard, metadata={"format": "pt"})
    with pytest.raises(bundles.ChecksumError, match=f"{shard} is not what file:.* pins"):
        load(folder, shards=facts)


def test_another_index_than_the_pinned_one_is_refused(folder: Path) -> None:
    with pytest.raises(bundles.ChecksumError, match=r"index\.json is not what"):
        load(folder, sha256="0" * 64)


def test_a_sharded_checkpoint_of_another_model_is_refused_with_every_difference(folder: Path) -> None:
    wrong = bundles.Bundle("OTHER", builder=lambda: nn.Linear(4, 8), weights=source(folder))
    with pytest.raises(bundles.StateDictMismatchError, match="missing in the file: bias, weight") as caught:
        wrong.get_model()
    assert caught.value.unexpected == ("0.bias", "0.weight", "1.bias", "1.weight")
