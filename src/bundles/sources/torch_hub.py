"""torch's hub cache: a file that is there already is used in place, if it is the right one.

Torch names files by the last part of their address, so ``model.pt`` may be anybody's. Only a digest says
whose it is, and without one nothing here is looked at. Nothing is ever written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bundles.spec.source import WeightSource


def hub_files(source: WeightSource) -> Iterator[Path]:
    """Yield where torch and torchaudio would keep the file of a ``url:`` source, if they had it."""
    if source.scheme != "url" or source.sha256 is None:
        return
    path = urlsplit(source.address).path
    places = [Path("checkpoints", source.name)]
    if (inside := path.partition("/torchaudio/")[2]) and ".." not in inside.split("/"):
        places.append(Path("torchaudio", inside))
    for place in places:
        if os.path.isfile(file := hub_folder() / place):
            yield file


def hub_folder() -> Path:
    """Return the hub folder as torch chooses it, without importing torch.

    What a program says by ``torch.hub.set_dir`` is not known here.
    """
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub"
