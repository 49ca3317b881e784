"""What a policy selects of a model: tensors as a whole, and elements of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bundles.spec.masks import Mask


@dataclass(frozen=True)
class Selection:
    """Frozen elements. Combining selections is boolean arithmetic on single elements.

    Attributes:
        whole: names of tensors that are frozen altogether.
        parts: name -> mask of the shape of its tensor, of those with both frozen and other elements.
    """

    whole: frozenset[str]
    parts: Mapping[str, Mask]

    @classmethod
    def of(cls, whole: Iterable[str], masks: Mapping[str, Mask]) -> Selection:
        """Return the selection of whole tensors and of masks, which may be full or empty, too."""
        names = frozenset(whole)
        rest = {name: mask for name, mask in masks.items() if name not in names and mask.any}
        full = {name for name, mask in rest.items() if mask.all}
        return cls(names | full, {name: mask for name, mask in rest.items() if name not in full})

    def __bool__(self) -> bool:
        return bool(self.whole or self.parts)

    def __contains__(self, name: object) -> bool:
        """Whether some element of a tensor is selected."""
        return name in self.whole or name in self.parts

    def __or__(self, other: Selection) -> Selection:
        shared = self.parts.keys() & other.parts.keys()
        both = {name: self.parts[name] | other.parts[name] for name in shared}
        return self.of(self.whole | other.whole, {**self.parts, **other.parts, **both})

    def __and__(self, other: Selection) -> Selection:
        shared = self.parts.keys() & other.parts.keys()
        masks = {name: self.parts[name] & other.parts[name] for name in shared}
        masks |= {name: mask for name, mask in self.parts.items() if name in other.whole}
        masks |= {name: mask for name, mask in other.parts.items() if name in self.whole}
        return self.of(self.whole & other.whole, masks)

    def below(self, prefix: str) -> Selection:
        """Return what is selected of a part of the model, in names that start there."""
        parts = {n.removeprefix(prefix): mask for n, mask in self.parts.items() if n.startswith(prefix)}
        return Selection(frozenset(n.removeprefix(prefix) for n in self.whole if n.startswith(prefix)), parts)

    def outside(self, names: Iterable[str]) -> Selection:
        """Return all else: of tensors of these names, the elements that are not in this selection."""
        whole = frozenset(names) - self.whole - self.parts.keys()
        return Selection(whole, {name: ~mask for name, mask in self.parts.items()})
