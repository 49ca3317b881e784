"""torchaudio's own bundles, to compare ours with: its loaders, fed with files that lie where it looks.

Upstream's loaders take a file that is in the folder of ``torch.hub`` already without asking a network, so
small checkpoints there make them run from end to end. Speech encoders are shrunken, since what differs
between them is how they are put together and not how wide they are.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchaudio.pipelines
from torch import nn
from torchaudio.pipelines._wav2vec2 import utils

import bundles
from bundles.spec.bundle import Bundle

WIDTH = 32
LAYERS = 3
SMALL = {
    "encoder_embed_dim": WIDTH,
    "encoder_num_layers": LAYERS,
    "encoder_num_heads": 4,
    "encoder_ff_interm_features": 64,
    "extractor_conv_layer_config": [[32, 10, 5], [32, 3, 2], [32, 2, 2]],
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
}
NO_DROPOUT = {
    "encoder_projection_dropout": 0.0,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
}
SMALL_TACOTRON2 = {
    "n_mels": 8,
    "symbol_embedding_dim": 16,
    "encoder_embedding_dim": 16,
    "decoder_rnn_dim": 16,
    "decoder_max_step": 5,
    "attention_rnn_dim": 16,
    "attention_hidden_dim": 8,
    "attention_location_n_filter": 4,
    "attention_location_kernel_size": 3,
    "prenet_dim": 16,
    "postnet_embedding_dim": 16,
}
SMALL_WAVERNN = {
    "upsample_scales": [2, 3],
    "hop_length": 6,
    "n_res_block": 2,
    "n_rnn": 16,
    "n_fc": 16,
    "n_freq": 8,
    "n_hidden": 8,
    "n_output": 8,
}


def load_script(name: str) -> Any:
    """Import a maintainers' script, which is no part of the package."""
    path = Path(__file__).parent.parent / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script("torchaudio_cards")
UPSTREAM: dict[str, Any] = script.upstream_bundles()
SPEECH = [name for name, it in UPSTREAM.items() if isinstance(it, torchaudio.pipelines.Wav2Vec2Bundle)]
WITH_LABELS = [name for name in SPEECH if UPSTREAM[name]._params.get("aux_num_out")]
SSL = [name for name in SPEECH if name not in WITH_LABELS]
WRAPPED = [name for name in SPEECH if UPSTREAM[name]._normalize_waveform]

# One of each way to put an encoder together: norm before or after, raw or wrapped, with labels or not.
KINDS = [
    "WAV2VEC2_BASE",
    "WAV2VEC2_LARGE_LV60K",
    "WAV2VEC2_ASR_BASE_960H",
    "HUBERT_ASR_LARGE",
    "VOXPOPULI_ASR_BASE_10K_DE",
    "MMS_FA",
    "WAVLM_BASE",
    "WAVLM_LARGE",
]


def shrunken(name: str, **changes: Any) -> Bundle:
    """Our bundle of a speech encoder, small and without weights."""
    bundle = bundles.get_bundle(name)
    return replace(
        bundle,
        architecture={**bundle.architecture, **SMALL, **changes},
        num_features=WIDTH,
        weights=None,
    )


def randomized(module: nn.Module) -> nn.Module:
    """The module with no parameter or running mean that is zero or one."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.02 + 0.05 * torch.rand_like(tensor))
    return module


class Hub:
    """A folder of ``torch.hub`` with random weights in the places where upstream looks for its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, place: str, content: Any) -> Path:
        """Save a checkpoint, text or bytes as if it had been downloaded."""
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str | bytes):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        else:
            torch.save(content, path)
        return path

    def theirs(self, name: str, **changes: Any) -> Any:
        """Upstream's bundle of a speech encoder, small, its random checkpoint in place."""
        upstream = UPSTREAM[name]
        params = {**upstream._params, **SMALL, **changes}
        params["extractor_conv_layer_config"] = [tuple(row) for row in params["extractor_conv_layer_config"]]
        upstream = replace(upstream, _params=params)
        self._checkpoint(upstream)
        return upstream

    def ours(self, name: str, **changes: Any) -> Bundle:
        """Our bundle of the same, which reads the same file."""
        upstream = self.theirs(name, **changes)
        return replace(
            shrunken(name, **changes), weights=bundles.WeightSource(f"file:{self._place(upstream)}")
        )

    def _place(self, upstream: Any) -> Path:
        return self.folder / "checkpoints" / Path(upstream._path).name

    def _checkpoint(self, upstream: Any) -> None:
        if self._place(upstream).exists():
            return
        with torch.random.fork_rng():
            torch.manual_seed(len(upstream._path))
            state = randomized(utils._get_model(upstream._model_type, upstream._params)).state_dict()
            for key in ("aux.weight", "aux.bias"):  # label slots of fairseq's, which loading drops
                for row in getattr(upstream, "_remove_aux_axis", ()):
                    if key in state:
                        state[key] = torch.cat((state[key][:row], state[key][:1] + 9, state[key][row:]))
        self.put(f"checkpoints/{Path(upstream._path).name}", state)
