"""What sits on a model that is cached: it decides at each call whether a store can answer it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bundles.errors import BundlesWarning, FeatureError, warn
from bundles.features.replay.activations import Activations, look_up
from bundles.features.replay.batch import Batch, NotStored, alone, read_batch
from bundles.features.replay.play import Player
from bundles.features.replay.prefix import Prefix, check_alike, enter
from bundles.features.replay.proof import check_replay, compare, encode_alone, generator_state, mismatch
from bundles.features.replay.record import Recorder
from bundles.features.replay.rules import Rules, learn_rules
from bundles.features.store.store import FeatureStore

COMPILED = "The model is compiled, and nothing compiled can be skipped: give cached() one that is not."
_THAWED = (
    "The prefix whose activations are stored trains now, or is held in another way, so it is computed from "
    "here on; bundles.features.cached.uncache(model) takes the store off."
)
_PADDED = (
    "The model lets padding into its features ({}): what is stored is of each input alone, and that is used; "
    "batch equal lengths for both to be the same."
)


@dataclass(frozen=True)
class Statistics:
    """How the calls of a cached model were answered.

    Attributes:
        hits: calls in which nothing of the prefix was computed.
        misses: calls that were computed.
        compared: calls that were computed to be compared with what is stored.
        reasons: why calls were computed, and how often.
    """

    hits: int = 0
    misses: int = 0
    compared: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)


class Cache:
    """The two hooks on a model's root.

    It goes with the model into copies and pickles, where it learns anew how the model is called.

    Args:
        root: the model.
        stores: of its prefix, for one dataset or several.

    Raises:
        FeatureKeyError, NotDeterministicError: as :func:`bundles.cached`.
    """

    def __init__(self, root: nn.Module, stores: Sequence[FeatureStore]) -> None:
        check_alike(root, stores)
        self.stores = tuple(stores)
        self.layers, self.boundary = enter(root, stores[0])
        self.prefix = Prefix(root, self.boundary, stores[0])
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._rules: dict[Any, Rules] = {}
        self._now: Player | _Computed | None = None
        self._is_checking = False
        self._warned: set[str] = set()
        self._handles = [
            root.register_forward_pre_hook(self._before, with_kwargs=True),
            root.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    @property
    def statistics(self) -> Statistics:
        """What was counted so far."""
        counts = self._counts
        return Statistics(counts["hits"], counts["misses"], counts["compared"], dict(self._reasons))

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rules": {}, "_now": None}

    def _before(self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling():
            raise FeatureError(COMPILED)
        if self._is_checking:
            return
        try:
            self._now = self._answer(root, args, kwargs)
        except NotStored as reason:
            self._counts["misses"] += 1
            self._reasons[str(reason)] += 1

    def _after(self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        if self._is_checking or self._now is None:
            return None
        now, self._now = self._now, None
        try:
            if output is None:  # an error is on its way out
                return None
            if isinstance(now, Player):
                self._counts["hits"] += 1
                return now.end(output)
            return self._learn(root, now, (args, kwargs, output))
        finally:
            now.remove()

    def _answer(
        self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Player | _Computed:
        """Put on the model what a call from the store needs, or what watches one that has to be computed."""
        if not self.prefix.is_frozen(root):
            self._say("thawed", _THAWED)
            raise NotStored("the prefix is not frozen")
        batch = read_batch(root, args, kwargs)
        stored = look_up(self.stores, self.layers, self.prefix.kind, batch)
        way = self._way(batch)
        rules = self._rules.get(way)
        if rules is None or not rules.is_sure(stored.sizes):
            return _Computed(way, batch, stored, Recorder(root, self.boundary, len(self.layers)))
        activations = stored.batched(rules.like)
        return Player(root, rules, activations, stored.sizes)

    def _way(self, batch: Batch) -> Any:
        """What calls have in common that go through the model in the same way."""
        kind = batch.inputs.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        rest = () if batch.inputs.ndim == 2 else tuple(batch.inputs.shape[1:])
        return batch.arguments, self.prefix.flags, batch.inputs.device, autocast, rest

    def _learn(self, root: nn.Module, now: _Computed, call: tuple[Any, Any, Any]) -> None:
        """Compare a call that was computed with what is stored, and keep what it tells of such calls."""
        now.recorder.remove()
        now.recorder.end([], call[2])
        sizes = now.stored.sizes
        rules = learn_rules(root, now.recorder, sizes)
        if (known := self._rules.get(now.way)) is not None:
            rules = known.also(rules)
        self._is_checking = True
        try:
            check_replay(root, call, rules, now.recorder.passed, sizes, now.state)
            self._compare(root, now)
        finally:
            self._is_checking = False
        self._rules[now.way] = rules
        self._counts["compared"] += 1

    def _compare(self, root: nn.Module, now: _Computed) -> None:
        """Raise where what is stored is not what the model makes of a batch, nor of its inputs alone."""
        differs = list(compare(now.stored, now.recorder.passed, self.layers, self.stores))
        if not differs:
            return
        if not now.batch.is_padded or now.stored.is_one:
            raise mismatch(root, differs)
        row = now.batch.shortest
        args, kwargs = alone(now.batch, row)
        computed = encode_alone(root, self.boundary, len(self.layers), args, kwargs)
        if list(compare(now.stored.row(row), computed, self.layers, self.stores)):
            raise mismatch(root, differs)
        self._say("padded", _PADDED.format("; ".join(differs)))

    def _say(self, topic: str, text: str) -> None:
        """Warn once of each topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            warn(text, BundlesWarning)


class _Computed:
    """A call that is computed and watched."""

    def __init__(self, way: Any, batch: Batch, stored: Activations, recorder: Recorder) -> None:
        self.way, self.batch, self.stored, self.recorder = way, batch, stored, recorder
        self.state = generator_state(batch.inputs.device)

    def remove(self) -> None:
        """Stop watching."""
        self.recorder.remove()
