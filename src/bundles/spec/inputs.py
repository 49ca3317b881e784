"""The shape of what a bundle's model is fed, for so many items of so many seconds."""

from __future__ import annotations

from bundles.errors import FreezeArgumentError
from bundles.spec.bundle import Bundle


def takes_waveforms(bundle: Bundle) -> bool:
    """Whether the model takes ``[batch, samples]``, so that seconds say how long its input is.

    >>> import bundles
    >>> takes_waveforms(bundles.WAV2VEC2_BASE), takes_waveforms(bundles.CREPE_TINY)
    (True, False)
    """
    shape, rate = bundle.metadata.get("input_shape"), bundle.metadata.get("sample_rate")
    if shape is None or rate is None or len(shape) != 2:
        return False
    return bool(shape[-1] >= rate)


def input_shape(bundle: Bundle, batch: int | None = None, seconds: float | None = None) -> tuple[int, ...]:
    """Return the shape of an input; what is not said is as the card's example.

    Raises:
        FreezeArgumentError: the card gives no example, a number is not positive, or seconds are said of
            what is no waveform.

    >>> import bundles
    >>> input_shape(bundles.WAV2VEC2_BASE, 8, 10), input_shape(bundles.CREPE_TINY, 8)
    ((8, 160000), (8, 1024))
    """
    shape = bundle.metadata.get("input_shape")
    if shape is None:
        raise FreezeArgumentError(
            f"{bundle.name} does not say what its input looks like, so a step cannot be predicted: pass "
            f"bundles.predict(model, inputs=...) a shape or tensors, or set metadata={{'input_shape': ...}}."
        )
    if (batch is not None and batch < 1) or (seconds is not None and seconds <= 0):
        raise FreezeArgumentError(f"batch={batch} and seconds={seconds} must be above zero: say 8 and 10.")
    if seconds is None:
        return (batch or shape[0], *shape[1:])
    if not takes_waveforms(bundle):
        raise FreezeArgumentError(
            f"{bundle.name} takes inputs of shape {tuple(shape)}, not waveforms: leave seconds={seconds} out."
        )
    return (batch or shape[0], round(seconds * bundle.metadata["sample_rate"]))
