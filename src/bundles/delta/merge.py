"""A whole checkpoint out of a delta and its base."""

from __future__ import annotations

import os
from pathlib import Path

from bundles.delta.base import Tensors, base_tensors
from bundles.delta.diff import values
from bundles.delta.format import Header, malformed, read_parts, reading, write_file
from bundles.errors import WeightsFileError


def merge(path: str | os.PathLike[str], to: str | os.PathLike[str], *, part: str = "") -> Path:
    """Write the whole model of a delta as safetensors, for programs that know nothing of deltas.

    The names are those of the model: what the bundle builds where the head sits in a slot of the
    architecture, else ``encoder.`` and ``head.`` before them; ``part="encoder"`` gives the encoder alone,
    under the names of the upstream class, and ``part="head"`` the head.

    Args:
        path: of the delta; a bundle has to be its base.
        to: the file to write, whole or not at all.
        part: name of a module, to write what is in it without that name.

    Returns:
        The file.

    Raises:
        DeltaBaseError: the base has moved, or is a module of one's own.
        FileNotFoundError, WeightsFileError, PinError: as :func:`read_delta`; or nothing is in ``part``.
        CacheError: the file cannot be written.

    >>> import bundles, tempfile
    >>> model = bundles.CREPE_TINY.get_model(freeze=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     delta = bundles.save_delta(model, f"{folder}/run.safetensors")
    ...     report = bundles.load_into(model, merge(delta, f"{folder}/whole.safetensors"))
    >>> len(report.loaded), report.missing
    (44, ())
    """
    header, tensors = read_parts(path)
    with reading(path):
        whole = _whole(header, tensors, Path(path))
    prefix = f"{part}." if part else ""
    chosen = {name[len(prefix) :]: tensor for name, tensor in whole.items() if name.startswith(prefix)}
    if not chosen:
        parts = ", ".join(sorted({name.partition(".")[0] for name in whole}))
        raise WeightsFileError(f"The model has nothing in {part!r}: its parts are {parts}.")
    return write_file(to, chosen, {"format": "pt"})


def _whole(header: Header, tensors: Tensors, path: Path) -> Tensors:
    """Every tensor of the model, tied ones under each of their names."""
    base = base_tensors(header.base, header.head, header.dtype)
    found: Tensors = {}
    for name in header.names:
        value = values(header, tensors, base, name)
        if value is None:
            raise malformed(path, f"{name} is neither stored nor in the base")
        found[name] = value.detach()
    for name, tensor in base.items():
        first = next(other for other in base if base[other] is tensor)
        if first in found:
            found.setdefault(name, found[first])
    return found
