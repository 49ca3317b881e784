"""Freeze, unfreeze, and the forms that people call: function, context manager and mixin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from torch import nn

from bundles.errors import (
    FreezeArgumentError,
    FreezeWithoutWeightsWarning,
    NothingTrainableWarning,
    warn,
)
from bundles.freezing.apply import apply, capture, refresh_plans, reinstate, undo
from bundles.freezing.behaviour.checkpointing import check_checkpointing
from bundles.freezing.behaviour.describe import describe, owned_parameters
from bundles.freezing.behaviour.hold import grads_and_before
from bundles.freezing.derive import layer_groups, unwrap
from bundles.freezing.marks import applied_plans, own_plan
from bundles.freezing.optimizer import ddp, optimizers
from bundles.freezing.optimizer.optimizers import Optimizers, as_optimizers
from bundles.spec.cut import check_cut
from bundles.spec.groups import LayerGroups
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import All, Encoder, ExceptLast, FreezePolicy, parse_policy
from bundles.spec.provenance import provenance
from bundles.spec.resolve import choose, plan_names, resolve
from bundles.spec.selection import Selection

M = TypeVar("M", bound=nn.Module)


def freeze(
    model: M,
    which: str | FreezePolicy = "all",
    mode: str | FreezeMode = "eval",
    *,
    groups: LayerGroups | Mapping[str, Any] | None = None,
    optimizer: Optimizers | None = None,
) -> M:
    """Freeze part of any model in place, so that it stays frozen after ``model.train()``.

    Parameters that the policy does not select train afterwards, whatever an earlier call froze; those
    that did not train before the first call stay as they are. Keys of ``state_dict()``, class names,
    ``isinstance`` and forward signatures do not change.

    Args:
        model: any ``nn.Module``.
        which: policy, or its string: ``"encoder"``, ``"last:2"``, ``"match:encoder.*"``, ...
        mode: preset (``"eval"``, ``"features"``, ``"regularized"``, ``"frontend"``, ``"weights"``,
            ``"mc"``) or ``FreezeMode``.
        groups: the layer groups, if not those that :func:`layer_groups` finds.
        optimizer: an optimizer over the model, or a list of them, out of which frozen parameters are
            taken with their momentum; what an earlier call froze and this one does not returns.

    Returns:
        The model that was given.

    Raises:
        FreezeArgumentError: an argument is not one of those accepted, or the model is wrapped in
            ``DistributedDataParallel`` in a way that cannot follow.
        NothingSelectedError: the policy selects no parameter.
        InexpressibleModeError: the mode needs two values of one flag, or cuts the gradient of something
            that trains inside a frozen part.
        FreezeError: a reentrant gradient checkpoint would lose gradients after a frozen prefix.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    >>> model = freeze(model, "encoder").train()
    >>> model[1].training, [name for name, p in model.named_parameters() if p.requires_grad]
    (False, ['2.weight', '2.bias'])
    """
    put(model, plan_for(model, parse_policy(which), parse_mode(mode), groups=groups), optimizer=optimizer)
    return model


def unfreeze(model: M, which: str | FreezePolicy = "all", *, optimizer: Optimizers | None = None) -> M:
    """Give back exactly what :func:`freeze` changed; gradients it cleared stay cleared.

    Args:
        model: a model that is frozen, or that has frozen parts; others are left alone.
        which: with a policy other than ``"all"``, what it selects thaws and the rest stays frozen.
            ``"last:2"`` is refused: it selects all *but* the last two blocks.
        optimizer: an optimizer, or a list of them, to which thawed parameters are added, by identity:
            where they were before they were frozen, else to the first, in a new group, or in its first
            group where a learning-rate scheduler has counted the groups.

    Raises:
        FreezeArgumentError, NothingSelectedError: as :func:`freeze`.

    >>> import torch
    >>> model = freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)), "encoder")
    >>> all(p.requires_grad for p in unfreeze(model).parameters())
    True
    """
    inner, policy = unwrap(model), parse_policy(which)
    if isinstance(policy, ExceptLast):
        raise FreezeArgumentError(
            f"unfreeze({which!r}) would thaw all but the last {policy.n} blocks: to train the last "
            f"{policy.n}, type bundles.freeze(model, 'last:{policy.n}'); to thaw the first, 'first:N'."
        )
    refresh_plans(inner)
    given, before = as_optimizers(optimizer), frozen_parameters(inner)
    chosen = None if policy == All() else _select(inner, policy)
    ddp.guard(model, trained=[name for name in before if chosen is None or name in chosen])
    if chosen is None:
        undo(inner)
    else:
        _thaw(inner, policy, chosen)
    optimizers.update(given, before.values(), frozen_parameters(inner).values())
    return model


@contextmanager
def frozen(
    model: M,
    which: str | FreezePolicy = "all",
    mode: str | FreezeMode = "eval",
    *,
    groups: LayerGroups | Mapping[str, Any] | None = None,
) -> Iterator[M]:
    """Freeze within a ``with`` block, then put back what was there before, an earlier freeze included.

    Unlike :func:`freeze` it never warns that nothing is left to train: inside the block that is meant.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> with frozen(layer):
    ...     layer.weight.requires_grad
    False
    >>> layer.weight.requires_grad
    True
    """
    inner = unwrap(model)
    plan = plan_for(model, parse_policy(which), parse_mode(mode), groups=groups)
    ddp.guard(model, trained=plan.trained)
    earlier = capture(inner)
    apply(inner, plan)
    try:
        yield model
    finally:
        reinstate(inner, earlier)


class FreezeMixin:
    """Gives an ``nn.Module`` class the methods ``freeze()`` and ``unfreeze()``.

    >>> import torch
    >>> class Net(FreezeMixin, torch.nn.Sequential): ...
    >>> Net(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)).freeze("encoder")[0].weight.requires_grad
    False
    """

    def freeze(
        self,
        which: str | FreezePolicy = "all",
        mode: str | FreezeMode = "eval",
        *,
        groups: LayerGroups | Mapping[str, Any] | None = None,
        optimizer: Optimizers | None = None,
    ) -> Self:
        """As :func:`bundles.freeze`."""
        freeze(_module(self), which, mode, groups=groups, optimizer=optimizer)
        return self

    def unfreeze(self, which: str | FreezePolicy = "all", *, optimizer: Optimizers | None = None) -> Self:
        """As :func:`bundles.unfreeze`."""
        unfreeze(_module(self), which, optimizer=optimizer)
        return self


def freeze_plan(model: nn.Module) -> FreezePlan | None:
    """Return the plan that was put on the model, or ``None``.

    >>> import torch
    >>> freeze_plan(torch.nn.Linear(2, 2)) is None
    True
    """
    return own_plan(unwrap(model))


def plan_for(
    model: nn.Module,
    policy: FreezePolicy,
    mode: FreezeMode,
    *,
    groups: LayerGroups | Mapping[str, Any] | None = None,
    loaded: Iterable[str] = (),
) -> FreezePlan:
    """Return what a freeze would do to a model; the model is not changed.

    Args:
        model: any module.
        policy: which parameters.
        mode: how.
        groups: as :func:`freeze`.
        loaded: parameters that are about to be loaded, beside those known to have been.

    Raises:
        FreezeArgumentError, NothingSelectedError, InexpressibleModeError: as :func:`freeze`.
    """
    inner = unwrap(model)
    refresh_plans(inner)
    known = [*_known_loaded(inner), *loaded]
    plan = resolve(policy, mode, describe(inner), layer_groups(inner, groups), known)
    check_checkpointing(inner, plan)
    return plan


def put(model: nn.Module, plan: FreezePlan, *, optimizer: Optimizers | None = None) -> None:
    """Put a plan on a model, keep the optimizers right, and warn where that is not what people want.

    Raises:
        FreezeArgumentError: DDP around the model cannot follow, or ``optimizer`` is none.
        FreezeError: the plan was made for another model.
    """
    inner, given = unwrap(model), as_optimizers(optimizer)
    ddp.guard_plan(model, plan)
    before = frozen_parameters(inner) if given else {}
    apply(inner, plan)
    if given:
        optimizers.update(given, before.values(), frozen_parameters(inner).values())
    _warn_about(inner, plan)


def _warn_about(model: nn.Module, plan: FreezePlan) -> None:
    """Warn where a plan freezes what was never trained, or leaves nothing to train."""
    origins = provenance(model)
    fresh = {name for name in (*plan.frozen, *plan.masked) if origins.get(name, "") is None}
    if fresh:
        groups = dict.fromkeys(tensor.group for tensor in plan.tensors if tensor.name in fresh)
        warn(
            f"Freezing {len(fresh)} tensors that were never loaded from pretrained weights, in "
            f"{', '.join(groups)}: load them first, or freeze less.",
            FreezeWithoutWeightsWarning,
        )
    if plan.frozen and not plan.trained and plan.mode.expects_training:
        warn(f"Nothing is left to train: {_way_out(model, plan)}", NothingTrainableWarning)


def _way_out(model: nn.Module, plan: FreezePlan) -> str:
    """What to do where nothing is left to train: a head may be frozen because it is tied."""
    roles = {group.name: group.kind == "head" for group in plan.groups}
    heads = {tensor.name for tensor in plan.tensors if roles[tensor.group]}
    for row in describe(model).parameters:
        if plan.policy == repr(Encoder()) and 0 < len(heads.intersection(row.tied)) < len(row.tied):
            return (
                f"{' and '.join(row.tied)} are one tensor, frozen under every name: freeze less, as in "
                f"'last:1', or say that this is meant (mode 'features')."
            )
    less = "last:1" if plan.policy == repr(Encoder()) else "encoder"
    return (
        f"give the model a head (get_model(head=...)), freeze less (freeze={less!r}), or say that this is "
        f"meant (mode 'features')."
    )


def _select(model: nn.Module, policy: FreezePolicy) -> Selection:
    return choose(policy, describe(model), layer_groups(model), _known_loaded(model))


def _thaw(model: nn.Module, policy: FreezePolicy, chosen: Selection) -> None:
    """Make each plan in the model a smaller one, without what the policy chose."""
    plans = list(applied_plans(model))
    if not plans and any(grads_and_before(module) for module in model.modules()):
        raise FreezeArgumentError(
            f"The freeze was put on a parent of this {type(model).__name__}: call unfreeze() with a policy "
            f"there, or thaw all of this part without one."
        )
    for name, module, plan in plans:
        thawed = chosen.below(f"{name}." if name else "")
        rest = plan.selection & thawed.outside(tensor.name for tensor in plan.tensors)
        was = f"({plan.policy})" if " " in plan.policy else plan.policy
        table, groups = describe(module), layer_groups(module)
        check_cut(plan.mode, table, rest.whole, groups)
        smaller = plan_names(rest.whole, f"{was} & {~policy!r}", plan.mode, table, groups, rest.parts)
        if rest:
            apply(module, smaller)
        else:
            undo(module)


def _known_loaded(model: nn.Module) -> list[str]:
    return [name for name, origin in provenance(model).items() if origin is not None]


def frozen_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a freeze, also one put on a parent, keeps from training, under every name."""
    found = {}
    for name, module, local, parameter in owned_parameters(model):
        before, now = grads_and_before(module).get(local, (False, False))
        if before and not now:
            found[name] = parameter
    return found


def _module(value: object) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise TypeError(f"FreezeMixin belongs on an nn.Module class, not on {type(value).__name__}.")
    return value
