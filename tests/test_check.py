"""``bundles check``: what it finds, what it fills in, and that it writes all or nothing."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save

import bundles
from bundles.assemble.check import check_file
from bundles.cli.main import group
from bundles.registry.cards import read_card_file
from bundles.registry.fill import filled, replace_text
from downloading import isolate
from hubbing import hub_at
from loopback import Loopback

CARDS = Path(bundles.__file__).parent / "registry" / "cards"
GOOD = """\
# What stands here stays here.
[defaults]
builder = "torchcrepe"   # and here
license = "MIT"

[TINY]  # a card
architecture.model = "tiny"
head_slot = "classifier"
num_features = 256
layers = { blocks = ["conv{i}", "conv{i}_BN"], head = "classifier" }
weights.source = "file:tiny.safetensors"   # beside it
task = "pitch"

# This is about the next one.
[SECOND]
architecture = { model = "tiny" }
weights = { source = "file:tiny.safetensors" }
[SECOND.layers]
all = { match = "*", kind = "stem" }
"""
COUNT = 486552


def write(folder: Path, text: str = GOOD) -> Path:
    path = folder / "cards.toml"
    path.write_text(text)
    (folder / "tiny.safetensors").write_bytes(b"some weights")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["check", *map(str, arguments)])


def problems(path: Path, **options: bool) -> list[str]:
    found = check_file(str(path), **options)
    lines = [*found.problems, *(line for card in found.cards for line in card.problems)]
    return [line.replace(f"{path}:", "") for line in lines]


# --- what it finds --------------------------------------------------------------------------------


def test_a_good_card_is_good_and_is_told_about(tmp_path: Path) -> None:
    done = run(write(tmp_path))
    assert done.exit_code == 0
    assert re.search(rf"TINY +{COUNT:,} +7 +num_parameters, weights.sha256, weights.size", done.stdout)
    assert re.search(rf"SECOND +{COUNT:,} +1 ", done.stdout)
    assert "TINY.weights.sha256 is missing, so what comes first is believed" in done.stderr


@pytest.mark.parametrize("file", ["crepe", "nano"])
def test_the_built_in_cards_whose_weights_are_here_are_good(file: str) -> None:
    found = check_file(str(CARDS / f"{file}.toml"))
    assert found.is_good
    assert [card.values for card in found.cards] == [{}] * len(found.cards)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (', "conv{i}_BN"', "", r"10: TINY\.layers The layer groups do not partition .*conv1_BN"),
        ('"conv{i}"', '"conv{i}", "konv{i}"', r"10: TINY\.layers 'konv\{i\}' matches nothing in the model"),
        ('"classifier"\nnum', '"klassifier"\nnum', r"8: TINY\.head_slot 'klassifier' is not .*conv1"),
        ("256", "512", r"9: TINY\.num_features 512 is not what classifier takes, 256"),
        ('task = "pitch"', "num_parameters = 3", rf"12: TINY\.num_parameters 3 is not .*, {COUNT}"),
        ('task = "pitch"', f'weights.sha256 = "{"0" * 64}"', r"11: TINY\.weights\.source .* is not what"),
        ('task = "pitch"', "weights.size = 3", r"11: TINY\.weights\.source .*expected 3 bytes"),
        ("file:tiny.safetensors\"   #", "file:gone\" #", r"11: TINY\.weights\.source .*gone.*not exist"),
        ('task = "pitch"', 'freeze = "blocks:77"', r"12: TINY\.freeze .*77"),
        ('task = "pitch"', "tsk = 3", r"12: TINY\.tsk is not a key of a card; the closest is 'task'"),
        ('model = "tiny"\nhead', 'model = "huge"\nhead', r"7: TINY\.architecture\.model 'huge' is not"),
        ("[TINY]", "[TINY", r"6: is not a card"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_each_defect_is_one_line_with_its_place(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace(old, new, 1))
    (problem,) = problems(path)
    assert re.match(words, problem)
    done = run(path)
    assert done.exit_code == 1
    assert problem.partition(" ")[2] in done.stdout


def test_several_defects_of_several_cards_are_all_told(tmp_path: Path) -> None:
    text = GOOD.replace("256", "512").replace('"file:tiny.safetensors" }', '"file:gone" }')
    found = problems(write(tmp_path, text))
    assert [line.split()[1] for line in found] == ["TINY.num_features", "SECOND.weights.source"]


def test_a_missing_or_empty_licence_is_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace('license = "MIT"', ""))
    assert run(path).exit_code == 0
    assert "TINY.license is missing: whoever uses the weights has to know" in run(path).stderr
    assert "'Unknown' says nothing" in run(write(tmp_path, GOOD.replace("MIT", "Unknown"))).stderr


def test_usage_errors_exit_with_2(tmp_path: Path) -> None:
    assert run().exit_code == 2
    assert run(tmp_path / "none.toml").exit_code == 2
    done = run(tmp_path)
    assert done.exit_code == 2
    assert "holds no *.toml" in done.stderr


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "bad.toml").write_text("[BAD]\n")
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "bad.toml:1: BAD.builder is missing" in done.stdout
    assert "TINY" in done.stdout


# --- what it fills in -----------------------------------------------------------------------------


def test_write_fills_in_what_is_missing_and_keeps_every_line(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.chmod(0o640)
    done = run(path, "--write")
    assert done.exit_code == 0, done.output
    digest = hashlib.sha256(b"some weights").hexdigest()
    new = path.read_text()
    added = f"""\
        weights.sha256 = "{digest}"
        weights.size = 12
        """
    expected = GOOD.replace("# beside it\n", f"# beside it\n{dedent(added)}")
    expected = expected.replace('task = "pitch"\n', f'task = "pitch"\nnum_parameters = {COUNT}\n')
    assert new.partition("[SECOND]")[0] == expected.partition("[SECOND]")[0]
    second = read_card_file(str(path)).cards["SECOND"]
    assert second["num_parameters"] == COUNT
    assert second["weights"] == {"source": "file:tiny.safetensors", "sha256": digest, "size": 12}
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["cards.toml", "tiny.safetensors"]
    again = run(path, "--write")
    assert again.exit_code == 0
    assert "nothing to fill in" in again.stderr
    assert path.read_text() == new
    assert all(not card.warnings for card in check_file(str(path)).cards if card.name == "TINY")


def test_nothing_is_written_where_anything_is_wrong_in_any_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "zbad.toml").write_text("[BAD]\n")
    done = run(path, tmp_path / "zbad.toml", "--write")
    assert done.exit_code == 1
    assert "nothing was written" in done.stderr
    assert path.read_text() == GOOD
    assert (tmp_path / "zbad.toml").read_text() == "[BAD]\n"


def test_a_text_that_would_be_broken_is_not_written(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(bundles.CardError, match=r"not good:\n.*cards\.toml:13: TINY\.num_parameters -1"):
        filled(str(path), {"TINY": {("num_parameters",): -1}})
    assert path.read_text() == GOOD


def test_a_text_that_cannot_be_written_leaves_the_file_and_no_debris(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(UnicodeEncodeError, match="surrogates"):
        replace_text(str(path), "\udc80")
    assert path.read_text() == GOOD
    assert sorted(os.listdir(tmp_path)) == ["cards.toml", "tiny.safetensors"]


def test_a_link_to_a_card_stays_a_link(tmp_path: Path) -> None:
    path = write(tmp_path)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    assert run(link, "--write").exit_code == 0
    assert link.is_symlink()
    assert f"num_parameters = {COUNT}" in path.read_text()


def test_inherited_assets_are_written_whole(tmp_path: Path) -> None:
    text = GOOD.replace(
        'license = "MIT"', 'license = "MIT"\nassets.words = { source = "file:tiny.safetensors" }'
    )
    path = write(tmp_path, text)
    assert run(path, "--write").exit_code == 0
    cards = read_card_file(str(path)).cards
    expected = {
        "source": "file:tiny.safetensors",
        "sha256": hashlib.sha256(b"some weights").hexdigest(),
        "size": 12,
    }
    assert cards["TINY"]["assets"]["words"] == cards["SECOND"]["assets"]["words"] == expected


# --- sources elsewhere ----------------------------------------------------------------------------


@pytest.mark.usefixtures("empty_cache")
def test_a_web_address_is_downloaded_to_be_filled_in_and_else_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path, monkeypatch)
    data = b"weights of the web"
    with Loopback(data) as server:
        text = GOOD.replace("file:tiny.safetensors", server.uri())
        path = write(tmp_path, text)
        assert run(path).exit_code == 0
        assert run(path, "--write", "--offline").exit_code == 0
        assert server.requests == []
        assert "sha256" not in path.read_text()
        done = run(path, "--write")
        assert done.exit_code == 0, done.output
        assert server.requests
        server.forget()
        card = read_card_file(str(path)).cards["TINY"]
        assert card["weights"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert card["weights"]["size"] == len(data)
        assert run(path, "--write").exit_code == 0
        assert server.requests == []


@pytest.mark.usefixtures("empty_cache")
def test_an_address_on_the_hub_becomes_a_commit_sizes_and_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = save({"a": torch.zeros(3)})
    with hub_at(tmp_path, monkeypatch) as hub:
        repo = hub.repo("owner/name")
        commit = repo.commit({"model.safetensors": data, "words.txt": b"a b"}, lfs={"model.safetensors"})
        text = GOOD.replace("file:tiny.safetensors", "hf:owner/name#model.safetensors").replace(
            'task = "pitch"', 'assets.words.source = "hf:owner/name@main#words.txt"'
        )
        path = write(tmp_path, text)
        assert "names no commit, so it may mean other bytes tomorrow" in run(path, "--offline").stderr
        assert hub.requests == []
        done = run(path, "--write")
        assert done.exit_code == 0, done.output
        card = read_card_file(str(path)).cards["TINY"]
        assert card["weights"] == {
            "source": f"hf:owner/name@{commit}#model.safetensors",
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
        }
        assert card["assets"]["words"] == {
            "source": f"hf:owner/name@{commit}#words.txt",
            "sha256": hashlib.sha256(b"a b").hexdigest(),
            "size": 3,
        }
        assert "# beside it" in path.read_text()
        repo.commit({"model.safetensors": b"moved"}, lfs={"model.safetensors"})
        assert run(path).exit_code == 0
        wrong = path.read_text().replace(hashlib.sha256(data).hexdigest(), "0" * 64)
        path.write_text(wrong)
        assert "TINY.weights.sha256 000" in run(path).stdout
        path.write_text(wrong.replace("owner/name@", "owner/gone@"))
        done = run(path, "--write")
        assert done.exit_code == 1
        assert "TINY.weights.source" in done.stdout
        assert "gone" in done.stdout
