"""Measure how important the parts of a model are, to choose which of them to freeze or train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bundles.errors import FreezeArgumentError
from bundles.freezing.derive import layer_groups, unwrap
from bundles.freezing.importance.probe import Loss, Parts, Probe, Table, limited, wide
from bundles.freezing.importance.relevance import unit_relevance
from bundles.freezing.importance.untouched import untouched
from bundles.spec.groups import LayerGroups
from bundles.spec.scores import Per, Scores
from bundles.spec.values import shown


def importance(
    model: nn.Module,
    data: Iterable[Any] = (),
    *,
    method: str = "rgn",
    per: Per = "tensor",
    loss: Loss | None = None,
    batches: int | None = None,
    groups: LayerGroups | Mapping[str, Any] | None = None,
    training: bool = False,
) -> Scores:
    """Score every parameter that could train, whether :func:`freeze` froze it or not.

    With g the gradient of the loss of a batch, w the parameter, and norms and means taken over the
    elements of what is scored:

    ========== ================================================================================
    method     score
    ========== ================================================================================
    grad_norm  mean over batches of ‖g‖
    rgn        mean over batches of ‖g‖ / ‖w‖, the relative gradient norm; 0 where w is all zero
               (Lee et al. 2022, https://arxiv.org/abs/2210.11466)
    snr        mean over elements of ``|mean of g| / standard deviation of g``, both over batches (at
               least 2, better 10); elements whose g never varies count 0 (after the same paper)
    fisher     mean over elements and *examples* of g², g being the gradient of a single example at
               its own target: the diagonal of the empirical Fisher information; a backward for each
               example
    magnitude  mean over elements of ``|w|``; needs no data
    lrp        mean over examples of the units' absolute relevance, by layer-wise relevance propagation
               (epsilon rule in linear, z+ in convolutional layers) from the output of the target class;
               a layer's weight and bias get the same (Bach et al. 2015,
               https://doi.org/10.1371/journal.pone.0130140; for freezing: Ede et al. 2022,
               https://arxiv.org/abs/2205.01929); linear, convolutional and batch-norm layers only;
               needs zennit
    ========== ================================================================================

    The model is not changed: plans, flags, ``.grad``, buffers and random states are the same bit for bit
    afterwards, also after an exception.

    Args:
        model: any module; ``torch.compile``, DDP and EMA wrappers are looked through. Score it before
            FSDP shards it.
        data: batches, each ``(inputs, targets)`` with integer targets for cross-entropy, else for the
            mean squared error; or a mapping with ``model(**batch).loss``; or anything, with ``loss=``.
            Dimension 0 of every tensor counts the examples.
        method: one of the table.
        per: ``"tensor"``, ``"group"`` (of :func:`layer_groups`), or ``"unit"``: an index of dimension 0.
        loss: model and batch -> the loss, averaged over the batch; for ``"lrp"`` the sum of the outputs
            that are to be explained.
        batches: use only so many.
        groups: the layer groups, if not those that :func:`layer_groups` finds.
        training: measure in ``train()`` mode; else in ``eval()``, where nothing is random.

    Returns:
        The scores, for :class:`TopScores`, :func:`param_groups` or a file.

    Raises:
        FreezeArgumentError: an argument is not one of those, there is no batch, no loss can be had, or
            a score is not finite.
        MissingDependencyError: ``"lrp"`` without zennit.

    >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    >>> with torch.no_grad():
    ...     _ = [model[index].weight.copy_(torch.eye(2) * scale) for index, scale in ((0, 2.0), (2, 0.5))]
    >>> print(importance(model, data))
    rgn per tensor, highest of 2
    2.weight  0.7607
    0.weight  0.03362
    """
    score = _METHODS.get(method) if isinstance(method, str) else None
    if score is None or per not in get_args(Per):
        raise FreezeArgumentError(
            f"method={shown(method)}, per={shown(per)}: give a method of {', '.join(_METHODS)} and a per of "
            f"{', '.join(get_args(Per))}."
        )
    inner, chosen = unwrap(model), limited(data, batches)
    _check_shapes(inner)
    group_of = {name: group.name for group in layer_groups(inner, groups) for name in group.parameters}
    with untouched(inner, training=training):
        table = score(Probe(inner, _scored(inner), chosen, loss, Parts(per, group_of)))
    return Scores(method, per, {name: _plain(scores, per) for name, scores in table.items()})


def _check_shapes(model: nn.Module) -> None:
    if lazy := [name for name, parameter in model.named_parameters() if is_lazy(parameter)]:
        raise FreezeArgumentError(
            f"The parameters {', '.join(lazy)} have no shape yet: run one batch through the model first."
        )
    if meta := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise FreezeArgumentError(
            f"{len(meta)} parameters are on the meta device and have no values, {meta[0]} first: load the "
            f"weights first."
        )


def _scored(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise FreezeArgumentError(
            "No parameter of the model could train: those that were frozen by hand need "
            "model.requires_grad_(True), those frozen by bundles nothing."
        )
    return parameters


def _grad_norm(probe: Probe) -> Table:
    return _mean(probe.parts.norms(probe.gradients(batch)) for batch in probe.batches())


def _rgn(probe: Probe) -> Table:
    weights = probe.parts.norms(probe.parameters)
    return {key: _ratio(norm, weights[key]) for key, norm in _grad_norm(probe).items()}


def _snr(probe: Probe) -> Table:
    """Welford's recurrence: a gradient that never varies has a deviation of exactly zero."""
    mean = {name: torch.zeros_like(wide(parameter)) for name, parameter in probe.parameters.items()}
    spread = {name: torch.zeros_like(values) for name, values in mean.items()}
    count = 0
    for count, batch in enumerate(probe.batches(), 1):
        for name, gradient in probe.gradients(batch).items():
            change = gradient - mean[name]
            mean[name] += change / count
            spread[name] += change * (gradient - mean[name])
    if count < 2:
        raise FreezeArgumentError("method='snr' compares batches and was given one: give at least 2.")
    return probe.parts.means(
        {name: _ratio(mean[name].abs(), (spread[name] / count).sqrt()) for name in probe.parameters}
    )


def _fisher(probe: Probe) -> Table:
    return _mean(
        probe.parts.means({name: gradient.square() for name, gradient in probe.gradients(example).items()})
        for example in probe.examples()
    )


def _magnitude(probe: Probe) -> Table:
    return probe.parts.means({name: wide(parameter).abs() for name, parameter in probe.parameters.items()})


def _lrp(probe: Probe) -> Table:
    return probe.parts.means(unit_relevance(probe))


_METHODS: dict[str, Callable[[Probe], Table]] = {
    "grad_norm": _grad_norm,
    "rgn": _rgn,
    "snr": _snr,
    "fisher": _fisher,
    "magnitude": _magnitude,
    "lrp": _lrp,
}


def _mean(tables: Iterable[Table]) -> Table:
    total: Table = {}
    count = 0
    for table in tables:
        total = {key: values + total.get(key, 0) for key, values in table.items()}
        count += 1
    return {key: values / count for key, values in total.items()}


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below == 0, 0.0, above / below)


def _plain(scores: Tensor, per: Per) -> float | tuple[float, ...]:
    return tuple(scores.tolist()) if per == "unit" else float(scores)
