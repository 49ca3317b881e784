"""What of a source is on this machine, without asking anybody else."""

from __future__ import annotations

from pathlib import Path

from bundles.errors import ChecksumError, SourceNotFoundError
from bundles.sources.fetch import _look, _scheme
from bundles.sources.records import Known, known
from bundles.sources.schemes import Local
from bundles.sources.verify import Verify, check_file
from bundles.spec.source import WeightSource


def present(source: WeightSource, *, verify: Verify = "once") -> Path | None:
    """Return where the right bytes of a source lie on this machine, ``None`` where they are not.

    Nothing is asked of a network, and nothing is downloaded.

    Args:
        source: address, alternates, digest and size.
        verify: as for :func:`bundles.sources.fetch.fetch`; ``"always"`` hashes the file now.

    Raises:
        ChecksumError: there is a file, and it is another one.
        SourceAccessError: it may not be read.

    >>> import bundles
    >>> present(bundles.CREPE_TINY.weights).name
    'tiny.pth'
    """
    damage: ChecksumError | None = None
    for place in source.places():
        try:
            if (path := _at(place, verify)) is not None:
                return path
        except ChecksumError as error:
            damage = damage or error
    if damage is not None:
        raise damage
    return None


def _at(source: WeightSource, verify: Verify) -> Path | None:
    match _scheme(source):
        case Local(locate):
            try:
                path = locate(source)
            except SourceNotFoundError:
                return None
            check_file(path, Known(source), verify)
            return path
        case remote:
            found, damage = _look(known(source), remote, verify)
            if found is None and isinstance(damage, ChecksumError):
                raise damage
            return found
