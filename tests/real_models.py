"""Twenty-three real architectures from torchaudio, timm and transformers, made small, weights random.

Whatever can be random or move while training is switched on: dropout, drop path, layer drop, masking,
batch statistics. Nothing is downloaded.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchaudio.models
import transformers
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

ta: Any = torchaudio.models  # neither has types that say what is returned or taken
hf: Any = transformers


@dataclass(frozen=True)
class Real:
    """How to make one architecture and its input.

    Attributes:
        library: ``"torchaudio"``, ``"timm"`` or ``"transformers"``.
        build: makes the model.
        draw: makes the arguments of one call.
    """

    library: str
    build: Callable[[], nn.Module]
    draw: Callable[[], tuple[Tensor, ...]]

    def make(self) -> nn.Module:
        """Return the model in ``train()`` mode, the same each time."""
        return copy.deepcopy(_first(self))

    def make_input(self) -> tuple[Tensor, ...]:
        """Return the arguments of one call, the same each time."""
        with torch.random.fork_rng():
            torch.manual_seed(2)
            return self.draw()


@functools.cache
def _first(real: Real) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = real.build().train()
        with torch.no_grad():  # no branch may start at zero, or dropping it would show nowhere
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.rand_like(parameter))
    return model


def tensors_in(value: Any) -> list[Tensor]:
    """Return every floating-point tensor in what a model returned."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def run(model: nn.Module, arguments: tuple[Tensor, ...], seed: int = 0) -> list[Tensor]:
    """Call the model, random numbers and numpy's (which masking draws) starting from the seed."""
    hf.set_seed(seed)
    return [tensor.detach().clone() for tensor in tensors_in(model(*arguments))]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two answers are equal bit for bit."""
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in pairs)


def waves() -> tuple[Tensor, ...]:
    """Two snippets of sound."""
    return (torch.randn(2, 4000),)


def images() -> tuple[Tensor, ...]:
    """Two small pictures."""
    return (torch.randn(2, 3, 64, 64),)


def tokens() -> tuple[Tensor, ...]:
    """Two sentences."""
    return (torch.randint(99, (2, 12)),)


def mels() -> tuple[Tensor, ...]:
    """Two spectrograms and their lengths."""
    return torch.randn(2, 40, 16), torch.tensor([40, 31])


# --- torchaudio -----------------------------------------------------------------------------------


def _speech(layer_drop: float) -> Any:
    noise = ("projection_dropout", "attention_dropout", "ff_interm_dropout", "dropout")
    return ta.wav2vec2_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=[(16, 10, 5), (16, 8, 4)],
        extractor_conv_bias=False,
        encoder_embed_dim=32,
        encoder_pos_conv_kernel=8,
        encoder_pos_conv_groups=4,
        encoder_num_layers=3,
        encoder_num_heads=4,
        encoder_ff_interm_features=64,
        encoder_layer_norm_first=False,
        encoder_layer_drop=layer_drop,
        aux_num_out=None,
        **{f"encoder_{name}": 0.3 for name in noise},
    )


def _conformer() -> Any:
    return ta.Conformer(16, num_heads=4, ffn_dim=32, num_layers=2, depthwise_conv_kernel_size=7, dropout=0.3)


def _conv_tasnet() -> Any:
    return ta.ConvTasNet(2, enc_num_feats=16, msk_num_feats=8, msk_num_hidden_feats=16, msk_num_layers=2)


def _emformer() -> Any:
    return ta.Emformer(16, 4, 32, 2, segment_length=4, right_context_length=2, dropout=0.3)


def _segments() -> tuple[Tensor, ...]:
    return torch.randn(2, 34, 16), torch.tensor([32, 25])


# --- timm -----------------------------------------------------------------------------------------


def _timm(name: str, **arguments: Any) -> Real:
    return Real("timm", lambda: timm.create_model(name, num_classes=5, **arguments), images)


_VIT: dict[str, Any] = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4}
_DROPS: dict[str, Any] = {"drop_rate": 0.3, "drop_path_rate": 0.3}


# --- transformers ---------------------------------------------------------------------------------


_TEXT: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
_MASKED: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 8),
    "conv_stride": (5, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.5,
    "hidden_dropout": 0.3,
    "attention_dropout": 0.3,
    "feat_proj_dropout": 0.3,
    "apply_spec_augment": True,
    "mask_time_prob": 0.3,
    "mask_time_length": 4,
    "mask_feature_prob": 0.3,
    "mask_feature_length": 4,
}


def _hf(model: Any, config: Any, **arguments: Any) -> Any:
    return model(config(**arguments))


def _whisper() -> nn.Module:
    drops = {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3, "encoder_layerdrop": 0.5}
    size = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    return WhisperEncoder(hf.WhisperConfig(num_mel_bins=16, max_source_positions=20, **size, **drops))


def _encodec() -> Any:
    config = hf.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=32, upsampling_ratios=[4, 2]
    )
    return hf.EncodecModel(config)


def _audio(model: Any, config: Any, **more: Any) -> Real:
    return Real("transformers", lambda: _hf(model, config, **_MASKED, **more), waves)


REAL: dict[str, Real] = {
    "wav2vec2": Real("torchaudio", lambda: _speech(0.0), waves),
    "hubert": Real("torchaudio", lambda: _speech(0.5), waves),
    "conformer": Real("torchaudio", _conformer, mels),
    "conv_tasnet": Real("torchaudio", _conv_tasnet, lambda: (torch.randn(2, 1, 800),)),
    "deepspeech": Real(
        "torchaudio", lambda: ta.DeepSpeech(16, 32, 5, 0.3), lambda: (torch.randn(2, 1, 20, 16),)
    ),
    "wav2letter": Real("torchaudio", lambda: ta.Wav2Letter(5, "mfcc", 16), lambda: (torch.randn(2, 16, 60),)),
    "emformer": Real("torchaudio", _emformer, _segments),
    "resnet": _timm("resnet18", drop_path_rate=0.3, channels=(8, 16, 32, 64)),
    "vit": _timm("vit_tiny_patch16_224", **_VIT, **_DROPS, proj_drop_rate=0.3, attn_drop_rate=0.3),
    "swin": _timm(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 2),
        **_DROPS,
    ),
    "convnext": _timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 16, 32), **_DROPS),
    "efficientnet": _timm("efficientnet_b0", **_DROPS),
    "regnet": _timm("regnety_002", **_DROPS),
    "beit": _timm("beit_base_patch16_224", **_VIT, **_DROPS, attn_drop_rate=0.3),
    "mobilenet": _timm("mobilenetv3_small_050", **_DROPS),
    "BERT": Real(
        "transformers", lambda: _hf(hf.BertModel, hf.BertConfig, **_TEXT, intermediate_size=64), tokens
    ),
    "Wav2Vec2": _audio(hf.Wav2Vec2Model, hf.Wav2Vec2Config),
    "Hubert": _audio(hf.HubertModel, hf.HubertConfig),
    "WavLM": _audio(hf.WavLMModel, hf.WavLMConfig, mask_feature_min_masks=0),
    "Whisper encoder": Real("transformers", _whisper, lambda: (torch.randn(2, 16, 40),)),
    "GPT-2": Real(
        "transformers",
        lambda: _hf(hf.GPT2Model, hf.GPT2Config, vocab_size=99, n_embd=32, n_layer=2, n_head=4, **_ENDS),
        tokens,
    ),
    "EnCodec": Real("transformers", _encodec, lambda: (torch.randn(2, 1, 400),)),
    "Wav2Vec2-Conformer": _audio(
        hf.Wav2Vec2ConformerModel, hf.Wav2Vec2ConformerConfig, conformer_conv_dropout=0.3
    ),
}
