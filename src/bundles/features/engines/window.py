"""One window of a dataset: what is to be made of it, what was read of it, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bundles.errors import InputError
from bundles.features.engines.source import Source
from bundles.features.engines.tasks import Task
from bundles.features.inputs.item import Item
from bundles.features.inputs.open import Inputs
from bundles.features.inputs.source import Stamp
from bundles.features.store.shard import Shard
from bundles.spec.features import FeatureFacts


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a shard holds and where it goes.

    Attributes:
        source: the model.
        facts: of the features.
        batch_size: items that the model is given at once.
        folder: of the shards.
        skips: whether an item that cannot be read is left out; else it is an error.
    """

    source: Source
    facts: FeatureFacts
    batch_size: int
    folder: Path
    skips: bool = False


@dataclass(frozen=True)
class Made:
    """What became of a window.

    Attributes:
        number: of the window.
        seen: items that it has in the dataset.
        shard: the file; ``None`` where no item of the window can be read.
        unreadable: name of each item that was left out, and why.
        bound: how far results may be from those of items alone, if that was measured here.
        damaged: whether a file was there already, and not whole.
        computed: whether the model was asked, and not only what is there.
        stamps: of files that were read, each with the identity of what is in it.
    """

    number: int
    seen: int
    shard: Shard | None
    unreadable: tuple[tuple[str, str], ...] = ()
    bound: float | None = None
    damaged: bool = False
    computed: bool = False
    stamps: tuple[tuple[Stamp, bytes], ...] = ()


@dataclass(frozen=True, eq=False)
class Window:
    """What was read of a window."""

    number: int
    items: tuple[Item, ...]
    unreadable: tuple[tuple[str, str], ...]
    stamps: tuple[tuple[Stamp, bytes], ...]

    @property
    def identities(self) -> list[bytes]:
        """Of the items that could be read."""
        return [item.identity for item in self.items]

    @property
    def names(self) -> list[str]:
        """Of the items that could be read."""
        return [item.name for item in self.items]

    def made(self, shard: Shard | None, refused: Sequence[tuple[str, str]] = ()) -> Made:
        """Return what came of it."""
        seen = len(self.items) + len(self.unreadable)
        return Made(self.number, seen, shard, (*self.unreadable, *refused), stamps=self.stamps)


def read_window(task: Task, inputs: Inputs | None = None, *, skips: bool = False) -> Window:
    """Return the items of a window.

    Args:
        task: the window.
        inputs: the dataset, where the task does not bring its items.
        skips: whether an item that cannot be read is left out.

    Raises:
        InputError: one cannot be read, and none is left out.
    """
    stamps = task.stamps(inputs) if inputs is not None else ()
    read = list(task.read(inputs))
    bad = [error for error in read if isinstance(error, InputError)]
    if bad and not skips:
        raise bad[0]
    known = zip(stamps, read, strict=False)
    return Window(
        task.number,
        tuple(item for item in read if isinstance(item, Item)),
        tuple((error.inputs[0], str(error)) for error in bad),
        tuple((stamp, item.identity) for stamp, item in known if stamp and isinstance(item, Item)),
    )
