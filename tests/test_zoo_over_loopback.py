"""Each architecture from the real address to a frozen model, beside torchaudio's own loader.

The checkpoints have upstream's format and names and random weights; a server on loopback stands in for the
real one through ``BUNDLES_MIRROR``, and torchaudio finds the same files in its own cache.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bundles
from bundles.spec.bundle import Bundle
from bundles.spec.source import WeightSource
from zoo import KINDS, SMALL, UPSTREAM, WIDTH, Hub, randomized, script

MODELS = {
    "CONVTASNET_BASE_LIBRI2MIX": lambda model: model(torch.randn(1, 1, 2000)),
    "EMFORMER_RNNT_BASE_LIBRISPEECH": lambda model: transduce(model),
    "HDEMUCS_HIGH_MUSDB": lambda model: model(torch.randn(1, 2, 8192)),
    "SQUIM_OBJECTIVE": lambda model: model(torch.randn(1, 8000)),
    "SQUIM_SUBJECTIVE": lambda model: model(torch.randn(1, 4000), torch.randn(1, 4000)),
    "TACOTRON2_WAVERNN_CHAR_LJSPEECH": lambda model: synthesise(model),
}


def transduce(model: nn.Module) -> Any:
    frames, labels = torch.randn(1, 20, 80), torch.randint(0, 4096, (1, 3), dtype=torch.int32)
    return model(frames, torch.tensor([16]), labels, torch.tensor([3]))[0]


def synthesise(model: nn.Module) -> Any:
    tokens, mel = torch.randint(0, 38, (1, 6)), torch.randn(1, 80, 5)
    return model(tokens, torch.tensor([6]), mel, torch.tensor([5]))[:3]


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which it is served."""
    folder = tmp_path_factory.mktemp("served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub(
    served: tuple[Path, str], tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """torchaudio's cache, and the same files on the server."""
    _folder, address = served
    hosts = ("https://download.pytorch.org", "https://dl.fbaipublicfiles.com")
    monkeypatch.setenv("BUNDLES_MIRROR", ",".join(f"{host}={address}" for host in hosts))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield Hub(tmp_path / "hub")
    torch.hub.set_dir(before)


def serve(served: tuple[Path, str], bundle: Bundle, file: Path) -> Bundle:
    """Put a file where the bundle's real address leads, and return the bundle without its pin."""
    assert bundle.weights is not None
    path = served[0] / bundle.weights.address.split("/", 3)[3]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(file)
    return replace(bundle, weights=WeightSource(bundle.weights.uri))


def quiet(bundle: Bundle, **arguments: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bundles.NothingTrainableWarning)
        return bundle.get_model(**arguments)


def outputs(model: nn.Module, call: Callable[[nn.Module], Any]) -> list[torch.Tensor]:
    torch.manual_seed(7)  # the inputs, and the dropout of Tacotron2's prenet
    with torch.no_grad():
        found = call(model)
    flat = found if isinstance(found, tuple | list) else [found]
    return [tensor for tensor in flat if isinstance(tensor, torch.Tensor)]


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_frozen_stays(model: nn.Module, call: Callable[[nn.Module], Any]) -> None:
    """Three steps of AdamW move no frozen byte, and do move something that trains."""
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    before = bundles.snapshot(model)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, weight_decay=0.3)
    for _ in range(3):
        found = call(model)
        flat = found if isinstance(found, tuple | list) else [found]
        losses = [t.float().square().mean() for t in flat if isinstance(t, torch.Tensor) and t.requires_grad]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    bundles.verify_frozen(model, before)
    now = dict(model.named_parameters())
    assert frozen
    assert all(torch.equal(now[name], old) for name, old in frozen.items())
    assert any(not torch.equal(now[name], old) for name, old in trained.items())


def speak(model: Any) -> Any:
    return model(torch.randn(1, 4000))


def layers(model: Any) -> Any:
    return model.extract_features(torch.randn(1, 4000))[0]


def vocode(model: Any) -> Any:
    return model(torch.randn(1, 80, 6))


# --- speech encoders, shrunken: each way to put one together ---------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_speech_encoder_is_torchaudio_s_to_the_last_bit(
    name: str, hub: Hub, served: tuple[Path, str]
) -> None:
    theirs = hub.theirs(name)
    real = bundles.get_bundle(name)
    real = serve(served, real, hub.folder / "checkpoints" / Path(theirs._path).name)
    bundle = replace(real, architecture={**real.architecture, **SMALL}, num_features=WIDTH)
    model, upstream = quiet(bundle, freeze=True), theirs.get_model()
    assert_equal(outputs(model, speak), outputs(upstream, speak))
    assert_equal(outputs(model.train(), speak), outputs(upstream, speak))
    assert_equal(outputs(model.eval(), layers), outputs(upstream, layers))
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in upstream.state_dict().items()
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_frozen_speech_encoder_stays_in_three_steps(name: str, hub: Hub, served: tuple[Path, str]) -> None:
    theirs, real = hub.theirs(name), bundles.get_bundle(name)
    real = serve(served, real, hub.folder / "checkpoints" / Path(theirs._path).name)
    bundle = replace(real, architecture={**real.architecture, **SMALL}, num_features=WIDTH)
    assert_frozen_stays(bundle.get_model(freeze=True, head=lambda dim: nn.Linear(dim, 3)), speak)


@pytest.mark.parametrize("with_star", [True, False])
def test_mms_with_and_without_star(with_star: bool, hub: Hub, served: tuple[Path, str]) -> None:
    theirs, real = hub.theirs("MMS_FA"), bundles.MMS_FA
    real = serve(served, real, hub.folder / "checkpoints" / "model.pt")
    bundle = replace(real, architecture={**real.architecture, **SMALL})
    model, upstream = bundle.get_model(with_star=with_star), theirs.get_model(with_star=with_star)
    assert_equal(outputs(model, speak), outputs(upstream, speak))


def test_old_names_of_weight_norm_load_too(hub: Hub, served: tuple[Path, str]) -> None:
    theirs, real = hub.theirs("WAV2VEC2_BASE"), bundles.WAV2VEC2_BASE
    path = hub.folder / "checkpoints" / theirs._path
    new = torch.load(path, weights_only=True)
    endings = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    old = {}
    for key, tensor in new.items():
        ending = next((e for e in endings if key.endswith(e)), "")
        old[key.removesuffix(ending) + endings[ending] if ending else key] = tensor
    assert set(old) != set(new)
    torch.save(old, path)
    real = serve(served, real, path)
    bundle = replace(real, architecture={**real.architecture, **SMALL})
    assert_equal(outputs(bundle.get_model(), speak), outputs(theirs.get_model(), speak))


def test_other_bytes_at_the_address_of_a_pinned_card_are_refused(hub: Hub, served: tuple[Path, str]) -> None:
    real = bundles.WAV2VEC2_ASR_BASE_960H
    assert real.weights is not None
    serve(served, real, hub.put("checkpoints/other.pth", {"a": torch.ones(3)}))
    with pytest.raises(bundles.ChecksumError, match=f"expected {real.weights.size} bytes"):
        real.get_model()


# --- everything else, in its real size -------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_torchaudio_s_to_the_last_bit_and_its_frozen_part_stays(
    name: str, hub: Hub, served: tuple[Path, str]
) -> None:
    ours, theirs, call = bundles.get_bundle(name), UPSTREAM[name], MODELS[name]
    assert ours.weights is not None
    module = randomized(script.factory_of(theirs)())
    key = ours.weights.address.split("/torchaudio/")[1]
    place = f"checkpoints/{Path(key).name}" if "TACOTRON2" in name else f"torchaudio/{key}"
    ours = serve(served, ours, hub.put(place, module.state_dict()))
    get = getattr(theirs, "get_tacotron2", None) or getattr(theirs, "_get_model", None) or theirs.get_model
    upstream = get()
    model = ours.get_model(freeze=True)
    assert_equal(outputs(model, call), outputs(upstream, call))
    assert model.state_dict().keys() == upstream.state_dict().keys()
    assert_frozen_stays(model, call)


def test_wavernn_is_torchaudio_s_to_the_last_bit_and_its_frozen_part_stays(
    hub: Hub, served: tuple[Path, str]
) -> None:
    theirs, ours = UPSTREAM["TACOTRON2_WAVERNN_CHAR_LJSPEECH"], bundles.WAVERNN_8BITS_LJSPEECH
    module = randomized(script.torchaudio_model("WaveRNN")(**theirs._wavernn_params))
    serve(served, ours, hub.put(f"checkpoints/{theirs._wavernn_path}", module.state_dict()))
    upstream = theirs.get_vocoder()
    vocoder = bundles.TACOTRON2_WAVERNN_CHAR_LJSPEECH.get_vocoder(freeze=True)
    assert_equal(outputs(vocoder, vocode), outputs(upstream, vocode))
    wavernn: Any = vocoder._model
    assert_frozen_stays(wavernn, lambda model: model(torch.randn(1, 1, 550), torch.randn(1, 1, 80, 6)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WAV2VEC2_BASE", "HUBERT_ASR_LARGE", "WAVLM_LARGE", "MMS_FA"])
def test_a_speech_encoder_in_its_real_size(name: str, hub: Hub, served: tuple[Path, str]) -> None:
    ours, theirs = bundles.get_bundle(name), UPSTREAM[name]
    hub._checkpoint(theirs)
    ours = serve(served, ours, hub.folder / "checkpoints" / Path(theirs._path).name)
    assert_equal(outputs(quiet(ours, freeze=True), speak), outputs(theirs.get_model(), speak))
