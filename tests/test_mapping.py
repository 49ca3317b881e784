"""Mapping a file: which headers are taken, how converted files are laid out, and reading ahead."""

from __future__ import annotations

import ctypes
import io
import json
import mmap
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import nn

import bundles
from bundles.builders.layout import write_tensors
from bundles.builders.mapped import map_tensors
from bundles.sources.ahead import read_ahead
from bundles.sources.verify import sha256_of
from bundles.spec.source import WeightSource

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads ahead on Linux alone")


# --- the header check: only what the official reader takes, and exactly that -----------------------

GOOD = save({"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([True, False, True, True])})


def official(path: Path) -> dict[str, torch.Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, AttributeError, ValueError):
        return None


def agree(data: bytes, path: Path) -> bool:
    """Whether the map takes a file; where it does, the official reader gives the same."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    found = map_tensors(path)
    if found is None:
        return False
    expected = official(path)
    assert expected is not None
    assert {n: save({"x": t}) for n, t in found.items()} == {n: save({"x": t}) for n, t in expected.items()}
    return True


def test_the_map_takes_good_files(tmp_path: Path) -> None:
    assert agree(GOOD, tmp_path / "file")
    assert agree(save({}), tmp_path / "file")
    assert agree(save({"a": torch.ones(2)}, {"format": "pt"}), tmp_path / "file")


BYTE = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
UNUSUAL: dict[str, str] = {
    "a key twice": f'{{"a":{BYTE},"a":{BYTE}}}',
    "a field twice": '{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
    "an extra field": '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}',
    "metadata null": f'{{"__metadata__":null,"a":{BYTE}}}',
    "a float": '{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}',
    "a boolean": '{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
    "three offsets": '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}',
    "a control character": f'{{"\\u0000":{BYTE}}}',
    "a lone surrogate": f'{{"\\ud800":{BYTE}}}',
    "a space before": f' {{"a":{BYTE}}}',
    "not where such numbers lie": f'{{"a":{BYTE},"b":{{"dtype":"F32","shape":[0],"data_offsets":[1,1]}}}}',
}


def with_length(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize("header", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_the_map_leaves_the_unusual_to_the_official_reader(header: str, tmp_path: Path) -> None:
    assert not agree(with_length(header.encode(), b"1"), tmp_path / "file")
    assert agree(with_length(f'{{"a":{BYTE}}}'.encode(), b"1"), tmp_path / "file")
    assert not agree(with_length(f'{{"a":{BYTE}}}'.encode("utf-16-le"), b"1"), tmp_path / "file")


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255), cut=st.integers(0, 3))
def test_whatever_byte_is_changed_the_map_takes_nothing_that_the_official_reader_refuses(
    position: int, byte: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(GOOD[: len(GOOD) - cut])
    if position < len(data):
        data[position] = byte
    agree(bytes(data), tmp_path_factory.getbasetemp() / "changed")


@settings(max_examples=200, deadline=None)
@given(
    header=st.dictionaries(
        st.text('ab.{}"\\ é\x00\ud800', max_size=4).filter(lambda name: name != "__metadata__"),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BOOL", "I64", "f32", "F4"]),
                "shape": st.lists(st.integers(-1, 3), max_size=3),
                "data_offsets": st.lists(st.integers(0, 16), min_size=1, max_size=3),
            }
        ),
        max_size=3,
    ),
    size=st.integers(0, 16),
)
def test_the_map_and_the_official_reader_agree_on_made_up_headers(
    header: dict[str, Any], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = with_length(json.dumps(header).encode(), bytes(size))
    agree(data, tmp_path_factory.getbasetemp() / "made-up")


# --- how a converted file is laid out ---------------------------------------------------------------


def written(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    with path.open("wb") as file:
        write_tensors(tensors, file)
    path.chmod(0o444)
    return path


def test_a_converted_file_has_its_numbers_where_torch_would_have_them(tmp_path: Path) -> None:
    tensors = {
        "a": torch.rand(3),
        "b": torch.rand(64, 3),
        "c": torch.arange(5),
        "d": torch.rand(16).to(torch.bfloat16),
        "e": torch.rand(16),
        "f": torch.zeros(0, 3),
    }
    found = map_tensors(written(tensors, tmp_path / "file"))
    assert found is not None
    assert [found[name].data_ptr() % 64 for name in "be"] == [0, 0]
    assert agree((tmp_path / "file").read_bytes(), tmp_path / "again")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    other = written(dict(reversed(tensors.items())), tmp_path / "other")
    assert other.read_bytes() == (tmp_path / "file").read_bytes()


def test_views_ties_and_conjugates_are_written_by_value(tmp_path: Path) -> None:
    base = torch.rand(4, 6)
    tensors = {
        "whole": base,
        "tied": base,
        "part": base[1:3, ::2],
        "turned": base.t(),
        "stretched": torch.ones(1).expand(3, 4),
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        "negative": torch.tensor([1 + 2j], dtype=torch.complex64).conj().imag,
    }
    found = official(written(tensors, tmp_path / "file"))
    assert found is not None
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_file_is_written_in_whole_pieces(tmp_path: Path) -> None:
    tensors = {"large": torch.rand(3, 1 << 20), "odd": torch.rand(2_000_003), "small": torch.rand(5)}
    sizes: list[int] = []

    class Recorder(io.BytesIO):
        def write(self, data: Any, /) -> int:
            sizes.append(len(data))
            return super().write(data)

    file = Recorder()
    write_tensors(tensors, file)
    assert len(sizes) == 3
    assert set(sizes[:-1]) == {8 << 20}
    found = load(file.getvalue())
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


# --- reading ahead --------------------------------------------------------------------------------


def forget(path: Path) -> bool:
    """Drop a file from the page cache; whether that could be done."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(path) < 0.1


def resident(path: Path) -> float:
    """The share of a file's pages that are in memory, without touching any."""
    libc, count = ctypes.CDLL(None), -(-path.stat().st_size // mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        pages, start = (ctypes.c_ubyte * count)(), ctypes.c_char.from_buffer(view)
        assert libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(view)), pages) == 0
        del start
    return sum(page & 1 for page in pages) / count


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    path = tmp_path / "cold.safetensors"
    save_file({"weight": torch.rand(2000, 2000)}, path)
    path.chmod(0o444)
    if sys.platform != "linux" or not forget(path):
        pytest.skip("this file system keeps everything in memory")
    return path


@on_linux
def test_all_of_a_cold_file_is_read_ahead_and_a_warm_one_is_left_alone(cold: Path) -> None:
    thread = read_ahead(WeightSource(f"file:{cold}"))
    assert thread is not None
    thread.join()
    assert resident(cold) == 1
    assert read_ahead(WeightSource(f"file:{cold}")) is None


@on_linux
def test_the_converted_form_is_read_ahead_and_not_the_checkpoint(tmp_path: Path, empty_cache: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.rand(1000, 1000)}, path)
    source = WeightSource(f"file:{path}", sha256_of(path))
    bundle = bundles.Bundle("MINE", lambda: nn.Linear(1000, 1000, bias=False), weights=source)
    bundle.get_model()
    (made,) = (empty_cache / "converted").glob("*.safetensors")
    if not forget(made):
        pytest.skip("this file system keeps everything in memory")
    thread = read_ahead(source)
    assert thread is not None
    thread.join()
    assert resident(made) == 1


@pytest.mark.parametrize(
    "uri", ["file:/nowhere/at/all", "file:/", "file:/nowhere.pth", "nosuch:thing", "package:nosuch/file"]
)
def test_what_is_not_there_is_not_read_ahead_and_not_complained_of(uri: str, empty_cache: Path) -> None:
    assert read_ahead(WeightSource(uri)) is None
    assert not empty_cache.exists()


@on_linux
def test_reading_ahead_begins_before_torch_is_imported(tmp_path: Path) -> None:
    code = """
        import sys, bundles
        from bundles.sources import ahead
        begun = []
        read_ahead = ahead.read_ahead
        ahead.read_ahead = lambda *arguments: begun.append("torch" in sys.modules) or read_ahead(*arguments)
        crepe = bundles.Bundle("CREPE", "torchcrepe", {"model": "tiny"}, weights="file:" + sys.argv[1])
        try:
            crepe.get_model()
        except bundles.StateDictMismatchError:
            assert begun == [False], begun
    """
    path = tmp_path / "net.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), path], check=True)
