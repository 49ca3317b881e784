"""Small models, one for each way in which a model's behaviour hangs on its ``training`` flag.

Each has an encoder of three blocks and a head with dropout, and returns what every block made and the
logits. This file does not import the library: a fresh process loads frozen models with it alone.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import spectral_norm as spectral_norm_hook

WIDTH = 8
RATE = 0.5


class Encoder(nn.Module):
    """Blocks in a row; returns what each of them made."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = []
        for block in self.blocks:
            x = block(x)
            made.append(x)
        return tuple(made)


class LayerDropEncoder(nn.Module):
    """Skips whole blocks at random: the parent reads the flag, the blocks do not."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layer_drop = RATE
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = []
        for block in self.blocks:
            if not self.training or float(torch.rand(())) >= self.layer_drop:
                x = block(x)
            made.append(x)
        return tuple(made)


class WordEncoder(nn.Module):
    """Looks words up before the blocks."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = [self.embedding(x)]
        for block in self.blocks:
            made.append(block(made[-1]))
        return tuple(made[1:])


class Head(nn.Module):
    """Averages what is beyond (batch, width), drops, projects."""

    def __init__(self, outputs: int = 3, *, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.dropout = nn.Dropout(RATE)
        self.proj = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim > 2:
            x = x.mean(1) if self.channels_last else x.flatten(2).mean(2)
        logits: Tensor = self.proj(self.dropout(x))
        return logits


class Model(nn.Module):
    """An encoder and a head."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = self.encoder(x)
        return (*made, self.head(made[-1]))


class NoisyModel(Model):
    """Drops between encoder and head: the root itself reads the flag."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = self.encoder(x)
        return (*made, self.head(F.dropout(made[-1], RATE, self.training)))


class FunctionalBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), RATE, training=self.training)


def drop_path(x: Tensor, training: bool) -> Tensor:
    """Stochastic depth: rows of the batch are dropped whole."""
    keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1)) >= RATE if training else torch.ones(())
    return x * keep


def noise_of(module: nn.Module, x: Tensor) -> Tensor:
    """Dropout by the flag of a module that is handed over whole."""
    return F.dropout(x, RATE, module.training)


class DropPathBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + drop_path(self.linear(x), self.training)


class CentringBlock(nn.Module):
    """Subtracts a running mean that no checkpoint has."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        made: Tensor = self.linear(x - self.mean)
        return made


class RecurrentBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH, num_layers=2, dropout=RATE, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.rnn(x)[0]
        return made


class AttentionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=RATE, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return x + made


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """How to make a model and its input.

    Attributes:
        block: makes one block.
        shape: of the input.
        effect: the axis of a freeze mode that governs the blocks; empty where they read no flag.
        assumed: whether a library cannot know that, since only the block's own code says so.
        encoder: made of the blocks.
        model: made of the encoder and a head.
    """

    block: Callable[[], nn.Module]
    shape: tuple[int, ...] = (6, WIDTH)
    effect: str = ""
    assumed: bool = False
    encoder: Callable[[Iterable[nn.Module]], nn.Module] = Encoder
    model: Callable[[nn.Module, nn.Module], nn.Module] = Model

    def make(self) -> nn.Module:
        """Return the model, the same each time, with no parameter that is zero."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            encoder = self.encoder(self.block() for _ in range(3))
            words = isinstance(encoder, WordEncoder)
            head = Head(11 if words else 3, channels_last=words or len(self.shape) == 3)
            model = self.model(encoder, head)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 + 0.05 * torch.rand_like(parameter))
        if isinstance(encoder, WordEncoder):
            head.proj.weight = encoder.embedding.weight
        return model

    def make_input(self) -> Tensor:
        """Return a batch, the same each time."""
        generator = torch.Generator().manual_seed(2)
        if self.encoder is WordEncoder:
            return torch.randint(11, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


def _normed(layer: Callable[[], nn.Module], norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(layer(), norm(), nn.Tanh())


def _linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def _conv(dimensions: int) -> Callable[[], nn.Module]:
    cls = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    return lambda: cls(WIDTH, WIDTH, 1)


TOYS: dict[str, Toy] = {
    "plain": Toy(lambda: nn.Sequential(_linear(), nn.Tanh())),
    "dropout": Toy(lambda: nn.Sequential(_linear(), nn.Dropout(RATE)), effect="noise"),
    "functional": Toy(FunctionalBlock, effect="noise"),
    "droppath": Toy(DropPathBlock, effect="noise"),
    "rootflag": Toy(lambda: nn.Sequential(_linear(), nn.Tanh()), model=NoisyModel),
    "batchnorm1d": Toy(_normed(_linear, lambda: nn.BatchNorm1d(WIDTH)), effect="stats"),
    "batchnorm2d": Toy(_normed(_conv(2), lambda: nn.BatchNorm2d(WIDTH)), (4, WIDTH, 3, 2), effect="stats"),
    "batchnorm3d": Toy(_normed(_conv(3), lambda: nn.BatchNorm3d(WIDTH)), (4, WIDTH, 2, 2, 2), effect="stats"),
    "syncbatchnorm": Toy(_normed(_linear, lambda: nn.SyncBatchNorm(WIDTH)), effect="stats"),
    "instancenorm": Toy(
        _normed(_conv(2), lambda: nn.InstanceNorm2d(WIDTH, affine=True, track_running_stats=True)),
        (4, WIDTH, 3, 2),
        effect="stats",
    ),
    "layerdrop": Toy(_linear, effect="structure", encoder=LayerDropEncoder),
    "tied": Toy(
        lambda: nn.Sequential(_linear(), nn.Dropout(RATE)), (4, 5), effect="noise", encoder=WordEncoder
    ),
    "nonpersistent": Toy(CentringBlock, effect="stats", assumed=True),
    "spectralhook": Toy(lambda: spectral_norm_hook(_linear()), effect="stats"),
    "spectralparam": Toy(lambda: parametrizations.spectral_norm(_linear()), effect="stats"),
    "rnn": Toy(RecurrentBlock, (4, 5, WIDTH), effect="noise"),
    "attention": Toy(AttentionBlock, (4, 5, WIDTH), effect="noise"),
    "transformer": Toy(
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=RATE, batch_first=True),
        (4, 5, WIDTH),
        effect="noise",
    ),
}


# --- what the tests look at -----------------------------------------------------------------------


def as_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's values as they lie in memory."""
    values: bytes = tensor.detach().contiguous().numpy().tobytes()
    return values


def contents(model: nn.Module) -> dict[str, bytes]:
    """Return the bytes of every parameter and buffer, tied ones under every name."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {name: as_bytes(tensor) for name, tensor in tensors.items()}


def outputs(model: Callable[[Tensor], Any], x: Tensor, seed: int = 3) -> list[bytes]:
    """Return the bytes of all that the model makes, the random numbers being the same each time."""
    torch.manual_seed(seed)
    return [as_bytes(made) for made in model(x)]


def step(model: nn.Module, x: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """Take a training step; gradients are zeroed and not cleared, and reach all that trains."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=False)
    reached = [parameter.sum() for parameter in model.parameters() if parameter.requires_grad]
    loss = sum(reached, model(x)[-1].square().mean())
    if loss.requires_grad:
        loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def make_optimizers(model: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """Return the two that move a parameter without a gradient soonest."""
    return (
        torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3),
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.3),
    )


def trial(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Put a model through ``eval()``, ``train()`` and three steps, and return all that is seen of it."""
    seen: dict[str, Any] = {}
    for requested in (False, True):
        model.train(requested)
        seen[f"training after train({requested})"] = {name: m.training for name, m in model.named_modules()}
        with torch.no_grad():
            seen[f"outputs after train({requested})"] = outputs(model, x)
    seen["trainable"] = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizers = make_optimizers(model)
    for _ in range(3):
        step(model, x, *optimizers)
    seen["contents"] = contents(model)
    seen["classes"] = {name: type(module).__name__ for name, module in model.named_modules()}
    return seen


def identity(model: nn.Module) -> dict[str, Any]:
    """What freezing never changes: keys, names of classes, what they are instances of, signatures."""
    return {
        "keys": list(model.state_dict()),
        "parameters": [name for name, _ in model.named_parameters(remove_duplicate=False)],
        "names": [(type(m).__name__, type(m).__qualname__, type(m).__module__) for m in model.modules()],
        "signatures": [str(inspect.signature(m.forward)) for m in model.modules()],
        # An RNN's dropout is held at 0 beside its flag.
        "extras": [module.extra_repr().replace(f", dropout={RATE}", "") for module in model.modules()],
    }


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """What undo gives back exactly: ``requires_grad``, classes, every attribute, training flags."""
    return {
        "requires_grad": {
            name: (id(parameter), parameter.requires_grad)
            for name, parameter in model.named_parameters(remove_duplicate=False)
        },
        "classes": [type(module) for module in model.modules()],
        "attributes": [
            {
                key: "a tensor made in forward" if isinstance(value, Tensor) else id(value)
                for key, value in vars(module).items()
                if key != "training"
            }
            for module in model.modules()
        ],
        "training": [module.training for module in model.modules()],
        **identity(model),
    }


def revive(folder: str) -> None:
    """Load every model saved in a folder and write down its trial: what the fresh process runs."""
    torch.set_num_threads(1)
    for path in sorted(Path(folder).glob("*.pt")):
        model, x = torch.load(path, weights_only=False)
        torch.save(trial(model, x), path.with_suffix(".seen"))


if __name__ == "__main__":
    revive(sys.argv[1])
