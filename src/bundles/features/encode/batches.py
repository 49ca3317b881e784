"""Which inputs share a call, and which part of its result is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from bundles.features.encode.trial import Sharing


def make_batches(inputs: Sequence[Tensor], size: int, sharing: Sharing) -> list[tuple[int, ...]]:
    """Return the positions of inputs that share a call: a function of the inputs' shapes alone.

    They are sorted by length, so that little is padded, and only what differs in nothing but its length
    shares a call; where the model takes no padding, what does not differ in that either.

    >>> import torch
    >>> make_batches([torch.ones(n) for n in (3, 1, 3, 2)], 2, Sharing(stacks=True, pads=True))
    [(1, 3), (0, 2)]
    >>> make_batches([torch.ones(n) for n in (3, 1, 3, 2)], 2, Sharing(stacks=True, pads=False))
    [(1,), (3,), (0, 2)]
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for index in sorted(range(len(inputs)), key=lambda index: tuple(inputs[index].shape)):
        shape = tuple(inputs[index].shape)
        kind = (inputs[index].dtype, len(shape), shape[1:] if sharing.pads else shape)
        alike.setdefault(kind, []).append(index)
    count = size if sharing.stacks else 1
    return [
        tuple(indices[start : start + count])
        for indices in alike.values()
        for start in range(0, len(indices), count)
    ]


def most_padded(inputs: Sequence[Tensor], batches: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the first batch of several inputs whose lengths differ most; ``None`` without any."""

    def padding(batch: tuple[int, ...]) -> int:
        lengths = [inputs[index].shape[0] if inputs[index].ndim else 0 for index in batch]
        return max(lengths) - min(lengths)

    return max((batch for batch in batches if len(batch) > 1), key=padding, default=None)


def cut(
    values: Mapping[str, Tensor], row: int, frames: Sequence[int] | None, framed: frozenset[str] | None
) -> dict[str, Tensor]:
    """Return what is one input's of a batch, without padding.

    Args:
        values: by layer, ``[batch, ...]``.
        row: position in the batch.
        frames: valid frames of each row; ``None`` where all are.
        framed: names of the layers that have frames; ``None``: those of more than two dimensions.
    """
    found = {}
    for name, tensor in values.items():
        has_frames = tensor.ndim > 2 if framed is None else name in framed
        found[name] = tensor[row, : frames[row]] if frames is not None and has_frames else tensor[row]
    return found
