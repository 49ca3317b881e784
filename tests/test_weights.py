"""Weight files: read without copies and without running anything, or refused with what is wrong."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pathlib
import pickle
import re
import struct
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

import bundles
from bundles.builders import pickles
from bundles.builders.construct import on_meta, without_init
from bundles.builders.fit import copy_into, fit
from bundles.builders.load import assign
from bundles.builders.pickles import convert_pickle
from bundles.builders.tensors import read_tensors
from bundles.errors import StateDictMismatchError, UnsafeWeightsError, WeightsFileError
from bundles.sources.converted import converted
from bundles.sources.verify import sha256_of
from bundles.spec.formats import CONVERTER
from bundles.spec.provenance import provenance

TENSORS = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.tensor([1, 2])}
GOOD = save(TENSORS)


def raw(header: object, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def settle(path: Path) -> None:
    then = time.time_ns() - 10**11
    os.utime(path, ns=(then, then))


# --- safetensors ----------------------------------------------------------------------------------


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(GOOD)
    found = read_tensors(path)
    assert list(found) == ["a", "b"]
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "tensors",
    [
        {"scalar": torch.tensor(3.0)},
        {"nothing": torch.zeros(0, 4)},
        {"wild": torch.tensor([float("nan"), float("inf"), -0.0])},
        {"half": torch.ones(2, dtype=torch.bfloat16), "byte": torch.ones(3, dtype=torch.uint8)},
        {"zip": torch.frombuffer(bytearray(b"PK\x05\x06" + bytes(18)), dtype=torch.uint8)},
    ],
    ids=lambda tensors: next(iter(tensors)),
)
@pytest.mark.parametrize("mode", [0o444, 0o644], ids=["mapped", "copied"])
def test_unusual_and_valid_files_are_accepted(
    tensors: dict[str, torch.Tensor], mode: int, tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    path.chmod(mode)
    found = read_tensors(path)
    assert {name: save({"x": value}) for name, value in found.items()} == {
        name: save({"x": value}) for name, value in tensors.items()
    }


F = raw({"a": entry()}, bytes(4))
PAIR = {"a": entry(), "b": entry(offsets=(4, 8))}
BAD: dict[str, tuple[bytes, str]] = {
    "S01 empty": (b"", "is empty; a safetensors file is needed"),
    "S01 7 bytes": (b"1234567", "of no known format; a safetensors file is needed"),
    "S02 eight zero bytes": (bytes(8), "of no known format"),
    "S03 header longer than the file": (struct.pack("<Q", 1000) + b"{}", "of no known format"),
    "S03 header of 2^63": (struct.pack("<Q", 1 << 63) + b"{}", "of no known format"),
    "S03 header of 2^64-1": (struct.pack("<Q", (1 << 64) - 1) + b"{}", "of no known format"),
    "S04 big-endian length": (struct.pack(">Q", 2) + b"{}", "of no known format"),
    "S05 not UTF-8": (raw(b'{"a\xff": 1}'), "damaged, truncated"),
    "S05 not JSON": (raw(b"{nonsense}"), "damaged, truncated"),
    "S05 a list": (raw(b"[]"), "of no known format"),
    "S05 cut header": (raw(b'{"a":'), "damaged, truncated"),
    "S05 trailing garbage": (raw(b"{} x"), "damaged, truncated"),
    "S05 byte order mark": (raw(b"\xef\xbb\xbf{}"), "of no known format"),
    "S08 unknown type": (raw({"a": entry(dtype="F33")}, bytes(4)), "damaged, truncated"),
    "S08 lower-case type": (raw({"a": entry(dtype="f32")}, bytes(4)), "damaged, truncated"),
    "S10 no offsets": (raw({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "damaged, truncated"),
    "S12 negative": (raw({"a": entry(shape=(-1,))}, bytes(4)), "damaged, truncated"),
    "S13 overflow": (raw({"a": entry(shape=(1 << 63, 4))}, bytes(4)), "damaged, truncated"),
    "S14 reversed": (raw({"a": entry(offsets=(4, 0))}, bytes(4)), "damaged, truncated"),
    "S14 past the end": (raw({"a": entry(offsets=(0, 8))}, bytes(4)), "damaged, truncated"),
    "S14 not the shape": (raw({"a": entry(shape=(2,))}, bytes(4)), "damaged, truncated"),
    "S15 hole at the start": (raw({"a": entry(offsets=(4, 8))}, bytes(8)), "damaged, truncated"),
    "S15 hole between": (raw({**PAIR, "b": entry(offsets=(8, 12))}, bytes(12)), "damaged, truncated"),
    "S15 overlap": (
        raw({"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(offsets=(4, 8))}, bytes(8)),
        "damaged",
    ),
    "S15 one region twice": (raw({"a": entry(), "b": entry()}, bytes(4)), "damaged, truncated"),
    "S16 trailing bytes": (F + b"PK\x05\x06" + bytes(18), "damaged, truncated"),
    "S16 short by a byte": (F[:-1], "damaged, truncated"),
    "S16 half": (GOOD[: len(GOOD) // 2], "damaged|of no known format"),
    "S17 metadata nested": (raw({"__metadata__": {"a": {"b": "c"}}, "a": entry()}, bytes(4)), "damaged"),
    "S17 metadata number": (raw({"__metadata__": 3, "a": entry()}, bytes(4)), "damaged, truncated"),
    "S17 metadata list": (raw({"__metadata__": ["a"], "a": entry()}, bytes(4)), "damaged, truncated"),
    "S20 nested deep": (raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "damaged, truncated"),
    "S23 pickle": (pickle.dumps({"a": 1}), "is a pickle; a safetensors file is needed"),
    "S23 zip": (b"PK\x03\x04" + bytes(100), "is a zip archive, as torch.save writes it; a safetensors"),
    "S23 gzip": (gzip.compress(GOOD), "is a gzip archive"),
    "S23 7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "is a 7z archive"),
    "S23 page": (b"<!DOCTYPE html>\n<html><title>Sign in</title>", "is an HTML page"),
    "S23 page, late and loud": (b"\n\n <HTML lang=en>", "is an HTML page"),
    "S23 Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a Git LFS pointer, not the file it points to .type `git lfs pull`",
    ),
    "S23 JSON": (b'{"error": "not found"}', "is JSON text"),
    "S23 GGUF": (b"GGUF" + bytes(100), "is a GGUF file"),
    "S23 HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "text": (b"Not Found\n", "is of no known format"),
}


@pytest.mark.parametrize("mode", [0o444, 0o644], ids=["mapped", "copied"])
@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD.keys())
def test_a_file_that_is_no_safetensors_is_refused_and_named(
    data: bytes, words: str, mode: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    path.chmod(mode)
    with pytest.raises(WeightsFileError, match=words) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert path.read_bytes() == data


@pytest.mark.parametrize("case", ["S01 empty", "S16 short by a byte", "S23 pickle", "S23 Git LFS"])
def test_get_model_and_load_into_refuse_it_the_same_way(case: str, tmp_path: Path) -> None:
    data, words = BAD[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    bundle = bundles.Bundle("MINE", lambda: nn.Linear(2, 2), weights=f"file:{path}")  # type: ignore[arg-type]
    with pytest.raises(WeightsFileError, match=words):
        bundle.get_model()
    with pytest.raises(WeightsFileError, match=words):
        bundles.load_into(nn.Linear(2, 2), path)


def test_every_single_bit_that_flips_is_a_checksum_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    good = save({"weight": torch.ones(1, 1)})
    path.write_bytes(good)
    source = bundles.WeightSource(f"file:{path}", sha256_of(path), len(good))
    bundle = bundles.Bundle("MINE", lambda: nn.Linear(1, 1, bias=False), weights=source)
    assert bundle.get_model().get_parameter("weight").item() == 1
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1 << position % 8]) + good[position + 1 :])
        with pytest.raises(bundles.ChecksumError, match="expected sha256"):
            bundle.get_model()


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    rows = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    spans = (row[0].split("-") for row in rows if row[-1] == str(path))
    return [(int(low, 16), int(high, 16)) for low, high in spans]


def is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    return any(low <= tensor.data_ptr() < high for low, high in mapped_ranges(path))


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")


@on_linux
def test_tensors_are_mapped_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    save_file({"a": torch.rand(1000, 100), "b": torch.rand(10)}, path)
    path.chmod(0o444)
    assert all(is_mapped(tensor, path) for tensor in read_tensors(path).values())


def test_a_write_to_a_mapped_tensor_never_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    save_file({"a": torch.rand(1000, 100)}, path)
    path.chmod(0o444)
    before = path.read_bytes()
    tensor, again = read_tensors(path)["a"], read_tensors(path)["a"]
    tensor.mul_(0).add_(7)
    assert path.read_bytes() == before
    assert torch.equal(again, load_file(path)["a"])
    del tensor
    assert path.read_bytes() == before


# --- pickles --------------------------------------------------------------------------------------


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def convert(path: Path) -> bytes:
    file = io.BytesIO()
    convert_pickle(path, file)
    return file.getvalue()


def zipped(data: bytes) -> bytes:
    """A pickle in a zip archive, as torch.save packs it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


@pytest.mark.parametrize("pack", [bytes, zipped], ids=["raw", "zipped"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_code_in_a_pickle_is_not_run(pack: Callable[[bytes], bytes], protocol: int, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pth"
    path.write_bytes(pack(pickle.dumps({"a": Canary(canary)}, protocol=protocol)))
    with pytest.raises(bundles.WeightsError, match=str(path)):
        convert(path)
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_code_among_tensors_is_not_run_and_its_global_is_named(legacy: bool, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pth"
    torch.save({"a": torch.zeros(2), "b": Canary(canary)}, path, _use_new_zipfile_serialization=not legacy)
    bundle = bundles.Bundle("MINE", lambda: nn.Linear(2, 2), weights=f"file:{path}")  # type: ignore[arg-type]
    for load in (lambda: convert(path), bundle.get_model, lambda: bundles.load_into(nn.Linear(2, 2), path)):
        with pytest.raises(
            UnsafeWeightsError, match=r"could run code \(.*system.*\): save its state_dict"
        ) as caught:
            load()
        assert isinstance(caught.value, ValueError)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # the canary works


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (pathlib.PurePosixPath("x"), "pathlib.PurePosixPath"),
        (np.float64(3), "numpy"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
    ids=["namespace", "path", "numpy scalar", "module"],
)
def test_more_than_tensors_is_refused_naming_what(extra: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(2), "extra": extra}, path)
    with pytest.raises(UnsafeWeightsError, match=rf"could run code \(.*{words}"):
        convert(path)


def test_the_unsafe_reader_is_never_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    original = torch.load

    def recording(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs.get("weights_only"))
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "load", recording)
    path = tmp_path / "model.pth"
    torch.save({"extra": argparse.Namespace()}, path)
    with pytest.raises(UnsafeWeightsError, match="Namespace"):
        convert(path)
    assert calls == [True]


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(UnsafeWeightsError, match=r"is a TorchScript program: save its state_dict"):
        convert(path)


def whole_checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.rand(500)}, file)
    return file.getvalue()


NO_CHECKPOINT: dict[str, tuple[bytes, str]] = {
    "P05 empty": (b"", "is empty; a checkpoint written by torch.save is needed"),
    "P05 page": (b"<html>404", "is an HTML page; a checkpoint"),
    "P05 Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "P05 text": (b"Not found", "is of no known format"),
    "safetensors": (GOOD, "is a safetensors file; a checkpoint"),
    "gzip": (gzip.compress(b"x"), "is a gzip archive"),
    "P05 truncated zip": (whole_checkpoint()[:-100], "damaged or truncated"),
    "P05 half a zip": (whole_checkpoint()[:1000], "damaged or truncated"),
    "P05 a zip's first bytes": (b"PK\x03\x04", "damaged or truncated"),
    "zip of something else": (zipped(b"")[:-200] + zipped(b"")[-200:], "damaged or truncated|could run code"),
    "cut pickle": (pickle.dumps({"a": 1})[:5], "damaged or truncated|could run code"),
    "P06 nested": (
        zipped(pickle.dumps({"state_dict": {"a": 1}}, 2)),
        r"but a dict with the keys \['state_dict'\]",
    ),
    "a list": (zipped(pickle.dumps([1, 2], 2)), "but a list"),
    "an empty dict": (zipped(pickle.dumps({}, 2)), "but nothing"),
    "numbers": (zipped(pickle.dumps({"epoch": 3}, 2)), r"but a dict with the keys \['epoch'\]"),
}


@pytest.mark.parametrize(("data", "words"), NO_CHECKPOINT.values(), ids=NO_CHECKPOINT.keys())
def test_a_file_that_is_no_checkpoint_is_refused_and_named(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    with pytest.raises(bundles.WeightsError, match=words) as caught:
        convert(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == data


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_a_nested_state_dict_is_refused_with_its_keys(key: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({key: {"a": torch.zeros(2)}, "epoch": 3}, path)
    with pytest.raises(
        WeightsFileError, match=rf"but a dict with the keys \['{key}', 'epoch'\]: save the entry alone"
    ):
        convert(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.empty(2, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        lambda: torch.ones(2, dtype=torch.complex128),
    ],
    ids=["sparse", "meta", "quantized", "complex128"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_tensor_that_safetensors_cannot_hold_is_refused_in_our_words(
    make: Callable[[], torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"fine": torch.zeros(2), "odd": make()}, path)
    with pytest.raises(WeightsFileError, match="odd") as caught:
        convert(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["__metadata__", "a\x00", "\ud800"], ids=["metadata", "control", "surrogate"]
)
def test_a_name_that_safetensors_cannot_hold_is_refused_in_our_words(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"fine": torch.zeros(2), name: torch.zeros(2)}, path)
    with pytest.raises(WeightsFileError, match="does not hold a flat dict of named tensors"):
        convert(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_keeps_every_value_shape_and_type(legacy: bool, tmp_path: Path) -> None:
    base = torch.rand(4, 6)
    state = {
        "z": base,
        "tied": base,
        "view": base[:, ::2],
        "transposed": base.t(),
        "half": base.to(torch.bfloat16),
        "count": torch.tensor(7),
        "parameter": nn.Parameter(torch.rand(3)),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 2),
    }
    path, out = tmp_path / "model.pth", tmp_path / "model.safetensors"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    out.write_bytes(convert(path))
    found = read_tensors(out)
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


# --- conversion, once -----------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    torch.save({f"layer.{index}": torch.rand(20, 3) for index in range(20)}, path)
    settle(path)
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is converted while the test runs."""
    done: list[Path] = []

    def counting(path: Path, file: Any) -> None:
        done.append(path)
        convert_pickle(path, file)

    monkeypatch.setattr(pickles, "convert_pickle", counting)
    return done


def safetensors_of(path: Path) -> Path:
    return converted(path, CONVERTER, pickles.convert_pickle)


def test_conversion_is_deterministic(checkpoint: Path, tmp_path: Path) -> None:
    assert convert(checkpoint) == convert(checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    other = tmp_path / "other.pth"
    torch.save(dict(reversed(state.items())), other)
    assert convert(other) == convert(checkpoint)


def test_a_checkpoint_is_converted_once(checkpoint: Path, conversions: list[Path], empty_cache: Path) -> None:
    first = safetensors_of(checkpoint)
    assert first.name == f"{sha256_of(checkpoint)}.{CONVERTER}.safetensors"
    assert first.is_relative_to(empty_cache)
    assert first.stat().st_mode & 0o222 == 0
    for _ in range(3):
        assert safetensors_of(checkpoint) == first
    assert conversions == [checkpoint]
    assert not [path for path in empty_cache.rglob("*") if "incomplete" in path.name]


def test_the_key_is_the_digest_of_the_source_and_not_its_place(
    checkpoint: Path, conversions: list[Path], empty_cache: Path
) -> None:
    first = safetensors_of(checkpoint)
    moved = checkpoint.rename(checkpoint.with_name("moved.pt"))
    assert safetensors_of(moved) == first
    torch.save({"layer.0": torch.zeros(1)}, moved)
    assert safetensors_of(moved) != first
    assert len(conversions) == 2


def test_another_version_of_the_converter_makes_another_file(checkpoint: Path, empty_cache: Path) -> None:
    assert converted(checkpoint, 1, convert_pickle) != converted(checkpoint, 2, convert_pickle)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "truncated": lambda data: data[:-10],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"x",
}


@pytest.mark.parametrize("which", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_conversion_is_made_again(
    damage: Callable[[bytes], bytes], which: str, checkpoint: Path, conversions: list[Path], empty_cache: Path
) -> None:
    made = safetensors_of(checkpoint)
    good = made.read_bytes()
    (victim,) = (path for path in made.parent.iterdir() if path.name.endswith(which))
    victim.chmod(0o644)
    victim.write_bytes(damage(victim.read_bytes()))
    again = safetensors_of(checkpoint)
    assert again.read_bytes() == good
    assert len(conversions) == 2
    assert safetensors_of(checkpoint) == again
    assert len(conversions) == 2


def test_a_conversion_without_its_record_is_made_again(
    checkpoint: Path, conversions: list[Path], empty_cache: Path
) -> None:
    made = safetensors_of(checkpoint)
    Path(f"{made}.json").unlink()
    safetensors_of(checkpoint)
    assert len(conversions) == 2


def test_a_shared_conversion_is_used(
    checkpoint: Path, conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "shared"))
    made = safetensors_of(checkpoint)
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", str(tmp_path / "shared"))
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "own"))
    assert safetensors_of(checkpoint) == made
    assert len(conversions) == 1


def test_a_damaged_shared_conversion_is_made_once_more_in_ones_own_cache(
    checkpoint: Path, conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "shared"))
    made = safetensors_of(checkpoint)
    good = made.read_bytes()
    made.chmod(0o644)
    made.write_bytes(good[:-1] + b"!")
    monkeypatch.setenv("BUNDLES_SHARED_CACHE", str(tmp_path / "shared"))
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "own"))
    for _ in range(3):
        mine = safetensors_of(checkpoint)
        assert mine.is_relative_to(tmp_path / "own")
        assert mine.read_bytes() == good
    assert len(conversions) == 2  # one for the shared cache, one for this one


def test_a_refused_checkpoint_leaves_nothing_in_the_cache(checkpoint: Path, empty_cache: Path) -> None:
    torch.save({"a": argparse.Namespace()}, checkpoint)
    with pytest.raises(UnsafeWeightsError, match="Namespace"):
        safetensors_of(checkpoint)
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


def test_a_warm_conversion_hashes_nothing(
    checkpoint: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = safetensors_of(checkpoint)
    settle(made)
    safetensors_of(checkpoint)

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} is hashed again")

    monkeypatch.setattr("bundles.sources.verify.sha256_of", refuse)
    assert safetensors_of(checkpoint) == made


# --- assign ---------------------------------------------------------------------------------------


class Net(nn.Module):
    """Parameters, saved and unsaved buffers, and a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.arange(3.0), persistent=False)
        self.register_buffer("table", torch.ones(2))


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained() -> dict[str, torch.Tensor]:
    """The state of a net that has seen something."""
    net = Net()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(1 if tensor.dtype == torch.int64 else torch.rand_like(tensor))
    return state_of(net)


MAKERS: dict[str, Callable[[Callable[[], nn.Module]], nn.Module]] = {
    "initialised": lambda make: make(),
    "empty": without_init,
    "meta": on_meta,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_assigned_tensors_are_the_files_own(make: Callable[..., nn.Module]) -> None:
    state, model = trained(), make(Net)
    report = assign(model, state, "file:x")
    assert set(report.loaded) == set(state)
    assert (report.missing, report.unexpected) == ((), ())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.get_parameter("embed.weight").data_ptr() == state["embed.weight"].data_ptr()
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.is_leaf for p in model.parameters())
    assert torch.equal(model.get_buffer("scale"), torch.arange(3.0))
    assert "scale" not in model.state_dict()
    assert provenance(model) == dict.fromkeys(state, "file:x")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize(
    "left_out", [(), ("embed.weight",), ("out.weight",)], ids=["both", "second", "first"]
)
def test_ties_are_restored_also_from_a_file_with_one_of_the_names(
    left_out: tuple[str, ...], make: Callable[..., nn.Module]
) -> None:
    state, model = trained(), make(Net)
    assign(model, {name: tensor for name, tensor in state.items() if name not in left_out}, "file:x")
    assert model.get_parameter("embed.weight") is model.get_parameter("out.weight")
    assert torch.equal(model.get_parameter("out.weight"), state["embed.weight"])
    assert len(list(model.parameters())) == 3


def test_a_torn_tie_is_refused() -> None:
    state, model = trained(), Net()
    state["out.weight"] = state["out.weight"] + 1
    before = state_of(model)
    with pytest.raises(
        StateDictMismatchError, match=r"out.weight \(tied to embed.weight in the model, different"
    ):
        assign(model, state, "file:x")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_difference_is_listed_at_once_and_nothing_is_changed() -> None:
    model, state = Net(), trained()
    before, tensors = state_of(model), {name: id(tensor) for name, tensor in model.named_parameters()}
    del state["table"], state["norm.bias"]
    state |= {"more": torch.zeros(1), "extra.weight": torch.zeros(2)}
    state["norm.weight"] = torch.zeros(5)
    state["norm.running_mean"] = torch.zeros(4, 1)
    state["norm.num_batches_tracked"] = torch.tensor(1.5)
    with pytest.raises(StateDictMismatchError, match="The weights of file:x do not fit the model") as caught:
        assign(model, state, "file:x")
    error = caught.value
    assert error.missing == ("norm.bias", "table")
    assert error.unexpected == ("extra.weight", "more")
    assert error.mismatched == (
        "norm.weight (model (4,), file (5,))",
        "norm.running_mean (model (4,), file (4, 1))",
        "norm.num_batches_tracked (model torch.int64, file torch.float32)",
    )
    assert all(name in str(error) for name in (*error.missing, *error.unexpected, *error.mismatched))
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == tensors
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert provenance(model) == {}
    assert pickle.loads(pickle.dumps(error)).missing == error.missing


def test_differences_are_listed_in_an_order_that_does_not_change_between_runs() -> None:
    names = [f"{index}.weight" for index in range(30)]
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in names))
    with pytest.raises(StateDictMismatchError, match="another shape") as caught:
        assign(model, {name: torch.zeros(3) for name in reversed(names)}, "file:x")
    assert [entry.split(" ")[0] for entry in caught.value.mismatched] == names


@pytest.mark.parametrize("owned", [(), ("norm.weight",)], ids=["frozen", "trainable"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_of_another_float_type_leaves_the_models(dtype: torch.dtype, owned: tuple[str, ...]) -> None:
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in trained().items()}
    model = on_meta(Net)
    assign(model, state, "file:x", owned=owned)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert model.get_buffer("norm.running_mean").dtype == torch.float32
    assert torch.equal(model.get_parameter("norm.weight"), state["norm.weight"].float())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("norm.weight", torch.int64),
        ("norm.weight", torch.complex64),
        ("norm.num_batches_tracked", torch.float32),
    ],
)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_another_kind_of_number_is_refused(
    make: Callable[..., nn.Module], name: str, dtype: torch.dtype
) -> None:
    state = trained()
    state[name] = torch.zeros(state[name].shape, dtype=dtype)
    with pytest.raises(StateDictMismatchError, match=rf"{name} \(model torch\.\w+, file {dtype}\)"):
        assign(make(Net), state, "file:x")


def test_fresh_tensors_are_left_alone_and_are_not_marked() -> None:
    model, state = Net(), trained()
    table = model.get_buffer("table")
    del state["table"]
    report = assign(model, state, "file:x", fresh=["table"])
    assert model.get_buffer("table") is table
    assert "table" not in report.loaded
    assert "table" not in provenance(model)


class Hidden(nn.Module):
    """Has tensors that no state dict knows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        if kind == "buffer":
            self.register_buffer("mask", torch.ones(2, device="meta"), persistent=False)
        else:
            self.mask = torch.ones(2, device="meta")


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_what_would_be_left_on_meta_is_reported(kind: str) -> None:
    model = nn.Sequential(Hidden(kind), Hidden(kind))
    state = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    with pytest.raises(StateDictMismatchError, match=r"0\.mask, 1\.mask") as caught:
        assign(model, state, "file:x")
    assert caught.value.missing == ("0.mask", "1.mask")


@on_linux
def test_frozen_tensors_stay_mapped_and_trainable_ones_are_copied(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 3)).state_dict(), path)
    path.chmod(0o444)
    before = path.read_bytes()
    bundle = bundles.Bundle(
        "MINE",
        lambda: nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 3)),
        weights=f"file:{path}",  # type: ignore[arg-type]
    )
    model = bundle.get_model(freeze="encoder")
    mapped = {name: is_mapped(tensor, path) for name, tensor in model.named_parameters()}
    assert mapped == {"0.weight": True, "0.bias": True, "1.weight": False, "1.bias": False}
    assert all(is_mapped(tensor, path) for tensor in bundle.get_model().parameters())  # nobody trains it yet
    bundles.unfreeze(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3)
    assert path.read_bytes() == before
    assert not torch.equal(bundle.get_model().get_parameter("0.weight"), model.get_parameter("0.weight"))


# --- copying into somebody's own model ------------------------------------------------------------


def copied(model: nn.Module, tensors: Mapping[str, torch.Tensor], **where: str) -> Any:
    found = fit(model, tensors, "file:x", **where)
    copy_into(model, found)
    return found.report


def test_copying_keeps_every_tensor_and_changes_its_values() -> None:
    model, state = Net(), trained()
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    report = copied(model, state)
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert set(report.loaded) == set(state)


def test_half_precision_is_copied_into_single() -> None:
    model = Net()
    copied(model, {"norm.weight": torch.full((4,), 0.5, dtype=torch.float16)})
    assert model.get_parameter("norm.weight").dtype == torch.float32
    assert model.get_parameter("norm.weight").tolist() == [0.5] * 4


@pytest.mark.parametrize("name", ["embed.weight", "out.weight"])
def test_a_tied_tensor_is_loaded_under_all_its_names(name: str) -> None:
    model = Net()
    report = copied(model, {name: torch.ones(5, 4)})
    assert not {"embed.weight", "out.weight"} & set(report.missing)
    assert provenance(model)["embed.weight"] == provenance(model)["out.weight"] == "file:x"


def test_a_tie_that_the_file_tears_is_refused_when_copying_too() -> None:
    model = Net()
    before = state_of(model)
    with pytest.raises(StateDictMismatchError, match=r"out.weight .*embed.weight"):
        copied(model, {"embed.weight": torch.ones(5, 4), "out.weight": torch.zeros(5, 4)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_copying_into_the_meta_device_gives_memory_and_keeps_ties_and_flags() -> None:
    model = on_meta(Net)
    model.get_parameter("norm.weight").requires_grad_(False)
    state = trained()
    copied(model, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.get_parameter("embed.weight") is model.get_parameter("out.weight")
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["norm.weight"]


@pytest.mark.parametrize("lost", ["buffer", "attribute", "missing"])
def test_copying_that_would_leave_something_on_the_meta_device_is_refused(lost: str) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
        if lost == "buffer":
            model[0].register_buffer("table", torch.ones(2), persistent=False)
        elif lost == "attribute":
            model[0].table = torch.ones(2)
        else:
            model[0].table = nn.Parameter(torch.ones(2))
    tensors = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}
    with pytest.raises(StateDictMismatchError, match=r"on the meta device: 0\.table\."):
        copied(model, tensors)
    assert all(tensor.is_meta for tensor in model.parameters())


# --- construction ---------------------------------------------------------------------------------

INITS: dict[str, Callable[[torch.Tensor], object]] = {
    name: getattr(nn.init, f"{name}_")
    for name in (
        *("uniform", "normal", "trunc_normal", "ones", "zeros", "eye", "orthogonal"),
        *("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"),
    )
} | {
    "constant": lambda tensor: nn.init.constant_(tensor, 3),
    "sparse": lambda tensor: nn.init.sparse_(tensor, 0.5),
    "method": lambda tensor: tensor.normal_(),
    "data": lambda tensor: tensor.data.normal_(),
    "detached": lambda tensor: tensor.detach().uniform_(),
    "view": lambda tensor: tensor[0].zero_(),
}


class Initialised(nn.Module):
    def __init__(self, how: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 6))
        with torch.no_grad():
            how(self.weight)


@pytest.mark.parametrize("make", [without_init, on_meta], ids=["empty", "meta"])
@pytest.mark.parametrize("how", INITS.values(), ids=INITS.keys())
def test_construction_leaves_the_random_generator_alone(
    how: Callable[[torch.Tensor], object], make: Callable[..., nn.Module]
) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = make(lambda: Initialised(how))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.get_parameter("weight").shape == (4, 6)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 4),
    "convolution": lambda: nn.Conv2d(2, 3, 3),
    "transposed": lambda: nn.ConvTranspose1d(2, 3, 3),
    "norms": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3)),
    "embedding": lambda: nn.Embedding(5, 3, padding_idx=1),
    "bag": lambda: nn.EmbeddingBag(5, 3),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "prelu": lambda: nn.PReLU(3),
    "GRU": lambda: nn.GRU(2, 3, num_layers=2, bidirectional=True),
    "LSTM": lambda: nn.LSTM(2, 3, proj_size=2),
    "attention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
    "list": lambda: nn.ParameterList([nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(3))]),
}  # fmt: skip


@pytest.mark.parametrize("make", [without_init, on_meta], ids=["empty", "meta"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_loading_into_an_unpaid_module_equals_loading_into_a_normal_one(
    layer: Callable[[], nn.Module], make: Callable[..., nn.Module]
) -> None:
    normal = layer()
    with torch.no_grad():
        for parameter in normal.parameters():
            parameter.normal_()
    before = torch.get_rng_state()
    unpaid = make(layer)
    if not isinstance(normal, nn.ParameterList):  # its values are drawn by the lambda itself
        assert torch.equal(torch.get_rng_state(), before)
    assert list(unpaid.state_dict()) == list(normal.state_dict())
    assign(unpaid, state_of(normal), "file:x")
    for name, tensor in normal.state_dict().items():
        assert torch.equal(unpaid.state_dict()[name], tensor)
    assert {name: p.requires_grad for name, p in unpaid.named_parameters()} == {
        name: p.requires_grad for name, p in normal.named_parameters()
    }


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("saved", nn.init.constant_(torch.empty(3), 5))
        self.register_buffer("unsaved", torch.empty(3).fill_(7), persistent=False)
        self.register_buffer("drawn", torch.empty(3).normal_(generator=torch.Generator().manual_seed(1)))
        self.plain = torch.zeros(2).add_(1)
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)


@pytest.mark.parametrize("make", [without_init, on_meta], ids=["empty", "meta"])
def test_buffers_are_real_and_right_also_those_that_are_not_saved(make: Callable[..., nn.Module]) -> None:
    model, normal = make(Buffers), Buffers()
    for name, buffer in normal.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)
    assert vars(model)["plain"].tolist() == [1, 1]
    assert not model.fixed.requires_grad


def test_on_meta_puts_every_parameter_there_and_no_buffer() -> None:
    model = on_meta(Net)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert model.get_parameter("embed.weight") is model.get_parameter("out.weight")


class TiedAtBirth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.rand(3, 3))
        self.encode = weight
        self.decode = weight


@pytest.mark.parametrize("make", [without_init, on_meta], ids=["empty", "meta"])
def test_one_parameter_registered_twice_stays_one(make: Callable[..., nn.Module]) -> None:
    model = make(TiedAtBirth)
    assert model.encode is model.decode
    assert len(list(model.parameters())) == 1


def test_construction_elsewhere_goes_on_as_ever() -> None:
    outside: list[nn.Module] = []

    def build() -> nn.Module:
        import threading

        thread = threading.Thread(target=lambda: outside.append(nn.Linear(50, 50)))
        thread.start()
        thread.join()
        return nn.Linear(2, 2)

    on_meta(build)
    (other,) = outside
    assert not other.get_parameter("weight").is_meta
    assert 0 < other.get_parameter("weight").abs().max() < 1
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_builder_that_fails_leaves_construction_as_it_was() -> None:
    def broken() -> nn.Module:
        raise ValueError("no such size")

    for make in (without_init, on_meta):
        with pytest.raises(ValueError, match="no such size"):
            make(broken)
    layer = nn.Linear(30, 30)
    assert not layer.weight.is_meta
    assert 0 < layer.weight.abs().max() < 1


def test_what_describes_a_file_is_told_in_the_error_of_a_wrong_model(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(nn.Linear(3, 3).state_dict(), path)
    bundle = bundles.Bundle("MINE", lambda: nn.Sequential(nn.Linear(2, 2)), weights=f"file:{path}")  # type: ignore[arg-type]
    with pytest.raises(StateDictMismatchError, match=re.escape(f"file:{path} do not fit")) as caught:
        bundle.get_model()
    assert caught.value.missing == ("0.bias", "0.weight")
    assert caught.value.unexpected == ("bias", "weight")
