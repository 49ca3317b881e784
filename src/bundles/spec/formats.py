"""What a weight file is by its name, and what becomes of it: known without torch."""

from __future__ import annotations

CONVERTER = 2  # part of a converted file's name: raise it when what the converter writes changes
_PICKLES = (".pth", ".pt", ".bin", ".ckpt")


def is_pickle_name(name: str) -> bool:
    """Whether a file is, by its name, a checkpoint written by ``torch.save``."""
    return name.endswith(_PICKLES)
