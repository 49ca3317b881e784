"""Freeze Keras 3 models on the torch backend, by the policies and modes of this library.

Keras keeps the two questions apart: ``layer.trainable`` says which weights train, the ``training`` argument
how a layer behaves, so that ``trainable=False`` alone leaves dropout on in ``fit()``. Here a mode says both:
what is frozen is called with the ``training`` that the mode means, each layer by an override of its own
``call``. Classes, ``get_config()`` and the paths of weights stay as they are.

Copies and pickles of a frozen model are frozen. A file that ``model.save()`` writes is a plain Keras file,
and ``clone_model()`` reads the same config: ``trainable`` is in it; what is held is not. Call :func:`freeze`
after these again, as for every model that is built anew.

A torch module in a ``TorchModuleWrapper`` is frozen as torch modules are, by :func:`bundles.freeze`.

::

    os.environ["KERAS_BACKEND"] = "torch"  # before keras is imported
    bundles.adapters.keras.freeze(model, "encoder")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, callbacks=[bundles.adapters.keras.FreezeCallback()])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bundles.adapters.keras import hold
from bundles.adapters.keras.copies import register
from bundles.adapters.keras.proof import snapshot, verify_frozen
from bundles.adapters.keras.table import describe, groups_of, keras_of, layers_of
from bundles.errors import FreezeArgumentError, InexpressibleModeError, NothingTrainableWarning, warn
from bundles.spec.groups import LayerGroups
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import FreezePolicy, parse_policy
from bundles.spec.resolve import resolve

if TYPE_CHECKING:
    FreezeCallback: Any

__all__ = ["FreezeCallback", "freeze", "freeze_plan", "layer_groups", "snapshot", "unfreeze", "verify_frozen"]


def freeze(
    model: Any,
    which: str | FreezePolicy = "encoder",
    mode: str | FreezeMode = "eval",
    *,
    groups: LayerGroups | Mapping[str, Any] | None = None,
) -> Any:
    """Freeze part of a Keras model in place; call it before ``compile()``.

    Args:
        model: a built model or layer, of Keras layers and ``TorchModuleWrapper``.
        which: policy or its string, as :func:`bundles.freeze`. Weights are named by their layers:
            ``"match:backbone.conv_1"`` is the layer ``conv_1`` of the model ``backbone``.
        mode: preset or ``FreezeMode``.
        groups: the layer groups, if not those that :func:`layer_groups` finds.

    Returns:
        The model that was given.

    Raises:
        FreezeArgumentError: Keras runs on another backend than torch, the model is not built, or the policy
            freezes single elements, which Keras' optimizers would move.
        NothingSelectedError: the policy selects no weight.
        InexpressibleModeError: one ``training`` argument would need two values; statistics are to follow
            in a ``SpectralNormalization``, which writes them into the frozen kernel.
    """
    layers, plan = plan_for(model, which, mode, groups=groups)
    put(model, layers, plan)
    return model


def unfreeze(model: Any) -> Any:
    """Give back exactly what :func:`freeze` changed, and return the model.

    Raises:
        FreezeArgumentError: as :func:`freeze`.
    """
    keras_of(model)
    hold.undo(model)
    return model


def freeze_plan(model: Any) -> FreezePlan | None:
    """Return the plan that :func:`freeze` put on the model, or ``None``."""
    state = hold.state_of(model)
    return None if state is None else state.plan


def layer_groups(model: Any, groups: LayerGroups | Mapping[str, Any] | None = None) -> LayerGroups:
    """Return the ordered partition of a Keras model's weights.

    The head is the last layer with weights; each other one is a block, with the normalizations that follow
    it. Where most of the rest is a model of its own (a backbone), its layers are the blocks.

    Raises:
        FreezeArgumentError: as :func:`freeze`.
    """
    keras_of(model)
    layers = layers_of(model)
    return groups_of(layers, describe(layers, hold.before(model)), _known(model, groups))


def plan_for(
    model: Any,
    which: str | FreezePolicy,
    mode: str | FreezeMode,
    *,
    groups: LayerGroups | Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], FreezePlan]:
    """Return the model's layers and what a freeze would do to them; nothing is changed.

    Raises:
        FreezeArgumentError, NothingSelectedError, InexpressibleModeError: as :func:`freeze`.
    """
    keras = keras_of(model)
    layers = layers_of(model)
    table = describe(layers, hold.before(model))
    plan = resolve(
        parse_policy(which), parse_mode(mode), table, groups_of(layers, table, _known(model, groups))
    )
    if plan.masked:
        raise FreezeArgumentError(
            f"The policy {plan.policy} freezes single elements of {plan.masked[0]}, which the optimizers of "
            f"Keras would move: freeze whole weights."
        )
    _check_spectral(keras, layers, plan)
    return layers, plan


def put(model: Any, layers: Mapping[str, Any], plan: FreezePlan, *, lasting: bool = True) -> None:
    """Put a plan on a model, so that its copies get it, too, and warn where nothing is left to train.

    Raises:
        FreezeArgumentError, InexpressibleModeError: as :func:`freeze`.
    """
    hold.apply(model, layers, plan, lasting=lasting)
    register()
    if plan.frozen and not plan.trained and plan.mode.expects_training:
        warn(
            "Nothing is left to train: freeze less, as in 'last:1', or say that this is meant "
            "(mode 'features').",
            NothingTrainableWarning,
        )


def _known(
    model: Any, groups: LayerGroups | Mapping[str, Any] | None
) -> LayerGroups | Mapping[str, Any] | None:
    """The groups that are given, else those that the model was first frozen by."""
    plan = freeze_plan(model)
    return plan.layer_groups() if groups is None and plan is not None else groups


def _check_spectral(keras: Any, layers: Mapping[str, Any], plan: FreezePlan) -> None:
    names = [
        name
        for name, layer in layers.items()
        if isinstance(layer, keras.layers.SpectralNormalization)
        and any(frozen.startswith(f"{name}.") for frozen in plan.frozen)
    ]
    if names and plan.mode.stats == "follow":
        raise InexpressibleModeError(
            f"The mode {plan.mode} lets statistics follow, and {', '.join(names)} would write them into its "
            f"frozen kernel: take stats='hold', as 'eval' and 'regularized' do.",
            modules=tuple(names),
        )


def __getattr__(name: str) -> Any:
    if name == "FreezeCallback":
        from bundles.adapters.keras.callback import callback_class

        return callback_class()
    raise AttributeError(f"module 'bundles.adapters.keras' has no attribute {name!r}")
