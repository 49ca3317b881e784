"""Checkpoints that ``torch.save`` writes, or that somebody says it did: rows P01 to P08.

Row P01 wants a switch for any pickle. Here there is none to want: a flat dict of tensors is read with
``weights_only=True`` and converted once, anything else is refused, and no argument changes that.
"""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import pickle
import warnings
import zipfile
from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bundles.errors import UnsafeWeightsError, WeightsFileError
from corpus.case import Case

CANARY = "bundles-canary"  # in the folder that the test runs in
ODD = 70_001  # a count that stands in a pickle in five bytes, and nowhere else


class Canary:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def saved(state: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def zipped(data: bytes, **members: bytes) -> bytes:
    """A pickle in a zip archive, as torch.save packs it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **members}.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def repacked(compression: int = zipfile.ZIP_STORED, *, twice: str = "", without: str = "") -> bytes:
    """A good checkpoint of 8 MB of zeros, packed otherwise."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(2_000_000)}))) as good:
        members = {name: good.read(name) for name in good.namelist()}
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # zipfile's own, of the name that is there twice
        for name, content in members.items():
            if name != without:
                archive.writestr(name, content)
        if twice:
            archive.writestr(twice, members[twice])
    return file.getvalue()


def torchscript() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def counted(count: int, *, legacy: bool = False, first: bool = False) -> bytes:
    """A checkpoint whose pickle says another count of numbers than it has, of its storage or everywhere."""
    was, now = (b"J" + number.to_bytes(4, "little") for number in (ODD, count))
    data = saved({"a": torch.zeros(ODD)}, legacy=legacy)
    if legacy:
        return data.replace(was, now, 1 if first else -1)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        text = archive.read("archive/data.pkl").replace(was, now, 1 if first else -1)
        return zipped(text, **{"data/0": archive.read("archive/data/0")})


def claiming(data: bytes) -> bytes:
    """The same archive, whose table of contents says that its last member is a gigabyte, stored."""
    at = data.rindex(b"PK\x01\x02")
    size = (1 << 30).to_bytes(4, "little")
    return data[: at + 20] + size + size + data[at + 28 :]


def expanded() -> bytes:
    return saved({"a": torch.zeros(1).expand(1 << 16, 1 << 16)})


def crowded() -> bytes:
    return saved(dict.fromkeys(map("t{}".format, range(70_000)), torch.zeros(())))


def unsafe(id: str, note: str, data: Any, words: str) -> Case:
    return Case(id, note, data if callable(data) else partial(bytes, data), "R", UnsafeWeightsError, words)


def refused(id: str, note: str, data: Any, words: str) -> Case:
    return Case(id, note, data if callable(data) else partial(bytes, data), "R", WeightsFileError, words)


def with_extra(extra: object) -> Any:
    return partial(saved, {"a": torch.zeros(1), "extra": extra})


WEIGHTS = {"a": torch.ones(1)}
PICKLES = [
    Case("P01a", "nothing but named tensors", partial(saved, WEIGHTS), "A"),
    Case("P01b", "the same, as torch wrote it before 1.6", partial(saved, WEIGHTS, legacy=True), "A"),
    Case("P01c", "the same in order", partial(saved, OrderedDict(WEIGHTS)), "A"),
    unsafe(
        "P01d",
        "a pickle of Python's own",
        partial(pickle.dumps, OrderedDict(a=pathlib.Path("x")), 2),
        "run code",
    ),
    unsafe(
        "P02a",
        "code in a bare pickle",
        partial(pickle.dumps, Canary(), 2),
        "could run code (it names posix.system)",
    ),
    unsafe(
        "P02b", "code in a zip", lambda: zipped(pickle.dumps({"a": Canary()}, 2)), "it names posix.system"
    ),
    unsafe("P02c", "code among tensors", with_extra(Canary()), "it names posix.system"),
    unsafe(
        "P02d",
        "code among tensors, older",
        partial(saved, {"b": Canary()}, legacy=True),
        "it names posix.system",
    ),
    unsafe(
        "P02e", "code by a builtin", lambda: zipped(b"\x80\x02cbuiltins\neval\n(V1+1\ntR."), "(it names eval)"
    ),
    unsafe(
        "P02f",
        "an operation that looks names up",
        b"\x80\x02\x8c\x02os\x8c\x06system\x93(V1\ntR.",
        "could run code",
    ),
    unsafe("P03a", "a namespace", with_extra(argparse.Namespace(lr=0.1)), "it names argparse.Namespace"),
    unsafe("P03b", "a path", with_extra(pathlib.PurePosixPath("x")), "it names pathlib.PurePosixPath"),
    unsafe("P03c", "a numpy scalar", with_extra(np.float64(3)), "it names numpy"),
    unsafe("P03d", "a module", with_extra(nn.Linear(2, 2)), "it names torch.nn.modules.linear.Linear"),
    unsafe(
        "P04a", "TorchScript", torchscript, "is a TorchScript program: save its state_dict() as safetensors"
    ),
    unsafe(
        "P04b",
        "code beside a pickle",
        lambda: zipped(saved({}), **{"code/m.py": b"1"}),
        "is a TorchScript program",
    ),
    refused("P05a", "empty", b"", "is empty; a checkpoint written by torch.save is needed"),
    refused("P05b", "a zip, cut", lambda: saved(WEIGHTS)[:-100], "is damaged or truncated"),
    refused("P05c", "half a zip", lambda: saved({"a": torch.zeros(999)})[:1000], "is damaged or truncated"),
    refused("P05d", "four bytes of a zip", b"PK\x03\x04", "is damaged or truncated"),
    refused("P05e", "a page", b"<html>404", "is an HTML page; a checkpoint"),
    refused(
        "P05f",
        "an older checkpoint, cut",
        lambda: saved(WEIGHTS, legacy=True)[:-2],
        "is damaged or truncated",
    ),
    refused(
        "P05g",
        "a zip of something else",
        lambda: zipped(b"").replace(b"data.pkl", b"data.txt"),
        "without data.pkl",
    ),
    refused(
        "P06a",
        "a dict in a dict",
        partial(saved, {"state_dict": WEIGHTS}),
        "a dict with the keys ['state_dict']: save",
    ),
    refused(
        "P06b",
        "with more beside it",
        partial(saved, {"model": WEIGHTS, "epoch": 3}),
        "['model', 'epoch']: save the",
    ),
    refused("P06c", "a list", partial(saved, [WEIGHTS]), "but a list"),
    refused("P06d", "nothing", partial(saved, {}), "but nothing"),
    refused("P06e", "a tensor alone", partial(saved, torch.ones(1)), "but a Tensor"),
    refused(
        "P06f",
        "a name of 1 MB",
        partial(saved, {"n" * 10**6: torch.ones(1)}),
        "but a dict with the keys ['nnn",
    ),
    refused(
        "P07a",
        "compressed a thousand times",
        partial(repacked, zipfile.ZIP_DEFLATED),
        "compressed, which torch.save",
    ),
    refused(
        "P07b",
        "compressed otherwise",
        partial(repacked, zipfile.ZIP_BZIP2),
        "compressed, which torch.save never does",
    ),
    refused(
        "P07c", "a member that claims a gigabyte", lambda: claiming(saved(WEIGHTS)), "claims to hold 107374"
    ),
    refused(
        "P07d",
        "two members of one name",
        partial(repacked, twice="archive/data/0"),
        "two members of one name",
    ),
    refused("P07e", "one number shown as 16 GiB", expanded, "bytes and would become 17179869184"),
    refused(
        "P07f",
        "a member that is not there",
        partial(repacked, without="archive/data/0"),
        "is damaged or truncated",
    ),
    refused("P07g", "70,000 tensors", crowded, "holds 70000 tensors, and at most 65536"),
    unsafe("P08a", "an item set in a list", b"\x80\x02]K\x00K\x01s.", "could run code"),
    unsafe(
        "P08b", "an item set in a list, in a zip", lambda: zipped(b"\x80\x02]K\x00K\x01s."), "could run code"
    ),
    refused(
        "P08c", "a storage that says it is 8 GiB", partial(counted, 0x7FFFFFFF, first=True), "The checkpoint"
    ),
    refused(
        "P08d", "a tensor and a storage that do", partial(counted, 0x7FFFFFFF), "is damaged or truncated"
    ),
    refused("P08e", "a tensor past its storage", partial(counted, ODD + 1), "The checkpoint"),
    refused(
        "P08f",
        "the first, older",
        partial(counted, 0x7FFFFFFF, legacy=True, first=True),
        "is damaged or truncated",
    ),
    refused(
        "P08g", "the second, older", partial(counted, 0x7FFFFFFF, legacy=True), "is damaged or truncated"
    ),
]
