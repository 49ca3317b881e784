"""Construct a module without paying for an initialisation that loading would overwrite."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode


def _yes(*_: Any) -> bool:
    return True


def _itself(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


def _std(weight: torch.Tensor, *dims: Any, **named: Any) -> torch.Tensor:
    return weight.std(*dims, **named) if dims or named else weight.new_ones(())


def _norm(weight: torch.Tensor, pow: int, dim: int) -> torch.Tensor:
    shape = () if dim == -1 else [size if axis == dim else 1 for axis, size in enumerate(weight.shape)]
    return weight.new_empty(shape)


def _weight(weight: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return weight.new_empty(weight.shape)


def _methods(*names: str) -> frozenset[Any]:
    return frozenset(getattr(torch.Tensor, name) for name in names)


_DRAWS = _methods(
    *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_")
) | frozenset((nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_))
# transformers puts its own functions in the place of torch's while it initialises, under the same names.
_GUARDED = frozenset(("uniform_", "normal_", "kaiming_uniform_"))
_VIEWS = frozenset((torch.Tensor.data.__get__, torch.Tensor.detach))  # type: ignore[attr-defined]
_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]  # trunc_normal_ asks before it draws

# What is done, to a parameter that was not filled, instead of what is asked. Any of these would touch all of
# its memory, and what comes out would mean nothing.
_STAND_INS: dict[Any, Callable[..., torch.Tensor]] = {
    **dict.fromkeys(_methods("mul_", "div_", "add_", "sub_", "clamp_", "erfinv_"), _itself),
    **dict.fromkeys(_methods("__imul__", "__itruediv__", "__iadd__", "__isub__"), _itself),
    torch.Tensor.std: _std,  # by which HDemucs rescales all its weights
    torch.norm_except_dim: _norm,  # weight norm; on the meta device it would import sympy, too
    torch._weight_norm: _weight,
    torch.Tensor.clone: _weight,  # by which deepcopy makes layers of one
}


class _SkipInit(TorchFunctionMode):
    """Leave parameters unfilled where random numbers would fill them.

    Constants are set as ever, and so are buffers, since some are computed from constants and not stored.
    A mode is local to its thread, which a patch of ``torch.nn.init`` would not be. Memory that is
    never touched costs nothing, and neither does the random generator.
    """

    def __init__(self) -> None:
        super().__init__()
        # By address, since parameters are handed on as .data or wrapped anew; the memory at each is kept, so
        # that nothing else comes to lie there.
        self._parameters: dict[int, torch.UntypedStorage] = {}
        self._unfilled: dict[int, torch.UntypedStorage] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = _kind(func)
        if kind is None:
            return func(*args, **kwargs)
        target = args[0] if args else kwargs.get("tensor")
        stand_in = self._stand_in(kind, func, target) if isinstance(target, torch.Tensor) else None
        return (stand_in or func)(*args, **kwargs)

    def _stand_in(self, kind: str, func: Any, target: torch.Tensor) -> Callable[..., Any] | None:
        """Return what to do to a tensor instead of calling a function on it, or ``None``."""
        is_parameter = isinstance(target, nn.Parameter)
        if kind == "asks" or target.layout != torch.strided:
            return _yes if kind == "asks" and is_parameter else None
        place = target.data_ptr()
        if kind == "views" and is_parameter:
            self._parameters[place] = target.untyped_storage()
        elif kind == "draws" and (is_parameter or place in self._parameters):
            self._unfilled[place] = target.untyped_storage()
            return _itself
        elif kind == "computes" and (place in self._unfilled or target.is_meta):
            return _STAND_INS[func]
        elif kind == "writes":
            self._unfilled.pop(place, None)
        return None


@lru_cache(maxsize=1024)
def _kind(func: Any) -> str | None:
    """Return what a function does that matters here; for most it is nothing."""
    name = getattr(func, "__name__", "")
    if func == _IS_META:
        return "asks"
    if func in _VIEWS:
        return "views"
    if func in _DRAWS or (name in _GUARDED and func.__module__ == "transformers.initialization"):
        return "draws"
    if func in _STAND_INS:
        return "computes"
    return "writes" if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) else None


_skips = ContextVar("_skips", default=False)


def skips_init() -> bool:
    """Whether what is constructed here and now will be loaded over, or has no values anyway."""
    return _skips.get()


def without_init(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the module that ``make`` constructs, its parameters allocated and not initialised.

    What random numbers are drawn all the same are given back.
    """
    with _skipping():
        return make()


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the module that ``make`` constructs, parameters on the meta device and buffers real."""
    with _skipping(), _meta_parameters():
        return make()


@contextmanager
def _skipping() -> Iterator[None]:
    token = _skips.set(True)
    try:
        with torch.random.fork_rng(devices=[]), _SkipInit():
            yield
    finally:
        _skips.reset(token)


@contextmanager
def _meta_parameters() -> Iterator[None]:
    thread = threading.get_ident()
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by id, and kept alive so that ids last

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != thread or parameter.device.type == "meta":
            return None
        if id(parameter) not in made:  # one that is registered twice stays one
            ghost = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            made[id(parameter)] = parameter, ghost
        return made[id(parameter)][1]

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()
