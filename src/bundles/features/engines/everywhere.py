"""How every process computes, whatever the process that asked for it is set to: so that bits are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def as_everywhere() -> Iterator[None]:
    """Compute within a ``with`` block as :func:`settle` has it; then all is as it was."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    settle()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        if device.type != "cpu":
            torch.set_default_device(device)


def settle() -> None:
    """Compute from now on with torch's own defaults, but on one thread.

    How sums are split decides their last bits. What else is set decides more: precision of products, and
    dtype and device of what a model makes while it is called.
    """
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    if torch.get_default_device().type != "cpu":  # or every call of torch goes through Python
        torch.set_default_device("cpu")
