"""Rows about ``train()``, copies and what a model looks like from outside."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from parts import Mechanism, Model, call, fresh, stays
from torch import nn
from torch.optim.swa_utils import AveragedModel


def behaviour(mechanism: Mechanism) -> bool:
    """Noise off, statistics still, the head trains after `model.train()`."""
    model = mechanism.frozen()
    model.encoder.layer_drop = -1.0  # a row of its own
    return stays(model.encoder) and model.head.training and model.head[0].training


def layer_drop(mechanism: Mechanism) -> bool:
    """Layer drop off after `model.train()`."""
    model = mechanism.frozen()
    for block in model.encoder.blocks:
        block.eval()
    return stays(model.encoder)


def train_of_every_module(mechanism: Mechanism) -> bool:
    """Survives `for m in modules(): m.train()`."""
    model = mechanism.frozen()
    for module in model.modules():
        module.train()
    return stays(model.encoder)


def direct_writes(mechanism: Mechanism) -> bool:
    """Survives direct `m.training = True` writes."""
    model = mechanism.frozen()
    for module in model.modules():
        module.training = True
    return stays(model.encoder)


def moved_elsewhere(mechanism: Mechanism) -> bool:
    """A sub-module moved to another parent stays frozen."""
    elsewhere = nn.Sequential(mechanism.frozen().encoder.blocks[0]).train()
    return torch.equal(call(elsewhere, 1), call(fresh().encoder.blocks[0].eval(), 1))


def training_reads_false(mechanism: Mechanism) -> bool:
    """`.training` reads False, wherever it is read."""
    encoder = mechanism.frozen().encoder
    readers = (encoder, *encoder.blocks, *(block.dropout for block in encoder.blocks))
    return not any(module.training for module in (*readers, *(block.norm for block in encoder.blocks)))


def deep_copy(mechanism: Mechanism) -> bool:
    """deepcopy: the freeze is kept, the copy is independent."""
    model = mechanism.frozen()
    twin = copy.deepcopy(model)
    kept = stays(twin.train().encoder)
    mechanism.undo(twin, "encoder")
    return kept and stays(model.train().encoder) and twin.encoder.training


def _acts_on_itself(mechanism: Mechanism, model: Model, twin: nn.Module) -> bool:
    twin.train()
    held = not twin.training
    mechanism.undo(model, "head")  # gives the original the mode that was last asked of it
    return held and not model.encoder.training


def shallow_copy(mechanism: Mechanism) -> bool:
    """copy.copy: `train()` acts on the copy."""
    model = mechanism.frozen().eval()
    return _acts_on_itself(mechanism, model, copy.copy(model.encoder))


def replica(mechanism: Mechanism) -> bool:
    """DataParallel replica: `train()` acts on itself."""
    model = mechanism.frozen().eval()
    return _acts_on_itself(mechanism, model, model.encoder._replicate_for_data_parallel())


def pickled(mechanism: Mechanism) -> bool:
    """Pickle round trip."""
    return stays(pickle.loads(pickle.dumps(mechanism.frozen())).train().encoder)


def saved(mechanism: Mechanism) -> bool:
    """`torch.save(model)`, loaded in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(mechanism.frozen(), path := Path(folder) / "model.pt")
        script = (
            "import sys, torch; sys.path.insert(0, sys.argv[1]); from parts import stays;"
            "model = torch.load(sys.argv[2], weights_only=False).train();"
            "sys.exit(not stays(model.encoder))"
        )
        arguments = [sys.executable, "-c", script, str(Path(__file__).parent), str(path)]
        return subprocess.run(arguments, check=False).returncode == 0


def keys(mechanism: Mechanism) -> bool:
    """`state_dict` keys unchanged."""
    return list(mechanism.frozen().state_dict()) == list(fresh().state_dict())


def strict_load(mechanism: Mechanism) -> bool:
    """Strict load of an ordinary checkpoint."""
    model = mechanism.frozen()
    model.load_state_dict(fresh().state_dict())
    return True


def parameters(mechanism: Mechanism) -> bool:
    """`named_parameters` unchanged."""
    return [name for name, _ in mechanism.frozen().named_parameters()] == [
        name for name, _ in fresh().named_parameters()
    ]


def instances(mechanism: Mechanism) -> bool:
    """`isinstance` holds."""
    pairs = zip(mechanism.frozen().modules(), fresh().modules(), strict=True)
    return all(isinstance(ours, type(theirs)) for ours, theirs in pairs)


def exact_types(mechanism: Mechanism) -> bool:
    """Exact `type()` kept."""
    pairs = zip(mechanism.frozen().modules(), fresh().modules(), strict=True)
    return all(type(ours) is type(theirs) for ours, theirs in pairs)


def class_names(mechanism: Mechanism) -> bool:
    """Class `__name__` kept."""
    names = [[type(module).__name__ for module in model.modules()] for model in (mechanism.frozen(), fresh())]
    return names[0] == names[1]


def gradient(mechanism: Mechanism) -> bool:
    """Gradient flows through to the input."""
    x = torch.ones(6, 8, requires_grad=True)
    mechanism.frozen()(x).square().sum().backward()
    return x.grad is not None


def averaged(mechanism: Mechanism) -> bool:
    """AveragedModel (EMA, SWA) copy."""
    model = mechanism.frozen()
    average = AveragedModel(model).train()
    average.update_parameters(model)
    return stays(average.module.encoder)


def signature(mechanism: Mechanism) -> bool:
    """Forward signature kept."""
    signatures = [
        [str(inspect.signature(module.forward)) for module in model.modules()]
        for model in (mechanism.frozen(), fresh())
    ]
    return signatures[0] == signatures[1]
