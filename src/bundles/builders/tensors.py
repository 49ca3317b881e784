"""Read a weight file: safetensors by memory map, and nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from bundles.errors import WeightsFileError
from bundles.spec.sniff import describe_file, is_safetensors


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a safetensors file, mapped and not copied: pages are read when used.

    A write to one of them is private to the process and never reaches the file.

    Raises:
        WeightsFileError: the file is of another format, damaged or truncated; it says which.
    """
    if not is_safetensors(path):
        raise WeightsFileError(
            f"The weight file {path} is {describe_file(path)}; a safetensors file is needed."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, KeyError, AttributeError, ValueError) as error:
        raise WeightsFileError(
            f"The safetensors file {path} is damaged, truncated or holds a type that torch "
            f"{torch.__version__} lacks: {error}. Get it again."
        ) from error
