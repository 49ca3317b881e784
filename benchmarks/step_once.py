"""One case of ``step.py`` in a process of its own: it prints its facts, and then a time per line it reads.

python benchmarks/step_once.py CASE BUNDLE BATCH SECONDS
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import bundles

LABELS = 32
POLICIES = {
    "full": "none",
    "last 4": "last:4",
    "last 2": "last:2",
    "last 1": "last:1",
    "head only": "encoder",
    "features": "encoder",
}
CASES = (*POLICIES, "flow-through", "cached features")


class FrontEnd(nn.Module):
    """A trained filter before a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.filter = nn.Conv1d(1, 1, 9, padding=4)
        self.model = model

    def forward(self, waveforms: Tensor) -> Any:
        """Take and give what the model does, waveforms of ``[batch, samples]``."""
        return self.model(self.filter(waveforms[:, None])[:, 0])


def build(case: str, bundle: bundles.Bundle, shape: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """Return the model of a case and its input."""
    head = nn.Linear(bundle.num_features or 1, LABELS)
    if case == "cached features":
        frames = shape[1] * 50 // bundle.sample_rate - 1
        return head, torch.randn(shape[0], frames, head.in_features)
    if case == "flow-through":
        return FrontEnd(bundle.get_model(pretrained=False, freeze="all")), torch.randn(shape)
    name = case.partition(",")[0]
    how: dict[str, Any] = {"freeze": POLICIES[name], "head": head, "pretrained": False}
    if name == "features":
        how["freeze_mode"] = "features"
    if "bfloat16" in case:
        how["frozen_dtype"] = torch.bfloat16
    return bundle.get_model(**how), torch.randn(shape)


def stepper(model: nn.Module, x: Tensor, autocast: bool) -> Callable[[], float]:
    """Return a function that makes a training step and returns milliseconds."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=False)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            out = model(x)
        loss = (out[0] if isinstance(out, tuple) else out).float().sum()
        loss.backward()
        optimizer.step()
        return (time.perf_counter() - start) * 1e3

    return step


def saved(model: nn.Module, x: Tensor) -> int:
    """Bytes that forward keeps for backward."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        model(x)
    return sum(kept.values())


def memory(figure: str) -> int:
    """Return a figure of this process's memory in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{figure}:")[1].split()[0]) * 1024


def settle(bundle: bundles.Bundle) -> int:
    """Import and warm up everything with a second of sound, and return what memory is used then."""
    model = bundle.get_model(pretrained=False).train()
    small = nn.Sequential(*(module for module in model.modules() if isinstance(module, nn.LayerNorm)))
    optimizer = torch.optim.AdamW(small.parameters(), foreach=False)
    model(torch.zeros(1, 4000))[0].sum().backward()
    optimizer.step()
    del model, small, optimizer
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return memory("VmRSS")


def main() -> None:
    """Print what was predicted and what is seen, then step at each line."""
    case, name, batch, seconds = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bundle = bundles.get_bundle(name)
    shape = (int(batch), round(float(seconds) * bundle.sample_rate))
    base = settle(bundle)
    torch.manual_seed(0)
    model, x = build(case, bundle, shape)
    for module in model.modules():
        if hasattr(module, "layer_drop"):
            module.layer_drop = 0.0
    model.train()
    step = stepper(model, x, "autocast" in case)
    step()
    Path("/proc/self/clear_refs").write_text("5")
    step()
    step()
    facts = {"peak": memory("VmHWM") - base}
    if "bfloat16" in case:
        cost = bundles.predict(bundle, freeze="encoder", inputs=shape, frozen_dtype=torch.bfloat16)
        facts |= predicted(cost) | {"deviation": deviation(model, bundle, shape)}
    elif "autocast" not in case:
        facts |= predicted(bundles.predict(model, inputs=tuple(x.shape))) | {"saved": saved(model, x)}
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"ms": step()}), flush=True)


def predicted(cost: bundles.StepCost) -> dict[str, float]:
    """Return what of a prediction is compared."""
    return {
        "work": cost.work,
        "saved predicted": cost.saved_activations,
        "peak predicted": cost.peak_memory,
    }


def deviation(model: nn.Module, bundle: bundles.Bundle, shape: tuple[int, int]) -> float:
    """How far features in bfloat16 under autocast are from float32 throughout, as a share of their spread."""
    torch.manual_seed(0)
    plain, x = build("head only", bundle, shape)
    with torch.no_grad():
        right = plain.get_submodule("encoder")(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            low = model.eval().get_submodule("encoder")(x)[0].float()
    return float((low - right).std() / right.std())


if __name__ == "__main__":
    main()
