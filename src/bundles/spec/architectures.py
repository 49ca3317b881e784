"""Which builders a card may name, and which arguments each takes: a closed table, and no import paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bundles.spec.values import shown


@dataclass(frozen=True)
class Argument:
    """An argument of a builder.

    Args:
        accepts: the values it takes, or the type of them; ``[int]`` is a list of integers, ``[[int]]``
            a list of such lists, ``dict`` a library's own configuration, which holds nothing but plain
            values and no key that names code (see :func:`configuration_problem`).
        required: whether a card must give it.
        option: whether ``get_model`` takes it too, where the card gives it.
        headless: the value at which the model ends in its features, for a head that follows it; ``...``
            where it has nothing to do with the model's end.
        tail: whether what it switches follows the head, and so was made for the old one.
    """

    accepts: Any
    required: bool = True
    option: bool = False
    headless: Any = ...
    tail: bool = False


_DEEPEST = 8  # tables in tables of a configuration
# What names code, or a place to get it from, in the configurations of the libraries we build with.
CODE_KEYS = frozenset(
    (
        *("auto_map", "class_path", "code_revision", "custom_pipelines", "init_args", "trust_remote_code"),
        *("attn_implementation", "experts_implementation", "quantization_config", "use_kernels"),
    )
)
_MOST = 100_000  # of anything: layers, features, steps; a card is not to exhaust the memory
# Builders whose models return no features that a head could follow.
WITHOUT_FEATURES = frozenset(
    f"torchaudio_{name}"
    for name in (
        *("conv_tasnet", "emformer_rnnt", "hdemucs", "squim_objective", "squim_subjective"),
        *("tacotron2", "wavernn"),
    )
)

_NORMALIZE = Argument(("batch", "per_utterance"), required=False, option=True)

_WAV2VEC2 = {
    "extractor_mode": Argument(("group_norm", "layer_norm")),
    "extractor_conv_layer_config": Argument([[int]]),
    "extractor_conv_bias": Argument(bool),
    "encoder_embed_dim": Argument(int),
    "encoder_projection_dropout": Argument(float),
    "encoder_pos_conv_kernel": Argument(int),
    "encoder_pos_conv_groups": Argument(int),
    "encoder_num_layers": Argument(int),
    "encoder_num_heads": Argument(int),
    "encoder_attention_dropout": Argument(float),
    "encoder_ff_interm_features": Argument(int),
    "encoder_ff_interm_dropout": Argument(float),
    "encoder_dropout": Argument(float),
    "encoder_layer_norm_first": Argument(bool),
    "encoder_layer_drop": Argument(float),
    "aux_num_out": Argument(int, required=False, headless=None),
    "normalize": _NORMALIZE,
}

ARCHITECTURES: dict[str, dict[str, Argument]] = {
    "timm": {
        "model": Argument(str),
        "pretrained_cfg": Argument(dict, required=False),
        "num_classes": Argument(int, required=False),
        "in_chans": Argument(int, required=False),
        "img_size": Argument(int, required=False),
        "global_pool": Argument(str, required=False),
        "drop_rate": Argument(float, required=False),
        "drop_path_rate": Argument(float, required=False),
    },
    "torchaudio_conv_tasnet": {"num_sources": Argument(int)},
    "torchaudio_emformer_rnnt": {"num_symbols": Argument(int)},
    "torchaudio_hdemucs": {"sources": Argument([str])},
    "torchaudio_squim_objective": {},
    "torchaudio_squim_subjective": {},
    "torchaudio_tacotron2": {
        "mask_padding": Argument(bool),
        "n_mels": Argument(int),
        "n_symbol": Argument(int),
        "n_frames_per_step": Argument(int),
        "symbol_embedding_dim": Argument(int),
        "encoder_embedding_dim": Argument(int),
        "encoder_n_convolution": Argument(int),
        "encoder_kernel_size": Argument(int),
        "decoder_rnn_dim": Argument(int),
        "decoder_max_step": Argument(int),
        "decoder_dropout": Argument(float),
        "decoder_early_stopping": Argument(bool),
        "attention_rnn_dim": Argument(int),
        "attention_hidden_dim": Argument(int),
        "attention_location_n_filter": Argument(int),
        "attention_location_kernel_size": Argument(int),
        "attention_dropout": Argument(float),
        "prenet_dim": Argument(int),
        "postnet_n_convolution": Argument(int),
        "postnet_kernel_size": Argument(int),
        "postnet_embedding_dim": Argument(int),
        "gate_threshold": Argument(float),
    },
    "torchaudio_wav2vec2": _WAV2VEC2
    | {
        "log_softmax": Argument(bool, required=False, headless=False, tail=True),
        "with_star": Argument(bool, required=False, option=True, headless=False, tail=True),
    },
    "torchaudio_wavernn": {
        "upsample_scales": Argument([int]),
        "n_classes": Argument(int),
        "hop_length": Argument(int),
        "n_res_block": Argument(int),
        "n_rnn": Argument(int),
        "n_fc": Argument(int),
        "kernel_size": Argument(int),
        "n_freq": Argument(int),
        "n_hidden": Argument(int),
        "n_output": Argument(int),
    },
    "torchaudio_wavlm": _WAV2VEC2
    | {"encoder_num_buckets": Argument(int), "encoder_max_distance": Argument(int)},
    "torchcrepe": {"model": Argument(("tiny", "full"))},
    "torchvision": {
        "model": Argument(str),
        "num_classes": Argument(int, required=False),
        "aux_logits": Argument(bool, required=False),
        "transform_input": Argument(bool, required=False),
    },
    "transformers": {
        "model_class": Argument(str),
        "config": Argument(dict),
        "whole": Argument(bool, required=False, headless=False),
    },
}


def argument_problem(builder: str, name: str, value: Any) -> str | None:
    """Return what is wrong with one builder argument, or ``None``."""
    argument = ARCHITECTURES[builder].get(name)
    if argument is None:
        takes = ", ".join(ARCHITECTURES[builder]) or "no argument"
        return f"is not an argument: the builder {builder!r} takes {takes}"
    if argument.accepts is dict:
        return configuration_problem(value)
    if _is_accepted(value, argument.accepts):
        return None
    return f"{shown(value)} is not {_wanted(argument.accepts)}"


def configuration_problem(value: Any, depth: int = 0) -> str | None:
    """Return what is wrong with a library's own configuration, as a ``config.json``, or ``None``.

    >>> configuration_problem({"model_type": "bert", "auto_map": {"AutoModel": "modeling.Evil"}})
    "holds the key 'auto_map', which names code: nothing from elsewhere is executed"
    """
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str) or key in CODE_KEYS or key.startswith("_"):
                return f"holds the key {shown(key)}, which names code: nothing from elsewhere is executed"
            if problem := configuration_problem(entry, depth + 1):
                return problem
        return None if depth < _DEEPEST else "is nested too deep"
    if depth == 0:
        return f"{shown(value)} is not a table"
    if isinstance(value, list | tuple):
        if len(value) > _MOST or depth > _DEEPEST:
            return "holds too much"
        return next(filter(None, (configuration_problem(entry, depth + 1) for entry in value)), None)
    plain = value is None or type(value) in (str, int, float, bool)
    return None if plain else f"holds {shown(value)}, which is no plain value"


def missing_arguments(builder: str, given: Mapping[str, Any]) -> list[str]:
    """Return the arguments that a builder needs and a card does not give."""
    return [name for name, arg in ARCHITECTURES[builder].items() if arg.required and name not in given]


def options_of(builder: object, architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the arguments of a bundle that ``get_model`` takes, too."""
    arguments = ARCHITECTURES.get(builder, {}) if isinstance(builder, str) else {}
    return tuple(name for name, arg in arguments.items() if arg.option and name in architecture)


def without_end(builder: object, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which the model ends in its features instead of in a head of its own."""
    return _ending(builder, architecture, lambda argument: argument.headless is not ...)


def without_tail(builder: object, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which the model ends in its head: nothing made for the old one follows."""
    return _ending(builder, architecture, lambda argument: argument.tail)


def _ending(
    builder: object, architecture: Mapping[str, Any], counts: Callable[[Argument], bool]
) -> dict[str, Any]:
    arguments = ARCHITECTURES.get(builder, {}) if isinstance(builder, str) else {}
    ends = {name: arg.headless for name, arg in arguments.items() if counts(arg)}
    return {name: ends.get(name, value) for name, value in architecture.items()}


def _is_accepted(value: Any, accepts: Any) -> bool:
    if isinstance(accepts, tuple):
        return any(type(value) is type(one) and value == one for one in accepts)
    if isinstance(accepts, list):
        listed = isinstance(value, list | tuple) and len(value) > 0
        return listed and all(_is_accepted(entry, accepts[0]) for entry in value)
    if type(value) is not accepts:
        return False
    if accepts is int:
        return bool(0 < value < _MOST)
    return accepts is not float or bool(0 <= value <= 1)  # rates and thresholds, all of them


def _wanted(accepts: Any) -> str:
    if isinstance(accepts, tuple):
        return f"one of {', '.join(map(repr, accepts))}"
    if isinstance(accepts, list):
        inner = accepts[0]
        return f"a list of {'lists' if isinstance(inner, list) else inner.__name__}"
    return {int: f"an int from 1 to {_MOST - 1}", bool: "true or false", float: "a float from 0 to 1"}.get(
        accepts, "a string"
    )
