"""Build a model of transformers: the real upstream class, from its configuration alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from bundles.builders.construct import skips_init
from bundles.builders.transformers.classes import base_class
from bundles.builders.transformers.classes import model_class as find_class
from bundles.builders.transformers.configuration import make_configuration
from bundles.builders.transformers.ties import untie
from bundles.errors import BuildError

LEFT_OUT = "_bundles_left_out"


def build(model_class: str, config: Mapping[str, Any], whole: bool = True) -> nn.Module:
    """Return a model of transformers with random weights; nothing is fetched.

    The class, its forward signature and its state-dict keys are upstream's. Attention is computed as
    ``from_pretrained`` would have it (``sdpa`` where the class supports it), so that outputs are equal. The
    parameters are in torch's default dtype, whatever the configuration says.

    Args:
        model_class: a class that transformers' own tables give for the configuration's ``model_type``, as
            ``"BertForSequenceClassification"``.
        config: what its ``config.json`` holds, in plain values.
        whole: ``False`` for the features alone: the base model inside it (``BertModel``), without the
            head of its class.

    Raises:
        BuildError: the class is none of that type's, or the library does not take the configuration.
        MissingDependencyError: transformers is absent or broken.

    >>> tiny = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> model = build("BertForMaskedLM", {**tiny, "intermediate_size": 8, "vocab_size": 10}, whole=False)
    >>> type(model).__name__, [name for name, _ in model.named_children()]
    ('BertModel', ['embeddings', 'encoder'])
    """
    made = make_configuration(config)
    cls = find_class(made.model_type, model_class)
    model = _construct(cls, made)
    untie(model, config)
    return model if whole else _features_of(model)


def _construct(cls: Any, config: Any) -> nn.Module:
    try:
        with _initialised() if skips_init() else nullcontext():
            model: nn.Module = cls._from_config(config)
    except Exception as error:
        if _is_of_meta(error):
            raise
        message = " ".join(str(error).split())[:200]
        raise BuildError(
            f"transformers' {cls.__name__} cannot be built from the configuration "
            f"({type(error).__name__}: {message})."
        ) from error
    return model


@contextmanager
def _initialised() -> Iterator[None]:
    """Have modules say that they are initialised, as transformers has it of those that a file will fill.

    It walks over all modules of a model to initialise them, and over those of a model in it again.
    """
    thread = threading.get_ident()

    def mark(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is not None and threading.get_ident() == thread:
            module.__dict__["_is_hf_initialized"] = True

    hook = register_module_module_registration_hook(mark)
    try:
        yield
    finally:
        hook.remove()


def _is_of_meta(error: Exception) -> bool:
    """Whether a constructor looked at values that are not there, for which there is another way to build."""
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def base_of(model: Any) -> Any:
    """Return the base model inside a model of transformers; a class that ``AutoModel`` makes is its own."""
    is_base = type(model).__name__ == base_class(model.config.model_type)
    return model if is_base else model.base_model


def _features_of(model: Any) -> nn.Module:
    """The base model, which remembers the names of what it was taken out of: a checkpoint has those, too."""
    base = base_of(model)
    name = base_class(model.config.model_type)
    if base is model and name in (None, type(model).__name__):
        return base  # type: ignore[no-any-return]
    start = f"{model.base_model_prefix}."
    if base is model:  # as T5, whose classes have the same parts side by side
        start, base = "", _construct(find_class(model.config.model_type, str(name)), model.config)
    names, own = model.state_dict().keys(), {start + name for name in base.state_dict()}
    if not own <= names:
        raise BuildError(
            f"A {type(model).__name__} has no base model inside it whose features could be had: pass a head "
            f"for its own slot, or build a {name}."
        )
    base.__dict__[LEFT_OUT] = tuple(name for name in names if name not in own)
    return base  # type: ignore[no-any-return]
