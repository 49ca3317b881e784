"""Configs and experiment files that say something impossible: rows L09 and L10.

A config is YAML, as people write it, read with ``yaml.safe_load`` and given to ``from_config``.
"""

from __future__ import annotations

from collections.abc import Callable

import yaml  # type: ignore[import-untyped]

from bundles.errors import PinError, PinMismatchError
from corpus.case import Case

DIGEST = "sha256:" + 64 * "0"
HUGE = 17 << 20


def bad(
    row: str,
    note: str,
    data: bytes | str | Callable[[], bytes],
    words: str,
    error: type[Exception] = PinError,
) -> Case:
    if isinstance(data, str):
        data = data.encode()
    return Case(row, note, data if callable(data) else lambda: data, "R", error, words)


def warned(row: str, note: str, data: Callable[[], bytes], words: str, error: type[Exception]) -> Case:
    return Case(row, note, data, "W", error, words)


def accepted(row: str, note: str, data: str | Callable[[], bytes]) -> Case:
    return Case(row, note, data if callable(data) else data.encode, "A")


# --- configs: YAML, by from_config ---------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(9 * [f'*{before}'])}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TAG = "CREPE_TINY, freeze: !!python/object/apply:os.system ['echo run']"
CODE = "called, and .* plain data"


def config(rest: str, bundle: str = "CREPE_TINY") -> str:
    return f"{{bundle: {bundle}, {rest}}}"


CONFIGS = [
    bad("L09a", "commit of digits, a number", "bundle: 1234567890123456789012345678901234567890", "quote it"),
    bad("L09b", "octal", "bundle: 01234567", "bundle: 342391 is a number.*quote it"),
    bad("L09c", "float", "bundle: 6.022e+23", "bundle: .*is a number.*quote it"),
    bad("L09d", "sexagesimal", "bundle: 190:20:30", "bundle: .*is a number.*quote it"),
    bad("L09e", "no for a name", "bundle: no", "bundle: .*YAML reads no.*quote it"),
    bad(
        "L09f",
        "off for a mode",
        config("freeze: true, freeze_mode: off"),
        "freeze_mode: False is neither one of",
    ),
    bad("L09g", "number for a policy", config("freeze: 6"), "freeze: 6 is neither true or false"),
    bad("L09h", "no as text", config("freeze: 'no'"), "freeze: 'no' is text.*write false"),
    bad("L09i", "date", "bundle: 2026-01-31", "bundle: 2026-01-31 was read as a date: quote it"),
    bad("L09j", "empty", "bundle:", "bundle: nothing is given"),
    bad("L09k", "anchors bomb", BOMB + "bundle: CREPE_TINY\nhead: *i", "more levels or values than"),
    bad("L09l", "tag", config("", TAG), "could not determine a constructor", yaml.YAMLError),
    bad("L09m", "tag as text", config("head: '!!python/name:os.system'"), "head: .* is a tag of YAML"),
    bad("L09n", "digest as a key", config(f"sha256: {'1' * 64}"), "sha256: is no key.*quote it"),
    bad("L09o", "commit as a key", config(f"revision: {'1' * 40}"), "revision: is no key.*quote it"),
    bad("L09p", "number for a key", config("1: x"), "1: the key is a int and not text: quote it"),
    bad("L09q", "infinity", config("head: .inf"), "head: "),
    bad("L09r", "not a number in a head", config("head: {type: Linear, out_features: .nan}"), "out_features"),
    bad("L09s", "bytes", config("freeze: !!binary aGk="), "freeze: a bytes is no plain data"),
    bad("L09t", "set", config("freeze: !!set {a}"), "freeze: "),
    bad("L09u", "list", "[CREPE_TINY]", "is no table with the key bundle"),
    bad("L09v", "nothing", "", "is no table with the key bundle"),
    accepted("L09w", "no for false", config("freeze: no")),
    accepted("L09x", "a name alone", "CREPE_TINY"),
    accepted("L09y", "a quoted mode", config("freeze: yes, freeze_mode: 'eval'")),
    bad("L10a", "_target_", config("_target_: os.system"), f"_target_: .*os.system.* {CODE}"),
    bad("L10b", "class_path", config("class_path: torch.nn.Linear"), f"class_path: .*{CODE}"),
    bad("L10c", "init_args", config("init_args: {a: 1}"), f"init_args: .*{CODE}"),
    bad("L10d", "!new: as text", config("head: '!new:os.system'"), "head: .* is a tag of YAML"),
    bad("L10e", "!apply: as text", config("freeze: '!apply:os.system'"), "freeze: .* is a tag of YAML"),
    bad("L10f", "unresolved", config("freeze: '${oc.env:HOME}'"), "freeze: .*was not resolved"),
    bad("L10g", "_target_ in the head", config("head: {_target_: os.system}"), rf"head\._target_: .*{CODE}"),
    bad(
        "L10h", "dotted type", config("head: {type: os.system, a: 1}"), "head: type = 'os.system' is none of"
    ),
    bad(
        "L10i",
        "an import path of ours",
        config("head: {type: bundles.heads.Linear}"),
        "head: type = .* is none of",
    ),
    bad(
        "L10j",
        "three things at once",
        "{bundel: CREPE_TINY, freeze: lst, dtype: float}",
        "(?s)bundel.*freeze.*dtype",
    ),
    bad("L10k", "argument of a run", config("device: cuda"), "device: 'cuda' belongs to a run"),
    bad(
        "L10l",
        "a head's input",
        config("head: {type: Linear, in_features: 3, out_features: 2}"),
        "in_features",
    ),
    bad("L10m", "a head's argument", config("head: {type: Linear, outputs: 2}"), "(?s)outputs.*out_features"),
    bad(
        "L10n",
        "a head of a million millions",
        config("head: {type: Linear, out_features: 1000000000000}"),
        "out_features",
    ),
    bad(
        "L10o",
        "a pin cut short",
        config("", f"CREPE_TINY@{DIGEST[:40]}"),
        "bundle: .*64 lower-case hex digits",
    ),
    bad("L10p", "a pin of another", config("", f"CREPE_TINY@{DIGEST}"), DIGEST, PinMismatchError),
    bad("L10q", "control characters", config("", '"A\\eB\\u202e"'), r"bundle: .*A\\x1bB"),
]

# --- experiments, by load_experiment -------------------------------------------------------------

SECTIONS = "[model]\nbundle = 'CREPE_TINY'\n"


def model(rest: str, bundle: str = "'CREPE_TINY'") -> str:
    return f"[model]\nbundle = {bundle}\n{rest}\n"


NESTED = f"[model]\nbundle = {'[' * 2000}{']' * 2000}\n"

EXPERIMENTS = [
    bad("L10A", "_target_", model("_target_ = 'os.system'"), r"model\._target_: "),
    bad(
        "L10B",
        "class_path in the head",
        model("head = { class_path = 'os.system' }"),
        r"model\.head.*class_path",
    ),
    bad("L10C", "interpolation", model("", "'${oc.env:HOME}'"), r"model\.bundle: "),
    bad("L10D", "unknown key", model("freze = true"), r"model\.freze: .*'freeze'"),
    bad(
        "L10E",
        "all at once",
        model("freze = true\ndtype = 'float'\nhead = 3"),
        r"(?s)freze.*dtype|freze.*head",
    ),
    bad("L10F", "float for text", model("", "1.5"), r"model\.bundle: 1\.5 is a number"),
    bad("L10G", "nan", model("freeze = nan"), r"model\.freeze: nan "),
    bad("L10H", "table for text", model("dtype = {}"), r"model\.dtype: "),
    bad(
        "L10I", "mode without a freeze", model("freeze_mode = 'eval'"), r"model\.freeze_mode: .*freeze = true"
    ),
    bad(
        "L10J", "an axis that is none", model("freeze = true\nfreeze_mode = { nois = 'off' }"), "nois.*noise"
    ),
    bad(
        "L10K",
        "one and several",
        model("[models.a]\nbundle = 'CREPE_TINY'"),
        r"\[model\].*\[models.NAME\].*both",
    ),
    bad("L10L", "none", "[training]\nepochs = 3\n", r"\[model\].*\[models.NAME\].*neither"),
    bad("L10M", "empty", "", r"neither of them"),
    bad("L10N", "no table", "model = 3\n", "model: 3 is no table|model: 3 is a number"),
    bad("L10O", "a list", "[[model]]\nbundle = 'CREPE_TINY'\n", "model: .* is no table"),
    bad(
        "L10P", "no bundle", "[model]\nfreeze = true\n", r"model\.bundle is missing|model\.bundle: is missing"
    ),
    bad("L10Q", "key twice", model("freeze = true\nfreeze = false"), "Cannot overwrite a value.*line 4"),
    bad("L10R", "UTF-16", SECTIONS.encode("utf-16"), "is not UTF-8 text"),
    bad("L10S", "byte order mark", b"\xef\xbb\xbf" + SECTIONS.encode(), "is no TOML"),
    bad("L10T", "2000 deep", NESTED, "is no TOML|nested too deeply|is not the name"),
    bad("L10U", "17 MB", lambda: b"#" * HUGE, "is larger than 16 MiB"),
    bad("L10V", "no names", "[models]\n", "models"),
    bad(
        "L10W",
        "no bundle of that name",
        model("", "'CREPE_TNY'"),
        r"model\.bundle: .*did you mean CREPE_TINY",
    ),
    bad(
        "L10X",
        "a name that writes on the terminal",
        '[models."\\u001b[2J"]\nbundle = 3\n',
        r"x1b\[2J|u001b\[2J",
    ),
    bad("L10Y", "a key that writes on the terminal", model('"\\u001b[2J" = 1'), r"x1b\[2J"),
]
