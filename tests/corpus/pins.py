"""Locks: rows L01 to L08. Each is that of ``tests/fixtures/lock-v1`` with one thing changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bundles.errors import BundlesError, PinMismatchError, VersionMismatchWarning
from corpus.configs import DIGEST, HUGE, accepted, bad, warned

FOLDER = Path(__file__).parent.parent / "fixtures" / "lock-v1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


# --- locks: something of the fixture's lock changed, by load_experiment --------------------------


def text() -> str:
    return (FOLDER / "speech.lock.toml").read_text()


def lock(pattern: str, put: str, count: int = 1) -> Callable[[], bytes]:
    """The lock with what a pattern finds first replaced; it has to be there."""

    def data() -> bytes:
        changed, number = re.subn(pattern, lambda _: put, text(), count=count, flags=re.MULTILINE)
        assert number, f"no {pattern} in the lock"
        return changed.encode()

    return data


def version(put: str) -> Callable[[], bytes]:
    return lock("^lock-version = 1$", put)


def file_key(key: str, value: str) -> Callable[[], bytes]:
    """The lock with a key of the first file of the model ``head`` changed."""

    def data() -> bytes:
        changed = re.sub(rf"^{key} = .*$", lambda _: f"{key} = {value}", entry(), flags=re.MULTILINE)
        assert changed != entry()
        return text().replace(entry(), changed).encode()

    return data


def entry() -> str:
    """The lines of that file."""
    found = re.search(r"^\[\[models\.head\.files\]\]\n(?:.+\n)+", text(), re.MULTILINE)
    assert found is not None
    return found[0]


def twice(change: str | None) -> bytes:
    """The lock with that file named again, with a line changed."""
    again = entry() if change is None else re.sub(r"sha256 = .*", change, entry())
    return text().replace(entry(), f"{entry()}\n{again}").encode()


def reordered() -> bytes:
    """The lock with the models, and the keys of each table, in the reverse order."""
    head, *tables = re.split(r"\n(?=\[)", text())
    models = re.split(r"\n(?=\[models\.\w+\]\n)", "\n".join(tables))
    return "\n\n".join(
        [head, *("\n\n".join(map(turned, re.split(r"\n(?=\[)", m))) for m in models[::-1])]
    ).encode()


def turned(table: str) -> str:
    """A table with its keys in the reverse order; a list stays on its lines."""
    title, *keys = re.split(r"\n(?=[\w\[])", table.strip())
    return "\n".join([title, *reversed(keys)])


def endless(numbers: str, count: int) -> bytes:
    """The lock with another plan, and a line of frozen names that comes to more than fits anywhere."""
    line = f'frozen = [\n    "a.{{{",".join([numbers] * count)}}}.b",'
    changed = text().replace("frozen = [", line, 1)
    return re.sub("^plan = .*$", f'plan = "{DIGEST}"', changed, count=1, flags=re.MULTILINE).encode()


CONFLICT = "<<<<<<< ours\n{0}\n=======\n{0}\n>>>>>>> theirs"
OTHER = 64 * "1"

LOCKS = [
    bad(
        "L01a",
        "newer",
        lambda: lock("^created-by = .*$", 'created-by = "bundles 7.1.0"')().replace(
            b"lock-version = 1", b"lock-version = 2"
        ),
        r"lock-version 2.*reads 1.*pip install 'pretrained-bundles>=7\.1\.0'",
    ),
    bad("L01b", "no version", version(""), "has no lock-version: write one by `bundles lock`"),
    bad(
        "L01c", "version as text", version("lock-version = '1'"), "lock-version '1', and this library reads 1"
    ),
    bad("L01d", "version as float", version("lock-version = 1.0"), r"lock-version 1\.0, and this library"),
    bad(
        "L01e", "version true", version("lock-version = true"), "lock-version True, and this library reads 1"
    ),
    bad("L01f", "version 0", version("lock-version = 0"), "lock-version 0, and this library reads 1"),
    bad(
        "L01g",
        "newer, of nobody",
        lambda: re.sub(rb"created-by = .*", b"", version("lock-version = 99")()),
        "lock-version 99, and this library reads 1: type `pip install --upgrade",
    ),
    bad(
        "L01h",
        "newer, written to run",
        lambda: lock("^created-by = .*$", "created-by = 'bundles 2; rm -rf ~'")().replace(
            b"lock-version = 1", b"lock-version = 2"
        ),
        "type `pip install --upgrade [a-z-]*bundles`",
    ),
    bad(
        "L02a",
        "a model is missing",
        lambda: re.sub(rb"(?s)\[models\.masked\].*?(?=\[models\.package\])", b"", text().encode()),
        r"models\.masked.*is in the file and not in the lock",
        PinMismatchError,
    ),
    bad(
        "L02b",
        "a model too many",
        lambda: re.sub(
            rb"(?s)(\[models\.pickled\].*)",
            lambda m: m[1] + b"\n" + m[1].replace(b"models.pickled", b"models.x"),
            text().encode(),
        ),
        r"models\.x.*is in the lock and not in the file",
        PinMismatchError,
    ),
    bad(
        "L02c",
        "one model where there are several",
        lambda: re.sub(rb"(?s)\[models\.masked\].*", b"", text().encode()).replace(b"models.head", b"model"),
        "model.*masked",
        PinMismatchError,
    ),
    bad(
        "L03a",
        "another mode was locked",
        lock('^freeze_mode = "regularized"$', 'freeze_mode = "eval"'),
        r"models\.package\.freeze_mode.*regularized.*eval",
        PinMismatchError,
    ),
    bad(
        "L03b",
        "another dtype was locked",
        lock('^dtype = "float64"$', 'dtype = "float32"'),
        r"models\.masked\.dtype.*float64.*float32",
        PinMismatchError,
    ),
    bad(
        "L03c",
        "another head was locked",
        lock("^out_features = 5$", "out_features = 6"),
        r"models\.head\.head.*5.*6",
        PinMismatchError,
    ),
    bad(
        "L03d",
        "another bundle was locked",
        lock('^bundle = "CREPE_TINY"$', 'bundle = "CREPE_FULL"'),
        r"models\.pickled\.bundle.*CREPE_TINY.*CREPE_FULL",
        PinMismatchError,
    ),
    bad(
        "L03e",
        "another policy was locked",
        lock("^freeze = .*$", 'freeze = "last:2"'),
        r"models\.head\.freeze.*last:2|ExceptLast",
        PinMismatchError,
    ),
    bad(
        "L03f",
        "a policy that does not exist",
        lock("^freeze = .*$", 'freeze = "lst"'),
        r"models\.head\.freeze.*lst",
        PinMismatchError,
    ),
    bad(
        "L04a",
        "another plan",
        lock("^plan = .*$", f'plan = "{DIGEST}"'),
        f"plan.*{DIGEST}|{DIGEST}.*plan",
        PinMismatchError,
    ),
    bad(
        "L04b",
        "another card",
        lock("^card = .*$", f'card = "{DIGEST}"'),
        f"card.*{DIGEST}|{DIGEST}.*card",
        PinMismatchError,
    ),
    bad(
        "L04c",
        "a number of parameters that is another",
        lock("^parameters = .*$", "parameters = 3"),
        "parameters.*3",
        PinMismatchError,
    ),
    bad("L05a", "digest that is another", file_key("sha256", f'"{OTHER}"'), OTHER, BundlesError),
    bad("L05b", "size that is another", file_key("size", "3"), "size|3 bytes", BundlesError),
    bad("L04d", "ranges without end", lambda: endless("0-99999", 1000), "plan.*was frozen", PinMismatchError),
    bad("L04e", "numbers without end", lambda: endless("9" * 4400, 1), "plan.*was frozen", PinMismatchError),
    bad(
        "L06a",
        "conflict",
        lambda: lock("^lock-version = 1$", CONFLICT.format("lock-version = 1"))(),
        "line 2, holds the marks of a merge conflict: take one side",
    ),
    bad(
        "L06b",
        "conflict at the end",
        lambda: text().encode() + b">>>>>>> theirs\n",
        "holds the marks of a merge conflict",
    ),
    bad(
        "L06c",
        "conflict, CRLF",
        lambda: lock("^lock-version = 1$", CONFLICT.format("lock-version = 1"))().replace(b"\n", b"\r\n"),
        "holds the marks of a merge conflict",
    ),
    accepted("L06d", "CRLF", lambda: text().encode().replace(b"\n", b"\r\n")),
    accepted("L06e", "no newline at the end", lambda: text().encode().rstrip(b"\n")),
    accepted("L06f", "other order", reordered),
    accepted("L06g", "comments", lambda: lock("^(?=\\[)", "# mine\n", 0)()),
    accepted(
        "L06h", "keys of a later version", lock("^lock-version = 1$", "lock-version = 1\nsigned = 'no'")
    ),
    accepted(
        "L06i", "keys of a later version, of a file", file_key("size", "23368\nsigner = { name = 'a' }")
    ),
    bad(
        "L07a",
        "file twice, other digest",
        lambda: twice(f'sha256 = "{OTHER}"'),
        r"models\.head.*tiny\.safetensors is there twice",
    ),
    bad(
        "L07b", "file twice, the same", lambda: twice(None), r"models\.head.*tiny\.safetensors is there twice"
    ),
    bad(
        "L07c",
        "table twice",
        lambda: text().encode() + b"[models.head]\n",
        "is no TOML .*models.*head",
    ),
    *(
        bad(
            f"L08{letter}",
            f"path {path[:20]}",
            file_key("path", path),
            r"models\.head\.files\[0\].*path.* is not one of plain names",
        )
        for letter, path in zip(
            "abcdefghijklmn",
            (
                "'/etc/passwd'",
                "'../x'",
                "'a\\b'",
                "'C:x'",
                '"a\\u0000b"',
                f"'{'a' * 300}'",
                "'./a'",
                "'a//b'",
                "''",
                "'a/'",
                "'nul'",
                "'a.'",
                '"a\\u202eb"',
                "'a/../b'",
            ),
            strict=True,
        )
    ),
    bad("L08o", "path of no text", file_key("path", "3"), r"models\.head\.files\[0\].*path.*3 is no text"),
    bad(
        "L08p",
        "absolute source",
        file_key("source", "'file:/etc/passwd'"),
        r"models\.head\.files\[0\]\.source.*a place on one machine",
    ),
    bad(
        "L08q",
        "source above",
        file_key("source", "'file:../../x'"),
        r"models\.head\.files\[0\]\.source.*a place on one machine",
    ),
    bad(
        "L08r",
        "source at home",
        file_key("source", "'file:~/x'"),
        r"models\.head\.files\[0\]\.source.*a place on one machine",
    ),
    bad(
        "L08s",
        "source on a drive",
        file_key("source", "'file:C:\\x'"),
        r"models\.head\.files\[0\]\.source.*a place on one machine",
    ),
    bad(
        "L08t",
        "alternate that is absolute",
        file_key("source", "'file:cards/tiny.safetensors'\nalternates = ['file:/etc/passwd']"),
        r"models\.head\.files\[0\]\.alternates.*a place on one machine",
    ),
    bad(
        "L08u",
        "password",
        file_key("source", "'url:https://me:secret@host/a'"),
        "(?s)^(?!.*secret).*holds a user name or password",
    ),
    bad(
        "L08v",
        "branch",
        file_key("source", "'hf:owner/repo@main#a'"),
        r"models\.head\.files\[0\]\.source.*main",
    ),
    bad(
        "L08w",
        "short commit",
        file_key("source", "'hf:owner/repo@0123abc#a'"),
        r"models\.head\.files\[0\]\.source.*is a short commit",
    ),
    bad(
        "L08x",
        "no commit",
        file_key("source", "'hf:owner/repo#a'"),
        r"models\.head\.files\[0\]\.source.*commit",
    ),
    bad(
        "L08y",
        "upper case",
        file_key("source", f"'hf:owner/repo@{COMMIT.upper()}#a'"),
        r"models\.head\.files\[0\]\.source.*is no commit",
    ),
    bad(
        "L08z",
        "bundle at a branch",
        lock('^bundle = "TINY_SPEECH"$', 'bundle = "hf:owner/repo@main"'),
        r"models\.head.*bundle.*main",
    ),
    *(
        bad(
            f"L08{letter}", f"{key} = {value[:20]}", file_key(key, value), rf"models\.head\.files\[0\].*{key}"
        )
        for letter, (key, value) in zip(
            "ABCDEFGHIJKL",
            [
                ("sha256", f"'{'0' * 63}'"),
                ("sha256", f"'{'A' * 64}'"),
                ("sha256", f"'{DIGEST}'"),
                ("sha256", "1" * 18),
                ("size", "-1"),
                ("size", "0"),
                ("size", "3.0"),
                ("size", "'3'"),
                ("size", "true"),
                ("size", str(2**63)),
                ("role", "'code'"),
                ("source", "3"),
            ],
            strict=True,
        )
    ),
    *(
        bad(
            f"L08{letter}",
            f"{key} = {value[:20]}",
            lock(rf"^{key} = .*$", f"{key} = {value}"),
            rf"models\.head.*{key}",
        )
        for letter, (key, value) in zip(
            "MNOPQRSTUVW",
            [
                ("parameters", "-1"),
                ("parameters", "1.0"),
                ("trainable", "true"),
                ("trainable", "'1'"),
                ("gated", "'no'"),
                ("gated", "0"),
                ("plan", "3"),
                ("card", "'md5:00'"),
                ("card", f"'{DIGEST[:-1]}'"),
                ("license", "3"),
                ("bundle", "''"),
            ],
            strict=True,
        )
    ),
    bad("L08X", "key that is missing", lock("^card = .*$", ""), r"models\.head.*card: is missing"),
    bad(
        "L08Y",
        "two things at once",
        lambda: lock("^card = .*$", "card = 3")().replace(b'license = "Apache-2.0"', b"license = 4", 1),
        "(?s)card.*license|license.*card",
    ),
    bad(
        "L08Z",
        "files that are none",
        lock(r"^\[\[models\.head\.files\]\]\n(?:.+\n)+", "[models.head.files]\na = 1\n"),
        r"models\.head\.files.*is no list",
    ),
    bad("L05c", "empty", "", "has no lock-version"),
    bad("L05d", "UTF-16", lambda: text().encode("utf-16"), "is not UTF-8 text"),
    bad("L05e", "byte order mark", lambda: b"\xef\xbb\xbf" + text().encode(), "is no TOML"),
    bad("L05f", "NUL", lambda: text().encode().replace(b"\n", b"\0", 1), "is no TOML"),
    bad(
        "L05g",
        "2000 deep",
        lambda: lock("^card = .*$", f"card = {'[' * 2000}{']' * 2000}")(),
        "is no TOML|card",
    ),
    bad(
        "L05h",
        "2000 deep, of a later version",
        lambda: lock("^card", f"new = {'[' * 900}{']' * 900}\ncard")(),
        "new|is no TOML",
    ),
    bad("L05i", "a web page", "<!DOCTYPE html><html></html>", "is no TOML"),
    bad("L05j", "JSON", '{"lock-version": 1}', "is no TOML"),
    bad("L05k", "17 MB", lambda: b"#" * HUGE, "is larger than 16 MiB"),
    bad(
        "L05l",
        "nan",
        lock("^lock-version = 1$", "lock-version = 1\nnew = nan"),
        "new: nan is no finite number",
    ),
    bad(
        "L05m",
        "half of it",
        lambda: text().encode()[: len(text()) // 2],
        "is no TOML|is missing|not in the lock",
        BundlesError,
    ),
    bad("L05n", "control characters", lock("^card = .*$", 'card = "\\u001b[2J"'), r"\\x1b\[2J|u001b"),
    warned(
        "L01i",
        "another torch",
        lock('^torch = ".*"$', 'torch = "1.0.0"'),
        r"torch.*1\.0\.0",
        VersionMismatchWarning,
    ),
    warned(
        "L01j",
        "a library that is not here",
        lock('^torch = ".*"$', 'torch = "1.0.0"\nnowhere = "3"'),
        "nowhere",
        VersionMismatchWarning,
    ),
]
