"""Hold a module's behaviour against ``train()``: the mechanism.

A held module gets a subclass of its own class, one per class, that overrides ``train()``; what is
held is instance data. Modules are never replaced or wrapped, so checkpoints, ``isinstance``, class
names and signatures stay as they are. ``torch`` swaps classes in the same way in ``parametrize`` and
``fully_shard``; the rules learnt there are kept:

- one cached subclass per class, so that ``torch.compile`` guards on one type for equal blocks;
- the subclass bears its base's names, since Hub libraries and FX look at them;
- ``__reduce_ex__`` names the base, so that pickles load in a fresh process;
- the base's ``train()`` runs with the mode that was *requested*, so that adapters injected below
  later follow the caller, and only then is the flag put back;
- ``torch``'s parametrized modules and graph modules keep their class, which torch itself rewrites, and
  so do classes that refuse to be subclassed; they get an instance attribute instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from bundles.freezing.behaviour.cut import CALLED_WITH_GRAD, call_without_graph, ways_in
from bundles.freezing.sharded import class_below

_HOLD = "_bundles_hold"
_REQUESTED = "_bundles_requested"
_BEFORE = "_bundles_requires_grad"
_FORWARD = "_bundles_forward"
_TRAIN = "_bundles_train"
_KNOBS = "_bundles_knobs"


@dataclass(frozen=True)
class Hold:
    """What is held of a module.

    Attributes:
        training: the value of the flag; ``None`` follows ``train()``.
        cut: whether forward records no graph.
        knobs: other attributes, with the values that they have until the release.
    """

    training: bool | None
    cut: bool
    knobs: tuple[tuple[str, float | bool], ...] = ()


def hold(module: nn.Module, what: Hold) -> None:
    """Hold a module until :func:`release`."""
    if is_held(module):
        release(module)
    state = module.__dict__
    state[_HOLD] = what
    state[_REQUESTED] = module.training
    keeps_class = parametrize.is_parametrized(module) or isinstance(module, GraphModule)
    cls = None if keeps_class else _held_class(type(module), what.cut)
    if cls is None or "train" in state:
        # functools.partial, because deepcopy rebinds it to the copy and pickle accepts it.
        state[_TRAIN] = state.get("train")
        state["train"] = functools.partial(_train_instance, module)
    if what.cut and (cls is None or "forward" in state):
        _cut_instance(module)
    if cls is not None:
        module.__class__ = cls
    state[_KNOBS] = {name: state[name] for name, _ in what.knobs if name in state}
    state.update((name, value) for name, value in what.knobs if name in state)
    if what.training is not None:
        _tell(module, what.training)


def release(module: nn.Module) -> None:
    """Undo :func:`hold`; the module is left in the mode last requested of it."""
    state = module.__dict__
    what = state.pop(_HOLD, None)
    if what is None:
        return
    for name, saved in (("train", _TRAIN), ("forward", _FORWARD)):
        if saved in state:
            state.pop(name, None)
            if (own := state.pop(saved)) is not None:
                state[name] = own
    if "_bundles_base" in vars(type(module)):  # not where FSDP or parametrize put a class on top
        module.__class__ = vars(type(module))["_bundles_base"]
    state.update(state.pop(_KNOBS, {}))
    state.pop(CALLED_WITH_GRAD, None)
    requested = state.pop(_REQUESTED)
    if what.training is not None:
        _tell(module, requested)
    else:
        module.training = requested


def held(module: nn.Module) -> Hold | None:
    """Return what is held of a module, or ``None``."""
    found: Hold | None = module.__dict__.get(_HOLD)
    return found


def is_held(module: nn.Module) -> bool:
    """Whether the module is held."""
    return _HOLD in module.__dict__


def requested(module: nn.Module) -> bool:
    """Return the mode last requested of a module, which one that is held need not be in."""
    mode: bool = module.__dict__.get(_REQUESTED, module.training)
    return mode


def base_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that somebody wrote: the one below those of holds and of ``fully_shard``."""
    cls = type(module)
    while (below := vars(cls).get("_bundles_base") or class_below(cls)) is not None:
        cls = below
    return cls


def knobs_before(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that are held beside the flag, with the values that a release gives back."""
    return dict(module.__dict__.get(_KNOBS, {}))


def hold_anew(module: nn.Module) -> None:
    """Hold a module of another class again that was given the ``__dict__`` of a held one."""
    what = held(module)
    if what is not None and not hasattr(type(module), "_bundles_base"):  # FSDP and parametrize inherit it
        hold(module, what)


def remember_requires_grad(module: nn.Module, local: str, value: bool) -> None:
    """Note what ``requires_grad`` was, for the undo; the first note stays."""
    module.__dict__[_BEFORE] = {local: value, **module.__dict__.get(_BEFORE, {})}


def set_requires_grad(parameter: nn.Parameter, value: bool) -> None:
    """Set ``requires_grad``; a frozen parameter loses its ``.grad``, which optimizers would apply."""
    parameter.requires_grad_(value)
    if not value:
        parameter.grad = None


def own_parameter(module: nn.Module, local: str) -> nn.Parameter | None:
    """Return a parameter of the module itself, or ``None`` if it has none of that name now."""
    return module._parameters[local] if local in module._parameters else None  # noqa: SIM401 - scripted have no get


def requires_grad_before(module: nn.Module, local: str, parameter: nn.Parameter) -> bool:
    """Return what ``requires_grad`` was before this package touched it."""
    was: bool = module.__dict__.get(_BEFORE, {}).get(local, parameter.requires_grad)
    return was


def grads_and_before(module: nn.Module) -> dict[str, tuple[bool, bool]]:
    """Return, for each own parameter that this package touched, ``requires_grad`` before and now."""
    return {
        local: (before, parameter.requires_grad)
        for local, before in module.__dict__.get(_BEFORE, {}).items()
        if (parameter := own_parameter(module, local)) is not None
    }


def noted_requires_grad(module: nn.Module, local: str) -> bool | None:
    """Return what was noted under a name, whether the module has that parameter now or not."""
    noted: bool | None = module.__dict__.get(_BEFORE, {}).get(local)
    return noted


def all_noted(module: nn.Module) -> dict[str, bool]:
    """Return every note of a module's own parameters, also of those that are elsewhere now."""
    return dict(module.__dict__.get(_BEFORE, {}))


def forget_requires_grad(module: nn.Module) -> dict[str, bool]:
    """Take off all that was noted of a module's own parameters, and return it by local name."""
    noted: dict[str, bool] = module.__dict__.pop(_BEFORE, {})
    return noted


def _put_flag(module: nn.Module) -> None:
    what = held(module)
    if what is not None and what.training is not None:
        module.training = what.training


def _tell(module: nn.Module, mode: bool) -> None:
    """Set a module's flag, and what a ``train()`` of its own keeps beside it; children are not told."""
    state, cls = module.__dict__, base_class(module)
    own = state.get(_TRAIN if _TRAIN in state else "train")
    if own is not None or cls.train is not nn.Module.train:
        state["children"] = lambda: iter(())  # over which nn.Module.train would recurse
        try:
            own(mode) if own is not None else cls.train(module, mode)
        finally:
            del state["children"]
    module.training = mode


# --- the class form -------------------------------------------------------------------------------


_held_classes: dict[tuple[type[nn.Module], bool], type[nn.Module] | None] = {}


def _held_class(base: type[nn.Module], cut: bool) -> type[nn.Module] | None:
    """Return the one subclass that holds modules of a class; ``None`` if it cannot be subclassed."""
    if (base, cut) not in _held_classes:
        try:
            made = _make_held_class(base, cut)
        except Exception:  # noqa: BLE001 - a base's own __init_subclass__ may refuse in any way
            made = None
        _held_classes.setdefault((base, cut), made)
    return _held_classes[base, cut]


def _make_held_class(base: type[nn.Module], cut: bool) -> type[nn.Module]:
    def train(self: nn.Module, mode: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
        _train(self, base.train, mode, *args, **kwargs)
        return self

    def reduce_ex(self: nn.Module, protocol: Any) -> str | tuple[Any, ...]:
        reduced = base.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):  # a name to import: a base that pickles by reference
            return reduced
        make, args, *rest = reduced
        named = tuple(base if arg is type(self) else arg for arg in args)
        return (_rebuild, (make, named, cut), *rest)

    members: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce_ex,
        "_bundles_base": base,
        "train": functools.wraps(base.train)(train),
    }
    if cut:
        members |= {name: _cut_method(method) for name, method in ways_in(base)}
    made: type[nn.Module] = type(base)(base.__name__, (base,), members)  # type: ignore[misc]
    return made


def _rebuild(make: Callable[..., nn.Module], args: tuple[Any, ...], cut: bool) -> nn.Module:
    """Unpickle a held module: as its base class, which can be imported, then swapped again."""
    from bundles.freezing.replaced import watch_replacements  # which no freeze may have called here

    watch_replacements()
    module = make(*args)
    module.__class__ = _held_class(type(module), cut) or type(module)
    return module


def _cut_method(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def cut_method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        what = held(self)
        if what is None or not what.cut:
            return method(self, *args, **kwargs)
        return call_without_graph(self, functools.partial(method, self), *args, **kwargs)

    return cut_method


def _train(module: nn.Module, train: Callable[..., Any], mode: bool, *args: Any, **kwargs: Any) -> None:
    """Pass a request on, and put the held flag back."""
    what = held(module)
    if what is None or what.training is None or train is nn.Module.train:
        train(module, mode, *args, **kwargs)
    else:  # an override may keep state of its own by the mode, so it is told the one that holds
        train(module, what.training, *args, **kwargs)
        for child in module.children():
            child.train(mode)
    if what is not None:
        module.__dict__[_REQUESTED] = mode
        _put_flag(module)


# --- the instance form ----------------------------------------------------------------------------


def _cut_instance(module: nn.Module) -> None:
    signature = inspect.signature(module.forward)
    module.__dict__[_FORWARD] = module.__dict__.get("forward")
    cut = functools.partial(_forward_instance, module)
    vars(cut)["__signature__"] = signature
    module.__dict__["forward"] = cut


def _train_instance(module: nn.Module, mode: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
    own = module.__dict__.get(_TRAIN)
    if own is None:
        _train(module, base_class(module).train, mode, *args, **kwargs)
    else:
        _train(module, lambda _, *rest, **named: own(*rest, **named), mode, *args, **kwargs)
    return module


def _forward_instance(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    own = module.__dict__[_FORWARD] or functools.partial(type(module).forward, module)
    return call_without_graph(module, own, *args, **kwargs)
