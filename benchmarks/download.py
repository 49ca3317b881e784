"""Downloads: bundles against hf_hub_download, torch.hub and pooch, from a server on this machine.

    python benchmarks/download.py [FOLDER]

Each download runs in a process of its own, in turn, the libraries imported before the clock starts. Only
bundles and pooch check a digest; ``torch.hub + sha256`` is what torch does when the file name holds one.
The server gives ranges and speaks as much of the hub's language as ``hf_hub_download`` needs. Files
are written below FOLDER, by default a temporary one.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from interleaved import measure

from bundles.display import text_table

CODE = """
import hashlib, os, sys, time
who, url, digest, size, folder = sys.argv[1:]
if who == "bundles":
    import filelock, httpx2, httpcore2, bundles, bundles.sources.web.download
    from bundles.sources.fetch import fetch
    def run(): return fetch(bundles.WeightSource("url:" + url, digest, int(size)), progress=False)
elif who == "hf_hub_download":
    import httpcore2
    from huggingface_hub import hf_hub_download
    def run(): return hf_hub_download("owner/repo", "model.bin", cache_dir=folder + "/hub")
elif who == "pooch":
    import pooch, logging
    pooch.get_logger().setLevel(logging.WARNING)
    def run(): return pooch.retrieve(url, "sha256:" + digest, fname="model.bin", path=folder + "/pooch")
else:
    import torch
    prefix = digest[:8] if "sha256" in who else None
    def run():
        torch.hub.download_url_to_file(url, folder + "/model.bin", prefix, progress=False)
        return folder + "/model.bin"
start = time.perf_counter()
path = run()
print(time.perf_counter() - start)
assert os.path.getsize(path) == int(size)
"""
RIVALS = ("bundles", "hf_hub_download", "torch.hub", "torch.hub + sha256", "pooch")
MIB = 1 << 20
FAST, LIMITED, RATE = 256 * MIB, 128 * MIB, 32e6
LOOPBACK = Path(__file__).parents[1] / "tests" / "loopback.py"


@dataclass
class Server:
    """The server of the tests in a process of its own, and what it serves."""

    url: str
    size: int
    digest: str

    def get(self, path: str) -> bytes:
        """Ask the server about itself."""
        with urllib.request.urlopen(f"{self.url}/{path}") as answer:
            return bytes(answer.read())

    @property
    def sent(self) -> float:
        """How often the whole file's bytes went out since the last reset."""
        return float(json.loads(self.get("stats"))["sent"]) / self.size


@contextlib.contextmanager
def serving(size: int, rate: float | None = None) -> Iterator[Server]:
    """Run a server, whose rate is per connection."""
    command = [sys.executable, str(LOOPBACK), str(size), *([str(rate)] if rate else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port, digest = process.stdout.readline().split()
        yield Server(f"http://127.0.0.1:{port}", size, digest)


def start(who: str, server: Server, folder: Path) -> subprocess.Popen[str]:
    """Start one download."""
    environment = {
        **os.environ,
        "NO_PROXY": "127.0.0.1",
        "BUNDLES_CACHE": str(folder / "bundles"),
        "HF_ENDPOINT": server.url,
        **{f"HF_HUB_DISABLE_{what}": "1" for what in ("TELEMETRY", "XET", "PROGRESS_BARS", "UPDATE_CHECK")},
    }
    arguments = [who, f"{server.url}/model.bin", server.digest, str(server.size), str(folder)]
    command = [sys.executable, "-W", "ignore", "-c", CODE, *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def finish(process: subprocess.Popen[str]) -> float:
    """Wait for a download; seconds."""
    output, _ = process.communicate()
    assert process.returncode == 0, process.args
    return float(output)


def seconds(who: str, server: Server, root: Path) -> Callable[[], float]:
    """Return a function that downloads once, into an empty folder."""

    def run() -> float:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            return finish(start(who, server, Path(folder)))

    return run


def sent_again(who: str, server: Server, root: Path) -> float:
    """Kill a download at half of the file; how much of the file the next one makes the server send."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        server.get("reset")
        process = start(who, server, Path(name))
        while server.sent < 0.5:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        time.sleep(0.2)  # until the server has noticed
        server.get("reset")
        finish(start(who, server, Path(name)))
        return server.sent


def sent_to_crowd(who: str, server: Server, root: Path) -> float:
    """How often the file is sent to eight processes that want it at once."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        folders = [Path(name, str(n) if who.startswith("torch") else "") for n in range(8)]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        server.get("reset")
        for process in [start(who, server, folder) for folder in folders]:
            finish(process)
        return server.sent


def rates(size: int, seconds: dict[str, list[float]], who: str) -> tuple[str, str]:
    """Return the median rate of a rival in MB/s, and the median of its ratios to hf_hub_download's."""
    ratios = [theirs / its for theirs, its in zip(seconds["hf_hub_download"], seconds[who], strict=True)]
    return f"{size / 1e6 / statistics.median(seconds[who]):.0f}", f"{statistics.median(ratios):.2f}"


def main(root: Path) -> None:
    """Measure and print."""
    with serving(FAST) as fast, serving(LIMITED, RATE) as limited:
        speeds = measure({who: seconds(who, fast, root) for who in RIVALS}, rounds=9)
        limits = measure({who: seconds(who, limited, root) for who in RIVALS}, rounds=3)
        again = {who: sent_again(who, limited, root) for who in RIVALS}
        crowd = {who: sent_to_crowd(who, fast, root) for who in RIVALS}
    columns = (
        "",
        f"#MB/s of {FAST // MIB} MiB",
        "#x hf",
        f"#MB/s at {RATE / 1e6:.0f} per connection",
        "#x hf",
        "#sent after a kill at half",
        "#sent to 8 processes",
    )
    rows = [
        (
            who,
            *rates(FAST, speeds, who),
            *rates(LIMITED, limits, who),
            f"{again[who]:.2f}",
            f"{crowd[who]:.2f}",
        )
        for who in RIVALS
    ]
    print(text_table(columns, rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
