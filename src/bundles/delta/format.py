"""The file: safetensors, with everything that is no tensor as one JSON text in its metadata.

Tensors that are stored whole have the names that the model gives them. Of a masked tensor the elements that
may move are stored in a row under ``packed:NAME``, the bits of its mask under ``mask:PLAN:NAME``; what
belongs to an optimizer is under ``optimizer:NUMBER:COUNT``.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from bundles.builders.headers import LONGEST_HEADER
from bundles.builders.layout import write_tensors
from bundles.builders.tensors import read_tensors
from bundles.errors import BundlesError, CacheError, PinError, WeightsFileError
from bundles.freezing.schedule import UnfreezeSchedule
from bundles.sources.cache import sync_folder
from bundles.spec.sniff import describe_file, is_safetensors
from bundles.spec.values import shown

VERSION = 1
KEY = "bundles_delta"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)
}


@dataclass(frozen=True)
class Header:
    """What a delta file says beside its tensors.

    Attributes:
        base: of a bundle's model ``bundle``, ``card`` (digest), ``files`` (name -> sha256), ``options``,
            ``pretrained``; of any other ``class`` and ``digests`` (name -> digest of what is not stored).
        names: every parameter and persistent buffer of the model, with its shape.
        unsaved: the same of buffers that no ``state_dict()`` has, of those that are stored.
        freeze: the plans and what goes with them, see :mod:`bundles.delta.frozen`.
        head: ``at``, ``class`` and ``recipe`` (``None`` where none describes it); ``None`` for its own.
        dtype: of the floating-point tensors, as ``"float32"``; ``None`` where they differ.
        versions: of Python and the libraries that wrote it; nothing is decided by them.
        optimizers: one entry each, see :mod:`bundles.delta.training`.
        schedule: as ``UnfreezeSchedule.to_dict()`` gives it.
        step: of the training, the last one that was done.
    """

    base: Mapping[str, Any]
    names: Mapping[str, list[int]]
    unsaved: Mapping[str, list[int]]
    freeze: Mapping[str, Any]
    head: Mapping[str, Any] | None = None
    dtype: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    optimizers: list[Any] = field(default_factory=list)
    schedule: Mapping[str, Any] | None = None
    step: int | None = None

    def unfreeze_schedule(self) -> UnfreezeSchedule | None:
        """Return the schedule of the training, ``None`` where it had none.

        Raises:
            FreezeArgumentError: what is there is no schedule.
        """
        return None if self.schedule is None else UnfreezeSchedule.from_dict(self.schedule)


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("base", "names", "unsaved", "freeze", "versions"), (dict,)),
    **dict.fromkeys(("head", "schedule"), (dict, type(None))),
    "dtype": (str, type(None)),
    "optimizers": (list,),
    "step": (int, type(None)),
}
_BUNDLE = {"bundle": str, "card": str, "files": dict, "options": dict, "pretrained": bool}
_HEAD: dict[str, Any] = {"at": str, "slot": bool, "class": str, "recipe": (dict, type(None))}


def write_delta(path: str | os.PathLike[str], header: Header, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write a delta file, whole or not at all: whatever fails leaves what was there.

    Raises:
        CacheError: the place cannot be written.
    """
    text = json.dumps({"version": VERSION, **asdict(header)}, separators=(",", ":"))
    return write_file(path, tensors, {"format": "pt", KEY: text})


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> Path:
    """Write a safetensors file beside its place, sync it, and move it there.

    Raises:
        CacheError: the place cannot be written.
    """
    if "\0" in os.fspath(path):
        raise CacheError(f"The path {shown(os.fspath(path))} cannot be one of a file: name another place.")
    target = Path(os.path.realpath(os.path.expanduser(path)))
    temporary = target.with_name(f".{target.name[:80]}.{uuid.uuid4().hex[:8]}.incomplete")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            write_tensors(tensors, file, metadata)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise CacheError(
            f"The file {target} cannot be written ({error.strerror or error}): name another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return target


def read_delta(path: str | os.PathLike[str]) -> Header:
    """Return what a delta file says of itself; no tensor is read.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsFileError: it is damaged, or no delta file.
        PinError: its header is malformed, or of a version that this one does not read.

    >>> import bundles, tempfile
    >>> model = bundles.CREPE_TINY.get_model(freeze=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     header = read_delta(bundles.save_delta(model, f"{folder}/run.safetensors", step=7))
    >>> header.base["bundle"], header.step
    ('CREPE_TINY', 7)
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no delta file {path}.")
    text = _metadata(path).get(KEY)
    if not isinstance(text, str):
        raise WeightsFileError(
            f"{path} is no delta checkpoint, which bundles.save_delta writes: for a whole one call "
            f"bundles.load_into(model, {str(path)!r})."
        )
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PinError(f"The header of the delta {path} is no JSON: get the file again.") from error
    return _header(path, data)


def read_parts(path: str | os.PathLike[str]) -> tuple[Header, dict[str, torch.Tensor]]:
    """Return header and tensors of a delta file.

    Raises:
        FileNotFoundError, WeightsFileError, PinError: as :func:`read_delta`; or a tensor is cut short.
    """
    header = read_delta(path)
    tensors = read_tensors(Path(path).expanduser())
    for name, tensor in tensors.items():
        if not _is_known(header, name, tensor):
            raise malformed(
                path, f"{shown(name)} of shape {[*tensor.shape]} is stored, and it has no such tensor"
            )
    return header, tensors


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong while a header is used that says something odd into an error that says so.

    Raises:
        PinError: something went wrong that is none of our own errors.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, BundlesError):
            raise
        raise malformed(path, f"{type(error).__name__} {str(error)[:80]}") from error


def malformed(path: str | os.PathLike[str] | None, what: str) -> PinError:
    """Return the error for a header that says what none of ours would."""
    where = f" {os.fspath(path)}" if path is not None else ""
    return PinError(f"The header of the delta{where} is malformed: {what}; get the file again.")


def _is_known(header: Header, name: str, tensor: torch.Tensor) -> bool:
    """Whether a stored tensor is one that the header speaks of, of that shape and dtype."""
    kind, _, rest = name.partition(":")
    expected = header.names.get(name, header.unsaved.get(name))
    if expected is None and kind in ("mask", "optimizer"):
        return kind == "mask" or bool(header.optimizers)
    is_said = header.dtype is not None and tensor.is_floating_point() and name not in header.unsaved
    if is_said and tensor.dtype != DTYPES[str(header.dtype)] and name not in _lowered(header):
        return False
    return (
        list(tensor.shape) == expected if expected is not None else kind == "packed" and rest in header.names
    )


def _lowered(header: Header) -> Any:
    found = header.freeze.get("lowered")
    return found if isinstance(found, dict) else ()


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file; of anything else an error that says what it is."""
    if not is_safetensors(path):
        raise WeightsFileError(
            f"The delta file {path} is {describe_file(path)}; a safetensors file is needed."
        )
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= LONGEST_HEADER else b""
    try:
        found = json.loads(text.decode())["__metadata__"] if len(text) == length else None
    except KeyError:
        found = {}
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WeightsFileError(f"The delta file {path} is damaged or truncated: get it again.")
    return found


def _header(path: Path, data: Any) -> Header:
    version = data.get("version") if isinstance(data, dict) else None
    if type(version) is not int or version != VERSION:
        raise PinError(
            f"The delta {path} has format version {shown(version)} and this version of bundles reads "
            f"{VERSION}: type `pip install --upgrade pretrained-bundles`."
        )
    known = {each.name for each in fields(Header)}
    for name, types in _TYPES.items():
        if name not in data or not isinstance(data[name], types) or isinstance(data[name], bool):
            raise malformed(path, f"{name} is {shown(data.get(name))}")
    if data["dtype"] is not None and data["dtype"] not in DTYPES:
        raise malformed(path, f"dtype is {shown(data['dtype'])}")
    if not all(_is_shape(shape) for shape in (*data["names"].values(), *data["unsaved"].values())):
        raise malformed(path, "a name has no shape")
    if problem := _base_problem(data["base"]) or _head_problem(data["head"]):
        raise malformed(path, problem)
    return Header(**{name: value for name, value in data.items() if name in known})


def _base_problem(base: Mapping[str, Any]) -> str | None:
    is_own = "digests" in base
    types: Mapping[str, Any] = {"class": str, "digests": dict} if is_own else _BUNDLE
    digests = "digests" if is_own else "files"
    wrong = [key for key, kind in types.items() if not isinstance(base.get(key), kind)]
    wrong += [digests] if not wrong and not all(isinstance(d, str) for d in base[digests].values()) else []
    return f"base.{wrong[0]} is {shown(base.get(wrong[0]))}" if wrong else None


def _head_problem(head: Mapping[str, Any] | None) -> str | None:
    if head is None:
        return None
    wrong = [key for key, kinds in _HEAD.items() if not isinstance(head.get(key), kinds)]
    return f"head.{wrong[0]} is {shown(head.get(wrong[0]))}" if wrong else None


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)
