"""Speech encoders of the wav2vec 2.0 family, with what torchaudio puts around them."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from bundles.builders.require import require

Normalize = Literal["batch", "per_utterance"]


def wav2vec2(
    *,
    normalize: Normalize | None = None,
    log_softmax: bool | None = None,
    with_star: bool | None = None,
    **arguments: Any,
) -> nn.Module:
    """Return ``torchaudio.models.wav2vec2_model(**arguments)``, wrapped if any other argument is given.

    Args:
        normalize: the waveforms' normalisation: ``"batch"`` over the whole tensor, as upstream does, so
            that a batch mate changes the result; ``"per_utterance"``; or ``None``, which is right for
            models that take raw waveforms.
        log_softmax: whether the model ends in log-probabilities.
        with_star: whether the output has one more label, which fits anything (``MMS_FA``).
        arguments: of ``wav2vec2_model``, by its names.

    Raises:
        MissingDependencyError: torchaudio is absent or broken.
    """
    model = require("torchaudio.models").wav2vec2_model(**_completed(arguments))
    return _wrapped(model, normalize, log_softmax, with_star)


def wavlm(*, normalize: Normalize | None = None, **arguments: Any) -> nn.Module:
    """Return ``torchaudio.models.wavlm_model(**arguments)`` with two of its defects mended.

    Layer drop spares the first layer, whose position bias all others need; and ``lengths`` mask the
    attention, where upstream's assertion fails. Without lengths, in ``eval()``, nothing differs.

    Raises:
        MissingDependencyError: torchaudio is absent or broken.
    """
    model = require("torchaudio.models").wavlm_model(**_completed(arguments))
    from bundles.builders.torchaudio.wavlm import mend  # needs torchaudio, which is there now

    return _wrapped(mend(model), normalize)


def _completed(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the one that upstream requires even where it is ``None``: the head's size."""
    return {"aux_num_out": None, **arguments}


def _wrapped(
    model: nn.Module,
    normalize: Normalize | None,
    log_softmax: bool | None = None,
    with_star: bool | None = None,
) -> nn.Module:
    if normalize is None and log_softmax is None and with_star is None:
        return model
    from bundles.builders.torchaudio.wrapper import wrap

    return wrap(model, normalize, bool(log_softmax), bool(with_star))
