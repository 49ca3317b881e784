"""The house rules, read off the code: layers, lazy imports, the public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bundles
import bundles.errors

PACKAGE = Path(bundles.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
VERBS = {"registry", "sources", "builders", "freezing"}
EDGES = {"adapters", "cli", "companions", "delta", "demo", "experiment", "features"}

# What each part may import of the others; nouns stand on the ground, arrows point down.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "display": set(),
    "spec": {"spec", "errors"},
    "heads": {"heads", "errors"},
    **{verb: {verb, "spec", "errors", "display"} for verb in VERBS - {"builders"}},
    "builders": {"builders", "heads", "spec", "errors", "display"},
    "assemble": {"assemble", *VERBS, "spec", "errors"},
    **{edge: {*EDGES, *VERBS, "assemble", "heads", "spec", "errors", "display", "bundles"} for edge in EDGES},
}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """(module, name, line) of every import that is executed, those in functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name, node.lineno) for alias in node.names)
        else:
            yield from imports(node)


def executed_imports(file: Path) -> Iterator[tuple[str, str, int]]:
    return imports(ast.parse(file.read_text()))


def parts_imported(file: Path) -> Iterator[tuple[str, int]]:
    for module, name, line in executed_imports(file):
        if module == "bundles":
            yield (
                (name if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists() else "bundles"),
                line,
            )
        elif module.startswith("bundles."):
            yield module.split(".")[1], line


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.name != "__init__.py" or f.parent != PACKAGE], ids=str
)
def test_arrows_point_down(file: Path) -> None:
    allowed = ALLOWED[part_of(file)]
    if file.name == "bundle.py":  # the methods of Bundle that act
        allowed = allowed | {"assemble", "companions"}
    wrong = [
        f"{file.name}:{line} imports {part}" for part, line in parts_imported(file) if part not in allowed
    ]
    assert wrong == []


def test_the_exception_for_bundle_is_used_in_method_bodies_only() -> None:
    tree = ast.parse((PACKAGE / "spec" / "bundle.py").read_text())
    top = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not any(alias.name == "assemble" for node in top for alias in node.names)


@pytest.mark.parametrize("part", ["errors", "spec"])
def test_nouns_need_the_standard_library_only(part: str) -> None:
    foreign = {
        (file.name, module)
        for file in FILES
        if part_of(file) == part
        for module, _, _ in executed_imports(file)
        if module.split(".")[0] not in {*sys.stdlib_module_names, "bundles"}
    }
    assert foreign == set()


@pytest.mark.parametrize(
    ("library", "parts"),
    [
        ("torch", {"builders", "freezing", "heads", *EDGES}),
        ("safetensors", {"builders", "demo", "features"}),
        ("huggingface_hub", {"sources"}),
        ("httpx2", {"sources"}),
        ("filelock", {"sources"}),
        ("fsspec", {"sources"}),
        ("torchaudio", {"builders", "features"}),
        ("rich", {"display", "cli", "features", "sources"}),
        ("click", {"cli"}),
        ("timm", {"builders"}),
        ("tokenizers", {"companions"}),
        ("tomlkit", {"assemble", "registry"}),
        ("torchvision", {"builders"}),
        ("transformers", {"adapters", "builders", "companions"}),
        ("accelerate", {"adapters"}),
        ("fastai", {"adapters"}),
        ("keras", {"adapters"}),
        ("lightning", {"adapters"}),
        ("pytorch_lightning", {"adapters"}),
        ("skorch", {"adapters"}),
        ("speechbrain", {"adapters"}),
        ("datasets", {"features"}),
        ("pyarrow", {"features"}),
        ("ray", {"features"}),
        ("soundfile", {"demo", "features"}),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(library: str, parts: set[str]) -> None:
    users = {
        part_of(f) for f in FILES for module, _, _ in executed_imports(f) if module.split(".")[0] == library
    }
    assert users <= parts


def test_listing_in_a_fresh_interpreter_imports_nothing_heavy() -> None:
    code = "import sys, bundles; names = bundles.list_bundles(); print(len(names), *sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) == len(bundles.list_bundles()) > 0
    heavy = {
        "torch",
        "numpy",
        "huggingface_hub",
        "torchaudio",
        "safetensors",
        "rich",
        "click",
        "dataclasses",
        "tomllib",
    }
    assert heavy.isdisjoint(out[1:])


def test_filtering_and_looking_up_import_no_torch() -> None:
    code = (
        "import sys, bundles; bundles.list_bundles(task='pitch'); bundles.CREPE_TINY;"
        "repr(bundles.default_registry); print(*sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"torch", "numpy", "huggingface_hub"}.isdisjoint(out)


def test_all_is_exactly_what_type_checkers_see_and_what_is_there() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == bundles._HOMES
    assert sorted(bundles.__all__) == sorted(set(bundles.__all__))
    assert all(getattr(bundles, name) is not None for name in bundles.__all__)


def test_every_error_and_warning_is_public() -> None:
    errors = vars(bundles.errors).items()
    classes = {n for n, v in errors if isinstance(v, type) and v.__module__ == bundles.errors.__name__}
    assert classes <= set(bundles.__all__)


@pytest.mark.parametrize("name", sorted(n for n in vars(bundles.errors) if n.endswith("Error")))
def test_every_error_has_a_builtin_base_and_survives_pickling(name: str) -> None:
    import pickle

    cls = getattr(bundles, name)
    families = {"BundlesError", "RegistryError", "SourceError", "WeightsError", "BuildError", "FreezeError"}
    families.add("FeatureError")
    if name not in families:
        assert any(
            base.__module__ == "builtins" and base not in (Exception, BaseException, object)
            for base in cls.__mro__
        )
    copy = pickle.loads(pickle.dumps(cls("what was found.", extra=("a", 1))))
    assert (type(copy), str(copy), copy.extra) == (cls, "what was found.", ("a", 1))


def test_cards_and_builders_agree_on_the_table() -> None:
    from bundles.builders.table import BUILDERS
    from bundles.spec.architectures import ARCHITECTURES

    assert list(BUILDERS) == list(ARCHITECTURES) == sorted(BUILDERS)


def test_files_and_functions_stay_small() -> None:
    long = [f"{file} {n}" for file in FILES if (n := len(file.read_text().splitlines())) > 400]
    big = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 > 45:
                    big.append(f"{file.name}:{node.name}")
    assert (long, big) == ([], [])
