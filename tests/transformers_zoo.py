"""Tiny models of transformers, one or more per family that has declared layer groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

_BERT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.3,
    "attention_dropout": 0.3,
}
_T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 40, "num_layers": 2, "num_heads": 2}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 8,
    "hidden_dropout_prob": 0.3,
    "attention_dropout": 0.3,
}
_SPEECH = {
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_codevectors_per_group": 8,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
    "mask_time_length": 2,
    "layerdrop": 0.3,
}
_CLIP = {
    "projection_dim": 16,
    "text_config": {**_BERT, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    "vision_config": _VIT,
}
_WHISPER = {
    "vocab_size": 50,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "dropout": 0.3,
    "encoder_layerdrop": 0.3,
    "decoder_layerdrop": 0.3,
}
_DINO = {**_VIT, "mlp_ratio": 2, "hidden_dropout_prob": 0.0, "drop_path_rate": 0.5}
_STAGES = {
    "drop_path_rate": 0.5,
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
}


def _text() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(3, 23).view(2, 10)}


def _pairs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(3, 23).view(2, 10), "decoder_input_ids": torch.arange(3, 13).view(2, 5)}


def _image(size: int) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


def _both() -> dict[str, torch.Tensor]:
    return {**_text(), **_image(16)()}


def _sound() -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(2, 400)}


def _spectrum() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": torch.arange(3, 13).view(2, 5)}


class Tiny(NamedTuple):
    """A class of transformers, its configuration, an input, and what its layer groups are."""

    model_class: str
    config: Mapping[str, Any]
    make_input: Callable[[], dict[str, torch.Tensor]]
    blocks: int = 2
    slot: str | None = None

    @property
    def file(self) -> dict[str, Any]:
        """What its ``config.json`` holds."""
        return {**self.config, "architectures": [self.model_class]}


def _tiny(model_type: str, model_class: str, config: Mapping[str, Any], *rest: Any, **named: Any) -> Tiny:
    return Tiny(model_class, {"model_type": model_type, **config}, *rest, **named)


_ALL = [
    _tiny("bert", "BertModel", _BERT, _text),
    _tiny("bert", "BertForMaskedLM", _BERT, _text),
    _tiny("bert", "BertForPreTraining", _BERT, _text),
    _tiny("bert", "BertForSequenceClassification", _BERT, _text, slot="classifier"),
    _tiny("roberta", "RobertaForMaskedLM", _BERT, _text),
    _tiny("roberta", "RobertaForSequenceClassification", _BERT, _text, slot="classifier.out_proj"),
    _tiny("xlm-roberta", "XLMRobertaForMaskedLM", _BERT, _text),
    _tiny("xlm-roberta", "XLMRobertaModel", _BERT, _text),
    _tiny(
        "distilbert",
        "DistilBertForSequenceClassification",
        {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 40},
        _text,
        slot="classifier",
    ),
    _tiny("electra", "ElectraForPreTraining", {**_BERT, "embedding_size": 16}, _text),
    _tiny("albert", "AlbertForMaskedLM", {**_BERT, "embedding_size": 16}, _text, 1),
    _tiny(
        "deberta-v2",
        "DebertaV2ForSequenceClassification",
        {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3},
        _text,
        slot="classifier",
    ),
    _tiny("t5", "T5ForConditionalGeneration", _T5, _pairs, 4),
    _tiny("t5", "T5Model", {**_T5, "is_encoder_decoder": True}, _pairs, 4),
    _tiny("t5", "T5EncoderModel", _T5, _text),
    _tiny("t5", "T5ForConditionalGeneration", {**_T5, "tie_word_embeddings": False}, _pairs, 4),
    _tiny("vit", "ViTForImageClassification", _VIT, _image(16), slot="classifier"),
    _tiny("vit", "ViTModel", _VIT, _image(16)),
    _tiny("deit", "DeiTForImageClassification", _VIT, _image(16), slot="classifier"),
    _tiny("clip", "CLIPModel", _CLIP, _both),
    _tiny("clip_vision_model", "CLIPVisionModel", _VIT, _image(16)),
    _tiny("dinov2", "Dinov2Model", _DINO, _image(16)),
    _tiny("dinov2", "Dinov2ForImageClassification", _DINO, _image(16), slot="classifier"),
    _tiny("whisper", "WhisperForConditionalGeneration", _WHISPER, _spectrum, 4),
    _tiny("whisper", "WhisperModel", _WHISPER, _spectrum, 4),
    _tiny("wav2vec2", "Wav2Vec2ForCTC", _SPEECH, _sound, slot="lm_head"),
    _tiny("wav2vec2", "Wav2Vec2Model", {**_SPEECH, "do_stable_layer_norm": True}, _sound),
    _tiny(
        "wav2vec2",
        "Wav2Vec2ForSequenceClassification",
        {**_SPEECH, "classifier_proj_size": 24},
        _sound,
        slot="classifier",
    ),
    _tiny("wav2vec2", "Wav2Vec2ForPreTraining", _SPEECH, _sound),
    _tiny("hubert", "HubertModel", _SPEECH, _sound),
    _tiny("wavlm", "WavLMForCTC", _SPEECH, _sound, slot="lm_head"),
    _tiny(
        "convnext",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "drop_path_rate": 0.5},
        _image(16),
        slot="classifier",
    ),
    _tiny("swin", "SwinForImageClassification", {**_STAGES, "window_size": 4}, _image(32), slot="classifier"),
    _tiny("gpt2", "GPT2LMHeadModel", {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2}, _text),
    _tiny("llama", "LlamaForCausalLM", {**_BERT, "num_key_value_heads": 2}, _text),
    _tiny(
        "bart",
        "BartForSequenceClassification",
        {
            **{key: _WHISPER[key] for key in _WHISPER if "layers" in key or "heads" in key or "ffn" in key},
            "vocab_size": 50,
            "d_model": 32,
            "max_position_embeddings": 24,
        },
        lambda: {"input_ids": torch.tensor([[3, 4, 5, 2], [6, 7, 8, 2]])},
        4,
        slot="classification_head.out_proj",
    ),
]


def _name(tiny: Tiny) -> str:
    marks = [key for key in ("do_stable_layer_norm",) if tiny.config.get(key)]
    marks += ["untied"] if tiny.config.get("tie_word_embeddings") is False else []
    return "-".join([tiny.model_class, *marks])


TINY = {_name(tiny): tiny for tiny in _ALL}
