"""Rows about compilers, exporters and tracers."""

from __future__ import annotations

import torch
from parts import Mechanism, batch, call, stays, wanted
from torch import nn


def compiled_mode(mechanism: Mechanism) -> bool:
    """`torch.compile(m).train()`."""
    model = mechanism.frozen()
    torch.compile(model, backend="eager").train()
    return stays(model.encoder)


def _compiled(mechanism: Mechanism, backend: str) -> bool:
    torch.compiler.reset()
    encoder = torch.compile(mechanism.frozen().encoder, backend=backend, fullgraph=True)
    seen = [call(encoder, seed) for seed in (1, 2)]  # a compiler may round otherwise than eager code
    return torch.equal(*seen) and torch.allclose(seen[0], wanted(), atol=1e-6)


def aot_eager(mechanism: Mechanism) -> bool:
    """torch.compile fullgraph (aot_eager)."""
    return _compiled(mechanism, "aot_eager")


def inductor(mechanism: Mechanism) -> bool:
    """torch.compile fullgraph (inductor)."""
    return _compiled(mechanism, "inductor")


def exported(mechanism: Mechanism) -> bool:
    """torch.export while in train mode equals eval."""
    encoder = mechanism.frozen().encoder
    return stays(torch.export.export(encoder, (batch(),)).module())


def scripted_then_train(mechanism: Mechanism) -> bool:
    """jit.script, then `scripted.train()`."""
    model = mechanism.frozen()
    return stays(torch.jit.script(model).train().encoder)


def scripted(mechanism: Mechanism) -> bool:
    """jit.script while in train mode."""
    return stays(torch.jit.script(mechanism.frozen()).encoder)


def traced(mechanism: Mechanism) -> bool:
    """jit.trace while in train mode."""
    encoder = mechanism.frozen().encoder
    return stays(torch.jit.trace(encoder, batch(), check_trace=False))


def fx_then_train(mechanism: Mechanism) -> bool:
    """torch.fx trace, then `gm.train()`."""
    model = mechanism.frozen()
    for block in model.encoder.blocks:  # leaves: how they branch is not for a tracer
        block.leaf = True
    graph = torch.fx.GraphModule(model.encoder, _Leaves().trace(model.encoder.eval())).train()
    return torch.equal(call(graph, 1), call(graph, 2)) and torch.equal(call(graph), wanted())


class _Leaves(torch.fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Blocks are not looked into."""
        return hasattr(module, "leaf") or super().is_leaf_module(module, name)
