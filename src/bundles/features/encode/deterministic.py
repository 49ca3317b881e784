"""Whether a layer is the same each time, by the plan and the table of modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from bundles.errors import NotDeterministicError
from bundles.features.encode.layers import Anatomy, Layer
from bundles.freezing.derive import inside
from bundles.freezing.marks import applied_plans
from bundles.spec.features import OUTPUT
from bundles.spec.mode import PRESETS, FreezeMode
from bundles.spec.table import Effect, lineage

_WHAT: dict[Effect, str] = {
    "noise": "draws noise",
    "stats": "lets statistics move",
    "structure": "leaves layers or time steps out at random",
}


def check_deterministic(
    model: nn.Module, layers: Sequence[int | str] | None = None, batch_size: int = 1
) -> None:
    """Raise where features that are stored now would not be those that the model computes later.

    A model on which no plan was put is taken as it is in ``eval()``; of one that is frozen in part, what
    the layers are computed with has to be frozen. What only shows when the model is called, see
    :class:`bundles.features.encode.encoder.Encoder`.

    Args:
        model: any module.
        layers: as :func:`bundles.features.encode.layers.find_layers`.
        batch_size: how many inputs are to share a call.

    Raises:
        NotDeterministicError: the mode makes the layers random or lets them move (``"mc"``,
            ``"regularized"``, ...), a module draws dropout in ``eval()``, too, parameters in front of a layer
            train, or the input is normalised over a whole batch; ``modules`` names those that are why.
        FreezeArgumentError: there is no such layer.

    >>> import bundles
    >>> check_deterministic(bundles.CREPE_TINY.get_model(freeze=True))
    >>> try:
    ...     check_deterministic(bundles.WAV2VEC2_NANO_DIGITS.get_model(freeze=True, freeze_mode="mc"))
    ... except NotDeterministicError as error:
    ...     error.modules[0]
    'encoder.feature_projection.dropout'
    """
    anatomy = Anatomy(inside(model))
    for layer in anatomy.layers(layers):
        _raise_first(_always_random(anatomy, layer))
        _raise_first(_by_mode(anatomy, layer))
        _raise_first(_training(anatomy, layer))
    if batch_size > 1:
        _raise_first(_over_batches(anatomy))


def prefix(model: nn.Module) -> Layer:
    """Return the deepest layer up to which everything is frozen whole and stays the same in training.

    Args:
        model: a frozen model.

    Returns:
        ``"output"``, where the whole encoder is, else the last such block.

    Raises:
        NotDeterministicError: there is none; the message is about the first block.

    >>> import torch, bundles
    >>> net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(5)))
    >>> prefix(bundles.freeze(net, "last:2")).name
    'block.1'
    """
    anatomy = Anatomy(inside(model))
    for name in (OUTPUT, *reversed(anatomy.blocks)):
        layer = anatomy.layer(name)
        problem = next(_changes(anatomy, layer), None)
        if problem is None:
            return layer
    raise problem or NotDeterministicError(
        "Nothing is frozen up to any layer of the model: type bundles.freeze(model, 'encoder')."
    )


def _changes(anatomy: Anatomy, layer: Layer) -> Iterator[NotDeterministicError]:
    """Yield what makes a layer change while the model trains; without a plan nothing is held."""
    yield from _always_random(anatomy, layer)
    yield from _training(anatomy, layer, always=True)
    yield from _by_mode(anatomy, layer, unplanned=PRESETS["weights"])


def _raise_first(problems: Iterator[NotDeterministicError]) -> None:
    for problem in problems:
        raise problem


def _always_random(anatomy: Anatomy, layer: Layer) -> Iterator[NotDeterministicError]:
    for group in anatomy.groups:
        if group.always == "noise" and (layer.name == OUTPUT or group.name in layer.groups):
            names = tuple(name for name in anatomy.modules if group.covers(name))
            yield NotDeterministicError(
                f"{_some(names)} draws dropout at every call, in eval(), too, so that no two computations of "
                f"{layer.name!r} are equal: ask for layers= in front of it.",
                modules=names,
            )


def _by_mode(
    anatomy: Anatomy, layer: Layer, unplanned: FreezeMode | None = None
) -> Iterator[NotDeterministicError]:
    """Yield what the modes of the plans on the model leave to chance, or let move."""
    modes = {name: plan.mode for name, _, plan in applied_plans(anatomy.model)}
    if not modes and unplanned is None:
        return
    found: dict[tuple[str, Effect], list[str]] = {}
    for name in anatomy.computed(layer):
        mode = next((modes[above] for above in lineage(name) if above in modes), PRESETS["weights"])
        for effect in anatomy.effects(name):
            if getattr(mode, effect) not in ("off", "hold"):
                found.setdefault((str(mode), effect), []).append(name)
    for (mode_name, effect), names in found.items():
        yield NotDeterministicError(
            f"The mode {mode_name} {_WHAT[effect]} in {_some(names)}, so that stored features of "
            f"{layer.name!r} would not be those of the next call: freeze with mode 'eval' or 'features', as "
            f"bundles.freeze(model, 'encoder', mode='eval').",
            modules=tuple(names),
        )


def _training(anatomy: Anatomy, layer: Layer, *, always: bool = False) -> Iterator[NotDeterministicError]:
    """Yield which parameters that a layer is computed with train, where a plan says that others do not."""
    if not always and next(applied_plans(anatomy.model), None) is None:
        return
    names = [name for name, p in anatomy.parameters(layer).items() if p.requires_grad]
    if names:
        modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))
        yield NotDeterministicError(
            f"{len(names)} parameters that {layer.name!r} is computed with train, in {_some(modules)}, so "
            f"that stored features would soon be others: freeze them, or ask for layers= in front of them.",
            modules=modules,
        )


def _over_batches(anatomy: Anatomy) -> Iterator[NotDeterministicError]:
    names = tuple(n for n, module in anatomy.modules.items() if getattr(module, "normalize_waveform", False))
    if names:
        yield NotDeterministicError(
            f"{_some(names)} normalises its input over the whole batch, so that features would depend on "
            f"which inputs share one: build it with get_model(normalize='per_utterance'), or pass "
            f"batch_size=1.",
            modules=names,
        )


def _some(names: Sequence[str]) -> str:
    shown = [name or "the model itself" for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
