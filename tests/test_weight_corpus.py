"""Every bad weight file of the corpus, by the public ways in: refused in our words, or read."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import bundles
from corpus.case import Case
from corpus.pickles import CANARY, PICKLES, Canary
from corpus.weights import GOOD, SHARDS, WEIGHTS

CASES = [*WEIGHTS, *PICKLES]
WAYS = ("get_model", "get_model, mapped", "load_into")
PARTIAL = {"S24d"}  # load_into may be given a file that holds more than it needs


class Holder(nn.Module):
    """A model that holds these tensors."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, torch.zeros_like(tensor))


def good_tensors(case: Case, folder: Path) -> dict[str, torch.Tensor]:
    """What an accepted case holds, by the official readers; else what its model wants."""
    if case.outcome == "R":
        return {"a": torch.zeros(1)}
    if case.id.startswith("P"):
        return dict(torch.load(io.BytesIO(case.data()), weights_only=True))
    path = folder / "official"
    path.write_bytes(SHARDS["both.safetensors"] if case.id.startswith("S25") else case.data())
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dict


def written(case: Case, folder: Path, mode: int) -> bundles.WeightSource:
    """The source of a case's file, and of what lies beside it."""
    name = "model.pth" if case.id.startswith("P") else "model.safetensors"
    digest = hashlib.sha256(GOOD).hexdigest() if case.id.startswith("S26") else None
    if case.id.startswith("S25"):
        name += ".index.json"
        for shard, data in SHARDS.items():
            (folder / shard).write_bytes(data)
    (folder / name).write_bytes(case.data())
    for path in folder.iterdir():
        path.chmod(mode)
    return bundles.WeightSource(f"file:{folder / name}", digest)


def as_bytes(tensor: torch.Tensor) -> bytes:
    """Every bit: NaN equals itself, and kinds of numbers that torch cannot compare do, too."""
    return bytes(tensor.flatten().view(torch.uint8).tolist())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bounded() -> Iterator[None]:
    """Under a second of work, and under 64 MiB."""
    is_linux = sys.platform == "linux"
    if is_linux:
        Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS") if is_linux else 0, time.process_time()
    yield
    assert time.process_time() - start < 1
    assert not is_linux or memory("VmHWM") - before < 64


def memory(figure: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{figure}:")[1].split()[0]) / 1024


@pytest.fixture
def attempt(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Case, str], nn.Module]]:
    """Load a case into a model, one of the ways; afterwards nothing was run, and no file was changed."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def load_case(case: Case, way: str) -> nn.Module:
        source = written(case, folder, 0o444 if way == "get_model, mapped" else 0o644)
        tensors, before = good_tensors(case, tmp_path), contents(folder)
        model = Holder(tensors)
        try:
            if way == "load_into":
                report = bundles.load_into(model, source)
                assert case.id not in PARTIAL or report.unexpected == ("b", "c")
                return model
            return bundles.Bundle("MINE", lambda: Holder(tensors), weights=source).get_model()
        finally:
            assert contents(folder) == before
            if case.outcome == "R" and not (case.id in PARTIAL and way == "load_into"):
                assert contents(empty_cache) == {}
                assert not any(tensor.any() for tensor in model.state_dict().values())

    yield load_case
    assert not (folder / CANARY).exists()


def check_refused(case: Case, run: Callable[[], object], folder: Path) -> None:
    assert case.error is not None
    with pytest.raises(case.error, match=re.escape(case.words)) as caught:
        run()
    message = str(caught.value)
    assert type(caught.value) is case.error
    assert str(folder) in message
    assert len(message) < 1000
    assert message.isprintable()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("bounded")
def test_what_comes_of_each_file(
    case: Case, way: str, attempt: Callable[[Case, str], nn.Module], tmp_path: Path
) -> None:
    if case.outcome == "R" and not (case.id in PARTIAL and way == "load_into"):
        check_refused(case, lambda: attempt(case, way), tmp_path)
        return
    if case.outcome == "W":
        with pytest.warns(bundles.BundlesWarning, match=re.escape(case.words)) as warned:
            model = attempt(case, way)
        assert len(warned) == 1
        assert str(tmp_path) in str(warned[0].message)
    else:
        model = attempt(case, way)
    for name, tensor in good_tensors(case, tmp_path).items():
        found = model.get_buffer(name)
        assert found.dtype == tensor.dtype
        assert case.id in PARTIAL or as_bytes(found) == as_bytes(tensor)


def test_each_row_of_the_corpus_has_its_cases() -> None:
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)
    rows = {f"S{row:02}" for row in range(1, 27)} | {f"P{row:02}" for row in range(1, 9)}
    assert {case_id[:3] for case_id in ids} == rows
    assert all((case.error is None) == (case.outcome == "A") for case in CASES)
    assert all(case.words for case in CASES if case.outcome != "A")


def test_the_canary_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Canary()))
    assert (tmp_path / CANARY).exists()
