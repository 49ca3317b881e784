"""bundles: pretrained models, frozen right.

Look up a descriptor, fetch its file, build the module, freeze it::

    import bundles

    bundles.list_bundles("CREPE_*")
    model = bundles.CREPE_TINY.get_model(head=my_head, freeze=True)

Everything public is an attribute of this package and is imported at its first use: listing bundles
imports neither torch nor any hub client. Bundles are attributes, too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bundles import adapters as adapters
    from bundles import features as features
    from bundles import heads as heads
    from bundles.assemble import get_model as get_model
    from bundles.assemble import load_into as load_into
    from bundles.assemble.export import export as export
    from bundles.assemble.lookup import get_bundle as get_bundle
    from bundles.assemble.predict import predict as predict
    from bundles.assemble.provision import fetch as fetch
    from bundles.builders.head import EncoderWithHead as EncoderWithHead
    from bundles.builders.load import LoadReport as LoadReport
    from bundles.delta.load import load_delta as load_delta
    from bundles.delta.save import save_delta as save_delta
    from bundles.errors import BuildArgumentError as BuildArgumentError
    from bundles.errors import BuildError as BuildError
    from bundles.errors import BundlesError as BundlesError
    from bundles.errors import BundlesWarning as BundlesWarning
    from bundles.errors import CacheError as CacheError
    from bundles.errors import CardError as CardError
    from bundles.errors import ChecksumError as ChecksumError
    from bundles.errors import DeltaBaseError as DeltaBaseError
    from bundles.errors import DownloadError as DownloadError
    from bundles.errors import DuplicateBundleError as DuplicateBundleError
    from bundles.errors import FeatureError as FeatureError
    from bundles.errors import FeatureKeyError as FeatureKeyError
    from bundles.errors import FeatureStoreError as FeatureStoreError
    from bundles.errors import FreezeArgumentError as FreezeArgumentError
    from bundles.errors import FreezeError as FreezeError
    from bundles.errors import FreezeWithoutWeightsWarning as FreezeWithoutWeightsWarning
    from bundles.errors import FrozenDriftError as FrozenDriftError
    from bundles.errors import HeadError as HeadError
    from bundles.errors import InexpressibleModeError as InexpressibleModeError
    from bundles.errors import InputError as InputError
    from bundles.errors import MissingDependencyError as MissingDependencyError
    from bundles.errors import NotDeterministicError as NotDeterministicError
    from bundles.errors import NothingSelectedError as NothingSelectedError
    from bundles.errors import NothingTrainableWarning as NothingTrainableWarning
    from bundles.errors import OfflineError as OfflineError
    from bundles.errors import PinError as PinError
    from bundles.errors import PinMismatchError as PinMismatchError
    from bundles.errors import RegistryError as RegistryError
    from bundles.errors import SourceAccessError as SourceAccessError
    from bundles.errors import SourceError as SourceError
    from bundles.errors import SourceNotFoundError as SourceNotFoundError
    from bundles.errors import StateDictMismatchError as StateDictMismatchError
    from bundles.errors import UnknownBundleError as UnknownBundleError
    from bundles.errors import UnpinnedSourceWarning as UnpinnedSourceWarning
    from bundles.errors import UnreadableInputWarning as UnreadableInputWarning
    from bundles.errors import UnsafeWeightsError as UnsafeWeightsError
    from bundles.errors import VersionMismatchWarning as VersionMismatchWarning
    from bundles.errors import WeightsError as WeightsError
    from bundles.errors import WeightsFileError as WeightsFileError
    from bundles.experiment.config import from_config as from_config
    from bundles.experiment.load import load_experiment as load_experiment
    from bundles.features.cached import cached as cached
    from bundles.features.extract import extract_features as extract_features
    from bundles.features.store.store import FeatureStore as FeatureStore
    from bundles.freezing.api import FreezeMixin as FreezeMixin
    from bundles.freezing.api import freeze as freeze
    from bundles.freezing.api import freeze_plan as freeze_plan
    from bundles.freezing.api import frozen as frozen
    from bundles.freezing.api import unfreeze as unfreeze
    from bundles.freezing.derive import layer_groups as layer_groups
    from bundles.freezing.importance.measure import importance as importance
    from bundles.freezing.optimizer.param_groups import param_groups as param_groups
    from bundles.freezing.proof.guard import Guard as Guard
    from bundles.freezing.proof.guard import guard as guard
    from bundles.freezing.proof.report import FreezeReport as FreezeReport
    from bundles.freezing.proof.report import freeze_report as freeze_report
    from bundles.freezing.proof.snapshot import Snapshot as Snapshot
    from bundles.freezing.proof.snapshot import snapshot as snapshot
    from bundles.freezing.proof.snapshot import verify_frozen as verify_frozen
    from bundles.freezing.schedule import UnfreezeSchedule as UnfreezeSchedule
    from bundles.registry.default import default_registry as default_registry
    from bundles.registry.default import list_bundles as list_bundles
    from bundles.registry.default import register as register
    from bundles.registry.default import register_cards as register_cards
    from bundles.registry.registry import Registry as Registry
    from bundles.spec.bundle import Bundle as Bundle
    from bundles.spec.cost import StepCost as StepCost
    from bundles.spec.elements import Elements as Elements
    from bundles.spec.elements import TopScores as TopScores
    from bundles.spec.fit import Fit as Fit
    from bundles.spec.groups import LayerGroup as LayerGroup
    from bundles.spec.groups import LayerGroups as LayerGroups
    from bundles.spec.masks import Mask as Mask
    from bundles.spec.mode import FreezeMode as FreezeMode
    from bundles.spec.plan import FreezePlan as FreezePlan
    from bundles.spec.policy import All as All
    from bundles.spec.policy import Blocks as Blocks
    from bundles.spec.policy import Encoder as Encoder
    from bundles.spec.policy import ExceptLast as ExceptLast
    from bundles.spec.policy import First as First
    from bundles.spec.policy import FreezePolicy as FreezePolicy
    from bundles.spec.policy import Group as Group
    from bundles.spec.policy import Head as Head
    from bundles.spec.policy import Loaded as Loaded
    from bundles.spec.policy import Match as Match
    from bundles.spec.policy import Nothing as Nothing
    from bundles.spec.scores import Scores as Scores
    from bundles.spec.source import WeightSource as WeightSource

__version__ = "0.1.0"

_HOMES = {
    "adapters": "bundles",
    "features": "bundles",
    "heads": "bundles",
    "get_model": "bundles.assemble",
    "load_into": "bundles.assemble",
    "export": "bundles.assemble.export",
    "predict": "bundles.assemble.predict",
    "fetch": "bundles.assemble.provision",
    "EncoderWithHead": "bundles.builders.head",
    "LoadReport": "bundles.builders.load",
    "BundlesError": "bundles.errors",
    "RegistryError": "bundles.errors",
    "UnknownBundleError": "bundles.errors",
    "DuplicateBundleError": "bundles.errors",
    "CardError": "bundles.errors",
    "SourceError": "bundles.errors",
    "DownloadError": "bundles.errors",
    "ChecksumError": "bundles.errors",
    "OfflineError": "bundles.errors",
    "SourceNotFoundError": "bundles.errors",
    "SourceAccessError": "bundles.errors",
    "WeightsError": "bundles.errors",
    "WeightsFileError": "bundles.errors",
    "UnsafeWeightsError": "bundles.errors",
    "StateDictMismatchError": "bundles.errors",
    "load_delta": "bundles.delta.load",
    "save_delta": "bundles.delta.save",
    "BuildArgumentError": "bundles.errors",
    "BuildError": "bundles.errors",
    "MissingDependencyError": "bundles.errors",
    "FreezeError": "bundles.errors",
    "NothingSelectedError": "bundles.errors",
    "InexpressibleModeError": "bundles.errors",
    "FrozenDriftError": "bundles.errors",
    "FreezeArgumentError": "bundles.errors",
    "HeadError": "bundles.errors",
    "NotDeterministicError": "bundles.errors",
    "CacheError": "bundles.errors",
    "PinError": "bundles.errors",
    "PinMismatchError": "bundles.errors",
    "DeltaBaseError": "bundles.errors",
    "FeatureError": "bundles.errors",
    "FeatureStoreError": "bundles.errors",
    "FeatureKeyError": "bundles.errors",
    "InputError": "bundles.errors",
    "BundlesWarning": "bundles.errors",
    "FreezeWithoutWeightsWarning": "bundles.errors",
    "NothingTrainableWarning": "bundles.errors",
    "UnpinnedSourceWarning": "bundles.errors",
    "VersionMismatchWarning": "bundles.errors",
    "UnreadableInputWarning": "bundles.errors",
    "from_config": "bundles.experiment.config",
    "load_experiment": "bundles.experiment.load",
    "cached": "bundles.features.cached",
    "extract_features": "bundles.features.extract",
    "FeatureStore": "bundles.features.store.store",
    "FreezeMixin": "bundles.freezing.api",
    "freeze": "bundles.freezing.api",
    "freeze_plan": "bundles.freezing.api",
    "frozen": "bundles.freezing.api",
    "unfreeze": "bundles.freezing.api",
    "layer_groups": "bundles.freezing.derive",
    "importance": "bundles.freezing.importance.measure",
    "Guard": "bundles.freezing.proof.guard",
    "guard": "bundles.freezing.proof.guard",
    "param_groups": "bundles.freezing.optimizer.param_groups",
    "FreezeReport": "bundles.freezing.proof.report",
    "freeze_report": "bundles.freezing.proof.report",
    "UnfreezeSchedule": "bundles.freezing.schedule",
    "Snapshot": "bundles.freezing.proof.snapshot",
    "snapshot": "bundles.freezing.proof.snapshot",
    "verify_frozen": "bundles.freezing.proof.snapshot",
    "default_registry": "bundles.registry.default",
    "get_bundle": "bundles.assemble.lookup",
    "list_bundles": "bundles.registry.default",
    "register": "bundles.registry.default",
    "register_cards": "bundles.registry.default",
    "Registry": "bundles.registry.registry",
    "Bundle": "bundles.spec.bundle",
    "Elements": "bundles.spec.elements",
    "TopScores": "bundles.spec.elements",
    "StepCost": "bundles.spec.cost",
    "Fit": "bundles.spec.fit",
    "LayerGroup": "bundles.spec.groups",
    "LayerGroups": "bundles.spec.groups",
    "Mask": "bundles.spec.masks",
    "FreezeMode": "bundles.spec.mode",
    "FreezePlan": "bundles.spec.plan",
    "All": "bundles.spec.policy",
    "Blocks": "bundles.spec.policy",
    "Encoder": "bundles.spec.policy",
    "ExceptLast": "bundles.spec.policy",
    "First": "bundles.spec.policy",
    "FreezePolicy": "bundles.spec.policy",
    "Group": "bundles.spec.policy",
    "Head": "bundles.spec.policy",
    "Loaded": "bundles.spec.policy",
    "Match": "bundles.spec.policy",
    "Nothing": "bundles.spec.policy",
    "Scores": "bundles.spec.scores",
    "WeightSource": "bundles.spec.source",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = _HOMES[name]
        value = import_module(f"{home}.{name}") if home == __name__ else getattr(import_module(home), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        from bundles.registry.default import default_registry

        if name in default_registry:
            return default_registry[name]
        raise AttributeError(_unknown(name))
    raise AttributeError(f"module 'bundles' has no attribute {name!r}")


def __dir__() -> list[str]:
    from bundles.registry.default import default_registry

    return sorted({*globals(), *__all__, *default_registry})


def _unknown(name: str) -> str:
    from bundles.registry.default import default_registry
    from bundles.spec.suggest import closest

    if broken := default_registry.why_broken(name):
        return "\n".join((f"The card of {name} is broken:", *broken))
    nearest = ", ".join(closest(name, [*__all__, *default_registry]))
    return f"module 'bundles' has no attribute or bundle {name!r}: did you mean {nearest}?"
