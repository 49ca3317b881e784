"""Construct a module without paying for an initialisation that loading would overwrite."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

_FILLERS = frozenset(
    getattr(torch.Tensor, name)
    for name in (
        *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_"),
        "erfinv_",  # how trunc_normal_ goes on after uniform_
    )
) | frozenset(
    (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)
)  # fmt: skip


class _SkipInit(TorchFunctionMode):
    """Leave parameters unfilled where random numbers would fill them.

    Constants are set as ever, and so are buffers, since some are computed from constants and not stored.
    A mode is local to its thread, which a patch of ``torch.nn.init`` would not be. Memory that is
    never touched costs nothing, and neither does the random generator.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        target = args[0] if args else (kwargs or {}).get("tensor")
        if func in _FILLERS and isinstance(target, nn.Parameter):
            return target
        return func(*args, **(kwargs or {}))


def without_init(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the module that ``make`` constructs, its parameters allocated and not initialised.

    What random numbers are drawn all the same, say through ``.data``, are given back.
    """
    with torch.random.fork_rng(devices=[]), _SkipInit():
        return make()


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the module that ``make`` constructs, parameters on the meta device and buffers real."""
    with torch.random.fork_rng(devices=[]), _SkipInit(), _meta_parameters():
        return make()


@contextmanager
def _meta_parameters() -> Iterator[None]:
    thread = threading.get_ident()
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by id, and kept alive so that ids last

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
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
