"""Import an optional package, or say what is wrong with it and what to type."""

from __future__ import annotations

import importlib
from types import ModuleType

from bundles.errors import MissingDependencyError

_TORCHAUDIO = 'pip install "torch>=2.11,<2.15" "torchaudio==2.11.*"'
# "reinstall", because a build for the wrong processor satisfies the version all the same
_WITH_CUDA = 'pip install --force-reinstall "torch>=2.11,<2.15" "torchaudio==2.11.*"'
_CPU_ONLY = 'uv pip install --reinstall --torch-backend=cpu "torch>=2.11,<2.15" "torchaudio==2.11.*"'
_EXTRAS = {
    "accelerate": "accelerate",
    "dp": "phonemizer",
    "fastai": "fastai",
    "keras": "keras",
    "pytorch_lightning": "lightning",
    "ray": "ray",
    "sentencepiece": "sentencepiece",
    "skorch": "skorch",
    "soundfile": "audio",
    "speechbrain": "speechbrain",
    "timm": "timm",
    "tokenizers": "text",
    "torchcrepe": "torchcrepe",
    "torchvision": "vision",
    "transformers": "transformers",
}


def require(name: str) -> ModuleType:
    """Return the imported package.

    Raises:
        MissingDependencyError: it is absent, or present and cannot be imported; everything that does
            not need it goes on working.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise MissingDependencyError(f"{name} cannot be imported: {_explain(name, error)}") from error


def _explain(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "torchaudio":
        return f"it needs torchaudio, which is not installed; type `{_TORCHAUDIO}`."
    if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
        what = f"'pretrained-bundles[{_EXTRAS[name]}]'" if name in _EXTRAS else name
        return f"it is not installed; type `pip install {what}`."
    if _concerns_torchaudio(error):
        return _explain_torchaudio(error)
    return f"{type(error).__name__}: {error}; reinstall it with `pip install --force-reinstall {name}`."


def _concerns_torchaudio(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("torchaudio"):
            return True
        trace = trace.tb_next
    return "torchaudio" in str(error).lower()


def _explain_torchaudio(error: Exception) -> str:
    import torch

    if "different CUDA versions" in str(error):
        return (
            f"torch {torch.__version__} and torchaudio are built for different versions of CUDA (torch "
            f"for {torch.version.cuda}); type `{_TORCHAUDIO}`."
        )
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA and torchaudio is built for CUDA; type "
            f"`{_WITH_CUDA}` for both with CUDA, or `{_CPU_ONLY}` for both without (after `pip install uv`)."
        )
    return f"torchaudio fails with {type(error).__name__}: {error}; type `{_TORCHAUDIO}`."
