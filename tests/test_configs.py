"""Models in other people's configs: plain data, all problems at once, the real libraries, the schema."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hydra
import jsonargparse
import jsonschema  # type: ignore[import-untyped]
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from hydra.core.global_hydra import GlobalHydra
from hyperpyyaml import load_hyperpyyaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

import bundles
from bundles.experiment.config import KEYS, ModelConfig, read_config, read_model
from bundles.experiment.schema import SCHEMA, schema

CONFIGS = Path(__file__).parent.parent / "configs"
DIGITS = {
    "bundle": "WAV2VEC2_NANO_DIGITS",
    "freeze": "last:1",
    "freeze_mode": "regularized",
    "head": {"type": "MeanPoolClassifier", "num_classes": 11},
}


def head(in_features: int) -> nn.Module:
    return bundles.heads.MeanPoolClassifier(in_features, 11)


@pytest.fixture(scope="module")
def expected() -> nn.Module:
    torch.manual_seed(0)
    return bundles.get_model("WAV2VEC2_NANO_DIGITS", freeze="last:1", freeze_mode="regularized", head=head)


def same(model: nn.Module, expected: nn.Module) -> bool:
    """Whether two models have the same plan and, the seed of the new head being the same, the same bytes."""
    ours, theirs = model.state_dict(), expected.state_dict()
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return equal and bundles.freeze_plan(model) == bundles.freeze_plan(expected)


# --- from_config -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [dict, MappingProxyType, OmegaConf.create], ids=["dict", "mapping proxy", "DictConfig"]
)
def test_any_mapping_gives_what_get_model_gives(wrap: Any, expected: nn.Module) -> None:
    torch.manual_seed(0)
    assert same(bundles.from_config(wrap(DIGITS)), expected)


def test_a_name_is_enough() -> None:
    model = bundles.from_config("CREPE_TINY")
    assert not model.training
    assert bundles.freeze_plan(model) is None


def test_a_pin_is_a_name_too() -> None:
    pin = bundles.CREPE_TINY.pin()
    assert same(
        bundles.from_config({"bundle": pin, "freeze": True}), bundles.CREPE_TINY.get_model(freeze=True)
    )
    other = f"CREPE_TINY@sha256:{'0' * 64}"
    with pytest.raises(bundles.PinMismatchError, match=f"{'0' * 64}"):
        bundles.from_config(other)


def test_dtype_and_a_mode_as_a_table() -> None:
    wanted = read_config(
        {"bundle": "CREPE_TINY", "freeze": True, "freeze_mode": {"noise": "follow"}, "dtype": "bfloat16"}
    )
    assert wanted == ModelConfig("CREPE_TINY", True, bundles.FreezeMode(noise="follow"), dtype="bfloat16")
    model = bundles.from_config({"bundle": "CREPE_TINY", "dtype": "bfloat16"})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_namespace_is_told_to_be_a_mapping() -> None:
    with pytest.raises(
        bundles.PinError, match=r"Namespace\(.*\) is no table with the key bundle; its vars\(\) are"
    ):
        bundles.from_config(argparse.Namespace(bundle="CREPE_TINY"))  # type: ignore[arg-type]


def test_an_experiment_file_has_its_lock_beside_it() -> None:
    problems: list[str] = []
    table = {"bundle": "CREPE_TINY", "lock": "a.lock.toml"}
    assert read_model(table, ("model",), tuple(key for key in KEYS if key != "lock"), problems) is None
    assert problems == [
        "model.lock: an experiment file has its lock beside it, as NAME.lock.toml: leave it out"
    ]


def test_nothing_at_a_key_is_as_if_it_were_not_there() -> None:
    empty = dict.fromkeys(("freeze_mode", "head", "dtype", "lock"))
    assert read_config({"bundle": "CREPE_TINY", **empty}) == ModelConfig("CREPE_TINY")


def test_all_problems_are_named_at_once_with_path_value_and_what_is_allowed() -> None:
    with pytest.raises(
        bundles.PinError, match="does not describe a model, for 7 reasons:\nbundle: "
    ) as raised:
        bundles.from_config(
            {
                "bundle": "CREPE_TINI",
                "freeze": 1,
                "freeze_mode": {"noise": "of", "gard": "cut"},
                "head": {"type": "Linear", "out_features": 0},
                "dtype": "float23",
                "mode": "eval",
            }
        )
    found = raised.value.problems
    assert found[0].startswith("bundle: There is no bundle 'CREPE_TINI': did you mean CREPE_TINY, CREPE_FULL")
    assert found[1:] == (
        "freeze: 1 is neither true or false nor the text of a policy, as 'last:2'",
        "freeze_mode.noise: 'of' is not one of 'off', 'on', 'follow'",
        "freeze_mode.gard: 'cut', did you mean 'grad'? It takes noise, stats, structure, grad",
        "head: out_features = 0 of Linear is not a number from 1",
        "dtype: 'float23' is not one of 'float32', 'float16', 'float64', 'bfloat16'",
        "mode: 'eval', did you mean 'freeze_mode'? It takes bundle, freeze, freeze_mode, head, dtype, lock",
    )


CODE = [
    ({"_target_": "os.system", "bundle": "CREPE_TINY"}, r"_target_: 'os.system' would be called"),
    (
        {"class_path": "os.system", "init_args": {}},
        r"class_path: 'os.system' .*\ninit_args: {} would be called",
    ),
    ({"bundle": "CREPE_TINY", "head": {"_target_": "torch.nn.Linear"}}, r"head\._target_: 'torch.nn.Linear'"),
    ({"bundle": {"class_path": "os.system"}}, r"bundle\.class_path: 'os.system' would be called"),
    ({"bundle": "!new:os.system"}, r"bundle: '!new:os.system' is a tag of YAML"),
    ({"bundle": "CREPE_TINY", "dtype": "!apply:os.system"}, r"dtype: '!apply:os.system' is a tag"),
    ({"bundle": "${oc.env:HOME}"}, r"bundle: '\$\{oc.env:HOME\}' was not resolved"),
    ({"bundle": nn.Linear(1, 1)}, r"bundle: a Linear is no plain data"),
    ({"bundle": "CREPE_TINY", "head": {"type": "os.system"}}, r"head: type = 'os.system' is none of Atten"),
    ({"bundle": "CREPE_TINY", "head": lambda n: n}, r"head: a function is no plain data"),
]


@pytest.mark.parametrize(("config", "match"), CODE, ids=[str(config)[:50] for config, _ in CODE])
def test_nothing_in_a_config_names_code(config: Mapping[str, Any], match: str) -> None:
    with pytest.raises(bundles.PinError, match=match):
        bundles.from_config(config)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "bundle: CREPE_TINY\ncommit: 1234567",
            "commit: .*'hf:owner/repo@<commit>'.*1234567 is a number.*quote it",
        ),
        ("bundle: CREPE_TINY\nrevision: 0012345", "revision: .*5349 is a number.*quote it"),
        ("bundle: CREPE_TINY\nsha256: 1234567e+12", r"sha256: .*digest in the pin, as in 'NAME@sha256"),
        ("bundle: CREPE_TINY\npin: 12.5e+3", "pin: .*12500.0 is a number.*quote it"),
        ("bundle: 2024-01-01", "bundle: 2024-01-01 was read as a date: quote it"),
        ("bundle: 12:30:45", "bundle: 45045 is a number, and YAML reads digits without quotes so: quote it"),
        ("bundle: NO", "bundle: false is no text, and YAML reads no, off and n so: quote it"),
        ("bundle: ~", "bundle: nothing is given"),
        (
            "bundle: CREPE_TINY\nfreeze: True\nfreeze_mode: {noise: off}",
            "freeze_mode.noise: False .*quote it",
        ),
        ("bundle: CREPE_TINY\nfreeze: True\nfreeze_mode: {noise: on}", "freeze_mode.noise: True .*yes, on"),
        ("bundle: CREPE_TINY\nfreeze: True\nfreeze_mode: off", "freeze_mode: False .*: quote it"),
        ("bundle: CREPE_TINY\nfreeze: 'no'", "freeze: 'no' is text here, .* write false"),
        ("bundle: CREPE_TINY\nfreeze: 'True'", "freeze: 'True' is text here, .* write true"),
        ("bundle: CREPE_TINY\nfreeze:", "freeze: None is neither true or false nor"),
        ("bundle: CREPE_TINY\non: true", "True: the key is a bool and not text: quote it"),
        ("freeze: true", "bundle: is missing: give the name of a bundle"),
        (
            "bundle: CREPE_TINY\nfreeze_mode: eval",
            "freeze_mode: it is given without freeze: add freeze = true",
        ),
        ("bundle: CREPE_TINY\ndevice: cuda", "device: 'cuda' belongs to a run and not to a model"),
        ("bundle: hf:owner/repo@0123abc", "bundle: The address .* is a short commit: give all 40"),
        ("bundle: CREPE_TINY@sha256:0123", "bundle: The pin .* 64 lower-case hex digits"),
        ("bundle: CREPE_TINY\nhead: {type: Linear, in_features: 3, out_features: 2}", "the bundle knows it"),
        ("bundle: CREPE_TINY\nhead: Linear", "head: 'Linear' is no table"),
        ("bundle: CREPE_TINY\nlock: ''", "lock: '' is not the path of a lock"),
        ("[CREPE_TINY]", r"model: \['CREPE_TINY'\] is no table with the key bundle"),
        (
            "lr: 1\nmodel:\n  bundle: CREPE_TINY",
            r"model: it is a table of a model itself: give config\['model'\]",
        ),
        ('bundle: CREPE_TINY\n"a\\e[31m": 1', r"'a\\x1b\[31m': 1, did you mean"),
        ("bundle: CREPE_TINY\nname: CREPE_FULL", "name: 'CREPE_FULL', did you mean 'bundle'"),
        ("", "model: None is no table with the key bundle"),
    ],
)
def test_what_yaml_makes_of_a_config_is_explained(text: str, match: str) -> None:
    with pytest.raises(bundles.PinError, match=match):
        bundles.from_config(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "bundle: &a [" + "x, " * 9 + "x]\nhead: &b [*a, *a]\ndtype: &c [*b, *b]\nlock: " + "[*c, *c]" * 1,
        "bundle: &a {x: 1}\n" + "\n".join(f"k{i}: &k{i} [{', '.join(['*a'] * 40)}]" for i in range(20)),
        "&a {bundle: CREPE_TINY, head: *a}",
        "bundle: " + "[" * 50 + "]" * 50,
    ],
    ids=["nested", "many", "circle", "deep"],
)
def test_anchors_cost_nothing(text: str) -> None:
    with pytest.raises(bundles.PinError, match=r"bundle|head"):
        bundles.from_config(yaml.safe_load(text))


def test_a_bomb_of_anchors_ends_at_once() -> None:
    bomb: Any = ["x"]
    for _ in range(40):
        bomb = [bomb, bomb]
    with pytest.raises(bundles.PinError, match="more levels or values than a model's table has"):
        bundles.from_config({"bundle": "CREPE_TINY", "head": {"type": bomb}})
    with pytest.raises(bundles.PinError, match="more levels or values than a model's table has"):
        bundles.from_config({"bundle": "CREPE_TINY", "head": {"type": [["x"] * 40] * 40}})


def test_omegaconf_is_resolved_and_what_does_not_resolve_is_named() -> None:
    good = OmegaConf.create({"size": "TINY", "model": {"bundle": "CREPE_${size}", "freeze": True}})
    assert read_config(good.model) == ModelConfig("CREPE_TINY", True)
    bad = OmegaConf.create(
        {"bundle": "${oc.env:NO_SUCH_VARIABLE}", "freeze": "???", "head": {"type": "${x}"}, "dtype": ["${x}"]}
    )
    with pytest.raises(bundles.PinError, match="for 4 reasons") as raised:
        read_config(bad)
    places = [line.partition(": ")[0] for line in raised.value.problems]
    assert places == ["bundle", "freeze", "head.type", "dtype.0"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.sampled_from(["CREPE_TINY", "last:1", "eval", "Linear", "off", "${a}", "!new:a", "hf:a/b", ""])
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "noise", "out_features", "_target_", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["bundle", "freeze", "freeze_mode", "head", "dtype", "lock", "mode", "commit"]
) | st.text(max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_whatever_is_in_a_config_it_is_read_or_refused(config: dict[str, Any]) -> None:
    problems: list[str] = []
    wanted = read_model(config, ("model",), KEYS, problems)
    assert isinstance(wanted, ModelConfig) is not bool(problems)
    assert all(re.match(r"model[.:]", problem) for problem in problems)


@pytest.fixture(scope="module")
def lock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lock of an experiment with the model of all the examples."""
    from bundles.experiment.file import read_experiment
    from bundles.experiment.locking import lock_experiment
    from bundles.spec.lock import write_lock

    path = tmp_path_factory.mktemp("locked") / "digits.toml"
    path.write_text(
        'model = { bundle = "WAV2VEC2_NANO_DIGITS", freeze = "last:1", freeze_mode = "regularized", '
        'head = { type = "MeanPoolClassifier", num_classes = 11 } }\n'
    )
    place = path.with_name("digits.lock.toml")
    place.write_text(write_lock(lock_experiment(read_experiment(path))))
    return place


@pytest.mark.parametrize("config", [DIGITS, {"bundle": DIGITS["bundle"]}], ids=["all said", "nothing said"])
def test_a_lock_decides_what_the_config_leaves_open(
    config: dict[str, Any], lock: Path, expected: nn.Module
) -> None:
    torch.manual_seed(0)
    assert same(bundles.from_config({**config, "lock": str(lock)}), expected)


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create], ids=["dict", "DictConfig"])
def test_a_config_that_contradicts_its_lock_is_refused(wrap: Any, lock: Path) -> None:
    other = {**DIGITS, "freeze": "last:2", "head": {"type": "MeanPoolClassifier", "num_classes": 3}}
    with pytest.raises(
        bundles.PinMismatchError, match=r"The config and .*digits\.lock\.toml disagree:"
    ) as raised:
        bundles.from_config(wrap({**other, "dtype": "float64", "lock": str(lock)}))
    freeze, head, dtype = raised.value.problems  # type: ignore[attr-defined]
    assert freeze.startswith("freeze: the config says 'last:2', the lock ")
    assert head.startswith(
        "head: the config says { type = 'MeanPoolClassifier', num_classes = 3 }, the lock {"
    )
    assert "num_classes = 11" in head
    assert dtype == "dtype: the config says 'float64', the lock nothing"
    with pytest.raises(bundles.PinMismatchError, match="freeze: the config says false, the lock '"):
        bundles.from_config({"bundle": DIGITS["bundle"], "freeze": False, "lock": str(lock)})
    with pytest.raises(bundles.PinMismatchError, match="pins WAV2VEC2_NANO_DIGITS and not CREPE_TINY"):
        bundles.from_config({"bundle": "CREPE_TINY", "lock": str(lock)})


def test_a_lock_that_is_not_there() -> None:
    with pytest.raises(bundles.PinError, match=r"The lock no/such\.lock\.toml cannot be read"):
        bundles.from_config({"bundle": "CREPE_TINY", "lock": "no/such.lock.toml"})


# --- the libraries -----------------------------------------------------------------------------


@contextmanager
def typed(monkeypatch: pytest.MonkeyPatch, script: Path, *arguments: str) -> Iterator[None]:
    """Stand where a script that was started with these arguments stands."""
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.syspath_prepend(str(script.parent))
    torch.manual_seed(0)
    modules = set(sys.modules)
    yield
    for name in sys.modules.keys() - modules:
        if getattr(sys.modules[name], "__file__", None) == str(script.parent / f"{name}.py"):
            del sys.modules[name]


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> dict[str, Any]:
    """Run an example as a script and return its names."""
    path = CONFIGS / script
    with typed(monkeypatch, path, *arguments):
        return runpy.run_path(str(path), run_name="__main__")


def test_plain_yaml(monkeypatch: pytest.MonkeyPatch, expected: nn.Module) -> None:
    assert same(run(monkeypatch, "yaml/train.py")["model"], expected)


def test_hyperpyyaml(monkeypatch: pytest.MonkeyPatch, expected: nn.Module) -> None:
    assert same(run(monkeypatch, "hyperpyyaml/train.py")["config"]["model"], expected)


def test_hyperpyyaml_names_and_plain_data(expected: nn.Module) -> None:
    config = load_hyperpyyaml(
        "build: !name:bundles.get_model\n  bundle: WAV2VEC2_NANO_DIGITS\n  freeze: last:1\n"
        f"  freeze_mode: regularized\nmodel: {json.dumps(DIGITS)}\nhead: !name:torch.nn.Linear\n"
    )
    torch.manual_seed(0)
    assert same(config["build"](head=head), expected)
    torch.manual_seed(0)
    assert same(bundles.from_config(config["model"]), expected)
    with pytest.raises(bundles.PinError, match=r"head: a \w+ is no plain data"):
        bundles.from_config({**config["model"], "head": config["head"]})


def test_hyperpyyaml_makes_classes_only_by_new() -> None:
    with pytest.raises(ValueError, match=r"!new:bundles\.get_model should be a class"):
        load_hyperpyyaml("model: !new:bundles.get_model\n  bundle: CREPE_TINY\n")


def test_argparse(monkeypatch: pytest.MonkeyPatch, expected: nn.Module) -> None:
    names = run(monkeypatch, "argparse/train.py", "--freeze", "last:1", "--freeze-mode", "regularized")
    assert same(names["model"], expected)


def test_argparse_shows_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "argparse/train.py", "--freeze", "lst:1", "--bundle", "CREPE")
    said = capsys.readouterr().err
    assert "bundle: There is no bundle 'CREPE'" in said
    assert "freeze: Freeze policy 'lst:1' is not known: give one of 'last:2'" in said


@pytest.mark.parametrize("arguments", [[], ["--config-name", "data"]], ids=["target", "data"])
def test_hydra_runs_the_example(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: nn.Module,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", f"hydra.run.dir={tmp_path}"]
    run(monkeypatch, "hydra/train.py", *arguments, *quiet)
    assert capsys.readouterr().out == f"{bundles.freeze_report(expected)}\n"


@contextmanager
def composed(name: str, *overrides: str) -> Iterator[Any]:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS / "hydra")):
        yield hydra.compose(name, overrides=list(overrides)).model
    assert not GlobalHydra().is_initialized()


def test_hydra_composes_overrides(expected: nn.Module) -> None:
    with composed("train", "model.freeze='blocks:0-1'", "model.freeze_mode=eval") as config:
        plan = bundles.freeze_plan(hydra.utils.instantiate(config))
    assert plan is not None
    assert (plan.policy, str(plan.mode)) == ("Blocks(0, 1)", "eval")
    with composed("train") as config:
        torch.manual_seed(0)
        assert same(hydra.utils.instantiate(config), expected)
    with composed("data", "+model.dtype=float64", "model.head.num_classes=3") as config:
        linear = bundles.from_config(config).get_submodule("head.linear")
    assert linear.state_dict()["weight"].dtype == torch.float64
    assert linear.state_dict()["bias"].shape == (3,)


def test_hydra_may_have_from_config_called_on_data() -> None:
    config = OmegaConf.create({"_target_": "bundles.from_config", "config": {"bundle": "CREPE_TINY"}})
    assert type(hydra.utils.instantiate(config)) is type(bundles.get_model("CREPE_TINY"))


def test_hydra_shows_what_is_wrong() -> None:
    with (
        composed("train", "model.freeze=lst:1") as config,
        pytest.raises(hydra.errors.InstantiationException, match="Freeze policy 'lst:1' is not known"),
    ):
        hydra.utils.instantiate(config)


def test_jsonargparse_reads_the_signature_of_get_model() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(bundles.get_model, "model")
    given = parser.parse_args(
        ["--model.bundle=CREPE_TINY", "--model.freeze=last:1", "--model.freeze_mode=mc"]
    )
    plan = bundles.freeze_plan(bundles.get_model(**given.model.as_dict()))
    assert plan is not None
    assert (plan.policy, str(plan.mode)) == ("ExceptLast(1)", "mc")
    with pytest.raises(jsonargparse.ArgumentError, match="freze"):
        parser.parse_args(["--model.bundle=CREPE_TINY", "--model.freze=last:1"])


@pytest.mark.filterwarnings("ignore")  # Lightning's own, and those of what it imports
def test_lightning_trains_from_a_config(
    monkeypatch: pytest.MonkeyPatch, expected: nn.Module, tmp_path: Path
) -> None:
    folder = CONFIGS / "lightning"
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # which it sets
        monkeypatch.setenv(name, "0")
    more = ["--model.init_args.model.freeze", "last:2", "--model.init_args.lr", "0.01"]
    with typed(monkeypatch, folder / "train.py", "fit", "--config", str(folder / "train.yaml"), *more):
        names = runpy.run_path(str(folder / "train.py"), run_name="__main__")
    assert names
    with typed(monkeypatch, folder / "train.py", "--config", str(folder / "train.yaml")):
        from pytorch_lightning.cli import LightningCLI

        cli = LightningCLI(
            datamodule_class=names["Noise"],
            subclass_mode_model=True,
            save_config_callback=None,
            run=False,
            seed_everything_default=0,
        )
    assert same(cli.model.model, expected)
    held = bundles.snapshot(cli.model.model)
    cli.trainer.fit(cli.model, cli.datamodule)
    bundles.verify_frozen(cli.model.model, held)
    assert not same(cli.model.model, expected)


# --- the schema --------------------------------------------------------------------------------


VALIDATOR = jsonschema.Draft7Validator(json.loads(Path(SCHEMA).read_text()))


def examples() -> list[Path]:
    """Every config that is plain data: the experiment files, and YAML without names of code."""
    toml = [path for path in sorted(CONFIGS.glob("*.toml")) if not path.name.endswith(".lock.toml")]
    texts = {path: path.read_text() for path in sorted(CONFIGS.rglob("*.yaml"))}
    return [
        *toml,
        *(path for path, text in texts.items() if not re.search(r"_target_|class_path|!\w+:", text)),
    ]


def test_the_schema_is_current() -> None:
    assert json.loads(Path(SCHEMA).read_text()) == schema(), "run python scripts/schema.py"
    jsonschema.Draft7Validator.check_schema(schema())


def test_the_schema_is_shipped() -> None:
    root = CONFIGS.parent
    shipped = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "bundles"
    ]
    assert Path(SCHEMA).relative_to(root / "src" / "bundles").as_posix() in shipped


@pytest.mark.parametrize("path", examples(), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_example_is_valid_and_names_the_schema(path: Path) -> None:
    first, text = path.read_text().split("\n", 1)[0], path.read_text()
    is_toml = path.suffix == ".toml"
    named = re.fullmatch(r"#:schema (\S+)" if is_toml else r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, first
    assert (path.parent / named[1]).resolve() == Path(SCHEMA).resolve()
    VALIDATOR.validate(tomllib.loads(text) if is_toml else yaml.safe_load(text))


def test_there_are_examples_of_every_kind() -> None:
    kinds = {path.parent.name for path in CONFIGS.rglob("*.py")}
    assert kinds == {"argparse", "hydra", "hyperpyyaml", "lightning", "yaml"}
    assert len(examples()) >= 2


def test_names_complete_with_a_text_for_each() -> None:
    names, *_ = VALIDATOR.schema["definitions"]["model"]["properties"]["bundle"]["anyOf"]
    from bundles.registry.origins import add_builtin
    from bundles.registry.registry import Registry

    assert names["enum"] == list(Registry(populate=add_builtin))
    assert names["x-taplo"]["docs"]["enumValues"] == names["enumDescriptions"]
    assert dict(zip(names["enum"], names["enumDescriptions"], strict=True))["CREPE_TINY"] == (
        "CREPE with 0.5 million parameters; pitch; 0.5 M parameters; MIT"
    )


GOOD: list[Mapping[str, Any]] = [
    DIGITS,
    {"bundle": "CREPE_TINY"},
    {"bundle": "MY_OWN", "freeze": False},
    {"bundle": "CREPE_TINY@sha256:" + "0" * 64, "freeze": "blocks:0-3,6"},
    {"bundle": "hf:owner/repo@" + "0" * 40, "freeze": "match:encoder.*", "lock": "a.lock.toml"},
    {"bundle": "file:folder", "freeze": "fit:8GB:16x5s", "freeze_mode": {"noise": "follow"}},
    {"bundle": "./folder", "head": {"type": "Linear", "out_features": 3, "bias": False}, "dtype": "bfloat16"},
    {
        "bundle": "CREPE_TINY",
        "head": {"type": "WeightedLayers", "num_layers": 3, "head": {"type": "CTCHead", "num_labels": 2}},
    },
]
BAD: list[Mapping[str, Any]] = [
    {},
    {"bundle": 5349},
    {"bundle": "CREPE_TINY", "freze": True},
    {"bundle": "CREPE_TINY", "freeze": 1},
    {"bundle": "CREPE_TINY", "freeze": "lst:2"},
    {"bundle": "CREPE_TINY", "freeze": "blocks:a"},
    {"bundle": "CREPE_TINY", "freeze_mode": "eval"},
    {"bundle": "CREPE_TINY", "freeze": True, "freeze_mode": "evil"},
    {"bundle": "CREPE_TINY", "freeze": True, "freeze_mode": {"noise": False}},
    {"bundle": "CREPE_TINY", "head": {"type": "Linear"}},
    {"bundle": "CREPE_TINY", "head": {"type": "Linear", "in_features": 2, "out_features": 2}},
    {"bundle": "CREPE_TINY", "head": {"type": "TextClassifier", "num_classes": 2, "activation": "swish"}},
    {"bundle": "CREPE_TINY", "dtype": "float23"},
    {"bundle": "CREPE_TINY", "lock": ""},
    {"_target_": "os.system", "bundle": "CREPE_TINY"},
    {"bundle": "CREPE_TINY@sha256:0123"},
    {"bundle": "hf:owner"},
]


@pytest.mark.parametrize("config", GOOD, ids=str)
def test_the_schema_takes_what_is_read(config: Mapping[str, Any]) -> None:
    VALIDATOR.validate({"model": config, "lr": 0.1})
    VALIDATOR.validate({"models": {"a": config, "b": config}})
    if config["bundle"] != "MY_OWN":
        assert isinstance(read_config(config), ModelConfig)


@pytest.mark.parametrize("config", BAD, ids=str)
def test_the_schema_refuses_what_is_refused(config: Mapping[str, Any]) -> None:
    assert not VALIDATOR.is_valid({"model": config})
    with pytest.raises(bundles.PinError, match="does not describe a model"):
        read_config(config)


def test_the_schema_wants_one_model_or_several() -> None:
    assert not VALIDATOR.is_valid({})
    assert not VALIDATOR.is_valid({"models": {}})
    assert not VALIDATOR.is_valid({"model": DIGITS, "models": {"a": DIGITS}})
