"""Masks over the elements of a tensor, as packed bits: a value that needs neither torch nor numpy."""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any

from bundles.errors import FreezeArgumentError
from bundles.spec.values import shown

_DIGITS = bytes.maketrans(b"\0\1", b"01")


@dataclass(frozen=True, repr=False)
class Mask:
    """True or False for each element of a tensor; ``a & b``, ``a | b`` and ``~a`` go element by element.

    Attributes:
        shape: of the tensor.
        bits: row-major, element ``i`` in bit ``i % 8`` of byte ``i // 8``; what is left of the last is 0.

    Raises:
        FreezeArgumentError: ``bits`` is not as long as ``shape`` asks.

    >>> mask = Mask.of([[True, False, False], [False, True, True]])
    >>> mask.shape, mask.count, (~mask).count
    ((2, 3), 3, 3)
    >>> mask & ~mask == Mask.full((2, 3), False)
    True
    """

    shape: tuple[int, ...]
    bits: bytes

    def __post_init__(self) -> None:
        expected = (self.size + 7) // 8
        if len(self.bits) != expected or self._number >> self.size:
            raise FreezeArgumentError(
                f"A mask of shape {self.shape} has {len(self.bits)} bytes or bits beyond its last element, "
                f"expected are {expected}: make masks with Mask.of(array)."
            )

    @classmethod
    def of(cls, values: Any) -> Mask:
        """Return the mask of nested sequences, or of an array of numpy, torch or another library.

        Raises:
            FreezeArgumentError: something in it is neither True, False, 0 nor 1, or the rows are uneven.
        """
        if isinstance(values, Mask):
            return values
        if hasattr(values, "tolist") and hasattr(values, "reshape"):
            shape, flat = tuple(map(int, values.shape)), _listed(values)
        else:
            shape, flat = _flattened(values)
        try:
            octets = bytes(flat)
        except (TypeError, ValueError):
            octets = b"\2"
        if octets.strip(b"\0\1"):
            raise FreezeArgumentError(
                f"{shown(values)} is no mask: expected is an array of True (frozen) and False, as in "
                f"weight.abs() > 0.1."
            )
        return cls._from_octets(shape, octets)

    @classmethod
    def full(cls, shape: Iterable[int], value: bool = True) -> Mask:
        """Return a mask that is the same everywhere."""
        shape = tuple(shape)
        return cls._from_number(shape, (1 << prod(shape)) - 1 if value else 0)

    @classmethod
    def from_text(cls, shape: Iterable[int], text: str) -> Mask:
        """Read what :meth:`to_text` wrote.

        Raises:
            FreezeArgumentError: the text is something else.
        """
        shape = tuple(shape)
        unpacker = zlib.decompressobj()
        try:
            bits = unpacker.decompress(base64.b64decode(text, validate=True), prod(shape) // 8 + 2)
        except (binascii.Error, zlib.error, TypeError, ValueError) as error:
            raise FreezeArgumentError(f"{shown(text)} is no mask written by to_text(): {error}.") from error
        return cls(shape, bits)

    def to_text(self) -> str:
        """Return the bits as text for JSON: base64 of zlib."""
        return base64.b64encode(zlib.compress(self.bits)).decode()

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @cached_property
    def count(self) -> int:
        """The number of elements that are True."""
        return self._number.bit_count()

    @property
    def any(self) -> bool:
        """Whether some element is True."""
        return self.count > 0

    @property
    def all(self) -> bool:
        """Whether every element is True."""
        return self.count == self.size

    @cached_property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits over shape and bits."""
        return "sha256:" + hashlib.sha256(f"{self.shape} ".encode() + self.bits).hexdigest()

    def spread(self, shape: Iterable[int]) -> Mask:
        """Return the mask for a tensor whose leading dimensions are this mask's: channels of a weight.

        Raises:
            FreezeArgumentError: they are not.

        >>> Mask.of([True, False]).spread((2, 3)) == Mask.of([[1, 1, 1], [0, 0, 0]])
        True
        """
        shape = tuple(shape)
        if shape == self.shape:
            return self
        if shape[: len(self.shape)] != self.shape:
            raise FreezeArgumentError(
                f"A mask of shape {self.shape} does not fit a tensor of shape {shape}: give {shape}, or its "
                f"first dimensions, as {shape[:1]} for channels."
            )
        width = prod(shape[len(self.shape) :])
        rows = (b"\0" * width, b"\1" * width)
        return self._from_octets(shape, b"".join(rows[octet] for octet in self._octets()))

    def __and__(self, other: Mask) -> Mask:
        return self._from_number(self._shared(other), self._number & other._number)

    def __or__(self, other: Mask) -> Mask:
        return self._from_number(self._shared(other), self._number | other._number)

    def __invert__(self) -> Mask:
        return self._from_number(self.shape, self._number ^ ((1 << self.size) - 1))

    def __repr__(self) -> str:
        return f"<Mask {self.shape}: {self.count:,} of {self.size:,}, {self.digest[:15]}>"

    def _shared(self, other: Mask) -> tuple[int, ...]:
        if self.shape != other.shape:
            raise FreezeArgumentError(f"Masks of shapes {self.shape} and {other.shape} cannot be combined.")
        return self.shape

    @property
    def _number(self) -> int:
        return int.from_bytes(self.bits, "little")

    @classmethod
    def _from_number(cls, shape: tuple[int, ...], number: int) -> Mask:
        return cls(shape, number.to_bytes((prod(shape) + 7) // 8, "little"))

    def _octets(self) -> bytes:
        """One byte, 0 or 1, for each element."""
        digits = f"{self._number:0{self.size}b}" if self.size else ""
        return digits.encode().translate(bytes.maketrans(b"01", b"\0\1"))[::-1]

    @classmethod
    def _from_octets(cls, shape: tuple[int, ...], octets: bytes) -> Mask:
        return cls._from_number(shape, int(octets[::-1].translate(_DIGITS) or b"0", 2))


def _listed(array: Any) -> list[Any]:
    try:
        flat: list[Any] = array.reshape(-1).tolist()
    except (RuntimeError, NotImplementedError) as error:
        raise FreezeArgumentError(
            f"A mask is a {type(array).__name__} without plain values ({str(error).splitlines()[0][:80]}): "
            f"give a dense one that is in memory, as mask.to_dense() or mask.cpu()."
        ) from error
    return flat


def _flattened(values: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape of nested sequences and what is innermost, in order."""
    shape: tuple[int, ...] = ()
    level = [values]
    while level and all(map(_is_row, level)):
        lengths = {len(entry) for entry in level}
        if len(lengths) > 1:
            raise FreezeArgumentError(
                f"The rows of the mask {shown(values)} have lengths {sorted(lengths)}, expected is only one."
            )
        shape, level = (*shape, *lengths), list(chain.from_iterable(level))
    return shape, level


def _is_row(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
