"""What a worker is told to do: a window, by the numbers of its items or with the items themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

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

    def with_items(self, inputs: Inputs) -> Task:
        """Return the window with its items, for another process, which has no dataset."""
        return Task(self.number, items=tuple(self.read(inputs)))


class Tasks(Iterator[Task]):
    """The windows of a dataset; those of a stream are read on the way.

    Attributes:
        left: how many are still to come; ``None`` of a stream until it has ended.
    """

    def __init__(self, inputs: Inputs, size: int) -> None:
        self.left = None if inputs.count is None else math.ceil(inputs.count / size)
        self._windows = _of_stream(inputs, size) if inputs.count is None else _of_count(inputs.count, size)

    def __next__(self) -> Task:
        task = next(self._windows, None)
        if task is None:
            self.left = 0
            raise StopIteration
        if self.left is not None:
            self.left -= 1
        return task

    def put_back(self, task: Task) -> None:
        """Have a window come again, as the next."""
        self._windows = chain([task], self._windows)
        if self.left is not None:
            self.left += 1


def _of_count(count: int, size: int) -> Iterator[Task]:
    for number, start in enumerate(range(0, count, size)):
        yield Task(number, range(start, min(start + size, count)))


def _of_stream(inputs: Inputs, size: int) -> Iterator[Task]:
    stream = iter(inputs)
    windows = iter(lambda: tuple(islice(stream, size)), ())
    yield from (Task(number, items=items) for number, items in enumerate(windows))


def read_item(inputs: Inputs, index: int) -> Read:
    """Return an item of a dataset, or why it cannot be read."""
    try:
        return inputs.read(index)
    except InputError as error:
        return error
