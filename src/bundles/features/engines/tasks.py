"""What a worker is told to do: a window, by the numbers of its items or with the items themselves."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from bundles.errors import InputError
from bundles.features.inputs.item import Item
from bundles.features.inputs.open import Inputs
from bundles.features.inputs.source import Stamp

Read = Item | InputError  # an item, or why it could not be read


@dataclass(frozen=True)
class Task:
    """A window of a dataset.

    Attributes:
        number: of the window.
        indices: of its items in the dataset, to be read by whoever makes the shard; or
        items: the items, for a worker that has no dataset.
    """

    number: int
    indices: range = range(0)
    items: tuple[Read, ...] = ()

    def read(self, inputs: Inputs | None) -> Iterator[Read]:
        """Yield every item of the window, or why it could not be read."""
        yield from self.items
        if inputs is not None:
            yield from (read_item(inputs, index) for index in self.indices)

    def stamps(self, inputs: Inputs) -> tuple[Stamp | None, ...]:
        """Return what tells of the files of the window whether they change from now on."""
        return tuple(inputs.stamp(index) for index in self.indices)

    def handed(self, inputs: Inputs) -> bytes:
        """Return the window with its items for another process, which has no dataset."""
        # Cloned, since a pickle holds the whole of the storage that a tensor is a part of.
        items = (
            replace(item, tensor=item.tensor.clone()) if isinstance(item, Item) else item
            for item in self.read(inputs)
        )
        return pickle.dumps(Task(self.number, items=tuple(items)))


def tasks_of(inputs: Inputs, size: int) -> Iterator[Task]:
    """Yield the windows of a dataset; those of a stream are read on the way."""
    if inputs.count is None:
        stream = iter(inputs)
        windows = iter(lambda: tuple(islice(stream, size)), ())
        yield from (Task(number, items=items) for number, items in enumerate(windows))
        return
    for number, start in enumerate(range(0, inputs.count, size)):
        yield Task(number, range(start, min(start + size, inputs.count)))


def read_item(inputs: Inputs, index: int) -> Read:
    """Return an item of a dataset, or why it cannot be read."""
    try:
        return inputs.read(index)
    except InputError as error:
        return error
