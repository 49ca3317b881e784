"""The format of locks: what is written is read back the same, and what no lock may say is refused."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles.errors import PinError
from bundles.spec.fold import fold, unfold
from bundles.spec.lock import Lock, read_lock, write_lock
from bundles.spec.pin import FilePin, ModelPin, pin_string, split_pin
from bundles.spec.toml import toml_problem, toml_value

COMMIT = "0123456789" * 4
DIGEST = "sha256:" + "ab" * 32
FILE = FilePin("weights", "model.safetensors", 9, "ab" * 32, f"hf:owner/repo@{COMMIT}#model.safetensors")
PIN = ModelPin("CREPE_TINY", DIGEST, (FILE,), parameters=9, trainable=3, versions={"torch": "2.14.1"})
LOCK = Lock({"model": PIN}, single=True, created_by="bundles 0.1.0")

# --- what is written is read back the same ----------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
sizes = st.integers(1, 2**63 - 1)
plain = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
tables = st.dictionaries(texts, plain, max_size=3)
names = st.text("abcXYZ0189_-", min_size=1, max_size=12)


@st.composite
def files(draw: st.DrawFn) -> FilePin:
    path = draw(names) + ".bin"
    uris = st.sampled_from(["url:https://example.org/", "package:some/", "file:weights/"])
    return FilePin(
        role=draw(st.sampled_from(["weights", "shard", "card", "asset.tokenizer"])),
        path=path,
        size=draw(sizes),
        sha256=draw(digests),
        source=draw(uris) + path,
        alternates=tuple(draw(st.lists(uris.map(lambda uri: f"{uri}{path}"), max_size=2))),
        extra=draw(st.dictionaries(texts.map(lambda key: f"new {key}"), plain, max_size=2)),
    )


@st.composite
def pins(draw: st.DrawFn) -> ModelPin:
    optional = st.none() | texts
    return ModelPin(
        bundle=draw(names),
        card="sha256:" + draw(digests),
        files=tuple(draw(st.lists(files(), max_size=3, unique_by=(lambda f: f.path, lambda f: f.source)))),
        parameters=draw(st.integers(0, 2**63 - 1)),
        trainable=draw(st.integers(0, 2**63 - 1)),
        freeze=draw(optional),
        freeze_mode=draw(optional),
        plan=draw(st.none() | digests.map(lambda digest: f"sha256:{digest}")),
        frozen=tuple(draw(st.lists(texts, max_size=3))),
        head=draw(st.none() | tables.filter(bool)),
        dtype=draw(optional),
        converted=draw(st.none() | digests.map(lambda digest: {"converter": 2, "sha256": digest})),
        license=draw(optional),
        gated=draw(st.booleans()),
        versions=draw(st.dictionaries(texts, texts, max_size=3)),
        extra=draw(st.dictionaries(texts.map(lambda key: f"new {key}"), plain, max_size=2)),
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_written_is_read_back_the_same(data: st.DataObject) -> None:
    single = data.draw(st.booleans())
    models = (
        {"model": data.draw(pins())}
        if single
        else data.draw(st.dictionaries(texts.filter(bool), pins(), max_size=3))
    )
    extra = data.draw(st.dictionaries(texts.map(lambda key: f"new {key}"), plain, max_size=2))
    lock = Lock(models, single=single, created_by=data.draw(texts), extra=extra)
    if not models:
        return
    text = write_lock(lock)
    again = read_lock(text, "x.lock.toml")
    assert again == lock
    assert write_lock(again) == text
    assert text.endswith("\n")
    assert "\r" not in text


def test_the_order_in_which_things_were_said_does_not_show() -> None:
    one = Lock({"a": PIN, "b": replace(PIN, versions={"x": "1", "torch": "2"})}, single=False)
    two = Lock({"b": replace(PIN, versions={"torch": "2", "x": "1"}), "a": PIN}, single=False)
    assert write_lock(one) == write_lock(two)


def test_a_lock_is_one_item_per_line_so_that_diffs_are_small() -> None:
    one = write_lock(LOCK).splitlines()
    two = write_lock(replace(LOCK, models={"model": replace(PIN, trainable=4)})).splitlines()
    assert [b for a, b in zip(one, two, strict=True) if a != b] == ["trainable = 4"]


def test_windows_ends_of_lines_and_another_order_are_read() -> None:
    text = write_lock(LOCK)
    assert read_lock(text.replace("\n", "\r\n"), "x") == LOCK
    assert read_lock(text.rstrip("\n"), "x") == LOCK
    card, parameters = re.findall(r"^(?:card|parameters) = .*\n", text, re.MULTILINE)
    assert read_lock(text.replace(card, "").replace(parameters, parameters + card), "x") == LOCK


def test_what_a_later_version_added_is_kept() -> None:
    text = write_lock(LOCK)
    text = text.replace("gated = false", 'gated = false\nsigner = { name = "me", keys = [1, 2] }')
    text = text.replace("\n[model]", '\nhint = "later"\n\n[model]')
    lock = read_lock(text + "signature = 'abc'\n", "x")
    assert lock.extra == {"hint": "later"}
    assert lock.models["model"].extra == {"signer": {"name": "me", "keys": (1, 2)}}
    assert lock.models["model"].files[0].extra == {"signature": "abc"}
    assert read_lock(write_lock(lock), "x") == lock


# --- what is refused ----------------------------------------------------------------------------------


def changed(old: str, new: str, count: int = 1) -> str:
    text = write_lock(LOCK)
    assert old in text
    return text.replace(old, new, count)


TWICE = changed(
    "[[model.files]]",
    "[[model.files]]\n" + write_lock(LOCK).partition("[[model.files]]\n")[2] + "\n[[model.files]]",
)
REFUSED: dict[str, tuple[str, str]] = {
    "empty": ("", "it has no lock-version: write one by `bundles lock`"),
    "another file": ('[tool]\nname = "x"\n', "it has no lock-version"),
    "newer": (
        changed("lock-version = 1", "lock-version = 2").replace("bundles 0.1.0", "bundles 3.2.0"),
        "lock-version 2, and this library reads 1: type `pip install 'pretrained-bundles>=3.2.0'`",
    ),
    "version a text": (changed("lock-version = 1", "lock-version = '1'"), "the lock-version '1'"),
    "version true": (changed("lock-version = 1", "lock-version = true"), "the lock-version True"),
    "no TOML": ("lock-version = \n", r"x.lock.toml is no TOML \(.*line 1"),
    "a BOM": ("\ufeff" + write_lock(LOCK), "is no TOML"),
    "deep": ("lock-version = 1\nx = " + "[" * 9999, "is no TOML"),
    "merge conflict": (
        changed("trainable = 3", "<<<<<<< HEAD\ntrainable = 3\n=======\ntrainable = 4\n>>>>>>> theirs"),
        "line 9, holds the marks of a merge conflict: take one side",
    ),
    "no model": ("lock-version = 1\n", r"one of the tables \[model\] and \[models.NAME\]"),
    "both": (changed("[model]", "[models]\n[model]"), r"one of the tables \[model\]"),
    "a model that is a number": ("lock-version = 1\nmodel = 3\n", "model: 3 is no table"),
    "models a list": ("lock-version = 1\nmodels = [1]\n", r"models: \[1\] is no table"),
    "files a text": (
        changed("[[model.files]]", "[x]").replace("gated", "files = 'x'\ngated"),
        "files: 'x' is no list",
    ),
    "card missing": (changed(f'card = "{DIGEST}"\n', ""), "model.card: is missing"),
    "card short": (changed(DIGEST, "sha256:abc"), "model.card: 'sha256:abc' is not 'sha256:' and 64"),
    "count negative": (changed("parameters = 9", "parameters = -9"), "model.parameters: -9 is not a number"),
    "count true": (changed("trainable = 3", "trainable = true"), "model.trainable: True is not"),
    "gated a text": (changed("gated = false", "gated = 'no'"), "model.gated: 'no' is neither true nor"),
    "freeze a number": (changed("gated = false", "freeze = 3"), "model.freeze: 3 is no text"),
    "freeze a date": (changed("gated = false", "freeze = 2020-01-01"), "model.freeze: .* is no text"),
    "a date": (changed("gated = false", "when = 2020-01-01"), "when: .* is no text, number, list or table"),
    "infinity": (changed("gated = false", "rate = inf"), "rate: inf is no finite number"),
    "head a text": (changed("gated = false", "head = 'Linear'"), "model.head: 'Linear' is no table"),
    "converted empty": (
        changed("gated = false", "gated = false\n[model.converted]\n"),
        "converted.converter: None is not the number",
    ),
    "converted": (
        changed("gated = false", "converted = { converter = '2' }"),
        "converted.sha256: None is no",
    ),
    "file's size missing": (changed("size = 9\n", ""), r"model.files\[0\].size: is missing"),
    "file's size 0": (changed("size = 9", "size = 0"), r"model.files\[0\].size: the size 0"),
    "file's digest": (changed('sha256 = "ab', 'sha256 = "AB'), r"model.files\[0\].sha256: .*64 lower-case"),
    "file's role": (changed('role = "weights"', 'role = "code"'), "role: 'code' is not 'weights'"),
    "a branch": (changed(f"@{COMMIT}", "@main"), "names no commit"),
    "no commit": (changed(f"@{COMMIT}", ""), "names no commit"),
    "short commit": (changed(COMMIT, COMMIT[:12]), "is a short commit"),
    "a bundle's branch": (changed('"CREPE_TINY"', '"hf:owner/repo@v1"'), "model.bundle: .* names no commit"),
    "the same file twice": (TWICE, "model.files: model.safetensors is there twice"),
    "two digests": (TWICE[::-1].replace("ba" * 32, "0" * 64, 1)[::-1], "is there with two digests"),
    "a place of this machine": (
        changed(f"hf:owner/repo@{COMMIT}#", "file:/home/me/"),
        r"model.files\[0\].source: 'file:/home/me/model.safetensors' is a place on one machine",
    ),
    "a folder above": (changed(f"hf:owner/repo@{COMMIT}#", "file:../"), "is a place on one machine"),
    "a drive": (changed(f"hf:owner/repo@{COMMIT}#", "file:C:/"), "is a place on one machine"),
    "a bundle's folder above": (changed('"CREPE_TINY"', '"file:../mine"'), "model.bundle: .* one machine"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_lock_may_say(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(PinError, match=words):
        read_lock(text, "x.lock.toml")


PATHS = (
    *("/etc/passwd", "../a", "a/../b", "./a", "a//b", "a\\b", "C:/a", "a\0b", "a" * 300, "", "a/", "nul"),
    *("a\nb", "a/.", " a"),
)


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_lead_elsewhere(path: str) -> None:
    with pytest.raises(PinError, match="path: "):
        replace(FILE, path=path)
    text = changed('path = "model.safetensors"', f"path = {toml_value(path)}")
    with pytest.raises(PinError, match=r"model.files\[0\].path: "):
        read_lock(text, "x.lock.toml")


def test_all_problems_are_named_at_once() -> None:
    text = changed("size = 9", "size = -1").replace("trainable = 3", "trainable = -3").replace(DIGEST, "x")
    with pytest.raises(PinError, match="is no sound lock: restore it, or delete it") as caught:
        read_lock(text, "x.lock.toml")
    problems = caught.value.problems
    assert len(problems) == 3
    assert all(problem.startswith("x.lock.toml: model.") for problem in problems)


@pytest.mark.parametrize("value", [None, float("nan"), 2**63, {"a": None}, [object()], {1: 2}, "\ud800"])
def test_what_toml_cannot_hold_is_not_written(value: Any) -> None:
    assert toml_problem(value)
    with pytest.raises(PinError, match="head"):
        replace(PIN, head={"type": value})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_becomes_of_a_lock_no_foreign_error_comes_of_it(data: st.DataObject) -> None:
    text = write_lock(LOCK)
    start = data.draw(st.integers(0, len(text)))
    stop = min(len(text), start + data.draw(st.integers(0, 40)))
    words = st.sampled_from(
        ['"', "[", "]", "{", "=", "\n", "1", "-1", "true", "[[", "'", "#", "1e999", ".", "nan"]
    )
    new = data.draw(st.lists(words | st.text(max_size=3), max_size=3).map("".join))
    try:
        lock = read_lock(text[:start] + new + text[stop:], "x.lock.toml")
    except PinError:
        return
    assert read_lock(write_lock(lock), "x.lock.toml") == lock


# --- pin strings and folded names ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CREPE_TINY", f"hf:owner/repo@{COMMIT}", "hf:owner/repo", "file:a/b"])
def test_pin_strings_are_split_as_they_were_made(name: str) -> None:
    assert split_pin(pin_string(name, DIGEST)) == (name, DIGEST)


@pytest.mark.parametrize("text", ["CREPE_TINY", f"hf:owner/repo@{COMMIT}", "", f"@{DIGEST}"])
def test_what_is_no_pin_string(text: str) -> None:
    assert split_pin(text) is None


@pytest.mark.parametrize(
    "digest", ["sha256:", "sha256:abc", DIGEST.upper().replace("SHA", "sha"), DIGEST + "0"]
)
def test_a_pin_string_with_half_a_digest(digest: str) -> None:
    with pytest.raises(PinError, match=r"copy it whole from bundle.pin\(\)"):
        split_pin(f"CREPE_TINY@{digest}")


part = st.sampled_from(["layers", "0", "1", "2", "7", "10", "07", "weight", "{0-3}", "a{b", "{}"])


@given(st.lists(st.lists(part, min_size=1, max_size=4).map(".".join), max_size=12))
def test_folded_names_unfold_to_the_same(names: list[str]) -> None:
    plain_names = [name for name in names if not re.search(r"\{\d", name)]
    assert unfold(fold(plain_names)) == set(plain_names)
    assert fold(reversed(plain_names)) == fold(plain_names)


def test_a_line_of_a_lock_does_not_unfold_to_millions() -> None:
    assert len(unfold(["a.{0-99999999999}.b"])) < 200_000


def test_the_written_lock_is_what_tomllib_reads() -> None:
    data = tomllib.loads(write_lock(LOCK))
    assert data["model"]["files"][0]["sha256"] == "ab" * 32
    assert data["model"]["versions"] == {"torch": "2.14.1"}
