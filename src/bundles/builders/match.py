"""Compare the tensors of a file with those of a model: what fits, what does not, what is tied."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch

from bundles.errors import StateDictMismatchError

_SHOWN = 12  # names in a message; programs find all of them in the attributes


def mismatch_error(
    source: str,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[str],
    empty: Collection[str] = (),
) -> StateDictMismatchError:
    """Return the error that lists every difference between a file and a model."""
    parts = [
        f"{what} {listed(names)}"
        for what, names in (
            ("missing in the file:", missing),
            ("unexpected in the file:", unexpected),
            ("of another shape or type:", mismatched),
            ("left without values, on the meta device:", empty),
        )
        if names
    ]
    return StateDictMismatchError(
        f"The weights of {source} do not fit the model; {'; '.join(parts) or 'no name is in both'}.",
        missing=(*missing, *empty),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
    )


def listed(names: Collection[str]) -> str:
    """Return the first names for a message, and how many more there are."""
    shown = list(names)[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def mismatches(state: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield what is in both and cannot be one tensor."""
    for name in (name for name in state if name in tensors):
        ours, theirs = state[name], tensors[name]
        if ours.shape != theirs.shape:
            yield f"{name} (model {tuple(ours.shape)}, file {tuple(theirs.shape)})"
        elif ours.is_floating_point() != theirs.is_floating_point():
            yield f"{name} (model {ours.dtype}, file {theirs.dtype})"


def ties(state: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Return the groups of names that are one tensor."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def aliases(ties: list[list[str]], tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Yield tied names that the file leaves out, each with the name under which it has the tensor."""
    for group in ties:
        if known := next((name for name in group if name in tensors), None):
            yield from ((name, known) for name in group)


def torn(ties: list[list[str]], tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield names that are one tensor in the model and several in the file."""
    for first, *others in ties:
        for name in others:
            if not {first, name} <= tensors.keys() or tensors[first] is tensors[name]:
                continue  # as most files have it: once
            if not torch.equal(tensors[first], tensors[name]):
                yield f"{name} (tied to {first} in the model, different in the file)"
