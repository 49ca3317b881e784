"""Which frames are padding."""

from __future__ import annotations

import torch
from torch import Tensor

from bundles.errors import HeadError


def padding_mask(features: Tensor, lengths: Tensor | None) -> Tensor:
    """Return where the padding is, to be filled before anything is computed.

    Args:
        features: of shape ``[batch, frames, dim]``.
        lengths: number of valid frames of each item, integers of shape ``[batch]``; ``None`` where all
            are valid.

    Returns:
        ``True`` in the padding, of shape ``[batch, frames, 1]``.

    Raises:
        HeadError: a shape or type is wrong, or a length is negative or beyond the frames. Values are
            looked at in eager mode alone, where that waits for the device; a compiled or exported head
            takes a length beyond the frames as all of them.

    >>> padding_mask(torch.zeros(2, 3, 8), torch.tensor([3, 1])).squeeze(-1)
    tensor([[False, False, False],
            [False,  True,  True]])
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        _check(features, lengths)
    batch, frames, _ = features.shape
    if lengths is None:
        return torch.zeros(batch, frames, 1, dtype=torch.bool, device=features.device)
    positions = torch.arange(frames, device=features.device)
    return (positions >= lengths.to(features.device)[:, None])[:, :, None]


def _check(features: Tensor, lengths: Tensor | None) -> None:
    if not isinstance(features, Tensor) or features.ndim != 3:
        raise HeadError(
            f"The head was given {_shown(features)} and takes features of shape [batch, frames, dim]."
        )
    if lengths is not None:
        _check_lengths(lengths, *features.shape[:2])


def _check_lengths(lengths: Tensor, batch: int, frames: int) -> None:
    if not isinstance(lengths, Tensor) or lengths.shape != (batch,) or not _is_integer(lengths):
        raise HeadError(
            f"lengths is {_shown(lengths)}: pass the number of valid frames of each of the {batch} items, "
            f"as torch.tensor([...])."
        )
    if torch.compiler.is_compiling() or lengths.is_meta:
        return
    if bool(((lengths < 0) | (lengths > frames)).any()):
        raise HeadError(
            f"lengths goes from {int(lengths.min())} to {int(lengths.max())} and the features have {frames} "
            f"frames: pass lengths in frames, as the encoder returns them, not in samples."
        )


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"a {type(value).__name__}"
