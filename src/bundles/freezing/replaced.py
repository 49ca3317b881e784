"""What is put in the place of a frozen module, and has its very tensors, is frozen as that was.

``SyncBatchNorm.convert_sync_batchnorm`` makes such modules, also where a trainer calls it after the freeze,
and Lightning when it reverts that. What has them under other names is frozen under those.
"""

from __future__ import annotations

from functools import cache

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from bundles.freezing.behaviour.hold import hold_anew, is_held, knobs_before, requested
from bundles.freezing.marks import Marks, is_marked, own_plan, take_off


@cache
def watch_replacements() -> None:
    """Hand on, from now on; only torch's hook for modules that get a name sees it, one for all modules."""
    register_module_module_registration_hook(_hand_on)


def is_heir(module: nn.Module, old: nn.Module) -> bool:
    """Whether a module has tensors of its own, and all of them are the other's."""
    its, those = (
        {id(tensor) for tensor in (*each._parameters.values(), *each._buffers.values()) if tensor is not None}
        for each in (module, old)
    )
    return bool(its) and its <= those


def pass_on(old: nn.Module, module: nn.Module) -> None:
    """Make of an heir what plans have made of the other, but for its mode."""
    now = {id(parameter): local for local, parameter in module._parameters.items()}
    names = {local: now.get(id(each)) for local, each in old._parameters.items() if each is not None}
    for name, value in knobs_before(old).items():  # what an heir was built with is what was held
        if vars(module).get(name) == vars(old)[name]:
            vars(module)[name] = value
    Marks.of(old).renamed(names).put(module)


def _hand_on(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    if module is not None:
        hold_anew(module)
    siblings = vars(parent).get("_modules")
    old = siblings.get(name) if isinstance(siblings, dict) else None  # scripted modules have no such
    if old is None or module is None or old is module or is_marked(old) == is_marked(module):
        return
    if not is_heir(module, old):
        return
    if is_marked(old):
        if is_held(old):
            module.training = requested(old)  # what a thaw goes back to
        pass_on(old, module)
    elif own_plan(module) is None:  # it was replaced, and is put back after a thaw of the model
        take_off(module)
