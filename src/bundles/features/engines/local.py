"""The local engine: this process, and others beside it, on one thread each, so their number is no matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from bundles.features.engines.everywhere import as_everywhere
from bundles.features.engines.helpers import Helpers
from bundles.features.engines.maker import ShardMaker
from bundles.features.engines.tasks import Task, Tasks
from bundles.features.engines.window import Made
from bundles.features.inputs.open import Inputs


def make_here(maker: ShardMaker, inputs: Inputs, tasks: Iterable[Task]) -> Iterator[Made]:
    """Yield what each window came to, made in this process."""
    for task in tasks:
        with as_everywhere():
            made = maker.make(task, inputs)
        yield made


def make_together(maker: ShardMaker, inputs: Inputs, tasks: Tasks, helpers: int) -> Iterator[Made]:
    """Yield what each window came to, made in this process and in others, in the order of being finished.

    Raises:
        FeatureError: one of the others died.
        InputError, NotDeterministicError, FeatureError, CacheError: as :meth:`ShardMaker.make`.
    """
    with Helpers(maker.recipe, inputs, helpers) as others:
        while tasks.left != 0:
            while others.has_room(tasks.left) and (task := next(tasks, None)):
                others.give(task)
            yield from make_here(maker, inputs, islice(tasks, 1))
            yield from others.done()
        yield from others.rest()
