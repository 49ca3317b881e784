"""Every exception and warning of the library.

::

    BundlesError
      RegistryError   UnknownBundleError(KeyError)  DuplicateBundleError(ValueError)  CardError(ValueError)
      SourceError     DownloadError(OSError)  ChecksumError(OSError)  OfflineError(ConnectionError)
                      SourceNotFoundError(FileNotFoundError)  SourceAccessError(PermissionError)
      WeightsError    WeightsFileError(ValueError)  UnsafeWeightsError(ValueError)
                      StateDictMismatchError(ValueError)
      BuildError      MissingDependencyError(ImportError)  BuildArgumentError(TypeError)
      FreezeError     NothingSelectedError(ValueError)  InexpressibleModeError(ValueError)
                      FrozenDriftError(RuntimeError)  FreezeArgumentError(ValueError)
                      HeadError(ValueError)  NotDeterministicError(ValueError)
      CacheError(OSError)
      PinError(ValueError)  PinMismatchError(ValueError)  DeltaBaseError(ValueError)
      FeatureError    FeatureStoreError(ValueError)  FeatureKeyError(ValueError)  InputError(ValueError)
    BundlesWarning(UserWarning)
      FreezeWithoutWeightsWarning  NothingTrainableWarning  UnpinnedSourceWarning  VersionMismatchWarning
      UnreadableInputWarning

A message is one sentence for people: what was found, what was expected, what to type. Programs
read attributes instead: whatever a raiser passes by keyword is an attribute of the exception, and
survives pickling. The classes below name the attributes that are always there.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any


class BundlesError(Exception):
    """Base of everything that this library raises on purpose."""

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)


# --- registry -----------------------------------------------------------------------------------


class RegistryError(BundlesError):
    """A bundle cannot be looked up or added."""


class UnknownBundleError(RegistryError, KeyError):
    """No bundle has that name. ``KeyError`` (a ``LookupError``), because a registry is a Mapping."""

    name: str
    closest: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would show the repr


class DuplicateBundleError(RegistryError, ValueError):
    """The name is taken; ``origins`` holds where it is defined and where it was defined again."""

    name: str
    origins: tuple[str, str]


class CardError(RegistryError, ValueError):
    """A card does not follow the format; ``problems`` holds one line each: file, line, key, cause."""

    problems: tuple[str, ...] = ()


# --- sources ------------------------------------------------------------------------------------


class SourceError(BundlesError):
    """A weight file cannot be had."""


class DownloadError(SourceError, OSError):
    """The transfer failed, also after retries."""


class ChecksumError(SourceError, OSError):
    """The bytes are not those that were pinned."""

    source: str
    path: str
    expected: str
    found: str


class OfflineError(SourceError, ConnectionError):
    """A download is needed and downloads are switched off."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """There is nothing at that address."""


class SourceAccessError(SourceError, PermissionError):
    """The source exists, but not for this user."""


# --- weights ------------------------------------------------------------------------------------


class WeightsError(BundlesError):
    """A weight file was found, but cannot be used."""


class WeightsFileError(WeightsError, ValueError):
    """The file is not what its name says: damaged, truncated or of another format."""


class UnsafeWeightsError(WeightsError, ValueError):
    """Reading the file would run code that it contains, so it was not read."""


class StateDictMismatchError(WeightsError, ValueError):
    """The file does not fit the model; every difference is listed, none was applied."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


# --- building and freezing ----------------------------------------------------------------------


class BuildError(BundlesError):
    """The module cannot be constructed."""


class BuildArgumentError(BuildError, TypeError):
    """An argument of ``get_model`` is not known to this bundle's builder, or has a value that is not."""


class MissingDependencyError(BuildError, ImportError):
    """A package is absent or cannot be imported; the message holds the line to type."""


class FreezeError(BundlesError):
    """A model cannot be frozen as asked."""


class NothingSelectedError(FreezeError, ValueError):
    """The policy selects no parameter; ``groups`` names the groups that exist."""

    groups: tuple[str, ...] = ()


class InexpressibleModeError(FreezeError, ValueError):
    """The mode asks for a behaviour that the model cannot show.

    One flag of ``modules`` would need two values, or ``groups`` draw random numbers whatever the flag.
    """

    modules: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class FrozenDriftError(FreezeError, RuntimeError):
    """Something frozen moved, or is about to.

    ``moved`` names every parameter and buffer; ``amounts`` says how far, the largest absolute difference
    over a sample of its values; ``thawed`` names frozen parameters that the next step would move.
    """

    moved: tuple[str, ...] = ()
    amounts: dict[str, float] = {}  # noqa: RUF012 - a default, as the others
    thawed: tuple[str, ...] = ()


class FreezeArgumentError(FreezeError, ValueError):
    """An argument about freezing is not one of those accepted."""


class HeadError(FreezeError, ValueError):
    """The head cannot be attached to this model."""


class NotDeterministicError(FreezeError, ValueError):
    """The same input would not give the same output; ``modules`` names those that are why."""

    modules: tuple[str, ...] = ()


class CacheError(BundlesError, OSError):
    """The cache folder cannot be used."""


class PinError(BundlesError, ValueError):
    """A pin, lock or experiment file is malformed; ``problems`` holds one line each."""

    problems: tuple[str, ...] = ()


class PinMismatchError(BundlesError, ValueError):
    """What is pinned and what is there differ: ``locked`` and ``found``, where it is one value.

    ``moved`` says what became of each parameter that is frozen in one of them only.
    """

    locked: Any = None
    found: Any = None
    moved: tuple[str, ...] = ()


class DeltaBaseError(BundlesError, ValueError):
    """A delta checkpoint belongs to another base model."""


# --- features -----------------------------------------------------------------------------------


class FeatureError(BundlesError):
    """Features cannot be computed, stored or read."""


class FeatureStoreError(FeatureError, ValueError):
    """A folder holds no store, several, or a damaged one; ``shards`` names the files that are."""

    shards: tuple[str, ...] = ()


class FeatureKeyError(FeatureError, ValueError):
    """The features are another model's, or another plan's; ``differs`` holds one line each."""

    differs: tuple[str, ...] = ()


class InputError(FeatureError, ValueError):
    """An item of a dataset cannot be read, or is not what the model takes; ``inputs`` names them."""

    inputs: tuple[str, ...] = ()


# --- warnings -----------------------------------------------------------------------------------


class BundlesWarning(UserWarning):
    """Base of every warning of this library."""


class FreezeWithoutWeightsWarning(BundlesWarning):
    """Tensors that were never loaded from pretrained weights are being frozen."""


class NothingTrainableWarning(BundlesWarning):
    """After the freeze no parameter is left to train."""


class UnpinnedSourceWarning(BundlesWarning):
    """A source may give other bytes tomorrow."""


class VersionMismatchWarning(BundlesWarning):
    """A library version differs from the recorded one."""


class UnreadableInputWarning(BundlesWarning):
    """Files of a dataset could not be read, and were left out."""


def warn(message: str, category: type[BundlesWarning]) -> None:
    """Warn at the line outside this package that led here, however deep the call is."""
    package = os.path.dirname(os.path.abspath(__file__)) + os.sep
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
