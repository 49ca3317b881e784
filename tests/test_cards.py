"""Cards: untrusted text that names what we know, and every problem with file, line and key."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import bundles
from bundles.errors import BundlesError, CardError, DuplicateBundleError
from bundles.registry.cards import read_card_file
from bundles.registry.registry import Registry

pytestmark = pytest.mark.usefixtures("default")

SHA = "0123456789abcdef" * 4
BODY = """\
builder = "torchcrepe"
architecture.model = "tiny"
layers = { blocks = ["conv{i}", "conv{i}_BN"], head = "classifier" }
"""
GOOD = f"[GOOD]\n{BODY}"


def written(folder: Path, text: str | bytes, name: str = "cards.toml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def problems_of(folder: Path, text: str | bytes) -> list[str]:
    """The problems of a card file, its folder left out of them."""
    return [line.replace(f"{folder}/", "") for line in read_card_file(str(written(folder, text))).problems]


def card(*lines: str) -> str:
    """A card X: the header in line 1, a body that is right in lines 2 to 4, then these lines."""
    return f"[X]\n{BODY}" + "\n".join(lines) + "\n"


# --- files that are no cards ----------------------------------------------------------------------

NESTED_ARRAYS = "[X]\nlabels = " + "[" * 20_000 + "]" * 20_000 + "\n"
NESTED_TABLES = "[X]\na = " + "{a = " * 20_000 + "1" + "}" * 20_000 + "\n"

UNREADABLE: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b"[X]\ntask = '\xff'\n", r"cards\.toml: is not UTF-8 text \(byte 12\)"),
    "UTF-16": (GOOD.encode("utf-16"), r"cards\.toml: is not UTF-8 text \(byte 0\)"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD.encode(), r"cards\.toml.*line 1"),
    "NUL": (b"[X]\ntask = '\x00'\n", r"cards\.toml.*line 2"),
    "larger than 4 MiB": (b"#" + b"x" * (4 << 20), r"cards\.toml: is larger than 4 MiB"),
    "10 MB": (b"[X]\ntask = '" + b"x" * 10_000_000, r"cards\.toml: is larger than 4 MiB"),
    "arrays nested deep": (NESTED_ARRAYS.encode(), r"cards\.toml: is nested too deeply"),
    "tables nested deep": (NESTED_TABLES.encode(), r"cards\.toml: is nested too deeply"),
    "duplicate key": (card('task = "a"', 'task = "b"').encode(), r"cards\.toml.*line 6"),
    "duplicate table": ((GOOD + GOOD).encode(), r"cards\.toml.*line 5"),
    "duplicate inline key": (card("weights = { size = 1, size = 2 }").encode(), r"cards\.toml.*line 5"),
    "no value": (b"[X]\ntask =\n", r"cards\.toml.*line 2"),
    "no closing bracket": (b"[X\nbuilder = 'torchcrepe'\n", r"cards\.toml.*line 1"),
    "merge conflict": (b"<<<<<<< HEAD\n" + GOOD.encode(), r"cards\.toml.*line 1"),
    "YAML": (b"X:\n  builder: torchcrepe\n", r"cards\.toml.*line 1"),
    "a number of 5000 digits": (b"[X]\nsample_rate = " + b"1" * 5000 + b"\n", r"cards\.toml"),
}


@pytest.mark.parametrize(("data", "words"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_file_that_is_no_card_file_is_one_problem_that_names_it(
    data: bytes, words: str, tmp_path: Path
) -> None:
    (problem,) = problems_of(tmp_path, data)
    assert re.search(words, problem)
    assert len(problem) < 500


def test_a_card_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "dir.toml").mkdir()
    (tmp_path / "gone.toml").symlink_to(tmp_path / "nowhere")
    written(tmp_path, GOOD, "good.toml")
    with pytest.raises(CardError, match=r"dir\.toml: cannot be read") as caught:
        bundles.register_cards(tmp_path)
    assert len(caught.value.problems) == 2
    assert "gone.toml: cannot be read" in caught.value.problems[1]
    assert bundles.GOOD.builder == "torchcrepe"


def test_a_broken_file_does_not_hide_the_other_files(tmp_path: Path) -> None:
    for number, (data, _) in enumerate(UNREADABLE.values()):
        written(tmp_path, data, f"bad{number:02}.toml")
    written(tmp_path, GOOD, "zgood.toml")
    with pytest.raises(
        CardError, match=rf"{len(UNREADABLE)} problems in the cards of .*every other card"
    ) as caught:
        bundles.register_cards(tmp_path)
    assert len(caught.value.problems) == len(UNREADABLE)
    assert bundles.list_bundles("GOOD") == ["GOOD"]


def test_windows_line_ends_and_a_missing_last_newline_are_fine(tmp_path: Path) -> None:
    found = read_card_file(str(written(tmp_path, GOOD.replace("\n", "\r\n").rstrip())))
    assert (found.problems, list(found.cards)) == ([], ["GOOD"])


# --- cards with a wrong key or value --------------------------------------------------------------

# what is added in line 5 -> what is said of which line and key
WRONG: dict[str, tuple[str, str]] = {
    "unknown key": ('tsk = "asr"', "cards.toml:5: X.tsk is not a key of a card; the closest is 'task'"),
    "unknown key, other case": (
        'Task = "asr"',
        "cards.toml:5: X.Task is not a key of a card; the closest is",
    ),
    "_target_": ('_target_ = "os.system"', "cards.toml:5: X._target_ is not a key of a card"),
    "trust_remote_code": ("trust_remote_code = true", "cards.toml:5: X.trust_remote_code is not a key"),
    "class_path": ('class_path = "a.B"', "cards.toml:5: X.class_path is not a key of a card"),
    "text for a number": ('sample_rate = "16000"', "cards.toml:5: X.sample_rate '16000' is not a positive"),
    "float for a number": ("sample_rate = 16000.0", "cards.toml:5: X.sample_rate 16000.0 is not a positive"),
    "nan": ("sample_rate = nan", "cards.toml:5: X.sample_rate nan is not a positive integer"),
    "bool for a number": ("num_features = true", "cards.toml:5: X.num_features True is not a positive"),
    "zero": ("num_features = 0", "cards.toml:5: X.num_features 0 is not a positive integer"),
    "negative": ("num_features = -1", "cards.toml:5: X.num_features -1 is not a positive integer"),
    "number for text": ("task = 3", "cards.toml:5: X.task 3 is not a string"),
    "text for a list": ('labels = "a"', "cards.toml:5: X.labels 'a' is not a list"),
    "text for a table": ('weights = "file:a"', "cards.toml:5: X.weights 'file:a' is not a table"),
    "date for text": ("task = 2020-01-01", "cards.toml:5: X.task datetime.date(2020, 1, 1) is not a string"),
    "argument unknown": (
        'architecture.mdl = "a"',
        "cards.toml:5: X.architecture.mdl is not an argument: the builder 'torchcrepe'",
    ),
    "argument _target_": (
        'architecture._target_ = "os.system"',
        "cards.toml:5: X.architecture._target_ is not an argument: the builder 'torchcrepe' takes model",
    ),
    "argument trust_remote_code": (
        "architecture.trust_remote_code = true",
        "cards.toml:5: X.architecture.trust_remote_code is not an argument: the builder 'torchcrepe' takes",
    ),
    "weights without source": ("weights.size = 3", "cards.toml:5: X.weights.source is missing"),
    "weights with an unknown key": (
        'weights = { source = "file:a", md5 = "x" }',
        "cards.toml:5: X.weights.md5 is not a key of weights; there is source, sha256, size",
    ),
    "allow_pickle": (
        'weights = { source = "file:a.pth", allow_pickle = true }',
        "cards.toml:5: X.weights.allow_pickle is not a key of weights",
    ),
    "policy unknown": (
        'freeze = "encodr"',
        "cards.toml:5: X.freeze Freeze policy 'encodr' is not known: give one of 'encoder'",
    ),
    "policy empty": ('freeze = ""', "cards.toml:5: X.freeze Freeze policy '' is not known: give one of"),
    "policy counts backwards": ('freeze = "blocks:3-1"', "cards.toml:5: X.freeze 'blocks:3-1' counts"),
    "policy as a list": ('freeze = ["encoder"]', "cards.toml:5: X.freeze ['encoder'] is not a string"),
    "mode unknown": ('freeze_mode = "evil"', "cards.toml:5: X.freeze_mode Freeze mode 'evil' is not known"),
    "mode true": ("freeze_mode = true", "cards.toml:5: X.freeze_mode True is not a string"),
    "extra shadows a key": ('extra.task = "asr"', "cards.toml:5: X.extra.task 'asr' is not text"),
    "assets as text": (
        "assets.pieces = 'file:x'",
        "cards.toml:5: X.assets.pieces 'file:x' is not a table with a source, as weights is",
    ),
    "assets as a number": ("assets = 3", "cards.toml:5: X.assets 3 is not a table"),
    "asset without source": ("assets.pieces = {}", "cards.toml:5: X.assets.pieces.source is missing"),
    "asset with an unknown key": (
        "assets.pieces = { source = 'file:a', md5 = 'x' }",
        "cards.toml:5: X.assets.pieces.md5 is not a key of assets; there is source, sha256, size",
    ),
    "asset with a bad digest": (
        "assets.pieces = { source = 'file:a', sha256 = 'x' }",
        "cards.toml:5: X.assets.pieces.sha256 the sha256 'x' is not a string of 64 lower-case hex digits",
    ),
    "asset outside the folder": (
        "assets.pieces.source = 'file:../x'",
        "cards.toml:5: X.assets.pieces.source leaves the card's folder",
    ),
    "keys as a number": ("keys = 3", "cards.toml:5: X.keys 3 is not a table"),
    "keys with an unknown key": (
        "keys.renme = {}",
        "cards.toml:5: X.keys.renme is not a key of keys; there is rename, drop_rows",
    ),
    "rename as text": ("keys.rename = 'x'", "cards.toml:5: X.keys.rename 'x' is not a table of endings"),
    "rename of nothing": (
        "keys.rename = { '' = 'x' }",
        "cards.toml:5: X.keys.rename {'': 'x'} is not a table of endings of names, as {'.weight_g' = ",
    ),
    "rename to a number": (
        "keys.rename = { '.a' = 3 }",
        "cards.toml:5: X.keys.rename {'.a': 3} is not a table of endings",
    ),
    "rows as a list": (
        "keys.drop_rows = [1]",
        "cards.toml:5: X.keys.drop_rows [1] is not a table of lists of row numbers, as {'aux.weight' = [1, 2",
    ),
    "no rows": ("keys.drop_rows = { a = [] }", "cards.toml:5: X.keys.drop_rows {'a': []} is not a table"),
    "a negative row": ("keys.drop_rows = { a = [-1] }", "cards.toml:5: X.keys.drop_rows {'a': [-1]} is not"),
    "a row as text": ("keys.drop_rows = { a = ['1'] }", "cards.toml:5: X.keys.drop_rows {'a': ['1']} is not"),
    "a row that is true": ("keys.drop_rows = { a = [true] }", "cards.toml:5: X.keys.drop_rows {'a': [True]}"),
    "a huge row": ("keys.drop_rows = { a = [2147483648] }", "cards.toml:5: X.keys.drop_rows {'a': [21474"),
    "a row alone": ("keys.drop_rows = { a = 1 }", "cards.toml:5: X.keys.drop_rows {'a': 1} is not a table"),
    "prefix without a dot": (
        "prefix = 'model'",
        "cards.toml:5: X.prefix 'model' is not a dotted prefix, as 'model.'",
    ),
    "prefix with two dots": ("prefix = 'a..b.'", "cards.toml:5: X.prefix 'a..b.' is not a dotted prefix"),
    "prefix empty": ("prefix = ''", "cards.toml:5: X.prefix '' is not a dotted prefix"),
    "prefix a dot": ("prefix = '.'", "cards.toml:5: X.prefix '.' is not a dotted prefix"),
    "companions unknown": (
        "companions = 'cct'",
        "cards.toml:5: X.companions 'cct' is not a kind of companions; there is alignment, ctc",
    ),
    "companions as a list": ("companions = ['ctc']", "cards.toml:5: X.companions ['ctc'] is not a string"),
    "templates as text": (
        "templates = 'large'",
        "cards.toml:5: X.templates 'large' is not a list of templates, as in ['large']",
    ),
    "templates as numbers": ("templates = [3]", "cards.toml:5: X.templates [3] is not a list of templates"),
    "template where there is none": (
        "templates = ['large']",
        "cards.toml:5: X.templates 'large' is not a template; there is none in this file",
    ),
    "extra holds a list": ("extra.mine = [1]", "cards.toml:5: X.extra.mine [1] is not text"),
}


@pytest.mark.parametrize(("line", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_line_is_named_with_file_line_and_key(line: str, words: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, card(line))
    assert problem.startswith(words)


REPLACED: dict[str, tuple[str, str]] = {
    "builder unknown": (
        'builder = "torchcrep"',
        "cards.toml:2: X.builder 'torchcrep' is not a builder; there",
    ),
    "builder os.system": (
        'builder = "os.system"',
        "cards.toml:2: X.builder 'os.system' is not a builder (import",
    ),
    "builder with a colon": (
        'builder = "os:system"',
        "cards.toml:2: X.builder 'os:system' is not a builder (import",
    ),
    "builder as a path": ('builder = "a/b"', "cards.toml:2: X.builder 'a/b' is not a builder (import"),
    "builder other case": (
        'builder = "TorchCrepe"',
        "cards.toml:2: X.builder 'TorchCrepe' is not a builder;",
    ),
    "builder as a number": ("builder = 3", "cards.toml:2: X.builder 3 is not a string"),
    "builder missing": ("# none", "cards.toml:1: X.builder is missing"),
}


@pytest.mark.parametrize(("line", "words"), REPLACED.values(), ids=REPLACED.keys())
def test_a_wrong_builder_is_named_and_the_builders_listed(line: str, words: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, card().replace('builder = "torchcrepe"', line))
    assert problem.startswith(words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            'architecture.model = "huge"',
            "cards.toml:3: X.architecture.model 'huge' is not one of 'tiny', 'full'",
        ),
        ("architecture.model = true", "cards.toml:3: X.architecture.model True is not one of 'tiny', 'full'"),
        ("architecture.model = ['tiny']", "cards.toml:3: X.architecture.model ['tiny'] is not one of"),
        ("architecture.model.x = 'tiny'", "cards.toml:3: X.architecture.model {'x': 'tiny'} is not one of"),
        ("architecture = {}", "cards.toml:3: X.architecture.model is missing"),
        ("architecture = 3", "cards.toml:3: X.architecture 3 is not a table"),
        ("# none", "cards.toml:1: X.architecture.model is missing"),
    ],
    ids=["unknown value", "bool", "list", "table", "empty", "number", "missing"],
)
def test_a_wrong_architecture_is_named(line: str, words: str, tmp_path: Path) -> None:
    found = problems_of(tmp_path, card().replace('architecture.model = "tiny"', line))
    assert any(problem.startswith(words) for problem in found)
    assert {problem.split(" ")[0] for problem in found} == {words.split(" ")[0]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("layers = {}", "cards.toml:4: X.layers is empty"),
        ("layers = 'head'", "cards.toml:4: X.layers 'head' is not a table"),
        ("layers.foo = 'x'", "cards.toml:4: X.layers.foo The layer group 'foo' = "),
        ("layers.head = 3", "cards.toml:4: X.layers.head The layer group 'head' = "),
        ("layers.head = [3]", "cards.toml:4: X.layers.head The layer group 'head' = "),
        ("layers.head = []", "cards.toml:4: X.layers.head The layer group 'head' = "),
        ("layers.head = ''", "cards.toml:4: X.layers.head The layer group 'head' = "),
        ("layers.head = { match = 3 }", "cards.toml:4: X.layers.head The layer group 'head' = "),
        ("layers.head = { match = 'a', kind = [1] }", "cards.toml:4: X.layers.head The layer group 'head'"),
        ("layers.blocks = 'conv'", "cards.toml:4: X.layers.blocks The patterns ('conv',) of layer"),
        ("layers.head = 'x{i}'", "cards.toml:4: X.layers.head The patterns ('x{i}',) of layer group 'head'"),
        ("layers.a = { match = 'x', kind = 'tail' }", "cards.toml:4: X.layers.a The layer group 'a'"),
        ("layers.a = { match = 'x', kind = 'stem', b = 1 }", "cards.toml:4: X.layers.a The layer group 'a'"),
        ("# none", "cards.toml:1: X.layers is missing"),
    ],
    ids=str,
)
def test_wrong_layers_are_named(line: str, words: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, re.sub("layers = .*", lambda _: line, card()))
    assert problem.startswith(words)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "..",
            "A/B",
            "a//b",
            "a/",
            "/a",
            "con",
            "CON",
            "nul.x",
            "com1",
            "LPT9",
            "a.",
            ".a",
            "_a",
            "9A",
            "-a",
        ),
        *(
            "",
            " ",
            "A B",
            "A\\nB",
            "A\\tB",
            "A\\u0000B",
            "CREP\\u0415",
            "A\\u202eB",
            "A\\\\B",
            "a:b",
            "A*",
            "x" * 97,
        ),
    ],
)
def test_a_bad_name_is_refused(name: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, f'{GOOD}["{name}"]\n{BODY}')
    assert problem.startswith("cards.toml:5: ")
    assert "is not a name: letters, digits" in problem


@pytest.mark.parametrize("name", ["A", "a-b_c.d", "WAV2VEC2_BASE", "x" * 96, "CONV", "V1.5"])
def test_a_good_name_is_accepted(name: str, tmp_path: Path) -> None:
    assert problems_of(tmp_path, f'["{name}"]\n{BODY}') == []


@pytest.mark.parametrize(
    "digest",
    [
        f'"{SHA[:63]}"',
        f'"{SHA}0"',
        f'"{SHA.upper()}"',
        f'"sha256:{SHA}"',
        f'"{SHA[:32]}"',
        '""',
        "12",
        f'"{SHA[:-1]}g"',
        f'"{SHA}\\n"',
        "[]",
        "false",
    ],
    ids=["63", "65", "upper case", "prefix", "md5", "empty", "number", "no hex", "newline", "list", "false"],
)
def test_a_bad_digest_is_refused(digest: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, card('weights.source = "file:a"', f"weights.sha256 = {digest}"))
    assert problem.startswith("cards.toml:6: X.weights.sha256 the sha256 ")
    assert problem.endswith("is not a string of 64 lower-case hex digits")


@pytest.mark.parametrize(
    "size", ["0", "-1", "1.0", "9223372036854775808", '"12"', "true", "inf", "[]", f"0x{'f' * 5000}"]
)
def test_a_bad_size_is_refused(size: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, card('weights.source = "file:a"', f"weights.size = {size}"))
    assert problem.startswith("cards.toml:6: X.weights.size the size ")
    assert problem.endswith("is not a positive number of bytes")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("'model.pth'", "does not read 'scheme:address'"),
        ("''", "does not read 'scheme:address'"),
        ("'file:'", "does not read 'scheme:address'"),
        ("':x'", "does not read 'scheme:address'"),
        ("'FILE:x'", "does not read 'scheme:address'"),
        ('"file:a\\u0000b"', "does not read 'scheme:address'"),
        ('"file:a\\nb"', "does not read 'scheme:address'"),
        ("3", "does not read 'scheme:address'"),
        ("['file:a']", "does not read 'scheme:address'"),
        ("'file:/etc/passwd'", "leaves the card's folder"),
        ("'file:///etc/passwd'", "leaves the card's folder"),
        ("'file:../x'", "leaves the card's folder"),
        ("'file:a/../../x'", "leaves the card's folder"),
        ("'file:a\\..\\x'", "leaves the card's folder"),
        ("'file:~/x'", "leaves the card's folder"),
        ("'file:C:\\x'", "leaves the card's folder"),
        ("'file:\\\\host\\x'", "leaves the card's folder"),
    ],
    ids=str,
)
def test_a_bad_source_is_refused(source: str, words: str, tmp_path: Path) -> None:
    found = problems_of(tmp_path, card(f"weights.source = {source}"))
    assert all(problem.startswith("cards.toml:5: X.weights.source ") for problem in found)
    assert words in found[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("defaults = 3\n", "cards.toml:1: defaults"),
        ("X = 3\n", "cards.toml:1: X is not a table"),
        ("\nX = [1]\n", "cards.toml:2: X is not a table"),
        (f"\n[[X]]\n{BODY}", "cards.toml:2: X is not a table"),
    ],
    ids=["defaults", "number", "list", "array of tables"],
)
def test_what_is_no_table_is_named(line: str, words: str, tmp_path: Path) -> None:
    found = problems_of(tmp_path, line + GOOD)
    assert any(problem.startswith(words) for problem in found)


# --- the line is the true one ---------------------------------------------------------------------

LINES: dict[str, tuple[str, str]] = {
    "own table": (
        """\
        [A]
        builder = "torchcrepe"
        architecture.model = "tiny"
        [A.layers]
        head = "classifier"
        foo = "x"
        """,
        "cards.toml:6: A.layers.foo",
    ),
    "inherited": (
        """\
        [defaults]
        builder = "torchcrepe"
        architecture.model = "tiny"
        sample_rate = "x"
        layers.head = "*"

        [A]
        task = "pitch"
        """,
        "cards.toml:4: A.sample_rate",
    ),
    "inherited from a table of the defaults": (
        """\
        [A]
        builder = "torchcrepe"
        layers.head = "*"
        [defaults.architecture]
        model = "huge"
        """,
        "cards.toml:5: A.architecture.model",
    ),
    "inherited from a template": (
        """\
        [defaults]
        builder = "torchcrepe"
        layers.head = "*"
        [templates.small]
        architecture.model = "tiny"
        sample_rate = "x"
        [A]
        templates = ["small"]
        """,
        "cards.toml:6: A.sample_rate",
    ),
    "inherited from a table of a template": (
        """\
        [templates.small]
        builder = "torchcrepe"
        layers.head = "*"
        [templates.small.architecture]
        model = "huge"
        [A]
        templates = ["small"]
        """,
        "cards.toml:5: A.architecture.model",
    ),
    "own value before that of a template": (
        """\
        [templates.small]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        task = "pitch"
        [A]
        templates = ["small"]
        task = 3
        """,
        "cards.toml:8: A.task",
    ),
    "inherited from the defaults, beside a template that is not asked for": (
        """\
        [defaults]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        task = 3
        [templates.other]
        task = "pitch"
        [A]
        """,
        "cards.toml:5: A.task",
    ),
    "inherited from the template that is asked for, beside one that is not": (
        """\
        [defaults]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        [templates.small]
        task = 3
        [templates.other]
        task = "pitch"
        [A]
        templates = ["small"]
        """,
        "cards.toml:6: A.task",
    ),
    "inherited from the last template of those asked for": (
        """\
        [defaults]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        [templates.last]
        task = 3
        [templates.first]
        task = 4
        [A]
        templates = ["first", "last"]
        """,
        "cards.toml:6: A.task",
    ),
    "own value before an inherited one": (
        """\
        [defaults]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        task = "pitch"
        [A]
        task = 3
        """,
        "cards.toml:7: A.task",
    ),
    "own value before the defaults": (
        """\
        [A]
        task = 3
        [defaults]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        task = "pitch"
        """,
        "cards.toml:2: A.task",
    ),
    "the right one of two cards": (
        """\
        [A]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        task = "pitch"
        [B]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        task = 3
        """,
        "cards.toml:10: B.task",
    ),
    "dotted keys at the top": (
        """\
        # cards
        A.builder = "torchcrepe"
        A.architecture.model = "tiny"
        A.layers.head = "*"
        A.weights.source = "file:/x"
        """,
        "cards.toml:5: A.weights.source",
    ),
    "missing in a card of dotted keys": (
        """\
        # cards
        A.builder = "torchcrepe"
        A.architecture.model = "tiny"
        """,
        "cards.toml:2: A.layers is missing",
    ),
    "an inline card": (
        """\
        # cards
        A = { builder = "torchcrepe", architecture = { model = "tiny" }, layers = { head = "*" }, task = 3 }
        """,
        "cards.toml:2: A.task",
    ),
    "an inline table": (
        """\
        [A]
        builder = "torchcrepe"
        architecture = { model = "tiny" }
        weights = { source = "file:x", size = 0 }
        layers.head = "*"
        """,
        "cards.toml:4: A.weights.size",
    ),
    "spaces around dots": (
        """\
        [ A ]
        builder = "torchcrepe"
        architecture . model = "tiny"
        weights . source = "file:x"
        weights . size = 0
        layers.head = "*"
        """,
        "cards.toml:5: A.weights.size",
    ),
    "quoted keys": (
        """\
        ["A"]
        "builder" = "torchcrepe"
        'architecture'.model = "tiny"
        "layers".'head' = "*"
        "task" = 3
        """,
        "cards.toml:5: A.task",
    ),
    "a quoted name with a dot": (
        """\
        [A]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        ["A.5"]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        task = 3
        """,
        "cards.toml:9: A.5.task",
    ),
    "below a multi-line array": (
        """\
        [A]
        builder = "torchcrepe"
        architecture.model = "tiny"
        labels = [
            "a",
            "b = c",
        ]
        layers.head = "*"
        task = 3
        """,
        "cards.toml:9: A.task",
    ),
    "below a multi-line array with a bracket in a comment": (
        """\
        [A]
        builder = "torchcrepe"
        architecture.model = "tiny"
        input_shape = [
            1, # [a]
            2,
        ]
        layers.head = "*"
        task = 3
        """,
        "cards.toml:9: A.task",
    ),
    "a multi-line array itself": (
        """\
        [A]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = [
            "a",
            3,
        ]
        """,
        "cards.toml:4: A.layers.head",
    ),
    "below a multi-line string with a table in it": (
        """\
        [A]
        builder = "torchcrepe"
        architecture.model = "tiny"
        description = '''
        [B]
        task = 3
        '''
        layers.head = "*"
        task = 3
        """,
        "cards.toml:9: A.task",
    ),
    "a key like it in a comment": (
        """\
        [A]
        # task = 3
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        task = 3 # [B]
        """,
        "cards.toml:6: A.task",
    ),
    "below a line separator that TOML does not count": (
        """\
        [A]
        # one\u2028line, \u0085as TOML counts
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        task = 3
        """,
        "cards.toml:6: A.task",
    ),
    "missing": (
        """\
        [defaults]
        layers.head = "*"

        [A]
        task = "pitch"
        """,
        "cards.toml:4: A.builder is missing",
    ),
    "missing in a sub-table": (
        """\
        [A]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers.head = "*"
        [A.weights]
        size = 3
        """,
        "cards.toml:5: A.weights.source is missing",
    ),
    "sub-table without a parent": (
        """\
        # cards
        [A.layers]
        head = "*"
        [A.architecture]
        model = "tiny"
        """,
        "cards.toml:2: A.builder is missing",
    ),
}


@pytest.mark.parametrize(("text", "words"), LINES.values(), ids=LINES.keys())
def test_the_line_is_the_true_one(text: str, words: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, dedent(text))
    assert problem.startswith(words)


# --- hostile text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        'task = { "' + "x" * 500_000 + '" = 1 }',
        "task = [" + "'x'," * 100_000 + "]",
        '"' + "x" * 500_000 + '" = 1',
        "sample_rate = 0x" + "f" * 5000,
        "extra.big = 0x" + "f" * 5000,
        "extra.big = [0x" + "f" * 5000 + "]",
        "task" + ".a" * 2000 + " = 1",
        "architecture.model" + ".a" * 2000 + " = 1",
        "weights.source" + ".a" * 2000 + " = 1",
        "layers.head" + ".a" * 2000 + " = 1",
        "extra.deep" + ".a" * 2000 + " = 1",
        "labels = [{x" + ".a" * 2000 + " = 1}]",
    ],
    ids=lambda line: f"{line[:20]}...",
)
def test_reading_never_raises_and_each_problem_is_a_short_line(line: str, tmp_path: Path) -> None:
    text = card(line).replace(
        'architecture.model = "tiny"\n', "" if "architecture" in line else 'architecture.model = "tiny"\n'
    )
    text = text.replace("layers = {", "#" if line.startswith("layers") else "layers = {")
    limit = sys.getrecursionlimit()
    found = read_card_file(str(written(tmp_path, text + GOOD)))
    assert sys.getrecursionlimit() == limit
    assert "GOOD" in found.cards
    assert all(len(problem) < 5_000 for problem in found.problems)


@pytest.mark.parametrize(
    "line",
    [
        '"\\u001b[31mred" = 1',
        '"a\\nb" = 1',
        '"\\u202eevil" = 1',
        'task = ["\\u001b]0;x\\u0007"]',
        '"weights"."\\r" = 1',
    ],
)
def test_problems_carry_no_control_characters_to_the_terminal(line: str, tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"cards\.toml:5: X\.") as caught:
        bundles.register_cards(written(tmp_path, card(line)).parent)
    for problem in (
        *caught.value.problems,
        *str(caught.value).split("\n"),
        *bundles.default_registry.problems,
    ):
        assert all(character.isprintable() for character in problem)


def test_a_description_with_markup_and_escapes_is_accepted_and_shown_plain(tmp_path: Path) -> None:
    line = r'description = "</script><b>x</b> \u001b[31m \u202e"'
    bundles.register_cards(written(tmp_path, card(line)).parent)
    page = bundles.default_registry._repr_html_()
    assert "&lt;/script&gt;" in page
    assert "<b>" not in page
    assert not {"\x1b", "\u202e"} & set(page + repr(bundles.default_registry))


# --- all problems at once, and the good cards -----------------------------------------------------

BROKEN = f"""\
[defaults]
builder = "torchcrepe"

[GOOD_1]
architecture.model = "tiny"
layers.head = "*"

[BAD]
architecture.model = "huge"
tsk = "asr"
sample_rate = "x"
layers.foo = "y"
weights = {{ source = "file:/x", sha256 = "{SHA[1:]}", size = 0 }}
freeze = "encodr"
freeze_mode = "evil"

[GOOD_2]
architecture.model = "full"
layers.head = "*"
"""
EXPECTED = [
    ("BAD.architecture.model", 9),
    ("BAD.tsk", 10),
    ("BAD.sample_rate", 11),
    ("BAD.layers.foo", 12),
    ("BAD.weights.source", 13),
    ("BAD.weights.sha256", 13),
    ("BAD.weights.size", 13),
    ("BAD.freeze", 14),
    ("BAD.freeze_mode", 15),
]


def test_all_problems_are_reported_at_once_and_the_good_cards_are_added(tmp_path: Path) -> None:
    path = written(tmp_path, BROKEN)
    written(tmp_path, GOOD, "other.toml")
    with pytest.raises(CardError, match=rf"{len(EXPECTED)} problems in the cards of {tmp_path}") as caught:
        bundles.register_cards(tmp_path)
    told = [problem.split(" ")[:2] for problem in caught.value.problems]
    assert sorted(told) == sorted([f"{path}:{line}:", key] for key, line in EXPECTED)
    assert str(caught.value).endswith("\n".join(caught.value.problems))
    assert {"GOOD_1", "GOOD_2", "GOOD"} <= set(bundles.list_bundles())
    assert bundles.GOOD_2.plan(freeze="all").frozen
    assert bundles.default_registry.problems == caught.value.problems


def test_looking_up_a_broken_card_says_why(tmp_path: Path, default: Registry) -> None:
    written(tmp_path, BROKEN)
    with pytest.raises(CardError, match="9 problems"):
        bundles.register_cards(tmp_path)
    assert "BAD" not in default
    assert "BAD" not in bundles.list_bundles()
    with pytest.raises(CardError, match=r"The card of BAD is broken:\n.*cards\.toml:\d+: BAD\.") as caught:
        bundles.get_bundle("BAD")
    assert len(caught.value.problems) == len(EXPECTED)
    with pytest.raises(CardError, match="The card of BAD is broken"):
        bundles.get_model("BAD")


def test_get_gives_the_default_for_a_broken_card_as_a_mapping_must(tmp_path: Path, default: Registry) -> None:
    written(tmp_path, BROKEN)
    with pytest.raises(CardError, match="9 problems"):
        bundles.register_cards(tmp_path)
    assert default.get("BAD") is None
    assert default.get("BAD", 3) == 3


def test_a_broken_card_does_not_take_away_a_good_bundle_of_the_same_name(tmp_path: Path) -> None:
    written(tmp_path, card("task = 3").replace("[X]", "[CREPE_TINY]"))
    with pytest.raises(CardError, match=r"CREPE_TINY\.task 3 is not a string"):
        bundles.register_cards(tmp_path, override=True)
    assert bundles.CREPE_TINY.task == "pitch"


def test_a_card_that_was_mended_is_no_longer_a_problem(tmp_path: Path) -> None:
    written(tmp_path, card("task = 3"))
    with pytest.raises(CardError, match=r"X\.task 3 is not a string"):
        bundles.register_cards(tmp_path)
    written(tmp_path, card('task = "asr"'))
    bundles.register_cards(tmp_path, override=True)
    assert bundles.X.task == "asr"
    assert bundles.default_registry.problems == ()


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_gives_every_toml_file_of_it_and_nothing_else(tmp_path: Path) -> None:
    for number, name in enumerate(("a.toml", "b.toml", "c.txt", "README.md", "d.toml.bak", "sub/e.toml")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(GOOD.replace("GOOD", f"CARD_{number}"))
    bundles.register_cards(str(tmp_path))
    assert bundles.list_bundles("CARD_*") == ["CARD_0", "CARD_1"]
    assert str(tmp_path / "a.toml") == bundles.CARD_0.origin


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    before = bundles.list_bundles()
    bundles.register_cards(tmp_path)
    assert bundles.list_bundles() == before


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.write_text(GOOD)], ids=["nothing", "a file"]
)
def test_no_folder_is_an_error_that_names_it(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "cards.toml")
    with pytest.raises(NotADirectoryError, match=r"There is no folder '.*cards\.toml' to read cards from"):
        bundles.register_cards(tmp_path / "cards.toml")


@pytest.mark.parametrize("second", ["GOOD", "good"])
def test_two_cards_of_one_name_are_refused_naming_both_files(second: str, tmp_path: Path) -> None:
    written(tmp_path, GOOD, "a.toml")
    written(tmp_path, GOOD.replace("GOOD", second) + 'task = "other"\n', "b.toml")
    with pytest.raises(CardError, match=rf"{second} of .*b\.toml is defined already, as GOOD of .*a\.toml"):
        bundles.register_cards(tmp_path)
    assert bundles.GOOD.origin.endswith("a.toml")


def test_names_that_differ_only_in_case_are_refused_within_a_file(tmp_path: Path) -> None:
    written(tmp_path, GOOD + GOOD.replace("GOOD", "Good"))
    with pytest.raises(
        CardError, match=r"Good of .*cards\.toml is defined already, as GOOD of .*cards\.toml"
    ):
        bundles.register_cards(tmp_path)


def test_override_lets_a_folder_replace_built_in_bundles_and_itself(tmp_path: Path) -> None:
    written(tmp_path, card('task = "asr"').replace("[X]", "[CREPE_TINY]"))
    with pytest.raises(
        CardError, match=r"CREPE_TINY of .*cards\.toml is defined already.*bundles/crepe\.toml"
    ):
        bundles.register_cards(tmp_path)
    assert bundles.CREPE_TINY.task == "pitch"
    for _ in range(2):
        bundles.register_cards(tmp_path, override=True)
    assert bundles.CREPE_TINY.task == "asr"
    with pytest.raises(DuplicateBundleError, match=r"as CREPE_TINY of .*cards\.toml"):
        bundles.register(bundles.Bundle("CREPE_TINY", "torchcrepe"))


def test_layers_of_a_card_replace_those_of_the_defaults_and_other_tables_are_merged(tmp_path: Path) -> None:
    text = f"""\
        [defaults]
        builder = "torchcrepe"
        architecture.model = "tiny"
        weights.sha256 = "{SHA}"
        weights.source = "file:a"
        layers = {{ blocks = "conv{{i}}", head = "classifier" }}
        extra.one = 1
        [A]
        weights.source = "file:b"
        layers.head = "*"
        extra.two = 2.5
        """
    bundles.register_cards(written(tmp_path, dedent(text)).parent)
    bundle = bundles.A
    assert (bundle.weights.sha256, bundle.weights.uri) == (SHA, f"file:{tmp_path}/b")
    assert bundle.layers == {"head": "*"}
    assert (bundle.one, bundle.two) == (1, 2.5)
    assert bundles.list_bundles(two=2.5) == ["A"]


def test_a_card_inherits_from_the_defaults_then_its_templates_in_order_then_itself(tmp_path: Path) -> None:
    text = """\
        [defaults]
        builder = "torchcrepe"
        architecture.model = "tiny"
        layers = { blocks = "conv{i}", head = "classifier" }
        extra = { one = "defaults", two = "defaults", three = "defaults", four = "defaults" }
        task = "defaults"
        sample_rate = 1

        [templates.second]
        extra = { three = "second", four = "second" }
        task = "second"
        layers.head = "second"

        [templates.first]
        extra = { two = "first", three = "first", four = "first" }
        task = "first"
        sample_rate = 2

        [A]
        templates = ["first", "second"]
        extra.four = "own"

        [B]
        templates = ["second", "first"]
        task = "own"

        [C]
        """
    bundles.register_cards(written(tmp_path, dedent(text)).parent)

    def values(bundle: Any) -> tuple[str, ...]:
        return bundle.one, bundle.two, bundle.three, bundle.four, bundle.task

    assert values(bundles.A) == ("defaults", "first", "second", "own", "second")
    assert values(bundles.B) == ("defaults", "first", "first", "first", "own")
    assert values(bundles.C) == ("defaults",) * 5
    assert [bundles.A.sample_rate, bundles.B.sample_rate, bundles.C.sample_rate] == [2, 2, 1]
    assert dict(bundles.A.layers) == dict(bundles.B.layers) == {"head": "second"}
    assert set(bundles.C.layers) == {"blocks", "head"}
    assert bundles.list_bundles("[A-Z]", one="defaults") == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("head", "line", "words"),
    [
        (
            "[templates.small]",
            "templates = ['smal']",
            "cards.toml:3: X.templates 'smal' is not a template; the",
        ),
        (
            "[templates]\nsmall = 3",
            "templates = ['small']",
            "cards.toml:4: X.templates 'small' is not a temp",
        ),
        ("templates = 3", "", "cards.toml:1: templates is not a table"),
        ("[[templates]]", "", "cards.toml:1: templates is not a table"),
        ("[templates.small]\ntsk = 3", "templates = ['small']", "cards.toml:2: X.tsk is not a key of a card"),
    ],
    ids=["unknown", "no table", "number", "array of tables", "wrong key in it"],
)
def test_a_wrong_template_is_named(head: str, line: str, words: str, tmp_path: Path) -> None:
    *_, problem = problems_of(tmp_path, f"{head}\n[X]\n{line}\n{BODY}")
    assert problem.startswith(words)


def test_assets_keys_and_prefix_of_a_card_reach_the_bundle(tmp_path: Path) -> None:
    lines = (
        "assets = { pieces = { source = 'file:a.model', size = 3 }, stats.source = 'url:https://host/b' }",
        "keys = { rename = { '.g' = '.w' }, drop_rows = { 'fc.bias' = [0, 2] } }",
        "prefix = 'model.'",
    )
    bundles.register_cards(written(tmp_path, card(*lines)).parent)
    assert bundles.X.assets["pieces"] == bundles.WeightSource(f"file:{tmp_path}/a.model", size=3)
    assert bundles.X.assets["stats"].uri == "url:https://host/b"
    assert bundles.X.keys.name_of("fc.g") == "fc.w"
    assert bundles.X.keys.drop_rows == {"fc.bias": (0, 2)}
    assert bundles.X.prefix == "model."
    assert bundles.X.rules[-1].match == ("model.classifier",)
    assert hash(bundles.X)


# --- a card with weights of its own ---------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, torch.Tensor]:
    model = bundles.CREPE_TINY.get_model(pretrained=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("place", ["weights.safetensors", "sub/deep weights.safetensors", "./w.safetensors"])
def test_weights_beside_a_users_card_work_end_to_end(
    place: str, tmp_path: Path, tiny_state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    (folder / place).parent.mkdir(parents=True)
    save_file(tiny_state, folder / place)
    written(folder, card(f'weights.source = "file:{place}"'))
    monkeypatch.chdir(tmp_path)
    bundles.register_cards("mine")
    monkeypatch.chdir("/")  # the address is relative to the card, not to where somebody stands
    model = bundles.X.get_model(freeze=True)
    assert all(torch.equal(tensor, tiny_state[name]) for name, tensor in model.state_dict().items())
    assert not model.get_parameter("conv1.weight").requires_grad


def test_a_card_whose_weights_are_absent_lists_and_says_so_when_built(tmp_path: Path) -> None:
    bundles.register_cards(written(tmp_path, card('weights.source = "file:none.safetensors"')).parent)
    assert "X" in bundles.list_bundles()
    with pytest.raises(bundles.SourceNotFoundError, match=r"none\.safetensors .* does not exist"):
        bundles.X.get_model()


@pytest.mark.parametrize(
    "source",
    [
        *("ftp:host/x", "javascript:alert(1)", "data:text", "package:../x", "package:torchcrepe/../x"),
        *("package:/etc/passwd", "package:os.path/x", "package:__main__/x", "package:x", "file:none"),
    ],
)
def test_a_source_of_a_card_that_is_not_there_for_us_is_a_named_error(source: str, tmp_path: Path) -> None:
    bundles.register_cards(written(tmp_path, card(f'weights.source = "{source}"')).parent)
    with pytest.raises(BundlesError, match=re.escape(source.partition(":")[0])) as caught:
        bundles.X.get_model()
    assert isinstance(caught.value, bundles.SourceError)


def test_layers_that_do_not_partition_the_parameters_are_refused_when_built(tmp_path: Path) -> None:
    layers = 'layers = { blocks = ["conv{i}", "conv{i}_BN"], head = "conv6" }'
    written(tmp_path, re.sub("layers = .*", lambda _: layers, card()))
    bundles.register_cards(tmp_path)
    with pytest.raises(
        bundles.BuildError,
        match=r"in no group: classifier.weight, .*; in several: conv6.weight, conv6.bias\.$",
    ):
        bundles.X.plan()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f'freeze = "last:{"9" * 5000}"', "X.freeze Freeze policy"),
        ('freeze = "blocks:0-60000000"', "X.freeze Freeze policy"),
        ('input_shape = [2, "a"]', "is not a list of positive sizes"),
    ],
    ids=["digits", "range", "shape"],
)
def test_a_card_cannot_waste_time_or_memory_and_hides_no_other(line: str, words: str, tmp_path: Path) -> None:
    written(tmp_path, card(line) + GOOD)
    with pytest.raises(CardError, match=words):
        bundles.register_cards(tmp_path)
    assert "GOOD" in bundles.default_registry


def test_a_name_twice_in_a_folder_is_refused_with_override_too(tmp_path: Path) -> None:
    for file in ("a.toml", "b.toml"):
        (tmp_path / file).write_text(GOOD)
    with pytest.raises(CardError, match=r"GOOD of .*b\.toml is defined already, as GOOD of .*a\.toml"):
        bundles.register_cards(tmp_path, override=True)


def test_a_broken_card_says_why_as_an_attribute_too(tmp_path: Path) -> None:
    written(tmp_path, card("task = 3"))
    with pytest.raises(CardError):
        bundles.register_cards(tmp_path)
    with pytest.raises(AttributeError, match=r"The card of X is broken:\n.*X\.task 3 is not a string"):
        _ = bundles.X


def test_a_layer_pattern_cannot_run_for_ever() -> None:
    with pytest.raises(bundles.FreezeArgumentError, match="has more than 8 wildcards"):
        bundles.Bundle("X", "torchcrepe", layers={"stem": "*a" * 24 + "~"})


# --- companions -----------------------------------------------------------------------------------


def test_companions_without_what_they_need_are_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, card('companions = "ctc"'))
    assert problem.endswith("X.companions 'ctc' needs labels, which the card does not give")


def test_templates_do_not_nest_and_say_so_even_where_no_card_asks_for_them(tmp_path: Path) -> None:
    text = '[templates.a]\ntask = "asr"\n[templates.b]\ntemplates = ["a"]\n[defaults]\ntemplates = ["a"]\n'
    first, second = problems_of(tmp_path, text)
    assert "cards.toml:6: defaults.templates does not work there" in first
    assert "cards.toml:4: templates.b.templates does not work there" in second


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('labels = ["a", 3]', "X.labels ['a', 3] is not a list of at most 10,000 strings"),
        ('text_unit = "word"', "X.text_unit 'word' is not one of 'character', 'phoneme'"),
        ("extra.__class__ = 'x'", "X.extra.__class__ 'x' is not text"),
        ("extra.get_labels = 'x'", "X.extra.get_labels 'x' is not text"),
        ("keys.drop_rows.a = [-1]", "X.keys.drop_rows {'a': [-1]} is not a table of lists of row numbers"),
    ],
)
def test_words_units_and_names_of_ones_own_are_checked(line: str, words: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, card(line))
    assert words in problem


def test_a_key_map_made_in_python_is_checked_too() -> None:
    with pytest.raises(bundles.BuildError, match=r"drop_rows= of a KeyMap: \{'a': \[-1\]\} is not a table"):
        bundles.Bundle("MINE", "torchcrepe", keys={"drop_rows": {"a": [-1]}})  # type: ignore[arg-type]
    plain: dict[str, Any] = {"keys": {"rename": {".a": ".b"}}, "assets": {"x": "file:y"}}
    made = bundles.Bundle("MINE", "torchcrepe", **plain)
    assert made.keys.name_of("m.a") == "m.b"
    assert made.assets["x"].scheme == "file"
