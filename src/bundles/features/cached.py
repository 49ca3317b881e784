"""Train what is above a frozen prefix on stored activations, with a model that is called as ever."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from bundles.errors import FeatureError
from bundles.features.replay.cache import COMPILED, Cache, Statistics
from bundles.features.store.store import FeatureStore
from bundles.freezing.derive import inside

M = TypeVar("M", bound=nn.Module)
_CACHE = "_bundles_cache"


def cached(model: M, store: FeatureStore, *others: FeatureStore) -> M:
    """Let a model take the activations of its frozen prefix out of a store, in place.

    The model is called with what it is always called with. Where every row of a batch is in the store,
    found by its content, nothing of the prefix is computed: what is stored enters the model where the
    prefix ends, and only what is above runs. Any other batch is computed, see :func:`statistics`.

    A batch that is put together as it was for the store (``batch_size`` of equal lengths, say) gives the
    bits that the model would compute on one thread (``torch.set_num_threads(1)``), as stores are computed;
    any other differs from them by rounding, as two batches do.

    A call of a new kind (the first, other flags in the prefix, other arguments, a second length) is
    computed both ways, and an error says where the two are not one: the outputs have to be equal to the
    last bit, and what is stored to its own rounding. A row's stored activations are those of the row alone,
    with zeros in the padding; a model that lets padding into its features, as wav2vec 2.0 with a
    ``GroupNorm`` over time, warns.

    A prefix that thaws is computed from then on, with a warning; one whose values change while it is
    frozen is an error in the next call. The keys of ``state_dict()``, class and signature stay; copies and
    pickles bring the path of the store along. Hooks on modules of the prefix see zeros.

    Args:
        model: a model that is frozen up to what is stored, as :func:`bundles.freeze` does it.
        store: of this model: the features that its head is given (``layers=None``), the last block of its
            frozen prefix (``layers="prefix"``), or all blocks, for a head that uses all layers.
        others: the same of other datasets, as that of the validation.

    Returns:
        The model that was given.

    Raises:
        FeatureKeyError: the store is of another model, layer or preprocessing, or two are not of one;
            ``differs`` says how.
        NotDeterministicError: the prefix is not the same from call to call, as in mode ``"mc"``.
        FeatureError: the model is compiled, or ``store`` is no store.

    >>> import bundles, tempfile, torch
    >>> frames = list(torch.randn(4, 2, 1024))
    >>> model = bundles.CREPE_TINY.get_model(freeze=True).train()
    >>> store = bundles.extract_features(
    ...     bundles.CREPE_TINY, frames, tempfile.mkdtemp(), dtype="float32", progress=False
    ... )
    >>> model = cached(model, store)
    >>> for _ in range(3):
    ...     loss = model(frames[0]).sum()
    >>> statistics(model)
    Statistics(hits=2, misses=0, compared=1, reasons={})
    """
    root = inside(model)
    stores = (store, *others)
    for given in stores:
        if not isinstance(given, FeatureStore):
            raise FeatureError(f"A {type(given).__name__} is no store: pass bundles.FeatureStore(path).")
    if _is_compiled(model):
        raise FeatureError(COMPILED)
    cache = Cache(root, stores)  # which raises where it does not fit, and then all is as it was
    uncache(root)
    root.__dict__[_CACHE] = cache
    return model


def uncache(model: M) -> M:
    """Take off what :func:`cached` put on a model; any other is left alone."""
    cache = inside(model).__dict__.pop(_CACHE, None)
    if cache is not None:
        cache.remove()
    return model


def statistics(model: nn.Module) -> Statistics:
    """Return how the calls of a model were answered since :func:`cached`.

    Raises:
        FeatureError: nothing of the model is cached.
    """
    return _cache(model).statistics


def check(model: nn.Module) -> None:
    """Compare the values of the prefix, all of them, with those that the store was computed with.

    A call looks only at what tells a change at once: where tensors lie, and how often torch wrote to them.

    Raises:
        FeatureKeyError: they are others.
        FeatureError: nothing of the model is cached.
    """
    _cache(model).prefix.check_values(inside(model))


def _cache(model: nn.Module) -> Cache:
    cache: Cache | None = inside(model).__dict__.get(_CACHE)
    if cache is None:
        raise FeatureError("Nothing of the model is cached: call bundles.cached(model, store) first.")
    return cache


def _is_compiled(model: nn.Module) -> bool:
    modules = list(model.modules())
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in modules)
    return compiled or any(type(module).__name__ == "OptimizedModule" for module in modules)
