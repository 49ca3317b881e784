"""A configuration of transformers from plain data: what is dropped, what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bundles.builders.transformers.classes import configuration_class
from bundles.errors import BuildError
from bundles.spec.architectures import CODE_KEYS, configuration_problem
from bundles.spec.values import shown

# What a config.json holds that has nothing to do with the architecture, or that our own arguments decide.
_DROPPED = frozenset(
    (
        *("architectures", "transformers_version", "torch_dtype", "dtype", "task_specific_params"),
        *("attn_implementation", "experts_implementation", "attn_implementation_internal", "use_kernels"),
        *("label2id", "finetuning_task", "gradient_checkpointing", "tf_legacy_loss", "use_bfloat16"),
        *("name_or_path", "torchscript", "fusion_config", "kernel_config", "transformers_weights"),
    )
)
_CODE = ("auto_map", "custom_pipelines")
# Their models come from timm by name, and a name may be an address; the builder "timm" takes timm's own.
_TIMM = ("timm_backbone", "timm_wrapper")
_ADDRESSES = ("hf-hub:", "hf_hub:", "local-dir:")
# An untrusted file is not to keep us building for ever, nor to fill the memory with a table of positions.
_DEEPEST = 1000  # layers, stages and the like
_LARGEST = 2**27


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a ``config.json`` makes up the architecture, without names that start with ``_``.

    Raises:
        BuildError: it names code, is quantized, or is no configuration of a model.

    >>> plain_config({"model_type": "bert", "_name_or_path": "/home/me", "torch_dtype": "float16"})
    {'model_type': 'bert'}
    """
    if not isinstance(config, Mapping):
        raise BuildError(f"The configuration {shown(config)} is no table: it must be that of a model.")
    if code := next((key for key in _CODE if config.get(key)), None):
        raise BuildError(
            f"The configuration has the key {code!r}, so its model is code of its repository: nothing from "
            f"elsewhere is executed; use a repository whose model is one of transformers' own."
        )
    if config.get("quantization_config"):
        raise BuildError(
            "The weights of this configuration are quantized ('quantization_config'): use the repository "
            "with the float weights."
        )
    return {key: _plain(value) for key, value in config.items() if _counts(key, value)}


def make_configuration(config: Mapping[str, Any]) -> Any:
    """Return the library's object for a configuration in plain values.

    Raises:
        BuildError: a key names code or an address, a count is absurd, the type is unknown, or the library
            does not take the values.
        MissingDependencyError: transformers is absent or broken.
    """
    if problem := configuration_problem(config):
        raise BuildError(f"The configuration {problem}.")
    kept = plain_config(config)
    model_type = kept.pop("model_type", None)
    if not isinstance(model_type, str):
        raise BuildError("The configuration has no model_type, as 'bert': it is none of transformers'.")
    for path, value in _walk({**kept, "model_type": model_type}):
        _check(path, value)
    cls = configuration_class(model_type)
    try:
        return cls(**kept, **_label_numbers(kept))
    except Exception as error:  # the library's own checks raise classes of their own
        message = " ".join(str(error).split())[:200]
        raise BuildError(
            f"transformers' {cls.__name__} does not take the configuration: {message}"
        ) from error


def _label_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The labels' other table, which is left out of the data because labels are its keys."""
    labels = config.get("id2label")
    return {"label2id": {label: int(index) for index, label in labels.items()}} if labels else {}


def _check(path: str, value: Any) -> None:
    key = path.rpartition(".")[2]
    if key == "model_type" and value in _TIMM:
        raise BuildError(f"The model_type {value!r} is timm's: use the builder 'timm' with the name in it.")
    if isinstance(value, str) and value.startswith(_ADDRESSES):
        raise BuildError(f"The configuration's {path} = {shown(value)} is an address: nothing is fetched.")
    many = _amount(key, value)
    if many > (_DEEPEST if _is_depth(key) else _LARGEST):
        raise BuildError(f"The configuration's {path} = {shown(value)} is more than can be meant.")


def _is_depth(key: str) -> bool:
    words = ("layer", "depth", "block", "stages", "conv_dim")
    return any(word in key for word in words) and not any(word in key for word in ("size", "_dim_", "_dims"))


def _amount(key: str, value: Any) -> int:
    """How much a value asks for: a number itself, a list its entries, and of depths their sum."""
    if isinstance(value, list):
        numbers = [entry for entry in value if type(entry) is int and entry > 0]
        return max(len(value), sum(numbers) if key == "depths" else 0)
    return value if type(value) is int else 0


def _counts(key: Any, value: Any) -> bool:
    is_empty = key in CODE_KEYS and not value  # as the ``null`` that older versions wrote
    return not (is_empty or (isinstance(key, str) and (key in _DROPPED or key.startswith("_"))))


def _plain(value: Any) -> Any:
    """The value with ``dict`` and ``list`` for the frozen ones of a bundle, which the library's types are."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items() if _counts(key, entry)}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _walk(entry, f"{path}.{key}" if path else str(key))
        return
    yield path, value
    if isinstance(value, list):
        for entry in value:
            yield from _walk(entry, "" if isinstance(entry, int) else path)
