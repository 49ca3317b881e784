"""Delta files that are none, or not of this model: ``tests/fixtures/delta-v1`` with one thing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bundles.errors import (
    BundlesError,
    DeltaBaseError,
    HeadError,
    StateDictMismatchError,
    WeightsFileError,
)
from corpus.configs import DIGEST, bad

FILE = Path(__file__).parent.parent / "fixtures" / "delta-v1" / "speech.safetensors"
DEEP = "[" * 100_000


def data() -> bytes:
    return FILE.read_bytes()


def parts() -> tuple[dict[str, Any], bytes]:
    """The file's JSON header and the bytes of its tensors."""
    whole = data()
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def joined(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def said(change: Callable[[dict[str, Any]], object]) -> Callable[[], bytes]:
    """The delta with what it says of itself changed."""

    def make() -> bytes:
        header, tensors = parts()
        text = json.loads(header["__metadata__"]["bundles_delta"])
        before = json.dumps(text)
        change(text)
        assert json.dumps(text) != before
        header["__metadata__"]["bundles_delta"] = json.dumps(text)
        return joined(header, tensors)

    return make


def put(*path: Any, value: Any) -> Callable[[], bytes]:
    """The delta with one value in what it says of itself changed."""

    def change(text: Any) -> None:
        for key in path[:-1]:
            text = text[key]
        text[path[-1]] = value

    return said(change)


def without(*path: Any) -> Callable[[], bytes]:
    def change(text: Any) -> None:
        for key in path[:-1]:
            text = text[key]
        del text[path[-1]]

    return said(change)


def metadata(text: str | None) -> Callable[[], bytes]:
    """The delta with another text in the place of what it says of itself."""

    def make() -> bytes:
        header, tensors = parts()
        header["__metadata__"] = {} if text is None else {"bundles_delta": text}
        return joined(header, tensors)

    return make


def tensor(change: Callable[[dict[str, Any]], object]) -> Callable[[], bytes]:
    """The delta with the entry of its tensors changed."""

    def make() -> bytes:
        header, tensors = parts()
        change(header)
        return joined(header, tensors)

    return make


def renamed(header: dict[str, Any]) -> None:
    header["'readout.extra' is stored, and it has no such tensor"] = header.pop(
        next(name for name in header if name.endswith("bias"))
    )


def reshaped(header: dict[str, Any]) -> None:
    entry = next(entry for name, entry in header.items() if name.endswith("bias"))
    entry["shape"] = [1, *entry["shape"]]


DELTAS = [
    bad("D01a", "empty", b"", "safetensors", WeightsFileError),
    bad("D01b", "seven bytes", lambda: data()[:7], "safetensors", WeightsFileError),
    bad("D01c", "half a header", lambda: data()[:400], "safetensors|damaged or truncated", WeightsFileError),
    bad("D01d", "one byte short", lambda: data()[:-1], "truncated|short|damaged", WeightsFileError),
    bad("D01e", "one byte more", lambda: data() + b"x", "damaged|trailing|bytes", WeightsFileError),
    bad("D01f", "a web page", b"<!DOCTYPE html>", "safetensors", WeightsFileError),
    bad("D01g", "a pickle", lambda: b"PK\x03\x04" + data(), "safetensors", WeightsFileError),
    bad(
        "D01h",
        "a pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "safetensors",
        WeightsFileError,
    ),
    bad(
        "D01i",
        "a whole checkpoint",
        metadata(None),
        "is no delta checkpoint.*bundles.load_into",
        WeightsFileError,
    ),
    bad("D01j", "no JSON", metadata("{"), "is no JSON"),
    bad("D01k", "deep JSON", metadata(DEEP), "is no JSON"),
    bad("D01l", "a list", metadata("[]"), "format version None"),
    bad("D01m", "a number of many digits", metadata("9" * 5000), "is no JSON"),
    bad("D02a", "newer", put("version", value=2), "format version 2.*reads 1"),
    bad("D02b", "version as text", put("version", value="1"), "format version '1'"),
    bad("D02c", "version true", put("version", value=True), "format version True"),
    bad("D03a", "no base", without("base"), "base is None"),
    bad("D03b", "an empty base", put("base", value={}), "malformed"),
    bad("D03c", "a base of another kind", put("base", value=[]), r"base is \[\]"),
    bad("D03d", "no bundle", without("base", "bundle"), "malformed"),
    bad(
        "D03e",
        "a bundle that is a number",
        put("base", "bundle", value=3),
        "malformed|no bundle 3",
        BundlesError,
    ),
    bad("D03f", "an unknown bundle", put("base", "bundle", value="NOBODY"), "NOBODY", LookupError),
    bad(
        "D03g",
        "another card",
        put("base", "card", value=DIGEST),
        f"base of the delta moved.*{DIGEST}",
        DeltaBaseError,
    ),
    bad(
        "D03h",
        "another file",
        put("base", "files", value={"tiny.safetensors": 64 * "1"}),
        f"base of the delta moved.*{64 * '1'}",
        DeltaBaseError,
    ),
    bad("D03i", "files that are none", put("base", "files", value=3), "malformed"),
    bad(
        "D03j",
        "a digest that is none",
        put("base", "files", value={"tiny.safetensors": 3}),
        "malformed|moved",
        BundlesError,
    ),
    bad(
        "D03k",
        "options that do not exist",
        put("base", "options", value={"trust_remote_code": True}),
        "trust_remote_code",
        BundlesError,
    ),
    bad("D03l", "options that are none", put("base", "options", value=3), "malformed"),
    bad("D03m", "a file on this machine", put("base", "bundle", value="file:/etc"), "/etc", BundlesError),
    bad("D03n", "control characters", put("base", "bundle", value="\x1b[2J"), r"x1b\[2J", LookupError),
    bad("D04a", "names that are none", put("names", value=[]), r"names is \[\]"),
    bad(
        "D04b",
        "a shape that is none",
        put("names", "aux.bias", value="x"),
        "a name has no shape",
    ),
    bad(
        "D04c",
        "a name too many",
        put("names", "more", value=[1]),
        "more",
        StateDictMismatchError,
    ),
    bad(
        "D04d",
        "a name too few",
        without("names", "aux.bias"),
        "it has no such tensor",
    ),
    bad(
        "D04e",
        "another shape",
        put("names", "aux.bias", value=[3]),
        "it has no such tensor",
    ),
    bad("D05a", "no freeze", put("freeze", value={}), "its freeze cannot be read|malformed"),
    bad(
        "D05b",
        "another plan",
        put("freeze", "plans", 0, "digest", value=DIGEST),
        f"another plan.*{DIGEST}",
        DeltaBaseError,
    ),
    bad(
        "D05c",
        "a mode that does not exist",
        put("freeze", "plans", 0, "mode", "noise", value="loud"),
        "loud",
        BundlesError,
    ),
    bad(
        "D05d",
        "a module that does not exist",
        put("freeze", "plans", 0, "module", value="nowhere"),
        "nowhere|malformed",
        BundlesError,
    ),
    bad(
        "D05e",
        "frozen that is none",
        put("freeze", "plans", 0, "frozen", value=3),
        "its freeze cannot be read",
    ),
    bad(
        "D05f",
        "frozen that does not exist",
        put("freeze", "plans", 0, "frozen", value=["nowhere"]),
        "nowhere|another plan",
        BundlesError,
    ),
    bad(
        "D05g",
        "a mask without bits",
        put("freeze", "plans", 0, "masked", value={"nowhere": [2]}),
        "malformed|cannot be read",
        BundlesError,
    ),
    bad(
        "D05h",
        "a pattern without end",
        put("freeze", "plans", 0, "groups", 0, "match", value=["*a" * 24 + "~"]),
        "its freeze cannot be read",
    ),
    bad(
        "D05i",
        "a name that does not train",
        put("freeze", "untrained", value=["nowhere"]),
        "parameters that the model lacks|another plan",
        BundlesError,
    ),
    bad("D06e", "a head that is none", put("head", value={}), "malformed"),
    bad(
        "D07a",
        "dtype that does not exist",
        put("dtype", value="float3"),
        "it has no such tensor|dtype is 'float3'",
    ),
    bad("D07b", "dtype that is none", put("dtype", value=3), "dtype is 3"),
    bad(
        "D07c",
        "another dtype",
        put("dtype", value="float64"),
        "it has no such tensor",
    ),
    bad("D07d", "step that is none", put("step", value="7"), "step is '7'"),
    bad(
        "D08a",
        "tensor of another name",
        tensor(renamed),
        "'readout.extra' is stored, and it has no such tensor",
    ),
    bad("D08b", "tensor of another shape", tensor(reshaped), "it has no such tensor"),
]


# of a model that is built anew alone
REBUILT = [
    bad("D06a", "a head of code", put("head", "recipe", "type", value="os.system"), "os.system", HeadError),
    bad("D06b", "a head of nobody", put("head", "recipe", value=None), r"load_delta\(path, head=", HeadError),
    bad(
        "D06c",
        "a head of another size",
        put("head", "recipe", "out_features", value=6),
        "another plan|do not fit",
        BundlesError,
    ),
    bad("D06d", "a huge head", put("head", "recipe", "out_features", value=10**12), "head", BundlesError),
]

# of a given model alone
GIVEN = [
    bad("D07e", "a schedule that is none", put("schedule", value={"a": 1}), "schedule", BundlesError),
]
