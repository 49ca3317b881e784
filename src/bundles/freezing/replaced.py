"""What is put in the place of a frozen module, and has its very tensors, is frozen as that was.

``SyncBatchNorm.convert_sync_batchnorm`` makes such modules, also where a trainer calls it after the freeze,
and Lightning when it reverts that.
"""

from __future__ import annotations

from functools import cache

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from bundles.freezing.behaviour.hold import is_held, requested
from bundles.freezing.marks import Marks, is_marked


@cache
def watch_replacements() -> None:
    """Hand on, from now on; only torch's hook for modules that get a name sees it, one for all modules."""
    register_module_module_registration_hook(_hand_on)


def _hand_on(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    siblings = vars(parent).get("_modules")
    old = siblings.get(name) if isinstance(siblings, dict) else None  # scripted modules have no such
    if old is None or module is None or old is module:
        return
    if is_marked(old) and not is_marked(module) and _is_heir(module, old):
        if is_held(old):
            module.training = requested(old)  # what a thaw goes back to
        Marks.of(old).put(module)


def _is_heir(module: nn.Module, old: nn.Module) -> bool:
    """Whether a module has tensors of its own, and all of them are the other's."""
    its, those = (
        {id(tensor) for tensor in (*each._parameters.values(), *each._buffers.values()) if tensor is not None}
        for each in (module, old)
    )
    return bool(its) and its <= those
