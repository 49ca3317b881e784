"""Convert a pickled checkpoint to safetensors, without running any code that it contains."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import BinaryIO

import torch

from bundles.builders.layout import is_storable, write_tensors
from bundles.builders.tensors import is_writable
from bundles.errors import UnsafeWeightsError, WeightsFileError
from bundles.spec.sniff import describe_file


def convert_pickle(path: Path, file: BinaryIO) -> None:
    """Read a flat state dict with ``weights_only=True`` and write it as safetensors.

    There is no fallback: what the safe reader refuses is refused.

    Raises:
        UnsafeWeightsError: the pickle needs more than tensors; the message names it.
        WeightsFileError: the file is no checkpoint, or holds something else than named tensors.
    """
    state = _load(path)
    if not isinstance(state, dict) or not state or not all(map(_is_entry, state.items())):
        raise WeightsFileError(
            f"The checkpoint {path} does not hold a flat dict of named tensors, but {_shape(state)}: "
            f"{_advice(path, state)}."
        )
    if odd := [name for name, tensor in state.items() if not is_storable(tensor)]:
        raise WeightsFileError(
            f"The checkpoint {path} holds tensors of a kind that safetensors has not (sparse, quantised, "
            f"without values, or of double complex numbers): {', '.join(odd)}; save them as dense ones."
        )
    write_tensors(state, file)


def _load(path: Path) -> object:
    kind = describe_file(path)
    if not kind.startswith(("a zip", "a pickle")):
        raise WeightsFileError(f"The file {path} is {kind}; a checkpoint written by torch.save is needed.")
    try:
        # Mapped where nobody may cut the file short meanwhile, so that it is never in memory twice.
        is_mapped = kind.startswith("a zip") and not is_writable(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except pickle.UnpicklingError as error:
        raise UnsafeWeightsError(
            f"The checkpoint {path} holds more than tensors, and reading it could run code "
            f"({_first_line(error)}): save its state_dict() as safetensors instead."
        ) from error
    except Exception as error:
        if "torchscript" in str(error).lower():
            raise UnsafeWeightsError(
                f"The file {path} is a TorchScript program: save its state_dict() as safetensors."
            ) from error
        raise WeightsFileError(
            f"The checkpoint {path} is damaged or truncated ({_first_line(error)}): get it again."
        ) from error


def _is_entry(item: tuple[object, object]) -> bool:
    name, tensor = item
    is_name = isinstance(name, str) and name.isprintable() and name != "__metadata__"
    return is_name and isinstance(tensor, torch.Tensor)


def _shape(state: object) -> str:
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    return f"a dict with the keys {list(state)[:4]}" if state else "nothing"


def _advice(path: Path, state: object) -> str:
    for key, entry in state.items() if isinstance(state, dict) else ():
        if isinstance(entry, dict) and entry and all(map(_is_entry, entry.items())):
            read = f"torch.load({str(path)!r}, weights_only=True)[{key!r}]"
            return f"save the entry alone, torch.save({read}, 'new.pth')"
    return "save the state_dict() of the model alone"


def _first_line(error: Exception) -> str:
    """What failed, without torch's advice to read the file unsafely."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it names {found.group(1)}"
    text = str(error).strip().splitlines()
    return type(error).__name__ if not text or "weights_only" in text[0] else text[0][:200]
