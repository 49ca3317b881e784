"""Judge what a safetensors header may say and ought not to, and the official reader lets pass.

Whether a file is well-formed is that reader's business. It takes two equal keys for one, reads 100,000
empty tensors, and hands out names that no module can have. What is refused here could only be somebody's
try; what is merely against the letter of the format is read, and named in a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bundles.errors import BundlesWarning, WeightsFileError, warn
from bundles.spec.values import shown

LONGEST_HEADER = 16 << 20  # bytes; 65,536 tensors with long names take 12 MiB
MOST_TENSORS = 1 << 16
MOST_DIMENSIONS = 64  # torch's own kernels take no more
_LONGEST_NAME = 512
_FIELDS = {"dtype", "shape", "data_offsets"}


def is_name(name: object) -> bool:
    """Whether a tensor may have this name: text that can be printed, not empty, and not endless."""
    return isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and name.isprintable()


def is_crowded(text: bytes) -> bool:
    """Whether a header describes more tensors than any model has; told without parsing it."""
    return text.count(b"{") > MOST_TENSORS + 2  # each has a table; one is around them, one may be metadata


def examine_header(path: Path) -> None:
    """Refuse a file for what its header says, or warn of what is unusual in it.

    Nothing is said of a header that is no JSON, or no table: the official reader will.

    Args:
        path: of a file that begins as a safetensors file does.

    Raises:
        WeightsFileError: the header is too long, describes too many tensors or too many dimensions,
            has a key twice, or a name that no module can have.
    """
    text = _header_text(path)
    repeated: list[str] = []
    try:
        header = json.loads(text.decode(), object_pairs_hook=partial(_noting, repeated))
    except (ValueError, RecursionError):
        return
    if not isinstance(header, dict):
        return
    if repeated:
        raise _refused(path, f"holds the key {shown(repeated[0])} twice")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in entries.items():
        _check_entry(path, name, entry)
    if oddities := [*_oddities(text, header, entries)]:
        warn(
            f"The safetensors file {path} was read although it {' and '.join(oddities)}: save it again "
            f"with the safetensors package.",
            BundlesWarning,
        )


def _header_text(path: Path) -> bytes:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise _refused(path, f"has a header of {length} bytes, and at most {LONGEST_HEADER} are read")
        text = file.read(length)
    if is_crowded(text):
        raise _refused(path, f"holds more than {MOST_TENSORS} tensors, and no more are read")
    return text


def _noting(repeated: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            repeated.append(key)
        entries[key] = value
    return entries


def _check_entry(path: Path, name: str, entry: object) -> None:
    if not is_name(name):
        raise _refused(path, f"holds a tensor named {shown(name)}, as no module can name one")
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if isinstance(shape, list) and len(shape) > MOST_DIMENSIONS:
        raise _refused(
            path,
            f"holds the tensor {shown(name)} of {len(shape)} dimensions, and at most {MOST_DIMENSIONS} "
            f"are read",
        )


def _oddities(text: bytes, header: Mapping[str, Any], entries: Mapping[str, Any]) -> Iterator[str]:
    if text.rstrip(b" ")[-1:].isspace():
        yield "pads its header with other signs than spaces"
    if "__metadata__" in header and header["__metadata__"] is None:
        yield "has null for metadata"
    for name, entry in entries.items():
        if isinstance(entry, dict) and (extra := sorted(entry.keys() - _FIELDS)):
            yield f"says {shown(extra[0])} of the tensor {shown(name)}, which means nothing"
            return


def _refused(path: Path, what: str) -> WeightsFileError:
    return WeightsFileError(f"The safetensors file {path} {what}: get it again from a source you trust.")
