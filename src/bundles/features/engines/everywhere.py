"""How every process computes, whatever the process that asked for it is set to: so that bits are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def as_everywhere() -> Iterator[None]:
    """Compute with torch's own defaults, but on one thread, within a ``with`` block; then all is as it was.

    How sums are split decides their last bits. What else is set decides more: precision of products, and
    dtype and device of what a model makes while it is called.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    dtype, is_elsewhere = torch.get_default_dtype(), torch.get_default_device().type != "cpu"
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu") if is_elsewhere else contextlib.nullcontext():  # it makes every call slower
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
