"""Find out whether a module's own code reads ``self.training``.

The flag does nothing in a module that never reads it, so such a module needs no hold, and a model
whose head still trains keeps a ``training`` flag that answers ``train()``. The answer is read off
the code that ``forward`` can reach, so it covers functional dropout, layer drop and anything else
that is gated on the flag, and not only the layer types that somebody thought of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from bundles.freezing.hold import base_class

_FLAG = "training"
_SETTERS = ("__init__", "train", "eval")


def reads_training(module: nn.Module) -> bool:
    """Whether calling the module may depend on its ``training`` flag; code that cannot be read says yes."""
    cls, patched = base_class(module), module.__dict__.get("forward")
    return _class_reads(cls) or (patched is not None and _reads(cls, (patched,)))


_known: dict[type[nn.Module], bool] = {}


def _class_reads(cls: type[nn.Module]) -> bool:
    if cls not in _known:
        _known[cls] = _reads(cls, tuple(_entries(cls)))
    return _known[cls]


def _entries(cls: type[nn.Module]) -> list[Any]:
    """Where calls come in."""
    members = [(name, member) for base in _own(cls) for name, member in vars(base).items()]
    entries = [member for name, member in members if name in ("forward", "__call__")]
    if not entries:  # called through methods of its own, or a mere container
        entries = [member for name, member in members if name not in _SETTERS and callable(member)]
    return entries


def _reads(cls: type, entries: tuple[Any, ...]) -> bool:
    queue, seen = list(entries), set()
    while queue:
        function = queue.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        codes = [code for entry in _plain(function) for code in _codes(entry.__code__)]
        if not codes and function in entries:
            return True  # compiled or scripted code: nothing can be read off it
        if any(_FLAG in code.co_names or _FLAG in code.co_consts for code in codes):
            return True
        names = {name for code in codes for name in code.co_names}
        queue.extend(_methods(cls, names))
        for entry in _plain(function):
            queue.extend(_helpers(entry, names))
    return False


def _methods(cls: type, names: set[str]) -> Iterator[Any]:
    for base in _own(cls):
        yield from (vars(base)[name] for name in names & set(vars(base)))


def _helpers(function: FunctionType, names: set[str]) -> Iterator[Any]:
    """Functions that the code calls by name, as ``drop_path(x, self)`` or ``layers.drop_path(x, self)``."""
    known = [function.__globals__[name] for name in names & set(function.__globals__)]
    inside = [vars(library) for library in known if isinstance(library, ModuleType)]
    known += [library[name] for library in inside for name in names & set(library)]
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
