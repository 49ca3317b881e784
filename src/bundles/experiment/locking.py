"""Lock an experiment: pin what is new or asked for anew, and keep every other pin as it is."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bundles import __version__
from bundles.assemble.lookup import get_bundle
from bundles.assemble.pinned import pinned_bundle
from bundles.assemble.pins import pin_bundle
from bundles.errors import PinError, UnpinnedSourceWarning
from bundles.experiment.agree import ASKED, differences, disagreements, means, text_of
from bundles.experiment.config import ModelConfig
from bundles.experiment.file import ExperimentFile
from bundles.experiment.places import placed
from bundles.spec.fold import unfold
from bundles.spec.lock import Lock
from bundles.spec.pin import ModelPin
from bundles.spec.suggest import closest
from bundles.spec.values import plain_value

_SHOWN = 6


def lock_experiment(
    file: ExperimentFile, old: Lock | None = None, *, upgrade: Collection[str] = (), upgrade_all: bool = False
) -> Lock:
    """Return the lock of an experiment. Of the Hub it takes listings and small files, no weights.

    Args:
        file: what is wanted.
        old: the lock that there is; its pins are kept where the file still says the same.
        upgrade: names of models to resolve anew, so that a branch means what it means now.
        upgrade_all: resolve all of them anew.

    Raises:
        PinError: a name to upgrade is none of the file's; or something cannot be pinned.
        BundlesError: a bundle cannot be had or planned.
    """
    for name in upgrade:
        if name not in file.models:
            near = closest(name, file.models, count=1)[0]
            raise PinError(f"{file.path} has no model {name!r} to upgrade: did you mean {near!r}?")
    pins = old.models if old is not None and old.single == file.single else {}
    models = {}
    for name, wanted in file.models.items():
        kept = None if upgrade_all or name in upgrade else pins.get(name)
        if kept is None or next(disagreements(wanted, kept), None) is not None:
            kept = resolve(wanted, pins.get(name), file.path.parent, anew=kept is None)
        models[name] = kept
    if old is not None and old.single == file.single and dict(old.models) == models:
        return old
    extra = {} if old is None else old.extra
    return Lock(models, single=file.single, created_by=f"bundles {__version__}", extra=extra)


def resolve(wanted: ModelConfig, old: ModelPin | None, folder: Path, *, anew: bool = True) -> ModelPin:
    """Return the pin of a model.

    Args:
        wanted: the model.
        old: its pin until now, of which alternates are kept.
        folder: of the experiment file.
        anew: whether a branch means what it means now, even where ``old`` is of the same address.
    """
    same = old is not None and not anew and means(wanted.bundle, old)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnpinnedSourceWarning)  # pinning it is what is being done
        if old is not None and same:
            bundle = pinned_bundle(old, folder)
        else:
            bundle = get_bundle(placed(wanted.bundle, folder))
        pin = pin_bundle(
            bundle,
            freeze=wanted.freeze,
            freeze_mode=wanted.freeze_mode,
            head=None if wanted.head is None else plain_value(wanted.head),
            dtype=wanted.dtype,
            folder=folder,
            previous=old,
        )
    is_same = wanted.bundle == pin.bundle
    return pin if is_same else replace(pin, extra={ASKED: wanted.bundle})


def changes(old: Lock | None, new: Lock) -> Iterator[str]:
    """Yield what a new lock changes, one line each: ``name.key: old → new``."""
    before = {} if old is None else old.models
    for name in sorted({*before, *new.models}):
        if name not in new.models:
            yield f"{name}: removed"
        elif name not in before:
            pin = new.models[name]
            yield f"{name}: added {pin.bundle}, {pin.parameters:,} parameters, {pin.trainable:,} train"
        else:
            yield from (f"{name}.{line}" for line in _pin_changes(before[name], new.models[name]))


def stale(file: ExperimentFile, old: Lock) -> Iterator[str]:
    """Yield in what a lock is not what the file asks for, by the cards and libraries that are there now.

    Every commit and digest stays as it is locked: whether a branch has moved is for ``outdated`` to say.
    """
    found = list(differences(file, old))
    yield from found
    for name, wanted in file.models.items() if not found else ():
        now = resolve(wanted, old.models[name], file.path.parent, anew=False)
        as_it_was = replace(now, versions=old.models[name].versions)  # which warn where they differ
        yield from (f"{name}.{line}" for line in _pin_changes(old.models[name], as_it_was))


def _pin_changes(old: ModelPin, new: ModelPin) -> Iterator[str]:
    for item in fields(ModelPin):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if before == after:
            continue
        if item.name == "files":
            yield from _file_changes(old, new)
        elif item.name == "frozen":
            yield from _frozen_changes(old, new)
        else:
            yield f"{item.name}: {_short(before)} → {_short(after)}"


def _frozen_changes(old: ModelPin, new: ModelPin) -> Iterator[str]:
    then, now = unfold(old.frozen), unfold(new.frozen)
    for what, names in (("no longer frozen", then - now), ("newly frozen", now - then)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            yield f"frozen: {what} {', '.join(sorted(names)[:_SHOWN])}{more}"


def _file_changes(old: ModelPin, new: ModelPin) -> Iterator[str]:
    before = {(file.role, file.path): file for file in old.files}
    after = {(file.role, file.path): file for file in new.files}
    for role, path in sorted({*before, *after}):
        then, now = before.get((role, path)), after.get((role, path))
        if then == now:
            continue
        if then is None or now is None:
            yield f"files: {path} {'added' if then is None else 'removed'}"
        elif then.sha256 != now.sha256:
            yield f"files: {path} sha256 {then.sha256[:12]} → {now.sha256[:12]}"
        else:
            yield f"files: {path} has the same bytes, {then.source} → {now.source}"


def _short(value: Any) -> str:
    if isinstance(value, str) and value.startswith("sha256:"):
        return value[:19]
    text = f"{value:,}" if type(value) is int else text_of(plain_value(value))
    return text if len(text) <= 90 else f"{text[:87]}..."
