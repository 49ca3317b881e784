"""Compare the built-in cards with the installed torchaudio, key by key, and write what differs.

Run it when torchaudio publishes a release::

    python scripts/torchaudio_cards.py            # prints what differs; exit status 1 if anything does
    python scripts/torchaudio_cards.py --write    # puts torchaudio's values into the cards

What torchaudio does not know (licence, paper, training data, layer groups, templates) is written by
people and left as it is. A bundle that has no card yet gets one in ``torchaudio_new.toml``, to be completed
by hand and moved to its family.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tomlkit
import torch
import torchaudio.pipelines as upstream

import bundles.registry
from bundles.registry.cards import read_card_file

CARDS = Path(bundles.registry.__file__).parent / "cards"
NEW = "torchaudio_new.toml"
_HOST = "https://download.pytorch.org/torchaudio"
_SPEECH = {"Wav2Vec2": "torchaudio_wav2vec2", "WavLM": "torchaudio_wavlm"}
Facts = dict[tuple[str, ...], Any]  # path of a key in a card -> torchaudio's value


def upstream_bundles() -> dict[str, Any]:
    """Return torchaudio's bundles by name."""
    values = {name: getattr(upstream, name) for name in upstream.__all__}
    return {name: value for name, value in values.items() if not isinstance(value, type)}


def facts_of(bundle: Any) -> Facts:
    """Return everything that torchaudio knows of one of its bundles, by the keys of our cards."""
    for kind, read in _READERS.items():
        if isinstance(bundle, kind):
            facts: Facts = {(key,) if isinstance(key, str) else key: value for key, value in read(bundle)}
            facts["num_parameters",] = sum(p.numel() for p in module_of(bundle).parameters())
            return {key: value for key, value in facts.items() if value is not None}
    raise TypeError(f"torchaudio has a new kind of bundle, {type(bundle).__name__}: write a reader for it.")


def module_of(bundle: Any) -> torch.nn.Module:
    """Return the module that a torchaudio bundle would load its weights into, on the meta device."""
    with torch.device("meta"):
        made: torch.nn.Module = factory_of(bundle)()
    return made


def differences(cards: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any, Any]]:
    """Yield (bundle, key, torchaudio's value, the card's) of everything that is not alike."""
    for name, bundle in upstream_bundles().items():
        for key, value in facts_of(bundle).items():
            found = _at(cards.get(name, {}), key)
            if found != value:
                yield name, key, value, found


# --- what torchaudio knows ------------------------------------------------------------------------


def factory_of(bundle: Any) -> Any:
    """Return what makes that module."""
    if isinstance(bundle, upstream.Wav2Vec2Bundle):
        from torchaudio.pipelines._wav2vec2.utils import _get_model

        return partial(_get_model, bundle._model_type, bundle._params)
    if isinstance(bundle, upstream.Tacotron2TTSBundle):
        return partial(torchaudio_model("Tacotron2"), **bundle._tacotron2_params)  # type: ignore[attr-defined]
    names = {
        upstream.SquimObjectiveBundle: "squim_objective_base",
        upstream.SquimSubjectiveBundle: "squim_subjective_base",
    }
    if type(bundle) in names:
        return torchaudio_model(names[type(bundle)])
    return getattr(bundle, "_rnnt_factory_func", None) or bundle._model_factory_func


def torchaudio_model(name: str) -> Any:
    """Return a class or factory of ``torchaudio.models``."""
    import torchaudio.models

    return getattr(torchaudio.models, name)


def _speech(bundle: Any) -> Iterator[tuple[Any, Any]]:
    yield "builder", _SPEECH[bundle._model_type]
    yield "sample_rate", bundle._sample_rate
    yield "prefix", "model." if bundle._normalize_waveform else None
    yield "num_features", bundle._params["encoder_embed_dim"]
    yield ("weights", "source"), _url(bundle._path, f"{_HOST}/models/")
    yield ("architecture", "normalize"), "batch" if bundle._normalize_waveform else None
    for key, value in bundle._params.items():
        yield ("architecture", key), _plain(value)
    if isinstance(bundle, upstream.Wav2Vec2ASRBundle):
        yield "labels", list(bundle._labels)
        yield "companions", "ctc"
        for name in ("aux.weight", "aux.bias"):
            yield ("keys", "drop_rows", name), list(bundle._remove_aux_axis)
    if isinstance(bundle, upstream.Wav2Vec2FABundle):
        yield "companions", "alignment"
        yield ("architecture", "log_softmax"), True
        yield ("architecture", "with_star"), True


def _synthesis(bundle: Any) -> Iterator[tuple[Any, Any]]:
    yield "builder", "torchaudio_tacotron2"
    yield "companions", "speech_synthesis"
    yield "text_unit", "phoneme" if "Phone" in type(bundle).__name__ else "character"
    yield ("weights", "source"), _url(bundle._tacotron2_path, f"{_HOST}/models/")
    for key, value in bundle._tacotron2_params.items():
        yield ("architecture", key), _plain(value)


def _transducer(bundle: Any) -> Iterator[tuple[Any, Any]]:
    yield "builder", "torchaudio_emformer_rnnt"
    yield "companions", "transducer"
    yield "sample_rate", bundle._sample_rate
    yield "hop_length", bundle._hop_length
    for key in ("n_fft", "n_mels", "segment_length", "right_context_length", "right_padding", "blank"):
        yield ("extra", key), getattr(bundle, f"_{key}")
    yield ("weights", "source"), _url(bundle._rnnt_path, f"{_HOST}/")
    yield ("assets", "global_stats", "source"), _url(bundle._global_stats_path, f"{_HOST}/")
    yield ("assets", "sentencepiece", "source"), _url(bundle._sp_model_path, f"{_HOST}/")
    for key, value in bundle._rnnt_factory_func.keywords.items():
        yield ("architecture", key), _plain(value)


def _separation(bundle: Any) -> Iterator[tuple[Any, Any]]:
    factory = bundle._model_factory_func
    yield (
        "builder",
        {"conv_tasnet_base": "torchaudio_conv_tasnet", "hdemucs_high": "torchaudio_hdemucs"}[
            factory.func.__name__
        ],
    )
    yield "sample_rate", bundle._sample_rate
    yield ("weights", "source"), _url(bundle._model_path, f"{_HOST}/")
    for key, value in factory.keywords.items():
        yield ("architecture", key), _plain(value)


def _squim(bundle: Any) -> Iterator[tuple[Any, Any]]:
    kind = "objective" if isinstance(bundle, upstream.SquimObjectiveBundle) else "subjective"
    yield "builder", f"torchaudio_squim_{kind}"
    yield "sample_rate", bundle._sample_rate
    yield ("weights", "source"), _url(bundle._path, f"{_HOST}/models/")


_READERS = {
    upstream.Wav2Vec2Bundle: _speech,
    upstream.Tacotron2TTSBundle: _synthesis,
    upstream.RNNTBundle: _transducer,
    upstream.SourceSeparationBundle: _separation,
    upstream.SquimObjectiveBundle: _squim,
    upstream.SquimSubjectiveBundle: _squim,
}


def _url(path: str, base: str) -> str:
    return f"url:{path}" if path.startswith("https") else f"url:{base}{path}"


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


# --- what the cards say ---------------------------------------------------------------------------


def read_cards(folder: Path) -> dict[str, Any]:
    """Return every card of a folder by name, inherited keys included."""
    return {
        name: card
        for path in sorted(folder.glob("*.toml"))
        for name, card in read_card_file(str(path)).cards.items()
    }


def write(folder: Path) -> None:
    """Put torchaudio's values where a folder's cards say otherwise; the rest of each file stays as it is."""
    found = list(differences(read_cards(folder)))
    homes = {name: path for path in sorted(folder.glob("*.toml")) for name in tomlkit.parse(path.read_text())}
    for name, key, value, _ in found:
        path = homes.setdefault(name, folder / NEW)
        document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
        _put(document, (name, *key), value)
        path.write_text(tomlkit.dumps(document), encoding="utf-8")


def _put(table: Any, key: tuple[str, ...], value: Any) -> None:
    for part in key[:-1]:
        table = table.setdefault(part, tomlkit.table())
    table[key[-1]] = value


def _at(card: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        card = card.get(part) if isinstance(card, dict) else None
    return card


def main() -> None:
    """Print what differs, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put torchaudio's values into the cards")
    parser.add_argument(
        "--cards", type=Path, default=CARDS, help="the folder of cards; the built-in ones without it"
    )
    arguments = parser.parse_args()
    found = list(differences(read_cards(arguments.cards)))
    for name, key, theirs, ours in found:
        print(f"{name}.{'.'.join(key)}: torchaudio {theirs!r}, card {ours!r}")
    if arguments.write:
        write(arguments.cards)
    elif found:
        sys.exit(1)


if __name__ == "__main__":
    main()
