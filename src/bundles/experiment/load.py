"""Load an experiment: its models by name, each from the bytes that its lock names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundles.assemble.lookup import get_bundle
from bundles.errors import PinError, UnpinnedSourceWarning, warn
from bundles.experiment.agree import check_agreement
from bundles.experiment.config import ModelConfig
from bundles.experiment.file import ExperimentFile, is_lock, read_experiment, read_lock_of
from bundles.experiment.places import placed
from bundles.spec.bundle import Bundle
from bundles.spec.pin import ModelPin
from bundles.spec.suggest import closest

if TYPE_CHECKING:
    from torch import nn

_told: set[str] = set()  # experiments without a lock, about which a warning was given


@dataclass(frozen=True)
class Model:
    """One model of an experiment.

    Attributes:
        name: in the file.
        wanted: what the file asks for.
        pinned: what the lock says; ``None`` where there is none.
        folder: that the file and its lock lie in.
        strict: whether other versions of libraries than the pinned ones are an error.
    """

    name: str
    wanted: ModelConfig
    pinned: ModelPin | None
    folder: Path
    strict: bool = False

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle; with a lock that of exactly the pinned commit, card and files.

        Raises:
            PinMismatchError: it is not what was pinned.
            BundlesError: it cannot be had.
        """
        if self.pinned is None:
            return get_bundle(placed(self.wanted.bundle, self.folder))
        from bundles.assemble.pinned import pinned_bundle

        return pinned_bundle(self.pinned, self.folder)

    def get_model(self, **overrides: Any) -> nn.Module:
        """Build the model as the file says, from the bytes that the lock names.

        Args:
            overrides: other arguments of :func:`bundles.get_model`, as ``device=``. Where there is a lock,
                none may come to something else than was locked; for a head of one's own there is
                ``.bundle.get_model(head=...)``, of the pinned bytes, too.

        Raises:
            PinMismatchError: card, plan or bytes are not those that were locked.
            BundlesError: as :func:`bundles.get_model`.
        """
        from bundles.assemble.locked import Locked
        from bundles.assemble.model import get_model

        if "lock" in overrides:
            raise PinError("The lock of an experiment lies beside its file: leave lock= out.")
        if self.pinned is None:
            return get_model(self.bundle, **{**self.wanted.arguments(), **overrides})
        return get_model(self.pinned.bundle, lock=Locked(self.pinned, self.folder, self.strict), **overrides)


class Experiment(Mapping[str, Model]):
    """The models of an experiment file, by name; a single one is built by :meth:`get_model` itself."""

    def __init__(self, path: Path, models: Mapping[str, Model], single: bool) -> None:
        self.path = path
        self.single = single
        self._models = dict(models)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models, in the order of the file."""
        return tuple(self._models)

    def get_model(self, **overrides: Any) -> nn.Module:
        """Build the experiment's only model, see :meth:`Model.get_model`.

        Raises:
            PinError: there are several.
        """
        if len(self._models) > 1:
            raise PinError(
                f"{self.path} has the models {', '.join(self.names)}: take one, as "
                f"experiment[{self.names[0]!r}].get_model()."
            )
        return self._models[self.names[0]].get_model(**overrides)

    def __getitem__(self, name: str) -> Model:
        if name not in self._models:
            near = closest(str(name), self._models, count=1)[0]
            raise KeyError(
                f"{self.path} has no model {name!r}: did you mean {near!r}? It has {', '.join(self.names)}."
            )
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def __repr__(self) -> str:
        locked = "locked" if all(model.pinned for model in self._models.values()) else "not locked"
        return f"<Experiment {self.path}: {', '.join(self.names)}, {locked}>"


def load_experiment(
    path: str | os.PathLike[str], *, strict: bool = False, locked: bool = False
) -> Experiment:
    r"""Read an experiment file, with its lock where there is one.

    The lock of ``NAME.toml`` is ``NAME.lock.toml`` beside it, written by ``bundles lock NAME.toml``. Without
    one everything works and a warning says, once, that the bytes may be others tomorrow; nothing is
    recorded.

    Args:
        path: of the file. ``[model]`` in it is a single model, ``[models.NAME]`` are several; the rest is
            left alone.
        strict: whether other versions of libraries than the lock's are an error, not a warning.
        locked: whether a missing lock is an error.

    Raises:
        PinError: file or lock are malformed, or the lock is missing; all problems are named at once.
        PinMismatchError: file and lock disagree; every difference is named with both values.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "pitch.toml")
    ...     _ = path.write_text('lr = 0.1\n[model]\nbundle = "CREPE_TINY"\nfreeze = "last:1"\n')
    ...     model = load_experiment(path).get_model()
    >>> model.classifier.weight.requires_grad, model.conv1.weight.requires_grad
    (True, False)
    """
    place = Path(path).expanduser()
    if is_lock(place):
        raise PinError(f"{place} is a lock: load the experiment file beside it, without '.lock'.")
    file = read_experiment(place)
    lock = read_lock_of(file.lock_path)
    if lock is None and locked:
        raise PinError(f"{place} has no lock {file.lock_path.name}: type `bundles lock {place}`.")
    if lock is None:
        _warn_unlocked(file)
    else:
        check_agreement(file, lock, file.lock_path.name)
    pins = {} if lock is None else lock.models
    folder = file.path.parent.absolute()
    models = {
        name: Model(name, wanted, pins.get(name), folder, strict) for name, wanted in file.models.items()
    }
    return Experiment(place, models, file.single)


def _warn_unlocked(file: ExperimentFile) -> None:
    if (key := str(file.path.absolute())) not in _told:
        _told.add(key)
        warn(
            f"{file.path} has no lock, so its models may be made of other bytes tomorrow: type "
            f"`bundles lock {file.path}`.",
            UnpinnedSourceWarning,
        )
