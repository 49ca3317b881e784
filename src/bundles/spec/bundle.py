"""The bundle: one object that knows its weights, its architecture, and what goes with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bundles.spec.companions import COMPANIONS
from bundles.spec.groups import LayerRule, parse_rules, prefixed_rules
from bundles.spec.keys import KeyMap
from bundles.spec.mode import FreezeMode, parse_mode
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import FreezePolicy, parse_policy
from bundles.spec.source import WeightSource
from bundles.spec.values import FrozenDict

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Bundle:
    """A descriptor of a pretrained model; it holds no weights and no module.

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``.
        builder: a key of the builder table, or (from Python only) a callable that takes
            ``**architecture`` and returns an ``nn.Module``.
        architecture: the arguments of the builder.
        weights: where the weights come from; ``None`` for an architecture alone.
        keys: how the names in the weight file become the model's.
        assets: the other files that go with it, by what they are: a tokenizer, statistics.
        layers: layer groups in order, as in a card: ``{"blocks": "layers.{i}", "head": "fc"}``.
            Without it they are derived from the module.
        default_policy: what ``freeze=True`` freezes.
        default_mode: how, unless ``freeze_mode=`` says otherwise.
        prefix: where the builder mounts what the weight file holds, as ``"model."`` where it wraps it;
            ``layers`` and ``head_slot`` are said without it.
        head_slot: dotted name of the module that ``head=`` replaces; ``None`` if there is none.
        num_features: size of the features that a head takes, or ``None`` if unknown.
        metadata: anything else worth knowing (``task``, ``license``, ``sample_rate``, ...); each
            entry is an attribute of the bundle, too. ``companions`` is the kind of bundle, which says
            what methods it has beside ``get_model``: ``get_labels``, ``get_decoder``, ...
        origin: where the descriptor was defined, for people.
        pinned: the digest of a pin string that is still to be compared, since that of a file is not known
            before it is fetched.

    >>> import bundles
    >>> bundles.CREPE_TINY.sample_rate, bundles.CREPE_TINY.num_features
    (16000, 256)
    """

    name: str
    builder: str | Callable[..., torch.nn.Module]
    architecture: Mapping[str, Any] = field(default_factory=FrozenDict)
    weights: WeightSource | None = None
    keys: KeyMap = field(default_factory=KeyMap)
    assets: Mapping[str, WeightSource] = field(default_factory=FrozenDict)
    layers: Mapping[str, Any] = field(default_factory=FrozenDict)
    default_policy: FreezePolicy | str = "encoder"
    default_mode: FreezeMode | str = "eval"
    prefix: str = ""
    head_slot: str | None = None
    num_features: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=FrozenDict)
    origin: str = field(default="Python", compare=False)
    pinned: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        normal = {
            "architecture": FrozenDict(self.architecture),
            "keys": KeyMap(**self.keys) if isinstance(self.keys, Mapping) else self.keys,
            "assets": FrozenDict({name: _as_source(asset) for name, asset in self.assets.items()}),
            "layers": FrozenDict(self.layers),
            "metadata": FrozenDict(self.metadata),
            "weights": _as_source(self.weights),
            "default_policy": parse_policy(self.default_policy),
            "default_mode": parse_mode(self.default_mode),
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        parse_rules(self.layers)  # raises now rather than at the first build

    def __getattr__(self, name: str) -> Any:
        metadata: Mapping[str, Any] = {} if name.startswith("_") else self.__dict__.get("metadata", {})
        companions = COMPANIONS.get(metadata.get("companions", ""), {})
        if name in companions:
            from bundles.companions.find import find_companion

            return find_companion(self, companions[name])
        if name in metadata:
            return metadata[name]
        raise AttributeError(
            f"The bundle {self.__dict__.get('name')!r} has no {name!r}; it has "
            f"{', '.join([*metadata, *companions]) or 'no metadata'}."
        )

    def __dir__(self) -> list[str]:
        companions = COMPANIONS.get(self.metadata.get("companions", ""), {})
        return sorted({*super().__dir__(), *self.metadata, *companions})

    def __repr__(self) -> str:
        weights = self.weights.uri if self.weights else None
        return f"<Bundle {self.name}: weights={weights!r}, freezes {self.default_policy!r}>"

    @property
    def rules(self) -> tuple[LayerRule, ...]:
        """The layer groups' rules; empty where they are derived from the module."""
        return prefixed_rules(parse_rules(self.layers), self.prefix)

    def get_model(
        self,
        *,
        freeze: bool | str | FreezePolicy = False,
        freeze_mode: str | FreezeMode | None = None,
        pretrained: bool = True,
        head: torch.nn.Module | Callable[[int], torch.nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        frozen_dtype: torch.dtype | None = None,
        dl_kwargs: Mapping[str, Any] | None = None,
        lock: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> torch.nn.Module:
        """Build the model, load its weights and freeze it; see :func:`bundles.get_model`."""
        from bundles import assemble

        return assemble.get_model(
            self,
            freeze=freeze,
            freeze_mode=freeze_mode,
            pretrained=pretrained,
            head=head,
            device=device,
            dtype=dtype,
            frozen_dtype=frozen_dtype,
            dl_kwargs=dl_kwargs,
            lock=lock,
            **options,
        )

    def plan(
        self,
        *,
        freeze: bool | str | FreezePolicy = True,
        freeze_mode: str | FreezeMode | None = None,
        head: torch.nn.Module | Callable[[int], torch.nn.Module] | None = None,
    ) -> FreezePlan:
        """Return what :meth:`get_model` would freeze and hold; needs no weights.

        Raises:
            FreezeArgumentError, NothingSelectedError, InexpressibleModeError, HeadError,
            MissingDependencyError: as :meth:`get_model` would.
        """
        from bundles import assemble

        return assemble.plan(self, freeze=freeze, freeze_mode=freeze_mode, head=head)

    def pin(self) -> str:
        """Return the one-line pin of this bundle, ``NAME@sha256:...``, which stands wherever a name does.

        The digest is over everything that decides the result: the card, and the digest of every file.
        What is not known of a file is asked of the Hub, or fetched.

        Raises:
            PinError: the builder is a Python function, which nothing identifies.
            SourceError, CacheError, WeightsError: a file's digest cannot be had.

        >>> import bundles
        >>> pin = bundles.CREPE_TINY.pin()
        >>> bundles.get_bundle(pin).name
        'CREPE_TINY'
        """
        from bundles.assemble.pins import pin

        return pin(self)


def _as_source(source: WeightSource | str | None) -> WeightSource | None:
    return WeightSource(source) if isinstance(source, str) else source
