"""docs/errors.md: every class of errors.py stands there, and every message quoted there is really raised."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from torch import nn

import bundles
from bundles import WeightSource, errors
from bundles.assemble.pins import pin_bundle
from bundles.builders.require import require
from bundles.sources.fetch import fetch
from bundles.spec.lock import Lock, write_lock
from downloading import QUICK
from hubbing import at, filled, hub_at
from loopback import Loopback

PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text()
SECTIONS = {
    name: (bases, text)
    for name, bases, text in re.findall(
        r"^### (\w+) \((.*?)\)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
}
CLASSES = {
    name: value
    for name, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, (errors.BundlesError, errors.BundlesWarning))
}


def quote_of(name: str) -> str:
    """The message that the page quotes, as a pattern: ``…`` stands for anything."""
    (quoted,) = re.findall(r"^> (.*)$", SECTIONS[name][1], re.MULTILINE)
    return ".*".join(re.escape(part) for part in quoted.split("…"))


def status(code: str) -> None:
    """Fetch from a server that answers with that."""
    with Loopback(b"weights") as server:
        server.default = code
        fetch(WeightSource(server.uri("a.bin")), options=QUICK)


def weights(folder: Path) -> Path:
    path = folder / "a.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    return path


def broken_card(folder: Path) -> None:
    (folder / "x.toml").write_text('[MINE]\nbuilder = "os.system"\n')
    bundles.register_cards(folder)


def other_bytes(folder: Path) -> None:
    fetch(WeightSource(f"file:{weights(folder)}", "0" * 64))


def offline(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUNDLES_OFFLINE", "1")
        fetch(WeightSource("url:https://example.org/a.bin"))


def no_cache(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUNDLES_CACHE", str(folder / "file"))
        fetch(WeightSource("url:http://127.0.0.1:9/a.bin"))


def cut_file(folder: Path) -> None:
    (folder / "cut.safetensors").write_bytes(weights(folder).read_bytes()[:40])
    bundles.load_into(nn.Linear(2, 2), folder / "cut.safetensors")


def pickled_path(folder: Path) -> None:
    torch.save({"where": folder}, folder / "a.pth")
    bundles.load_into(nn.Linear(2, 2), folder / "a.pth")


def reshaped(folder: Path) -> None:
    model = nn.Linear(2, 2)
    bundles.freeze(model, bundles.Elements({"weight": [[True, False], [False, False]]}))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.weight.data = torch.ones(4, 2)
    model.weight.grad = torch.ones(4, 2)
    optimizer.step()


def drifted(folder: Path) -> None:
    model = bundles.freeze(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "match:0")
    taken = bundles.snapshot(model)
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1)
    bundles.verify_frozen(model, taken)


def cut_graph(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    bundles.freeze(model, bundles.Match("0.weight"), "features")


def branch(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, hub_at(folder, patch) as hub:
        filled(hub)
        fetch(at(None))


def other_base(folder: Path) -> None:
    model = bundles.CREPE_TINY.get_model(freeze=True)
    path = bundles.save_delta(model, folder / "delta.safetensors")
    with torch.no_grad():
        model.get_parameter("conv1.bias").add_(1)
    bundles.load_delta(path, model)


def conflict(folder: Path) -> None:
    path = folder / "pitch.lock.toml"
    path.write_text("# both sides\n<<<<<<< HEAD\n")
    bundles.get_model("CREPE_TINY", lock=path)


def other_torch(folder: Path) -> None:
    pin = pin_bundle("CREPE_TINY", folder=folder)
    other = replace(pin, versions={**pin.versions, "torch": "1.0.0"})
    path = folder / "pitch.lock.toml"
    path.write_text(write_lock(Lock({"model": other}, single=True)))
    bundles.get_model("CREPE_TINY", lock=path)


def noisy(folder: Path) -> None:
    model = bundles.WAV2VEC2_NANO_DIGITS.get_model(freeze=True, freeze_mode="mc")
    bundles.extract_features(model, [torch.zeros(16_000)], folder, progress=False)


def other_weights(folder: Path) -> None:
    model = bundles.CREPE_TINY.get_model(freeze=True)
    store = bundles.extract_features(model, [torch.zeros(2, 1024)], folder, num_workers=1, progress=False)
    with torch.no_grad():
        model.get_parameter("conv1.bias").add_(1)
    bundles.cached(model, store)


def no_audio(folder: Path, **how: Any) -> None:
    (folder / "a.wav").write_text("no sound")
    soundfile.write(folder / "b.wav", np.zeros(16_000), 16_000)
    files = [folder / "a.wav", folder / "b.wav"]
    bundles.extract_features(
        "WAV2VEC2_NANO_DIGITS", files, folder / "out", num_workers=1, progress=False, **how
    )


RAISERS: dict[str, Callable[[Path], object]] = {
    "RegistryError": lambda _: bundles.get_model(3),  # type: ignore[arg-type]
    "UnknownBundleError": lambda _: bundles.get_bundle("CREPE_TNY"),
    "DuplicateBundleError": lambda _: bundles.register(bundles.CREPE_TINY),
    "CardError": broken_card,
    "SourceError": lambda _: fetch(WeightSource("ftp:host/a")),
    "DownloadError": lambda _: status("503"),
    "ChecksumError": other_bytes,
    "OfflineError": offline,
    "SourceNotFoundError": lambda _: status("404"),
    "SourceAccessError": lambda _: status("403"),
    "CacheError": no_cache,
    "WeightsFileError": cut_file,
    "UnsafeWeightsError": pickled_path,
    "StateDictMismatchError": lambda folder: bundles.load_into(nn.Linear(2, 2), weights(folder)),
    "BuildError": lambda _: bundles.CREPE_TINY.get_model(device="gpu"),
    "BuildArgumentError": lambda _: bundles.CREPE_TINY.get_model(modal="tiny"),
    "MissingDependencyError": lambda _: require("a_package_that_is_not_there"),
    "FreezeError": reshaped,
    "FreezeArgumentError": lambda _: bundles.CREPE_TINY.plan(freeze="lst:2"),
    "NothingSelectedError": lambda _: bundles.CREPE_TINY.plan(freeze="match:encoder"),
    "InexpressibleModeError": cut_graph,
    "FrozenDriftError": drifted,
    "HeadError": lambda _: bundles.CREPE_TINY.get_model(head="linear"),
    "PinError": conflict,
    "PinMismatchError": lambda _: bundles.get_bundle(f"CREPE_TINY@sha256:{64 * '0'}"),
    "DeltaBaseError": other_base,
    "NotDeterministicError": noisy,
    "FeatureError": lambda folder: bundles.extract_features("CREPE_TINY", [], folder, batch_size=0),
    "FeatureStoreError": bundles.FeatureStore,
    "FeatureKeyError": other_weights,
    "InputError": no_audio,
    "UnreadableInputWarning": lambda folder: no_audio(folder, on_error="skip"),
    "FreezeWithoutWeightsWarning": lambda _: bundles.CREPE_TINY.get_model(pretrained=False, freeze=True),
    "NothingTrainableWarning": lambda _: bundles.CREPE_TINY.get_model(freeze="all"),
    "UnpinnedSourceWarning": branch,
    "VersionMismatchWarning": other_torch,
}


def test_every_class_stands_on_the_page_and_in_the_package() -> None:
    assert set(SECTIONS) == set(CLASSES)
    for name, value in CLASSES.items():
        assert SECTIONS[name][0] == ", ".join(base.__name__ for base in value.__bases__)
        assert getattr(bundles, name) is value


def test_every_quote_is_raised_here_and_every_section_says_what_to_do() -> None:
    assert {name for name in SECTIONS if "\n> " in SECTIONS[name][1]} == set(RAISERS)
    for name in RAISERS:
        text = SECTIONS[name][1]
        assert name == "SourceError" or ("**Cause**" in text and "**Remedy**" in text), name


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("name", RAISERS)
def test_the_quoted_message_is_raised_in_one_sentence_and_survives_pickling(
    name: str, tmp_path: Path
) -> None:
    kind = CLASSES[name]
    if issubclass(kind, Warning):
        with pytest.warns(kind, match=f"^{quote_of(name)}$"):
            RAISERS[name](tmp_path)
        return
    with pytest.raises(kind, match=re.compile(f"^{quote_of(name)}$", re.DOTALL)) as caught:
        RAISERS[name](tmp_path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))
