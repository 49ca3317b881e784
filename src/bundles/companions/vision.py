"""Companions of image models: what is done to an image before, and what the classes are called."""

from __future__ import annotations

from typing import Any

from bundles.builders.require import require
from bundles.builders.timm import check_name
from bundles.builders.timm_config import sized
from bundles.errors import BuildArgumentError, BuildError
from bundles.spec.bundle import Bundle
from bundles.spec.values import plain_value


def transforms(bundle: Bundle, *, is_training: bool = False, **arguments: Any) -> Any:
    """Return a callable from an image to the tensor that the model takes, as the upstream library makes it.

    Args:
        bundle: that of the model.
        is_training: augmentation for training instead, which timm has and torchvision has not.
        arguments: of ``timm.data.create_transform``, or of the preset of torchvision's weights, in the place
            of what the weights were made with, as ``crop_pct=1.0`` or ``resize_size=256``.

    Returns:
        A callable that takes a ``PIL.Image``, and with torchvision a tensor ``[..., 3, height, width]``, too;
        it returns float32 ``[3, height, width]``.

    Raises:
        MissingDependencyError: torchvision or timm is absent or broken.
        BuildError: nobody says how the bundle's images are to be prepared.
        BuildArgumentError: torchvision has no augmentation, or an argument is none of theirs.

    >>> import bundles
    >>> preset = bundles.RESNET50_IMAGENET1K_V2.transforms()
    >>> preset.crop_size, preset.resize_size
    ([224], [232])
    """
    try:
        if bundle.builder == "timm":
            data = require("timm.data")
            known = _timm(bundle)
            known["input_size"] = sized(known.get("input_size"), bundle.architecture)
            settings = {**data.resolve_data_config(pretrained_cfg=known), **arguments}
            return data.create_transform(**settings, is_training=is_training)
        if is_training:
            raise BuildArgumentError(
                f"{bundle.name} has no transforms for training, as torchvision has none: compose them of "
                f"torchvision.transforms.v2, or take a bundle of timm."
            )
        return _torchvision(bundle).transforms(**arguments)
    except TypeError as error:
        if isinstance(error, BuildArgumentError):
            raise
        raise BuildArgumentError(f"transforms of {bundle.name}: {error}.") from error
    except (AssertionError, KeyError, ValueError) as error:
        raise BuildError(
            f"The transforms of {bundle.name} cannot be made of what it says ({type(error).__name__}: "
            f"{error}): check mean, std, interpolation, crop_pct and crop_mode of its pretrained_cfg."
        ) from error


def get_labels(bundle: Bundle) -> tuple[str, ...]:
    """Return what each output of the model stands for, in order.

    Raises:
        MissingDependencyError: the library that knows them is absent or broken.
        BuildError: the model gives features and no classes, or nobody knows what these are called.

    >>> import bundles
    >>> bundles.RESNET50_IMAGENET1K_V2.get_labels()[:2]
    ('tench', 'goldfish')
    """
    if bundle.builder != "timm":
        return tuple(_torchvision(bundle).meta["categories"])
    settings = _timm(bundle)
    if not settings.get("num_classes"):
        raise BuildError(f"{bundle.name} gives features and no classes: give it a head= of your own.")
    if named := settings.get("label_names"):
        words = settings.get("label_descriptions") or {}
        return tuple(str(words.get(name, name)) for name in named)
    subset = require("timm.data").infer_imagenet_subset(settings)
    if subset is None:
        raise BuildError(f"Nobody says what the {settings['num_classes']} classes of {bundle.name} are.")
    return tuple(require("timm.data").ImageNetInfo(subset).label_descriptions())


def _torchvision(bundle: Bundle) -> Any:
    """The entry of torchvision's table of weights that the bundle says it is."""
    entry = bundle.metadata.get("torchvision_weights")
    if bundle.builder != "torchvision" or entry is None:
        raise BuildError(
            f"{bundle.name} does not say which images it takes: give it the metadata torchvision_weights, as "
            f"'ResNet50_Weights.IMAGENET1K_V2'."
        )
    try:
        return require("torchvision.models").get_weight(entry)
    except (KeyError, ValueError) as error:
        raise BuildError(
            f"torchvision {require('torchvision').__version__} has no weights {entry!r}, which "
            f"{bundle.name} names: give it torchvision_weights as 'ResNet50_Weights.IMAGENET1K_V2'."
        ) from error


def _timm(bundle: Bundle) -> dict[str, Any]:
    """What timm knows of the images and classes of a model."""
    given = bundle.architecture
    settings = plain_value(given.get("pretrained_cfg"))
    if settings is None:
        check_name(given["model"])
        known = require("timm.models").get_pretrained_cfg(given["model"])
        settings = known.to_dict() if known else {}
    return {**settings, "num_classes": given.get("num_classes", settings.get("num_classes"))}
