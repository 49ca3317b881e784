"""The model that features are taken from: a bundle that every worker builds, or somebody's module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bundles.assemble.digests import filled, pin_digest
from bundles.assemble.model import get_model
from bundles.assemble.model import plan as plan_of
from bundles.assemble.pins import versions_of
from bundles.assemble.request import Freeze, bundle_of, settled_of, with_options
from bundles.errors import BuildError, FeatureError
from bundles.freezing.api import freeze_plan
from bundles.freezing.apply import apply
from bundles.spec.bundle import Bundle
from bundles.spec.mode import FreezeMode
from bundles.spec.pin import pin_string


@dataclass(frozen=True)
class BundleSource:
    """A bundle, and how it is frozen; a worker builds it from the files that its digests name.

    Attributes:
        bundle: with the digest of every file, and the options of its builder.
        freeze: as ``get_model`` takes it.
        freeze_mode: as ``get_model`` takes it.
        device: where the model goes.
    """

    bundle: Bundle
    freeze: Freeze = True
    freeze_mode: str | FreezeMode | None = None
    device: str = "cpu"

    @property
    def name(self) -> str:
        """What people call it."""
        return self.bundle.name

    def pin(self) -> str:
        """Return the line that names it, of a folder or file without its path: it may be moved."""
        name = self.bundle.name
        return pin_string("file:" if name.startswith("file:") else name, pin_digest(self.bundle))

    def build(self) -> nn.Module:
        """Return the model with its weights, frozen as asked."""
        if self.bundle.weights is None:
            raise BuildError(
                f"{self.bundle.name} has no weights to extract features with: build a model by "
                f"get_model(pretrained=False), give it weights, and pass the model."
            )
        return self._frozen(get_model(self.bundle, device=self.device))

    def outline(self) -> nn.Module:
        """Return the model without any weights, frozen as asked: names, shapes and the plan."""
        return self._frozen(get_model(self.bundle, pretrained=False, device="meta"))

    def _frozen(self, model: nn.Module) -> nn.Module:
        """Freeze without a word about nothing being left to train, which is meant here."""
        if self.freeze is not False or self.freeze_mode is not None:
            apply(model, plan_of(self.bundle, freeze=self.freeze, freeze_mode=self.freeze_mode))
        return model

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that build it."""
        return versions_of(self.bundle)


@dataclass(frozen=True)
class ModuleSource:
    """A module that is there already, taken as it is.

    Attributes:
        module: frozen or not.
        device: where it is.
    """

    module: nn.Module = field(repr=False)
    device: str = "cpu"

    @property
    def name(self) -> str:
        """What people call it."""
        return type(self.module).__name__

    def build(self) -> nn.Module:
        """Return the module."""
        return self.module

    def outline(self) -> nn.Module:
        """Return the module."""
        return self.module

    def versions(self) -> dict[str, str]:
        """Return the versions of what computes with it."""
        found = versions_of(Bundle("module", "torch"))
        return {name: found[name] for name in ("bundles", "python", "torch") if name in found}


Source = BundleSource | ModuleSource


def source_of(
    given: object,
    *,
    freeze: Freeze,
    freeze_mode: str | FreezeMode | None,
    device: torch.device | str | None,
    options: Mapping[str, Any],
) -> Source:
    """Return what features are taken from.

    Raises:
        FeatureError: it is neither a bundle nor a module, or says of a module how it shall be built.
        UnknownBundleError, BuildArgumentError, PinMismatchError, SourceError: as ``get_model`` raises them.
    """
    if isinstance(given, nn.Module):
        if freeze is not True or freeze_mode is not None or options:
            raise FeatureError(
                "A module is taken as it is, so freeze=, freeze_mode= and options of a builder are for "
                "bundles: type bundles.freeze(model, ...) before, or pass the bundle."
            )
        return ModuleSource(given, str(_device_of(given) if device is None else device))
    if not isinstance(given, Bundle | str):
        raise FeatureError(
            f"A {type(given).__name__} is neither a bundle, nor the name of one, nor an nn.Module."
        )
    bundle = filled(with_options(settled_of(bundle_of(given)), options))
    return BundleSource(bundle, freeze, freeze_mode, "cpu" if device is None else str(device))


def plan_digest(model: nn.Module) -> str | None:
    """Return the digest of the plan on a model, ``None`` where nothing is frozen."""
    plan = freeze_plan(model)
    return plan.digest if plan is not None else None


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
