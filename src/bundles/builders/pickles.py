"""Convert a pickled checkpoint to safetensors, without running any code that it contains."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from bundles.builders.headers import MOST_DIMENSIONS, MOST_TENSORS, is_name
from bundles.builders.layout import is_storable, write_tensors
from bundles.builders.match import listed
from bundles.builders.tensors import is_writable
from bundles.errors import UnsafeWeightsError, WeightsFileError
from bundles.spec.sniff import describe_file
from bundles.spec.values import shown

_MOST_TIMES = 8  # a file's own bytes may be written so often: tied tensors are, each as a copy
_SMALL = 1 << 20


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
            f"without values, or of double complex numbers): {listed([*map(shown, odd)])}; save them as "
            f"dense ones."
        )
    if problem := _excess(state, path):
        raise WeightsFileError(f"The checkpoint {path} {problem}: get it again from a source you trust.")
    write_tensors(state, file)


def _load(path: Path) -> object:
    kind = describe_file(path)
    if not kind.startswith(("a zip", "a pickle")):
        raise WeightsFileError(f"The file {path} is {kind}; a checkpoint written by torch.save is needed.")
    if kind.startswith("a zip"):
        _check_archive(path)
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
        raise _damaged(path, error) from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that ``torch.save`` did not write, by its table of contents.

    What it writes is stored as it is and holds data.pkl; a program holds its code, and what is compressed
    can be a thousand times as large as the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:
        raise _damaged(path, error) from error
    names = [member.filename.partition("/")[2] for member in members]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise UnsafeWeightsError(
            f"The file {path} is a TorchScript program: save its state_dict() as safetensors."
        )
    if "data.pkl" not in names:
        raise WeightsFileError(
            f"The file {path} is a zip archive without data.pkl, which torch.save did not write: a "
            f"checkpoint is needed."
        )
    if problem := _archive_problem(members, path.stat().st_size):
        raise WeightsFileError(f"The checkpoint {path} {problem}: get it again from a source you trust.")


def _archive_problem(members: list[zipfile.ZipInfo], size: int) -> str | None:
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            return f"holds {shown(member.filename)} compressed, which torch.save never does"
    if len({member.filename for member in members}) < len(members):
        return "holds two members of one name"
    total = sum(member.file_size for member in members)
    return f"claims to hold {total} bytes, and has {size}" if total > size else None


def _excess(state: Mapping[str, torch.Tensor], path: Path) -> str | None:
    """What is too much in a state dict: a few bytes can be shown as a tensor of any size."""
    if len(state) > MOST_TENSORS:
        return f"holds {len(state)} tensors, and at most {MOST_TENSORS} are read"
    for name, tensor in state.items():
        if tensor.dim() > MOST_DIMENSIONS:
            return f"holds the tensor {shown(name)} of {tensor.dim()} dimensions, more than are read"
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(_storage, state.values())}
    if sum(storages.values()) > _capacity(path):
        return "holds tensors that reach beyond their own numbers"
    size, total = path.stat().st_size, sum(tensor.nbytes for tensor in state.values())
    return f"has {size} bytes and would become {total}" if total > _MOST_TIMES * size + _SMALL else None


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _capacity(path: Path) -> int:
    """The bytes that a checkpoint has for numbers. A map of it does not end where a tensor's own do."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist() if "/data/" in member.filename)


def _damaged(path: Path, error: Exception) -> WeightsFileError:
    return WeightsFileError(
        f"The checkpoint {path} is damaged or truncated ({_first_line(error)}): get it again."
    )


def _is_entry(item: tuple[object, object]) -> bool:
    name, tensor = item
    return is_name(name) and name != "__metadata__" and isinstance(tensor, torch.Tensor)


def _shape(state: object) -> str:
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    keys = ", ".join(map(shown, list(state)[:4]))
    return f"a dict with the keys [{keys}]" if state else "nothing"


def _advice(path: Path, state: object) -> str:
    for key, entry in state.items() if isinstance(state, dict) else ():
        if isinstance(entry, dict) and entry and all(map(_is_entry, entry.items())):
            read = f"torch.load({str(path)!r}, weights_only=True)[{shown(key)}]"
            return f"save the entry alone, torch.save({read}, 'new.pth')"
    return "save the state_dict() of the model alone"


def _first_line(error: Exception) -> str:
    """What failed, without torch's advice to read the file unsafely."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it names {found.group(1)}"
    text = str(error).strip().splitlines()
    return type(error).__name__ if not text or "weights_only" in text[0] else text[0][:200]
