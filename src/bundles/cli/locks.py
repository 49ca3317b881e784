"""What the commands that take a lock share."""

from __future__ import annotations

from pathlib import Path

import click

from bundles.errors import PinError
from bundles.experiment.agree import check_agreement
from bundles.experiment.file import experiment_path, is_lock, lock_path, read_experiment, read_lock_of
from bundles.spec.lock import Lock


def open_lock(path: Path, *, locked: bool = False, frozen: bool = False) -> tuple[Path, Lock]:
    """Return the lock that a path names, itself or by its experiment file.

    Args:
        path: of a lock, or of an experiment file, with which its lock then has to agree.
        locked: whether a lock, too, has to agree with the experiment file beside it.
        frozen: whether no experiment file is looked at.

    Raises:
        PinError: there is no lock, or it is malformed.
        PinMismatchError: the experiment file asks for something else.
    """
    if locked and frozen:
        raise click.UsageError(
            "--locked compares the lock with its file, --frozen does not: give one of them."
        )
    where = lock_path(path)
    lock = read_lock_of(where)
    if lock is None:
        raise PinError(f"There is no lock {where}: type `bundles lock {experiment_path(path)}`.")
    if not frozen and (locked or not is_lock(path)):
        check_agreement(read_experiment(experiment_path(path)), lock, where.name)
    return where, lock
