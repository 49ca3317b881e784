"""Walk over a module's tensors, and say how they may be exchanged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# Where the names are all there, these only pass tensors on, and so does the hook, which renames older keys.
_PLAIN_LOADS = (nn.Module._load_from_state_dict, _NormBase._load_from_state_dict)
_WEIGHT_NORM = "torch.nn.utils.parametrizations"


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of the state dict, without modules' extra state."""
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if not name.endswith("_extra_state")}


def set_tensor(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a parameter or buffer in the place of the one of that name."""
    owner, _, local = name.rpartition(".")
    setattr(model.get_submodule(owner), local, value)


def takes_data(model: nn.Module, tensors: Iterable[torch.Tensor]) -> bool:
    """Whether the tensors of a model can be given other data without its modules' own loading code.

    Not on the meta device, which nothing leaves, and not where a module does more than pass tensors on.
    """
    are_real = all(type(value) in (nn.Parameter, torch.Tensor) and not value.is_meta for value in tensors)
    is_own = type(model).load_state_dict is not nn.Module.load_state_dict
    return are_real and not is_own and all(map(_loads_plainly, model.modules()))


def left_on_meta(model: nn.Module) -> Iterator[str]:
    """Yield names of tensors without values, buffers that are not saved and plain attributes among them."""
    for prefix, module in model.named_modules():
        for own in (module._parameters, module._buffers, module.__dict__):
            for local, value in own.items():
                if getattr(value, "is_meta", False) is True:
                    yield f"{prefix}.{local}" if prefix else local


def _loads_plainly(module: nn.Module) -> bool:
    hooks: list[Any] = [*module._load_state_dict_pre_hooks.values()]
    return (
        getattr(module._load_from_state_dict, "__func__", None) in _PLAIN_LOADS
        and not module._load_state_dict_post_hooks
        and all(getattr(hook.hook, "__module__", "") == _WEIGHT_NORM for hook in hooks)
    )
