"""The digest of what a layer is computed with, which says whose features stored ones are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any

import torch
from torch import nn

from bundles.features.encode.layers import Anatomy, Layer
from bundles.freezing.behaviour.hold import base_class
from bundles.freezing.behaviour.knobs import knobs_of
from bundles.freezing.behaviour.reads import own_code
from bundles.freezing.derive import unwrap
from bundles.freezing.proof.coverage import local_values
from bundles.freezing.proof.digests import digests
from bundles.spec.table import lineage

_PLAIN = (bool, int, float, str)
_NOT_READ = ("builtins", "torch")  # classes of these packages go by their names alone


@torch.no_grad()
def state_digest(model: nn.Module, layers: Sequence[int | str] | None = None) -> str:
    """Return 64 hex digits over all that decides layers of a model beside their input.

    That is the values of the parameters and buffers that the layers are computed with, and the classes and
    plain attributes of the modules, since a ReLU and a GELU have the same weights. What comes later, a head
    above all, does not count; nor does ``training``, nor a rate of dropout. Names count from the encoder, so
    that a model alone and behind an ``EncoderWithHead`` is one.

    Args:
        model: any module.
        layers: as :func:`bundles.features.encode.layers.find_layers`.

    Raises:
        FreezeArgumentError: there is no such layer, or a tensor is on the meta device.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    >>> before = [state_digest(net, layers) for layers in ([0], [1])]
    >>> _ = net[1].weight.data.zero_()
    >>> [state_digest(net, layers) == old for layers, old in zip(([0], [1]), before)]
    [True, False]
    """
    anatomy = Anatomy(unwrap(model))
    found = anatomy.layers(layers)
    start = anatomy.base
    values: dict[str, torch.Tensor] = {}
    modules: dict[str, dict[str, Any]] = {}
    for layer in found:
        values |= {_relative(name, start): tensor for name, tensor in _tensors(anatomy, layer)}
        modules |= {_relative(name, start): facts for name, facts in _modules(anatomy, layer, start)}
    told = {
        "layers": [layer.name for layer in found],
        "tensors": sorted(digests(values).items()),
        "modules": sorted(modules.items()),
    }
    return hashlib.sha256(json.dumps(told, separators=(",", ":")).encode()).hexdigest()


def code_digest(model: nn.Module) -> str:
    """Return 64 hex digits over the code that a model's modules run, but for that of torch itself.

    That is the bytecode of their classes, of hooks, and of a ``forward`` put on a single module, so that a
    changed line is another model. It differs between versions of Python, too.

    >>> code_digest(nn.Linear(2, 2)) == code_digest(nn.Linear(2, 2)) != code_digest(nn.Sequential(_Example()))
    True
    """
    found: list[str] = []
    for name, module in unwrap(model).named_modules():
        found += (f"{name}:{told}" for entry in own_code(module) for told in _told(entry))
    for cls in dict.fromkeys(base_class(module) for module in unwrap(model).modules()):
        own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in _NOT_READ]
        found += (
            f"{base.__qualname__}:{t}" for base in own for entry in vars(base).values() for t in _told(entry)
        )
    return hashlib.sha256("\n".join(found).encode(errors="surrogatepass")).hexdigest()


def _told(entry: Any) -> Iterator[str]:
    """Yield what a function does, and with which plain values it was made."""
    inner = getattr(entry, "__func__", getattr(entry, "func", getattr(entry, "fget", entry)))
    code = getattr(inner, "__code__", None)
    if isinstance(code, CodeType):
        yield _read(code)
        given = (*(inner.__defaults__ or ()), *(_content(cell) for cell in inner.__closure__ or ()))
        yield repr([value for value in given if _is_plain(value)])


def _read(code: CodeType) -> str:
    return f"{code.co_name} {code.co_code.hex()} {code.co_names} {[_constant(c) for c in code.co_consts]}"


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _read(value)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)  # as in any process


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


class _Example(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def _relative(name: str, start: str) -> str:
    return name.removeprefix(start).lstrip(".")


def _tensors(anatomy: Anatomy, layer: Layer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in anatomy.parameters(layer).items():
        yield name, local_values(parameter)
    for name in anatomy.computed(layer):
        for local, buffer in anatomy.modules[name]._buffers.items():
            if buffer is not None:
                yield f"{name}.{local}".lstrip("."), local_values(buffer)


def _modules(anatomy: Anatomy, layer: Layer, start: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield class and plain attributes of each module but dropouts, and those around the encoder alone."""
    for name in anatomy.computed(layer):
        module, row = anatomy.modules[name], anatomy.rows[name]
        drops = row.builtin and row.effects == ("noise",) and not module._parameters
        if start in lineage(name) and not drops:
            yield name, {"class": base_class(module).__qualname__, **_attributes(module)}


def _attributes(module: nn.Module) -> dict[str, Any]:
    skipped = {"training", "name_or_path", *(knob.name for knob in knobs_of(module))}
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if name not in skipped and "drop" not in name and not name.startswith("_") and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(entry) for entry in value)
    return isinstance(value, _PLAIN)
