"""The store of features: what is written comes back bit for bit, and whatever is damaged is named."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from bundles.errors import CacheError, FeatureError, FeatureStoreError
from bundles.features.store.manifest import Manifest, read_manifest, write_manifest
from bundles.features.store.reader import ShardReader
from bundles.features.store.shard import Shard, check_shard, find_shard, shard_name, write_shard
from bundles.features.store.store import FeatureStore
from bundles.spec.features import FeatureFacts

FACTS = FeatureFacts("state:00", None, ("output",), "float16", {"kind": "frames"})
Features = Sequence[dict[str, Tensor]]


def identity(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def ragged(count: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"output": torch.randn(3 + 5 * i % 7, 4, generator=generator).to(dtype)} for i in range(count)]


def build(
    folder: Path, items: Features, *, size: int = 4, facts: FeatureFacts = FACTS, names: Sequence[str] = ()
) -> Manifest:
    """Write a store of these items, cut into windows of this size."""
    names = names or [f"item {i}" for i in range(len(items))]
    shards = []
    for window, start in enumerate(range(0, len(items), size)):
        cut = slice(start, start + size)
        identities = [identity(name) for name in names[cut]]
        name = shard_name(window, facts.key, identities)
        shards.append(write_shard(folder, name, names[cut], identities, items[cut]))
    manifest = Manifest(facts, "state", len(items), size, tuple(shards))
    write_manifest(folder, manifest)
    return manifest


def rewrite(path: Path, content: bytes) -> None:
    """Change a file of a store, which is read-only, in place."""
    path.chmod(0o644)
    path.write_bytes(content)


def same(first: Tensor, second: Tensor) -> bool:
    """Whether bits, shape and dtype are equal; NaN is equal to itself."""
    kinds = first.dtype == second.dtype and first.shape == second.shape
    return kinds and torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


# --- what is written comes back -----------------------------------------------------------------


@st.composite
def stores(draw: st.DrawFn) -> tuple[list[str], list[dict[str, Tensor]], str]:
    dtype = draw(st.sampled_from(["float16", "bfloat16", "float32"]))
    count = draw(st.integers(0, 7))
    ranks = {layer: draw(st.integers(1, 4)) for layer in draw(st.sampled_from([["output"], ["b.0", "b.1"]]))}
    rest = {layer: draw(st.lists(st.integers(0, 3), min_size=rank - 1, max_size=rank - 1)) for layer, rank in
            ranks.items()}  # fmt: skip
    is_equal = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    items = [
        {
            layer: torch.randn(
                [3 if is_equal else draw(st.integers(0, 5)), *rest[layer]], generator=generator
            ).to(getattr(torch, dtype))
            for layer in ranks
        }
        for _ in range(count)
    ]
    every = st.characters()  # lone surrogates among them, as file names that are no text have
    names = [draw(st.text(every | st.characters(categories=["Cs"]), max_size=5)) for _ in range(count)]
    return names, items, dtype


@settings(max_examples=40, deadline=None)
@given(stores(), st.integers(1, 4))
def test_whatever_is_stored_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    content: tuple[list[str], list[dict[str, Tensor]], str],
    size: int,
) -> None:
    names, items, dtype = content
    folder = tmp_path_factory.mktemp("store")
    layers = tuple(items[0]) if items else ("output",)
    build(folder, items, size=size, names=names, facts=replace(FACTS, layers=layers, dtype=dtype))
    store = FeatureStore(folder)
    assert (len(store), store.names, store.layers) == (len(items), tuple(names), layers)
    for i, (name, item) in enumerate(zip(names, items, strict=True)):
        assert all(same(store.read(i, layer), item[layer]) for layer in layers)
        assert store.find(identity(name)) == names.index(name)
    store.verify()


def test_any_safetensors_reader_can_open_a_shard(tmp_path: Path) -> None:
    items = [
        {"block.0": torch.randn(n, 3), "pooled": torch.randn(5), "tokens": torch.randn(n)} for n in (2, 0, 4)
    ]
    names, identities = ["a", "", "ü"], [identity(text) for text in "abc"]
    shard = write_shard(tmp_path, "00000-0123456789abcdef.safetensors", names, identities, items)
    with safe_open(tmp_path / shard.name, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        assert file.metadata() == {"format": "pt", "sha256": shard.sha256}
    assert same(found.pop("block.0"), torch.cat([item["block.0"] for item in items]))
    assert same(found.pop("pooled"), torch.stack([item["pooled"] for item in items]))
    assert same(found.pop("tokens"), torch.cat([item["tokens"] for item in items]))
    assert [found.pop(f"offsets:{name}").tolist() for name in ("block.0", "tokens")] == [[0, 2, 2, 6]] * 2
    assert bytes(found.pop("items:identities").flatten().tolist()) == b"".join(identities)
    assert bytes(found.pop("items:names").tolist()) == "aü".encode()
    assert found.pop("items:name_offsets").tolist() == [0, 1, 1, 3]
    assert found == {}


def test_equal_contents_give_equal_files_and_a_changed_one_another_digest(tmp_path: Path) -> None:
    first = build(tmp_path / "a", ragged(9))
    views = [{"output": item["output"].t().contiguous().t()} for item in ragged(9)]  # other strides
    second = build(tmp_path / "b", views)
    assert first == second
    assert first.digest == second.digest
    for shard in first.shards:
        assert (tmp_path / "a" / shard.name).read_bytes() == (tmp_path / "b" / shard.name).read_bytes()
    changed = ragged(9)
    changed[8]["output"][0, 0] += 1
    assert build(tmp_path / "c", changed).digest != first.digest


@pytest.mark.parametrize("rows", [1, 4096, 4097, 9000])
def test_the_digest_of_a_shard_is_what_the_documentation_says(rows: int, tmp_path: Path) -> None:
    items = [{"output": torch.randn(rows, 256)}, {"output": torch.randn(2, 256)}]  # 4 MiB are 4096 rows
    shard = write_shard(tmp_path, "00000-0123456789abcdef.safetensors", ["a", "b"], [bytes(32)] * 2, items)
    data = (tmp_path / shard.name).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    pieces = [data[at : at + (4 << 20)] for at in range(start, len(data), 4 << 20)]
    digest = hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces))
    digest.update(data[:start].replace(shard.sha256.encode(), b"0" * 64))
    assert (digest.hexdigest(), len(data)) == (shard.sha256, shard.size)
    assert find_shard(tmp_path, shard.name) == shard


def test_the_digest_is_of_facts_and_contents_alone(tmp_path: Path) -> None:
    manifest = build(tmp_path, ragged(9))
    others = replace(manifest, batch_size=32, bound=1e-6, versions={"torch": "2"}, state="other")
    assert others.digest == manifest.digest
    assert replace(manifest, shards=manifest.shards[::-1]).digest != manifest.digest
    assert replace(manifest, facts=replace(FACTS, model="state:01")).digest != manifest.digest


@pytest.mark.parametrize(
    ("key", "identities"), [("other", [b"a"]), ("key", [b"b"]), ("key", []), ("key", [b"a", b"a"])]
)
def test_other_facts_or_inputs_have_another_name(key: str, identities: list[bytes]) -> None:
    assert shard_name(0, key, identities) != shard_name(0, "key", [b"a"])


# --- a torch dataset ----------------------------------------------------------------------------


def test_items_are_addressed_as_in_a_list(tmp_path: Path) -> None:
    items = ragged(10)
    build(tmp_path, items)
    store = FeatureStore(tmp_path)
    assert same(store[-1], items[9]["output"])
    assert same(store[-10], items[0]["output"])
    assert same(store[torch.tensor(6)], items[6]["output"])  # type: ignore[index]
    assert all(same(ours, item["output"]) for ours, item in zip(store, items, strict=True))
    for index in (10, -11):
        with pytest.raises(IndexError, match=f"has 10 items, and item {index} was asked for"):
            store[index]
    with pytest.raises(TypeError, match=r"one item by its number, not for slice\(0, 2, None\)"):
        store[0:2]  # type: ignore[index]
    assert repr(store) == f"<FeatureStore of 10 items, output in float16: {tmp_path}>"


def test_several_layers_are_a_dict_and_each_is_a_store(tmp_path: Path) -> None:
    items = [{"block.6": torch.randn(n, 2), "block.9": torch.randn(n, 3)} for n in (2, 5)]
    build(tmp_path, items, facts=replace(FACTS, layers=("block.6", "block.9"), dtype="float32"))
    store = FeatureStore(tmp_path)
    assert {name: same(found, items[1][name]) for name, found in store[1].items()} == {
        "block.6": True,
        "block.9": True,
    }
    ninth = store.layer("block.9")
    assert (ninth.layers, store.facts.layers) == (("block.9",), ("block.6", "block.9"))
    assert same(ninth[0], items[0]["block.9"])
    padded, lengths = store.collate([store[0], store[1]])
    assert {name: (*each.shape,) for name, each in padded.items()} == {
        "block.6": (2, 5, 2),
        "block.9": (2, 5, 3),
    }
    assert lengths["block.6"].tolist() == lengths["block.9"].tolist() == [2, 5]
    with pytest.raises(FeatureError, match=r"The layer None was asked for, .* has block.6, block.9"):
        store.read(0)
    with pytest.raises(FeatureError, match=r"The layer 'block.6' was asked for, .* has block.9: name one"):
        ninth.read(0, "block.6")
    with pytest.raises(FeatureError, match=r"has no layer 'block.7': name one of block.6, block.9"):
        store.layer("block.7")


@pytest.mark.parametrize("dtype", ["float32", torch.bfloat16])
def test_numbers_are_read_as_another_dtype(tmp_path: Path, dtype: torch.dtype | str) -> None:
    items = ragged(3)
    build(tmp_path, items)
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    store = pickle.loads(pickle.dumps(FeatureStore(tmp_path, dtype=dtype)))
    assert same(store[2], items[2]["output"].to(wanted))
    assert same(store.layer("output")[2], items[2]["output"].to(wanted))


@pytest.mark.parametrize("dtype", ["int8", "float99", torch.int64])
def test_a_dtype_that_features_cannot_have_is_refused(tmp_path: Path, dtype: Any) -> None:
    build(tmp_path, ragged(1))
    with pytest.raises(FeatureError, match=r"dtype is .*: name a floating-point one, as 'float32'"):
        FeatureStore(tmp_path, dtype=dtype)


def test_what_a_user_writes_into_an_item_does_not_come_back(tmp_path: Path) -> None:
    items = ragged(2)
    build(tmp_path, items)
    store = FeatureStore(tmp_path)
    store[1].zero_()
    assert same(store[1], items[1]["output"])
    store.verify()


def test_pooled_features_are_rows(tmp_path: Path) -> None:
    items = [{"output": torch.randn(6).half()} for _ in range(5)]
    build(tmp_path, items)
    store = FeatureStore(tmp_path)
    assert same(store[4], items[4]["output"])
    assert same(store.collate([*store])[0], torch.stack([item["output"] for item in items]))


def test_padding_is_zeros_after_each_length(tmp_path: Path) -> None:
    items = ragged(4)
    build(tmp_path, items)
    store = FeatureStore(tmp_path)
    padded, lengths = store.collate([store[i] for i in range(4)])
    assert (padded.dtype, lengths.dtype, lengths.tolist()) == (
        torch.float16,
        torch.int64,
        [len(item["output"]) for item in items],
    )
    for row, length, item in zip(padded, lengths.tolist(), items, strict=True):
        assert same(row[:length], item["output"])
        assert not row[length:].any()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no items was to be padded"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], r"\[2, 3\] and \[2, 4\] .* make no batch"),
        ([torch.zeros(2), torch.zeros(2).half()], "torch.float32 and torch.float16.* make no batch"),
        ([torch.zeros(2, 3), {"output": torch.zeros(2, 3)}], "a Tensor and others that are not like it"),
        ([{"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)}], "a dict and others that are not like it"),
    ],
)
def test_what_makes_no_batch_is_refused(tmp_path: Path, items: list[Any], message: str) -> None:
    build(tmp_path, ragged(1))
    with pytest.raises(FeatureError, match=message):
        FeatureStore(tmp_path).collate(items)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_every_item_once(tmp_path: Path, workers: int) -> None:
    items = ragged(23)
    build(tmp_path, items)
    store = FeatureStore(tmp_path)
    same_file_is_open_before_the_fork = store[0]
    loader = DataLoader(store, batch_size=4, shuffle=True, collate_fn=store.collate, num_workers=workers)
    rows = [row[:n] for padded, lengths in loader for row, n in zip(padded, lengths.tolist(), strict=True)]
    key: Callable[[Tensor], bytes] = lambda row: bytes(row.flatten().view(torch.uint8).tolist())  # noqa: E731
    assert sorted(map(key, rows)) == sorted(key(item["output"]) for item in items)
    assert same(same_file_is_open_before_the_fork, items[0]["output"])


@pytest.mark.slow
def test_a_data_loader_that_spawns_reads_the_same(tmp_path: Path) -> None:
    build(tmp_path, ragged(6))
    store = FeatureStore(tmp_path)
    loader = DataLoader(store, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert all(same(ours, theirs) for ours, theirs in zip(loader, store, strict=True))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))]
)
def test_copies_open_their_own_files(tmp_path: Path, copied: Callable[[FeatureStore], FeatureStore]) -> None:
    items = ragged(3)
    build(tmp_path, items)
    store = FeatureStore(tmp_path, layer="output")
    assert same(store[1], items[1]["output"])
    other = copied(store)
    del store
    assert same(other[1], items[1]["output"])
    assert (other.layers, other.digest) == (("output",), read_manifest(tmp_path).digest)


def test_the_default_device_is_no_matter(tmp_path: Path) -> None:
    items = [*ragged(3), {"output": ragged(1)[0]["output"][:0]}]
    torch.set_default_device("meta")
    try:
        build(tmp_path, items)
        store = FeatureStore(tmp_path)
        read = [store[index] for index in range(4)]
        lengths = store.collate(read)[1]
    finally:
        torch.set_default_device(None)
    assert all(same(found, item["output"]) for found, item in zip(read, items, strict=True))
    assert lengths.tolist() == [len(item["output"]) for item in items]


class Labelled(FeatureStore):
    """A store as people extend it."""

    def __init__(self, path: Path, labels: list[str]) -> None:
        super().__init__(path)
        self.labels = labels

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index), self.labels[index]


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda store: pickle.loads(pickle.dumps(store)),
        lambda store: store.layer("output"),
    ],
)
def test_copies_of_a_class_of_ones_own_are_of_it(
    tmp_path: Path, copied: Callable[[Labelled], Labelled]
) -> None:
    items = ragged(3)
    build(tmp_path, items)
    store = Labelled(tmp_path, ["a", "b", "c"])
    assert len(store.names) == 3
    other = copied(store)
    assert other[1][1] == "b"
    assert same(other[1][0], items[1]["output"])
    with pytest.raises(FeatureError, match="has no layer 'none'"):
        other.layer("none")


def test_few_files_are_open_and_none_after_the_store_is_gone(tmp_path: Path) -> None:
    items = ragged(80)
    build(tmp_path, items, size=1)
    before = len(os.listdir("/proc/self/fd"))
    store = FeatureStore(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # nothing is open before it is read
    for _ in range(2):
        assert all(same(ours, item["output"]) for ours, item in zip(store, items, strict=True))
    assert before < len(os.listdir("/proc/self/fd")) <= before + 64
    del store
    assert len(os.listdir("/proc/self/fd")) == before


# --- finding a store ----------------------------------------------------------------------------


def test_the_only_store_of_a_folder_is_opened_and_of_several_none(tmp_path: Path) -> None:
    first, second = FACTS, replace(FACTS, layers=("block.6",))
    build(tmp_path / "one", ragged(2), facts=first)
    assert FeatureStore(str(tmp_path)).path == tmp_path / "one"
    build(tmp_path / "two", [{"block.6": torch.zeros(2, 2).half()}], facts=second)
    with pytest.raises(
        FeatureStoreError,
        match=r"holds 2 stores, .*: one, two \(layers: \['output'\] and \['block.6'\]\); name one, as .*one",
    ):
        FeatureStore(tmp_path)
    assert FeatureStore(tmp_path / "two").layers == ("block.6",)


def test_a_folder_without_a_store_says_what_it_is(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FeatureStoreError, match="There is no store of features in"):
            FeatureStore(path)
    build(tmp_path / "one", ragged(9))
    (tmp_path / "one" / "store.json").unlink()
    for path in (tmp_path, tmp_path / "one"):
        with pytest.raises(FeatureStoreError, match="holds 3 files of an extraction that did not finish"):
            FeatureStore(path)


# --- damage -------------------------------------------------------------------------------------


def test_every_single_flipped_bit_is_found(tmp_path: Path) -> None:
    shard = build(tmp_path, ragged(2)).shards[0]
    path = tmp_path / shard.name
    content = path.read_bytes()
    for at in range(len(content)):
        rewrite(path, content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        assert find_shard(tmp_path, shard.name) is None, at
    assert check_shard(tmp_path, shard)
    rewrite(path, content)
    assert find_shard(tmp_path, shard.name) == shard
    assert check_shard(tmp_path, shard) is None


def test_every_truncation_is_found_when_the_store_is_opened(tmp_path: Path) -> None:
    shard = build(tmp_path, ragged(2)).shards[0]
    path = tmp_path / shard.name
    content = path.read_bytes()
    for size in (*range(0, len(content), 7), len(content) - 1, len(content) + 1):
        rewrite(path, (content + b"\0")[:size])
        with pytest.raises(
            FeatureStoreError, match=f"has {size} bytes, and {shard.size} were written"
        ) as found:
            FeatureStore(tmp_path)
        assert found.value.shards == (shard.name,)
        assert find_shard(tmp_path, shard.name) is None


def _remove(path: Path, other: Path) -> None:
    path.unlink()


def _replace_by_folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_text(path: Path, other: Path) -> None:
    rewrite(path, b"x" * path.stat().st_size)


def _replace_by_another(path: Path, other: Path) -> None:
    rewrite(path, other.read_bytes())


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_remove, "is missing"),
        (_replace_by_folder, "has [0-9]+ bytes, and|cannot be read"),
        (_replace_by_text, "has a header that none was written with"),
        (_replace_by_another, "has [0-9]+ bytes, and"),
    ],
)
def test_a_damaged_shard_is_named_when_the_store_is_opened(
    tmp_path: Path, damage: Callable[[Path, Path], None], why: str
) -> None:
    first, second, _ = build(tmp_path, ragged(9)).shards
    damage(tmp_path / second.name, tmp_path / first.name)
    with pytest.raises(FeatureStoreError, match=f"is damaged: {second.name} ({why}).*extract again") as found:
        FeatureStore(tmp_path)
    assert found.value.shards == (second.name,)
    assert check_shard(tmp_path, second)


def test_verify_names_every_damaged_shard(tmp_path: Path) -> None:
    shards = build(tmp_path, ragged(9)).shards
    store = FeatureStore(tmp_path)
    store.verify()
    for shard in shards[1:]:
        content = bytearray((tmp_path / shard.name).read_bytes())
        content[-1] ^= 1
        rewrite(tmp_path / shard.name, bytes(content))
    again = FeatureStore(tmp_path)
    with pytest.raises(FeatureStoreError, match="is damaged: it does not hold what it says") as found:
        again.verify()
    assert found.value.shards == (shards[1].name, shards[2].name)


def test_a_shard_that_is_cut_or_gone_after_opening_is_an_error_and_no_crash(tmp_path: Path) -> None:
    shards = build(tmp_path, ragged(9)).shards
    store, names = FeatureStore(tmp_path), [tmp_path / shard.name for shard in shards]
    assert store[0].shape == (3, 4)
    for path in names[:2]:
        rewrite(path, path.read_bytes()[:-200])
    names[2].unlink()
    for item, why in ((3, "has become shorter"), (7, "has become shorter"), (8, r"cannot be read \(No such")):
        with pytest.raises(FeatureStoreError, match=why):
            store[item]


def craft(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> FeatureFacts:
    """Write a store whose only shard some other program has written, and of which the manifest is right."""
    shard = build(folder, ragged(2)).shards[0]
    path = folder / shard.name
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    path.unlink()
    save_file(tensors, path)
    sized = replace(shard, size=path.stat().st_size)
    write_manifest(folder, Manifest(FACTS, "state", 2, 4, (sized,)))
    return FACTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("items:names"), "lacks items:names"),
        (lambda t: t.pop("output"), r"holds the layers \[\], and not \['output'\]"),
        (lambda t: t.pop("offsets:output"), r"holds output as torch.float16 \[11, 4\]"),
        (lambda t: t.update(other=t["output"].clone()), r"holds the layers \['other', 'output'\]"),
        (lambda t: t.update(output=t["output"].float()), "holds output as torch.float32"),
        (
            lambda t: t.update({"offsets:output": torch.arange(4)}),
            r"holds offsets:output as torch.int64 \[4\]",
        ),
        (lambda t: t.update({"items:identities": torch.zeros(2, 31).byte()}), "holds items:identities as"),
        (lambda t: t.update({"items:names": torch.zeros(9).half()}), "holds items:names as torch.float16"),
        (lambda t: t.update({"items:names": torch.zeros(3, 3).byte()}), r"holds items:names as .* \[3, 3\]"),
    ],
)
def test_a_shard_of_other_tensors_is_refused_when_the_store_is_opened(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    craft(tmp_path, change)
    with pytest.raises(FeatureStoreError, match=message):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("name", ["offsets:output", "items:name_offsets"])
@pytest.mark.parametrize("offsets", [[1, 3, -1], [0, 99, -1], [0, 3, 99], [0, -2, -1], [0, 3, 2**62]])
def test_offsets_that_lie_are_an_error_where_they_are_read(
    tmp_path: Path, name: str, offsets: list[int]
) -> None:
    stop = 11 if name == "offsets:output" else 12
    values = torch.tensor([stop if offset == -1 else offset for offset in offsets])
    craft(tmp_path, lambda tensors: tensors.update({name: values}))
    store = FeatureStore(tmp_path)
    with pytest.raises(FeatureStoreError, match=f"has {name} that do not rise from 0 to {stop}"):
        assert store[0] is store.names


def test_a_name_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    craft(tmp_path, lambda t: t.update({"items:names": torch.full((12,), 255).byte()}))
    with pytest.raises(FeatureStoreError, match="holds a name that is no text"):
        assert FeatureStore(tmp_path).names


# --- a manifest that lies -----------------------------------------------------------------------


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else {}


def _change(*keys: str | int, to: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("format", to=2), "has format 2 and this version of bundles reads 1: type `pip install"),
        (_change("format", to=True), "has format True and this version"),
        (_change("format", to="1"), "has format '1' and this version"),
        (lambda data: data.pop("format"), "has format None and this version"),
        (lambda data: data.pop("digest"), "malformed: digest is None"),
        (_change("digest", to="0" * 64), "its digest is of other facts or shards"),
        (_change("facts", "model", to="state:01"), "its digest is of other facts or shards"),
        (_change("facts", to=[]), r"facts is \[\]"),
        (_change("facts", "layers", to=[]), r"facts.layers is \[\]"),
        (_change("facts", "layers", to=["output", "output"]), "facts.layers is"),
        (_change("facts", "layers", to=[[]]), "facts.layers is"),
        (_change("facts", "dtype", to="object"), "facts.dtype is 'object'"),
        (_change("facts", "plan", to=1), "facts.plan is 1"),
        (_change("facts", "preprocessing", to={"a": {"b": [1, {}]}}), "its digest is of other facts"),
        (_change("facts", "preprocessing", to=nested(400)), "nested too deep|its digest is of other facts"),
        (_change("count", to=8), "count is 8, and the shards hold another number"),
        (_change("count", to=-1), "count is -1"),
        (_change("count", to=10**400), "count is a huge int|count is 1000"),
        (_change("count", to=9.0), "count is 9.0"),
        (_change("count", to=True), "count is True"),
        (_change("shard_size", to=0), "a size is less than 1"),
        (_change("shard_size", to=3), "the shard 00000-[0-9a-f]* holds 4 items|.* holds 4 items"),
        (_change("bound", to=-1), "bound is -1"),
        (_change("bound", to=0.5), "something in it was changed since it was written"),
        (_change("state", to="other"), "something in it was changed since it was written"),
        (_change("a later key", to=1), "something in it was changed since it was written"),
        (_change("sha256", to=None), "malformed: sha256 is None"),
        (_change("unreadable", to=[["a"]]), "unreadable is"),
        (_change("versions", to={"torch": 2}), "versions is"),
        (_change("shards", to={}), "shards is {}"),
        (_change("shards", 0, to="00000"), "a shard is '00000'"),
        (_change("shards", 0, "name", to="../../etc/passwd"), "the name of a shard is '../../etc/passwd'"),
        (_change("shards", 0, "name", to="/etc/passwd"), "the name of a shard is '/etc/passwd'"),
        (_change("shards", 0, "name", to="00000-0123456789abcdef.safetensors\n"), "the name of a shard is"),
        (_change("shards", 0, "name", to="00007-0123456789abcdef.safetensors"), "the name of a shard is"),
        (_change("shards", 0, "size", to=-1), "size is -1"),
        (_change("shards", 0, "size", to=2**63), "size is 9223372036854775808"),
        (_change("shards", 0, "items", to=10**6), "holds 1000000 items"),
        (_change("shards", 0, "sha256", to="no digest"), "sha256 is 'no digest'"),
        (lambda data: data["shards"].append(data["shards"][0]), "the name of a shard is"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    build(tmp_path, ragged(9))
    path = tmp_path / "store.json"
    data = json.loads(path.read_text())
    change(data)
    rewrite(path, json.dumps(data).encode())
    with pytest.raises(FeatureStoreError, match=message):
        FeatureStore(tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"no json", b"\xff\xfe", b"[" * 100_000, b'{"format": 1, "format": 1}', b"[1]", b"null"],
    ids=["empty", "text", "no-utf8", "deep", "twice", "list", "null"],
)
def test_a_manifest_that_is_no_table_is_refused(tmp_path: Path, text: bytes) -> None:
    build(tmp_path, ragged(1))
    rewrite(tmp_path / "store.json", text)
    with pytest.raises(FeatureStoreError, match=r"store\.json is malformed: it is"):
        FeatureStore(tmp_path)


def test_the_manifest_keeps_everything(tmp_path: Path) -> None:
    manifest = replace(
        build(tmp_path, ragged(3)),
        count=5,
        batch_size=16,
        bound=1.5e-7,
        unreadable=(("a", "is no audio"), ("a", "\udcff")),
        versions={"torch": "2.14"},
    )
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert FeatureStore(tmp_path).manifest == manifest


# --- writing ------------------------------------------------------------------------------------


def test_files_are_read_only_and_nothing_else_is_left(tmp_path: Path) -> None:
    manifest = build(tmp_path, ragged(9))
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert found == dict.fromkeys(["store.json", *(shard.name for shard in manifest.shards)], 0o444)


def test_a_damaged_shard_is_replaced_by_the_same_bytes(tmp_path: Path) -> None:
    manifest = build(tmp_path, ragged(9))
    path = tmp_path / manifest.shards[1].name
    content = path.read_bytes()
    rewrite(path, content[:-9])
    assert build(tmp_path, ragged(9)) == manifest
    assert path.read_bytes() == content


_WRITERS_AND_KILLS = """
import os, pathlib, random, signal, sys, time, torch
from bundles.features.store.shard import find_shard, shard_name, write_shard

folder, draw = pathlib.Path(sys.argv[1]), random.Random(0)
features = [{"output": torch.full((500, 64), 1.5)} for _ in range(8)]

def write(times):
    for window in range(times):
        write_shard(folder, shard_name(window % 5, "key", []), ["x"] * 8, [bytes(32)] * 8, features)
    os._exit(0)

def start(times):
    return os.fork() or write(times)

for _ in range(5):
    writers = [start(10**6), start(10**6)]
    while not any(folder.glob("*.safetensors")):
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.1))
    for writer in writers:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    names = [path.name for path in folder.glob("*.safetensors")]
    print("whole" if all(find_shard(folder, name) for name in names) else "broken", flush=True)
(folder / f".{shard_name(0, 'key', [])}.some-kill.incomplete").touch()
print([os.waitpid(writer, 0)[1] for writer in (start(20), start(20))])
"""


def test_writers_that_are_killed_and_writers_side_by_side_leave_whole_shards(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITERS_AND_KILLS, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [*["whole"] * 5, "[0, 0]"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [shard_name(i, "key", []) for i in range(5)]
    assert all(find_shard(tmp_path, name) for name in names)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """A system that takes no file beyond 9000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"cannot be written \(File too large\): make room or name another"):
        write_shard(tmp_path, "x", ["a"], [bytes(32)], [{"output": torch.zeros(9999)}])
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CacheError, match=r"cannot be written .*make room or name another folder"):
        build(tmp_path / "file", ragged(1))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [{"output": torch.zeros(2, 3)}, {"output": torch.zeros(2, 4)}],
            r"'b' are float32 \[2, 4\] .* 'a' are",
        ),
        ([{"output": torch.zeros(2, 3)}, {"output": torch.zeros(2, 3).half()}], r"'b' are float16 \[2, 3\]"),
        ([{"output": torch.zeros(2, 3)}, {"output": torch.zeros(3)}], r"'b' are float32 \[3\]"),
        ([{"output": torch.zeros(2)}, {"block.0": torch.zeros(2)}], r"'b' has the layers \['block.0'\]"),
        ([{"output": torch.zeros(())}] * 2, r"float32 \[\] on cpu: store dense tensors"),
        ([{"output": torch.zeros(2, device="meta")}] * 2, r"float32 \[2\] on meta: store dense tensors"),
        ([{"output": torch.eye(2).to_sparse()}] * 2, r"on cpu: store dense tensors"),
        ([{"output": torch.zeros(2)}, {"output": torch.eye(2)[0].to_sparse()}], "store dense tensors"),
        ([{"items:names": torch.zeros(2)}] * 2, "A layer is named 'items:names'"),
        ([{"": torch.zeros(2)}] * 2, "A layer is named ''"),
        ([{"output": torch.zeros(2)}], "was given 2 names, 2 identities and 1 items"),
    ],
)
def test_items_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, items: list[dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(FeatureError, match=message):
        write_shard(tmp_path / "out", "x", ["a", "b"], [bytes(32)] * 2, items)
    assert not (tmp_path / "out").exists()


def test_an_identity_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="An identity of an input has 3 bytes: pass 32"):
        write_shard(tmp_path, "x", ["a"], [b"abc"], [{"output": torch.zeros(2)}])


def test_a_shard_without_items_is_whole(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "00000-0123456789abcdef.safetensors", [], [], [])
    assert (shard.items, find_shard(tmp_path, shard.name)) == (0, shard)
    reader = ShardReader(tmp_path / shard.name, shard, FACTS)
    assert (reader.names, reader.identities) == ([], [])
    assert find_shard(tmp_path, "nowhere") is None
    assert check_shard(tmp_path, Shard("nowhere", 0, 0, "")) == "is missing"
