"""Safetensors files, and what is given out for one: rows S01 to S26.

Where torch or the format has gone on since the rows were written (S09) the case says so. Values are not
looked at: NaN and infinity are accepted (S21).
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from safetensors.torch import save

from bundles.errors import BundlesWarning, ChecksumError, StateDictMismatchError, WeightsFileError
from corpus.case import Case

GOOD = save({"a": torch.ones(1)})
DAMAGED = "is damaged, truncated"
UNKNOWN = "is of no known format; a safetensors file is needed"


def raw(header: object, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def one(data: bytes = bytes(4), **changes: object) -> bytes:
    """A file of one tensor, whose entry is changed."""
    return raw({"a": entry(**changes)}, data)  # type: ignore[arg-type]


def named(name: str) -> bytes:
    return raw({name: entry()}, bytes(4))


def text(header: str, data: bytes = bytes(4)) -> bytes:
    return raw(header.encode(), data)


def many(count: int) -> bytes:
    """A file of empty tensors, without the pains of ``json``."""
    rows = (f'"t{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(count))
    return text("{" + ",".join(rows) + "}", b"")


def numpy_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


def index(places: object, **metadata: object) -> bytes:
    """The index of a sharded checkpoint, whose shards lie beside it: see ``SHARDS``."""
    return json.dumps({"metadata": metadata, "weight_map": places}).encode()


A, B = (json.dumps(entry(offsets=at)) for at in ((0, 4), (4, 8)))
PLACES = {"a": "one.safetensors", "b": "two.safetensors"}
SHARDS = {
    "one.safetensors": save({"a": torch.ones(1)}),
    "two.safetensors": save({"b": torch.ones(2)}),
    "both.safetensors": save({"a": torch.ones(1), "b": torch.ones(2)}),
    "cut.safetensors": save({"b": torch.ones(2)})[:-1],
}


def refused(
    id: str,
    note: str,
    data: bytes | Callable[[], bytes],
    words: str = DAMAGED,
    error: type[Exception] = WeightsFileError,
) -> Case:
    return Case(id, note, data if callable(data) else partial(bytes, data), "R", error, words)


def unusual(id: str, note: str, data: bytes, words: str) -> Case:
    return Case(id, note, partial(bytes, data), "W", BundlesWarning, words)


def accepted(id: str, note: str, data: bytes) -> Case:
    return Case(id, note, partial(bytes, data), "A")


WEIGHTS = [
    refused("S01a", "empty", b"", "is empty; a safetensors file is needed"),
    refused("S01b", "7 bytes", b"1234567", UNKNOWN),
    refused("S02a", "eight zero bytes", bytes(8), UNKNOWN),
    refused("S03a", "a header longer than the file", struct.pack("<Q", 1000) + b"{}", UNKNOWN),
    refused("S03b", "a header of 2^63 bytes", struct.pack("<Q", 1 << 63) + b"{}", UNKNOWN),
    refused("S03c", "a header of 2^64 - 1 bytes", struct.pack("<Q", (1 << 64) - 1) + b"{}", UNKNOWN),
    refused("S03d", "a header of 100,000,001 bytes", struct.pack("<Q", 100_000_001) + b"{}", UNKNOWN),
    refused(
        "S03e", "a header of 17 MiB that is there", lambda: raw(b"{}" + b" " * (17 << 20)), "a header of"
    ),
    refused("S04a", "a big-endian length", struct.pack(">Q", 2) + b"{}", UNKNOWN),
    refused("S05a", "not UTF-8", raw(b'{"a\xff": 1}')),
    refused("S05b", "not JSON", raw(b"{nonsense}")),
    refused("S05c", "a list", raw(b"[]"), UNKNOWN),
    refused("S05d", "cut", raw(b'{"a":')),
    refused("S05e", "more after the header", raw(b"{} x")),
    refused("S05f", "a byte order mark", raw(b"\xef\xbb\xbf{}"), UNKNOWN),
    refused("S06a", "a space first, which the reader takes", text(f' {{"a":{A}}}'), UNKNOWN),
    unusual(
        "S06b", "newlines last", text(f'{{"a":{A}}}\n\n'), "pads its header with other signs than spaces"
    ),
    refused(
        "S07a", "a key twice, the same, which the reader takes", text(f'{{"a":{A},"a":{A}}}'), "key 'a' twice"
    ),
    refused("S07b", "a key twice", text(f'{{"a":{A},"a":{B}}}', bytes(8)), "holds the key 'a' twice"),
    refused("S07c", "dtype twice", text('{"a":{"dtype":"F32",' + A[1:] + "}"), "holds the key 'dtype' twice"),
    refused("S08a", "an unknown type", one(dtype="F33")),
    refused("S08b", "a type in lower case", one(dtype="f32")),
    refused(
        "S09a",
        "a type that torch lacks",
        one(bytes(12), dtype="F6_E2M3", shape=(16,), offsets=(0, 12)),
        "lacks",
    ),
    accepted("S09b", "a type that torch has since 2.7", one(dtype="F8_E8M0", shape=(4,))),
    accepted("S09c", "complex numbers, which torch has", one(bytes(8), dtype="C64", offsets=(0, 8))),
    refused("S10a", "no type", raw({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4))),
    refused("S10b", "no shape", raw({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4))),
    refused("S10c", "no offsets", raw({"a": {"dtype": "F32", "shape": [1]}}, bytes(4))),
    refused("S10d", "one offset", one(offsets=(0,))),
    unusual("S11a", "an extra key", one(hint=1), "says 'hint' of the tensor 'a', which means nothing"),
    refused("S12a", "a negative dimension", one(shape=(-1,))),
    refused("S12b", "a dimension of 1.0", one(shape=(1.0,))),
    refused("S12c", "a dimension that is no number", one(shape=(float("nan"),))),
    refused("S12d", "a dimension of 2^64 + 1", one(shape=((1 << 64) + 1,))),
    refused("S12e", "a negative offset", one(offsets=(-4, 0))),
    refused("S12f", "an offset of 2^64", one(offsets=(0, 1 << 64))),
    refused("S12g", "a dimension of true", one(shape=(True,))),
    refused("S13a", "a product beyond 2^64", one(shape=(1 << 63, 4))),
    refused("S13b", "a product that wraps to 0", one(b"", shape=(1 << 32, 1 << 32), offsets=(0, 0))),
    refused("S13c", "bytes that wrap to 4", one(shape=((1 << 62) + 1,))),
    refused("S14a", "offsets reversed", one(offsets=(4, 0))),
    refused("S14b", "past the end", one(offsets=(0, 8))),
    refused("S14c", "not the bytes of the shape", one(shape=(2,))),
    refused("S15a", "a hole first", one(bytes(8), offsets=(4, 8))),
    refused("S15b", "a hole between", raw({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12))),
    refused(
        "S15c",
        "an overlap",
        raw({"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(offsets=(4, 8))}, bytes(8)),
    ),
    refused("S15d", "one region twice", raw({"a": entry(), "b": entry()}, bytes(4))),
    refused("S16a", "a zip after the data", GOOD + b"PK\x05\x06" + bytes(18)),
    refused("S16b", "short by a byte", GOOD[:-1]),
    refused("S16c", "half of it", lambda: save({"a": torch.zeros(999)})[:2000]),
    refused("S17a", "metadata nested", raw({"__metadata__": {"a": {"b": "c"}}, "a": entry()}, bytes(4))),
    refused("S17b", "metadata a number", raw({"__metadata__": 3, "a": entry()}, bytes(4))),
    refused("S17c", "metadata a list", raw({"__metadata__": ["a"], "a": entry()}, bytes(4))),
    unusual(
        "S17d", "metadata null", raw({"__metadata__": None, "a": entry()}, bytes(4)), "has null for metadata"
    ),
    refused("S18a", "no name", named(""), "a tensor named '', as no module can name one"),
    refused("S18b", "a NUL in the name", named("a\0b"), r"a tensor named 'a\x00b'"),
    refused("S18c", "a name that reads backwards", named("\u202eab"), r"a tensor named '\u202eab'"),
    refused("S18d", "a name of 1 MB", lambda: named("n" * 10**6), "as no module can name one"),
    refused("S18e", "half of a surrogate pair", text(r'{"\ud800":' + A + "}"), "as no module can name one"),
    refused(
        "S18f",
        "a name as a path",
        named("../../x"),
        "unexpected in the file: ../../x",
        StateDictMismatchError,
    ),
    refused(
        "S18g", "a name of Python's", named("__class__"), "in the file: __class__", StateDictMismatchError
    ),
    refused("S19a", "100,000 empty tensors", lambda: many(100_000), "more than 65536 tensors"),
    refused(
        "S19b", "100,000 dimensions", lambda: one(shape=[1] * 100_000), "100000 dimensions, and at most 64"
    ),
    refused("S19c", "65 dimensions", one(shape=[1] * 65), "of 65 dimensions, and at most 64 are read"),
    refused("S20a", "nested deep", raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)),
    refused("S20b", "lists nested deep", raw(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}")),
    accepted(
        "S21a", "a zip's end among the numbers", one(b"PK\x05\x06" + bytes(20), shape=(6,), offsets=(0, 24))
    ),
    accepted("S21b", "NaN and infinity", save({"a": torch.tensor([float("nan"), float("inf"), -0.0])})),
    accepted("S22a", "a tensor without elements", save({"a": torch.zeros(0, 4)})),
    accepted("S22b", "a scalar", save({"a": torch.tensor(3.0)})),
    refused("S23a", "a pickle", pickle.dumps({"a": 1}), "is a pickle; a safetensors file is needed"),
    refused(
        "S23b",
        "a zip",
        b"PK\x03\x04" + bytes(100),
        "is a zip archive, as torch.save writes it; a safetensors",
    ),
    refused("S23c", "gzip", gzip.compress(GOOD), "is a gzip archive"),
    refused("S23d", "7z", b"7z\xbc\xaf\x27\x1c" + bytes(100), "is a 7z archive"),
    refused("S23e", "a page", b"<!DOCTYPE html>\n<html><title>Sign in</title>", "is an HTML page"),
    refused("S23f", "a page, late and loud", b"\n\n <HTML lang=en>", "is an HTML page"),
    refused(
        "S23g",
        "a Git LFS pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a Git LFS pointer, not the file it points to (type `git lfs pull`)",
    ),
    refused("S23h", "JSON", b'{"error": "not found"}', "is JSON text"),
    refused("S23i", "GGUF", b"GGUF" + bytes(100), "is a GGUF file"),
    refused("S23j", "HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    refused("S23k", "bzip2", bz2.compress(GOOD), "is a bzip2 archive"),
    refused("S23l", "xz", lzma.compress(GOOD), "is an xz archive"),
    refused("S23m", "Zstandard", b"\x28\xb5\x2f\xfd" + bytes(100), "is a Zstandard archive"),
    refused("S23n", "NumPy", numpy_bytes, "is a NumPy array"),
    refused(
        "S23o",
        "an error of a bucket",
        b'<?xml version="1.0"?><Error>',
        "is an XML document, perhaps a server's",
    ),
    refused(
        "S24a",
        "another model's",
        save({"b": torch.ones(1)}),
        "in the file: a; unexpected",
        StateDictMismatchError,
    ),
    refused(
        "S24b",
        "of another shape",
        save({"a": torch.ones(2)}),
        "a (model (1,), file (2,))",
        StateDictMismatchError,
    ),
    refused(
        "S24c",
        "of another type",
        save({"a": torch.ones(1, dtype=torch.int64)}),
        "a (model torch.float32, file torch.int64)",
        StateDictMismatchError,
    ),
    refused(
        "S24d",
        "with more in it",
        save({"a": torch.ones(1), "c": torch.ones(1), "b": torch.ones(1)}),
        "unexpected in the file: b, c",
        StateDictMismatchError,
    ),
    accepted("S25a", "an index as it should be", index(PLACES, total_size=12)),
    refused(
        "S25b",
        "a shard that is not there",
        index({**PLACES, "c": "three.safetensors"}),
        "names three.safetensors",
    ),
    refused(
        "S25c",
        "a shard elsewhere",
        index({**PLACES, "b": "/etc/two.safetensors"}),
        "not the plain name of a file",
    ),
    refused(
        "S25d", "a shard above", index({**PLACES, "b": "../two.safetensors"}), "not the plain name of a file"
    ),
    refused(
        "S25e",
        "a tensor in two shards",
        index({**PLACES, "b": "both.safetensors"}),
        "both.safetensors holds it",
    ),
    refused(
        "S25f",
        "a tensor twice",
        b'{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}',
        "key 'a' twice",
    ),
    refused(
        "S25g",
        "another total size",
        index(PLACES, total_size=13),
        "total_size = 13, and the shards hold 12 bytes",
    ),
    refused(
        "S25h",
        "a tensor that its shard lacks, and too few bytes",
        index({**PLACES, "b": "one.safetensors"}, total_size=3),
        "total_size = 3, and the shards hold 4 bytes",
    ),
    refused("S25i", "no map", b'{"metadata": {}}', "has no weight_map"),
    refused("S25j", "a page", b"<html>404", "is an HTML page and cannot be read as JSON"),
    refused("S25k", "a damaged shard", index({**PLACES, "b": "cut.safetensors"})),
    refused("S26a", "another bit", GOOD[:-1] + b"\x01", "expected sha256", ChecksumError),
]
