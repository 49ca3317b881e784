"""The layer groups of transformers' families, by the names of their modules.

A layout is said without the prefix of the base model. The first one that takes every parameter of a base
model exactly once, with a block in it, is the model's; so a relative that is built alike needs no entry of
its own. A pattern that matches nothing is left out: names differ between versions of the library.

An encoder's final norm in front of a decoder counts as ``stem``: ``last:n`` is to train what comes at the
end, and that norm is in the middle. A pooler counts as ``norm``: it belongs to the encoder, after its last
block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bundles.errors import BuildError
from bundles.spec.groups import idle_patterns, match_layers, parse_rules


class Layout(NamedTuple):
    """Layer groups of a family: as ``layers`` of a card, and what must be true of the configuration."""

    layers: Mapping[str, Any]
    where: tuple[str, object] | None = None


def _stem(*patterns: str) -> dict[str, Any]:
    return {"match": list(patterns), "kind": "stem"}


_VISION = "vision_model."
_TEXT = "text_model."
_WAV2VEC2 = {
    "feature_extractor": _stem("feature_extractor"),
    "projection": _stem("masked_spec_embed", "feature_projection", "encoder.pos_conv_embed"),
    "blocks": ["encoder.layers.{i}"],
    "norm": ["adapter"],
}

LAYOUTS: dict[str, Layout] = {
    # BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, MPNet, DeBERTa, DINOv2
    "bert": Layout(
        {
            "stem": ["embeddings", "embeddings_project"],
            "relative": _stem(
                *("encoder.relative_attention_bias", "encoder.rel_embeddings"),
                *("encoder.LayerNorm", "encoder.conv"),
            ),
            "blocks": ["encoder.layer.{i}"],
            "norm": ["pooler", "layernorm"],
        }
    ),
    "distilbert": Layout({"stem": ["embeddings"], "blocks": ["transformer.layer.{i}"]}),
    "albert": Layout(
        {
            "stem": ["embeddings", "encoder.embedding_hidden_mapping_in"],
            "blocks": ["encoder.albert_layer_groups.{i}"],
            "norm": ["pooler"],
        }
    ),
    "t5": Layout(
        {
            "stem": ["shared", "encoder.embed_tokens", "decoder.embed_tokens"],
            "blocks": ["encoder.block.{i}"],
            "encoder_norm": _stem("encoder.final_layer_norm"),
            "decoder": {"match": ["decoder.block.{i}"], "kind": "block"},
            "norm": ["decoder.final_layer_norm"],
        },
        where=("is_encoder_decoder", True),
    ),
    "t5_encoder": Layout(
        {
            "stem": ["shared", "encoder.embed_tokens"],
            "blocks": ["encoder.block.{i}"],
            "norm": ["encoder.final_layer_norm"],
        }
    ),
    # ViT, DeiT, BEiT, AST, DINOv3
    "vit": Layout(
        {
            "stem": ["embeddings", "shared_position_bias"],
            "blocks": ["layers.{i}", "model.layer.{i}"],
            "norm": ["layernorm", "norm", "pooler"],
        }
    ),
    # two towers: blocks of the same depth are one block
    "clip": Layout(
        {
            "stem": [_TEXT + "embeddings", _VISION + "embeddings", _VISION + "pre_layrnorm"],
            "blocks": [_TEXT + "encoder.layers.{i}", _VISION + "encoder.layers.{i}"],
            "norm": [
                *(_TEXT + "final_layer_norm", _VISION + "post_layernorm"),
                *(_TEXT + "head", _VISION + "head"),
            ],
            "head": ["visual_projection", "text_projection", "logit_scale", "logit_bias"],
        }
    ),
    "clip_tower": Layout(
        {
            "stem": ["embeddings", "pre_layrnorm"],
            "blocks": ["encoder.layers.{i}"],
            "norm": ["post_layernorm", "final_layer_norm", "head"],
        }
    ),
    # Whisper, BART, mBART, Pegasus: blocks of the decoder count on after those of the encoder
    "seq2seq": Layout(
        {
            "stem": ["shared", "encoder.conv1", "encoder.conv2"],
            "encoder_stem": _stem(
                *("encoder.embed_tokens", "encoder.embed_positions", "encoder.layernorm_embedding")
            ),
            "blocks": ["encoder.layers.{i}"],
            "encoder_norm": _stem("encoder.layer_norm"),
            "decoder_stem": _stem(
                *("decoder.embed_tokens", "decoder.embed_positions", "decoder.layernorm_embedding")
            ),
            "decoder": {"match": ["decoder.layers.{i}"], "kind": "block"},
            "norm": ["decoder.layer_norm"],
        },
        where=("is_encoder_decoder", True),
    ),
    # wav2vec 2.0, HuBERT, WavLM, data2vec: where the norm stands in front of each layer, one comes last
    "wav2vec2": Layout(
        {**_WAV2VEC2, "norm": ["encoder.layer_norm", "adapter"]}, where=("do_stable_layer_norm", True)
    ),
    "wav2vec2_post_norm": Layout(
        {**_WAV2VEC2, "input_norm": _stem("encoder.layer_norm")}, where=("do_stable_layer_norm", False)
    ),
    # ConvNeXt, ResNet: a stage is a block
    "convnext": Layout(
        {"stem": ["embeddings", "embedder"], "blocks": ["encoder.stages.{i}"], "norm": ["layernorm"]}
    ),
    "swin": Layout({"stem": ["embeddings"], "blocks": ["encoder.layers.{i}"], "norm": ["layernorm"]}),
    "gpt2": Layout({"stem": ["wte", "wpe"], "blocks": ["h.{i}"], "norm": ["ln_f"]}),
    # Llama, Mistral, Qwen, ModernBERT
    "llama": Layout(
        {"stem": ["embed_tokens", "embeddings"], "blocks": ["layers.{i}"], "norm": ["norm", "final_norm"]}
    ),
}


def layout_of(names: Iterable[str], config: object, *, with_head: bool) -> dict[str, Any] | None:
    """Return the ``layers`` that partition a base model's parameter names, or ``None``.

    Args:
        names: of all its parameters, without a prefix.
        config: the library's object; some layouts depend on it.
        with_head: whether the model has a head among its children, which no layout lists: children of
            which nothing is taken.
    """
    names = list(names)
    for layers, where in LAYOUTS.values():
        if where is None or getattr(config, where[0], None) == where[1]:
            live = _live(layers, names)
            if with_head and live:
                live = _with_head(live, names)
            if live and _partitions(live, names):
                return live
    return None


def _with_head(layers: dict[str, Any], names: list[str]) -> dict[str, Any]:
    rules = parse_rules(layers)
    taken = {pattern.partition(".")[0] for rule in rules for pattern in rule.match}
    head = [child for child in dict.fromkeys(name.partition(".")[0] for name in names) if child not in taken]
    return {**layers, "head": [*layers.get("head", ()), *head]} if head else layers


def _live(layers: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The layout without the patterns that match nothing."""
    idle = set(idle_patterns(parse_rules(layers), names))
    live: dict[str, Any] = {}
    for name, entry in layers.items():
        match = entry["match"] if isinstance(entry, Mapping) else entry
        if kept := [pattern for pattern in match if pattern not in idle]:
            live[name] = {**entry, "match": kept} if isinstance(entry, Mapping) else kept
    return live


def _partitions(layers: Mapping[str, Any], names: list[str]) -> bool:
    rules = parse_rules(layers)
    try:
        groups = match_layers(rules, names)
    except BuildError:
        return False
    return len(groups.blocks) > 0
