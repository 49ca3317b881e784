"""Attach a head: in the slot that the architecture has for one, or after the encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from torch import Tensor, nn

from bundles.errors import HeadError
from bundles.heads.protocol import takes_lengths, uses_layers
from bundles.spec.architectures import WITHOUT_FEATURES
from bundles.spec.bundle import Bundle

Head = nn.Module | Callable[[int], nn.Module]
ENCODER = "encoder."


class EncoderWithHead(nn.Module):
    """A model without a head slot, followed by a head.

    ``forward(*args, **kwargs)`` calls ``encoder`` with everything it is given, and ``head`` with what
    comes out. An encoder that returns a tuple has the features first, of shape ``[..., num_features]``,
    and, if it knows of padding, the number of valid frames of each item second, as torchaudio's do. One
    that returns an output of Transformers has them as its ``last_hidden_state``, of shape ``[batch, tokens,
    num_features]``: a token is a frame of audio, a piece of text (of the decoder's, where there is one),
    or a patch of an image.

    - By default the result is ``head(features)``; where the encoder returns a tuple, its other entries
      follow: ``(head(features), *rest)``. What else an output of Transformers holds is left out.
    - A head whose ``forward`` has a parameter ``lengths`` is called as ``head(features, lengths=lengths)``,
      and its result is the model's. Behind an encoder of Transformers the lengths are those of the
      ``attention_mask``, ``[batch, tokens]``, with the padding on the right; in frames, where it is one
      over samples of audio. They are ``None`` where no mask is given.
    - A head with the attribute ``uses_layers = True`` takes the list of all layers' outputs as features,
      for which ``encoder.extract_features`` is called in the place of ``encoder``. Those of Transformers
      are asked for ``output_hidden_states``; the first of these, the embeddings, is left out.

    What a head takes is looked up once; for another head make another ``EncoderWithHead``.

    Raises:
        HeadError: the head uses layers and the encoder does not give them, or has another number of them.

    >>> import torch
    >>> EncoderWithHead(nn.Linear(4, 8), nn.Linear(8, 2))(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self._takes_lengths = takes_lengths(head)
        self._uses_layers = uses_layers(head)
        if self._uses_layers:
            _check_layers(encoder, head)
        self._gives_states = self._uses_layers and _num_hidden_layers(encoder) is not None
        self.encoder = encoder
        self.head = head

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the head's output, followed by what the encoder returns if the head leaves that.

        Raises:
            HeadError: an output of Transformers has no features, or the ``attention_mask`` is no
                ``[batch, tokens]`` where the head takes lengths.
        """
        if self._gives_states:
            kwargs["output_hidden_states"] = True
        by_layer = self._uses_layers and not self._gives_states
        encode: Any = self.encoder.extract_features if by_layer else self.encoder
        encoded = encode(*args, **kwargs)
        if isinstance(encoded, Mapping) and hasattr(encoded, "to_tuple"):  # a ModelOutput, and no plain dict
            return self._after_output(encoded, args, kwargs)
        features, *rest = encoded if isinstance(encoded, tuple) else (encoded,)
        if self._takes_lengths:
            return self.head(features, lengths=rest[0] if rest else None)
        out = self.head(features)
        return (out, *rest) if isinstance(encoded, tuple) else out

    def _after_output(self, output: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the head with what an output of Transformers holds."""
        wanted = "hidden_states" if self._uses_layers else "last_hidden_state"
        features = output.get(wanted)
        if features is None:
            raise HeadError(
                f"The {type(self.encoder).__name__} returns {', '.join(output)} and a "
                f"{type(self.head).__name__} takes its {wanted}: build the model without its own head."
            )
        if self._uses_layers:
            features = list(features[1:])
        if self._takes_lengths:
            return self.head(features, lengths=_lengths(self.encoder, args, kwargs))
        return self.head(features)


def _lengths(encoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the number of valid tokens of each item, ``[batch]``, as the mask in a call says."""
    names = list(signature(encoder.forward).parameters)
    name = "decoder_attention_mask" if "decoder_attention_mask" in names else "attention_mask"
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    mask = given.get(name)
    if mask is None:
        return None
    if mask.ndim != 2:
        raise HeadError(
            f"{name} has shape {list(mask.shape)}, and the head takes lengths: pass a mask of shape [batch, "
            f"tokens], 1 where a token is valid."
        )
    lengths: Tensor = mask.long().sum(-1)
    frames: Any = getattr(encoder, "_get_feat_extract_output_lengths", None)
    return lengths if frames is None or name != "attention_mask" else frames(lengths)


def fits_slot(head: nn.Module) -> bool:
    """Whether the head can sit in an architecture's own slot, which is called with the features alone.

    >>> from bundles.heads import CTCHead, MeanPoolClassifier
    >>> fits_slot(CTCHead(768, 29)), fits_slot(MeanPoolClassifier(768, 10))
    (True, False)
    """
    return not (takes_lengths(head) or uses_layers(head))


def head_by_recipe(recipe: Mapping[str, Any]) -> Callable[[int], nn.Module]:
    """Return what makes the head of a recipe, see :mod:`bundles.heads.recipes`, for a number of features."""
    from bundles.heads import recipes

    return lambda in_features: recipes.make_head(recipe, in_features)


def make_head(bundle: Bundle, head: Head) -> nn.Module:
    """Return the head as a module, made for the size of the bundle's features, and trainable.

    Raises:
        HeadError: the size is unknown, differs from that of the head, or nothing of use is given.
    """
    if bundle.builder in WITHOUT_FEATURES and bundle.head_slot is None:
        raise HeadError(f"{bundle.name} returns no features that a head could follow: leave head= out.")
    made = head if isinstance(head, nn.Module) else _call(bundle, head)
    wanted = getattr(made, "in_features", bundle.num_features)
    if bundle.num_features is not None and wanted != bundle.num_features:
        raise HeadError(
            f"The head takes {wanted} features and {bundle.name} gives {bundle.num_features}: make it with "
            f"in_features={bundle.num_features}, or pass head=lambda features: ..."
        )
    return made.requires_grad_(True)


def attach_head(model: nn.Module, slot: str | None, head: nn.Module) -> nn.Module:
    """Return the model with the head in its slot, or an :class:`EncoderWithHead` where it has none.

    Raises:
        HeadError: the model has no module at the slot, or one and the other do not fit.
    """
    if slot is None:
        return EncoderWithHead(model, head)
    if not fits_slot(head):
        raise HeadError(
            f"A {type(head).__name__} takes lengths or layers and the slot {slot!r} gives only features: "
            f"pass another head, as bundles.heads.CTCHead."
        )
    owner, _, local = slot.rpartition(".")
    try:
        model.get_submodule(slot)
    except AttributeError as error:
        raise HeadError(f"The model has no module {slot!r} for a head to replace.") from error
    setattr(model.get_submodule(owner), local, head)
    return model


def _call(bundle: Bundle, head: Callable[[int], nn.Module]) -> nn.Module:
    """Return the module that a callable makes for the size of the bundle's features."""
    if not callable(head):
        raise HeadError(
            f"head={head!r} is neither a module nor a callable: pass head=lambda n: nn.Linear(n, 10)."
        )
    size = bundle.num_features
    if size is None:
        raise HeadError(
            f"{bundle.name} does not say how many features it gives, so a callable cannot be asked for a "
            f"head: pass the module itself, or set num_features= in the Bundle."
        )
    try:
        made = head(size)
    except TypeError as error:
        raise HeadError(
            f"The callable head cannot be called with {size} alone ({error}): pass a function of the "
            f"number of features, as head=lambda n: nn.Linear(n, 10)."
        ) from error
    if not isinstance(made, nn.Module):
        raise HeadError(f"The callable head returned a {type(made).__name__}: it must return an nn.Module.")
    return made


def _check_layers(encoder: nn.Module, head: nn.Module) -> None:
    """Raise where a head that uses layers cannot work with the encoder."""
    found = _num_hidden_layers(encoder)
    if found is None and not callable(getattr(encoder, "extract_features", None)):
        raise HeadError(
            f"A {type(head).__name__} takes the outputs of all layers and {type(encoder).__name__} has no "
            f"extract_features that gives them: pass a head that takes the last features."
        )
    found = _num_layers(encoder) if found is None else found
    wanted = getattr(head, "num_layers", found)
    if found is not None and wanted != found:
        raise HeadError(
            f"The {type(head).__name__} takes {wanted} layers and the encoder has {found}: make it with "
            f"num_layers={found}."
        )


def _num_hidden_layers(encoder: nn.Module) -> int | None:
    """Return the number of layers that a model of Transformers says it has; ``None`` elsewhere."""
    found = getattr(getattr(encoder, "config", None), "num_hidden_layers", None)
    return found if isinstance(found, int) else None


def _num_layers(encoder: nn.Module) -> int | None:
    """Return the number of layers of the one transformer in a torchaudio encoder; ``None`` elsewhere."""
    found = [
        len(module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and name.endswith("transformer.layers")
    ]
    return found[0] if len(found) == 1 else None
