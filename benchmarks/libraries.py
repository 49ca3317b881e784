"""Checkpoints with random weights in the layouts of transformers and timm, and both ways of loading them.

    python benchmarks/libraries.py NAME FOLDER     makes NAME's checkpoint, and a small one of the same class

``load.py`` does this. A checkpoint is a folder as ``save_pretrained`` and ``timm.models.save_for_hf`` write
it; nobody may write to its files, as to those of a cache, so that they may be mapped.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "BUNDLES_BENCHMARK_FOLDER"
LOAD_ONCE = str(Path(__file__).with_name("load_once.py"))


@dataclass(frozen=True)
class Subject:
    """What is loaded.

    Attributes:
        model: class of transformers, or name of timm.
        small: what makes a small model of the same code, which is loaded before the clock starts: other
            values of the configuration, or another name of timm's.
        inputs: name of the argument -> shape; integers where it ends in ``_ids``.
        config: of transformers; ``None`` is timm's.
    """

    model: str
    small: Mapping[str, Any]
    inputs: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any] | None = None


SUBJECTS = {
    "HF_WAV2VEC2_BASE": Subject(
        "Wav2Vec2Model",
        {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 32},
        {"input_values": (1, 16_000)},
        {"model_type": "wav2vec2"},  # the defaults are facebook/wav2vec2-base
    ),
    "HF_BERT_BASE": Subject(
        "BertModel",
        {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 99},
        {"input_ids": (1, 32)},
        {"model_type": "bert"},  # the defaults are google-bert/bert-base-uncased
    ),
    "TIMM_VIT_BASE": Subject("vit_base_patch16_224", {"model": "test_vit"}, {"x": (1, 3, 224, 224)}),
}


@contextlib.contextmanager
def saved(name: str, folder: str) -> Iterator[tuple[Path, ...]]:
    """Make a checkpoint, let bundles see it once, and yield the files that are read."""
    os.environ |= {
        FOLDER: folder,
        "BUNDLES_CACHE": f"{folder}/cache",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }
    subprocess.run([sys.executable, __file__, name, folder], check=True, stderr=subprocess.DEVNULL)
    time.sleep(2.5)  # until the file has settled, so that its digest is noted
    subprocess.run(
        [sys.executable, LOAD_ONCE, "bundles", name, "warm"], check=True, stdout=subprocess.DEVNULL
    )
    yield (Path(folder, "whole", "model.safetensors"),)


def loader(who: str, name: str, part: str = "whole") -> Callable[[], Any]:
    """Return the function that is measured.

    ``bundles`` has its bundle made before, as those that it brings are; ``bundles-folder`` reads the
    configuration, too, as the libraries do.
    """
    subject, folder = SUBJECTS[name], Path(os.environ[FOLDER], part)
    if who == "upstream":
        return _upstream(subject, folder, part)
    import bundles

    if who == "bundles-folder":
        return lambda: bundles.get_bundle(f"file:{folder}").get_model()
    how: dict[str, Any] = {"freeze": "all", "freeze_mode": "features"} if who == "bundles-frozen" else {}
    bundle = _bundle(name, subject, folder, part)
    return lambda: bundle.get_model(**how)


def forward(model: Any, name: str) -> None:
    """Run the model once."""
    import torch

    made = {
        key: torch.zeros(shape, dtype=torch.long if key.endswith("_ids") else torch.float32)
        for key, shape in SUBJECTS[name].inputs.items()
    }
    with torch.inference_mode():
        model(**made)


def _upstream(subject: Subject, folder: Path, part: str) -> Callable[[], Any]:
    if subject.config is None:
        import timm

        named, path = _timm_name(subject, part), str(folder / "model.safetensors")
        return lambda: timm.create_model(named, checkpoint_path=path).eval()
    import transformers

    cls: Any = getattr(transformers, subject.model)
    return lambda: cls.from_pretrained(folder)


def _bundle(name: str, subject: Subject, folder: Path, part: str) -> Any:
    import bundles

    weights = bundles.WeightSource(
        f"file:{folder}/model.safetensors", (folder / "digest").read_text().strip() or None
    )
    if subject.config is None:
        return bundles.Bundle(name, "timm", {"model": _timm_name(subject, part)}, weights)
    config = {**subject.config, **(subject.small if part == "small" else {})}
    return bundles.Bundle(name, "transformers", {"model_class": subject.model, "config": config}, weights)


def _timm_name(subject: Subject, part: str) -> str:
    return str(subject.small["model"]) if part == "small" else subject.model


def _make(name: str, folder: Path) -> None:
    import hashlib

    import torch

    torch.manual_seed(0)
    for part in ("small", "whole"):
        _save(SUBJECTS[name], folder / part, part)
        path = folder / part / "model.safetensors"
        path.chmod(0o444)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        (folder / part / "digest").write_text(digest)


def _save(subject: Subject, folder: Path, part: str) -> None:
    if subject.config is None:
        import timm

        model = timm.create_model(_timm_name(subject, part))
        timm.models.save_for_hf(model, folder, safe_serialization=True)
        return
    import transformers

    values = {**subject.config, **(subject.small if part == "small" else {})}
    cls: Any = getattr(transformers, subject.model)
    cls(cls.config_class(**values)).save_pretrained(folder)


if __name__ == "__main__":
    _make(sys.argv[1], Path(sys.argv[2]))
