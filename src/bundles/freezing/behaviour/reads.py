"""Find out whether a module's own code reads ``self.training``.

The flag does nothing in a module that never reads it, so such a module needs no hold, and a model
whose head still trains keeps a ``training`` flag that answers ``train()``. The answer is read off
the code that ``forward`` can reach, so it covers functional dropout, layer drop and anything else
that is gated on the flag, and not only the layer types that somebody thought of.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bundles.freezing.behaviour.hold import base_class

_FLAG = "training"
_CALLS = ("forward", "__call__")
_SETTERS = ("__init__", "train", "eval", "__reduce_ex__", "__repr__", "extra_repr")
_KNOWN_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)  # what they do is described elsewhere


def reads_training(module: nn.Module) -> bool:
    """Whether calling the module may depend on its ``training`` flag; code that cannot be read says yes."""
    words = words_of(module)
    return _FLAG in words or not words.isdisjoint(_kept_by_train(base_class(module)))  # type: ignore[arg-type]


def mentions_dropout(module: nn.Module) -> bool:
    """Whether the module's own code has a word for dropout in it."""
    return any("dropout" in word or "drop_path" in word for word in words_of(module))


def words_of(module: nn.Module) -> frozenset[str]:
    """Return every name and text in the code that calling the module can reach."""
    cls, own = base_class(module), own_code(module)
    if cls not in _known:
        _known[cls] = _reachable(cls, _entries(cls))
    return _known[cls] | _reachable(cls, own) if own else _known[cls]


def own_code(module: nn.Module) -> list[Any]:
    """Return what an instance runs beside the code of its class: hooks, and a forward put on it."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    own = [hook for hook in hooks if not isinstance(hook, _KNOWN_HOOKS)]
    return own + ([module.__dict__["forward"]] if "forward" in module.__dict__ else [])


_known: dict[type[nn.Module], frozenset[str]] = {}


def _entries(cls: type[nn.Module]) -> list[Any]:
    """Where calls come in: ``forward``, and every other method of a class that defines one.

    Base classes without a ``forward`` of their own are libraries' furniture; of those only what is
    called counts. Where there is no ``forward`` at all the module is called through its methods.
    """
    bases = [base for base in _own(cls) if "forward" in vars(base)] or list(_own(cls))
    entries = [vars(base)[name] for base in _own(cls) for name in _CALLS if name in vars(base)]
    others = [member for base in bases for name, member in vars(base).items() if name not in _SETTERS]
    return entries + [member for member in others if any(True for _ in _plain(member))]


@cache
def _kept_by_train(cls: type[nn.Module]) -> frozenset[str]:
    """The attributes that a class's own ``train()`` writes: flags of its own, beside the one."""
    own = [function for base in _own(cls) for function in _plain(vars(base).get("train"))]
    steps = (step for function in own for step in dis.get_instructions(function.__code__))
    return frozenset(step.argval for step in steps if step.opname == "STORE_ATTR") - {_FLAG}


def _reachable(cls: type, entries: list[Any]) -> frozenset[str]:
    words: set[str] = set()
    queue, seen = list(entries), set()
    while queue:
        function = queue.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        functions = list(_plain(function))
        if not functions and function in entries:
            words |= {_FLAG, "dropout"}  # compiled or scripted: nothing can be read off it, so it may
        codes = [code for entry in functions for code in _codes(entry.__code__)]
        names = {name for code in codes for name in code.co_names}
        words |= names | {text for code in codes for text in code.co_consts if isinstance(text, str)}
        queue.extend(_methods(cls, names))
        for entry in functions:
            queue.extend(_helpers(entry, names))
    return frozenset(words)


def _methods(cls: type, names: set[str]) -> Iterator[Any]:
    for base in _own(cls):
        yield from (vars(base)[name] for name in names & vars(base).keys())


def _helpers(function: FunctionType, names: set[str]) -> Iterator[Any]:
    """Functions that the code calls by name, as ``drop_path(x, self)`` or ``layers.drop_path(x, self)``."""
    known = [function.__globals__[name] for name in names & function.__globals__.keys()]
    inside = [vars(library) for library in known if isinstance(library, ModuleType)]
    known += [library[name] for library in inside for name in names & library.keys()]
    for helper in known:
        if isinstance(helper, FunctionType) and not helper.__module__.startswith("torch."):
            yield helper


def _own(cls: type) -> Iterator[type]:
    return (base for base in cls.__mro__ if base not in (nn.Module, object))


def _plain(function: Any) -> Iterator[FunctionType]:
    """The Python functions inside a method, a property, a partial or a decorated function."""
    if isinstance(function, property):
        yield from (part for part in (function.fget,) if isinstance(part, FunctionType))
        return
    inner: Any = getattr(function, "__func__", getattr(function, "func", function))
    while isinstance(inner, FunctionType):
        yield inner
        for cell in inner.__closure__ or ():
            if isinstance(content := _content(cell), FunctionType):
                yield content
        inner = getattr(inner, "__wrapped__", None)


def _content(cell: Any) -> Callable[..., Any] | None:
    try:
        content: Callable[..., Any] = cell.cell_contents
    except ValueError:  # a cell that is still empty
        return None
    return content


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
