"""The registry: a Mapping from names to bundles.

This file is on the path of ``import bundles; bundles.list_bundles()``, so what costs time to import
is imported where it is used, and a card becomes a ``Bundle`` at its first lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import RLock
from typing import TYPE_CHECKING, Any

from bundles.errors import CardError, DuplicateBundleError, RegistryError, UnknownBundleError
from bundles.registry.names import instead_of, merged, name_problem
from bundles.registry.shelf import Shelf, facts_of, taken_message

if TYPE_CHECKING:
    from bundles.spec.bundle import Bundle

_COLUMNS = ("name", "task", "license", "#parameters", "weights", "description")


class Registry(Mapping[str, "Bundle"]):
    """Bundles by name, in natural order; names that differ only in case count as the same.

    Args:
        populate: called once, at the first use, to fill the registry.

    >>> import bundles
    >>> bundles.default_registry["CREPE_TINY"].task
    'pitch'
    """

    def __init__(self, populate: Callable[[Registry], None] | None = None) -> None:
        self._populate, self._filled, self._lock = populate, populate is None, RLock()
        self._cards: dict[str, Shelf] = {}
        self._bundles: dict[str, Bundle] = {}
        self._broken: dict[str, list[str]] = {}
        self._problems: list[str] = []
        self._by_lower: dict[str, str] = {}
        self._order: tuple[str, ...] | None = None
        self._largest: list[str] = []  # names of the largest shelf, in natural order

    # --- Mapping ---------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Bundle:
        self._fill()
        bundle = self._bundles.get(name)
        if bundle is not None:
            return bundle
        if name in self._cards:
            from bundles.registry.cards import to_bundle

            shelf = self._cards[name]
            bundle = to_bundle(name, shelf.card(name), shelf.origin(name), shelf.folder)
            self._bundles[name] = bundle
            return bundle
        raise self._unknown(name)

    def __iter__(self) -> Iterator[str]:
        self._fill()
        order = self._order
        if order is None:
            order = self._order = tuple(merged({*self._cards, *self._bundles}, self._largest))
        return iter(order)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the bundle of that name, or the default where there is none or its card is broken."""
        return self[name] if name in self else default  # noqa: SIM401 - this is that method

    def __contains__(self, name: object) -> bool:
        self._fill()
        return name in self._cards or name in self._bundles

    # --- discovery -------------------------------------------------------------------------------

    def names(self, match: str = "*", **metadata: object) -> list[str]:
        """Return the names that match a glob and carry all of this metadata.

        Args:
            match: glob on the name, case ignored.
            metadata: value, or glob where the metadata is text (``license="CC-BY-NC*"``); where it is
                a list, one of its entries.

        Raises:
            RegistryError: no bundle has metadata of that name.
        """
        names = list(self)
        if not isinstance(match, str):
            raise RegistryError(f"A {type(match).__name__} is no glob on names: give text, as 'CREPE_*'.")
        if match != "*":
            from fnmatch import fnmatchcase

            names = [name for name in names if fnmatchcase(name.lower(), match.lower())]
        for key, wanted in metadata.items():
            found = self._facts(key)
            names = [name for name in names if _matches(found.get(name), wanted)]
        return names

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with cards that were found and could not be used: file, line, key, cause."""
        self._fill()
        return tuple(self._problems)

    def why_broken(self, name: str) -> tuple[str, ...]:
        """Return the problems of a card of that name that could not be used."""
        return tuple(self._broken.get(name, ()))

    # --- adding ----------------------------------------------------------------------------------

    def add(self, bundle: Bundle, *, override: bool = False) -> None:
        """Add a bundle made in Python.

        Raises:
            DuplicateBundleError: the name is taken and ``override`` is not set.
            RegistryError: it is no name.
        """
        from bundles.spec.bundle import Bundle

        self._fill()
        if not isinstance(bundle, Bundle):
            raise RegistryError(
                f"A {type(bundle).__name__} is no Bundle: register(bundles.Bundle(name, ...))."
            )
        if problem := name_problem(bundle.name):
            raise RegistryError(f"The name {bundle.name!r} {problem}.")
        self._claim(bundle.name, bundle.origin, override)
        self._bundles[bundle.name] = bundle
        self._order = None

    def add_shelf(self, shelf: Shelf, *, override: bool = False, can_override: bool = False) -> list[str]:
        """Add a folder's checked cards, each to be made a bundle when it is looked up.

        Args:
            shelf: the cards, and what is wrong with the others: looking one of those up then says why.
            override: take names that are taken.
            can_override: whether the person who reads the problems could have asked for that.

        Returns:
            All problems, those of cards whose name is taken included.
        """
        self._fill()
        taken = [name for lower, name in shelf.by_lower.items() if lower in self._by_lower]
        problems = shelf.problems
        if not override:
            problems = problems + [self._refusal(name, shelf, can_override) for name in taken]
        for name in taken if override else ():
            self._forget(self._by_lower[name.lower()])
        refused = set(() if override else taken)
        names = [name for name in shelf if name not in refused] if refused else list(shelf)
        for name in self._broken.keys() & set(names):
            self._mend(name)
        self._cards.update(dict.fromkeys(names, shelf))
        self._by_lower.update({name.lower(): name for name in names} if refused else shelf.by_lower)
        if len(names) > len(self._largest):
            self._largest = shelf.order
        self.add_problems(problems, shelf.broken)
        self._order = None
        return problems

    def add_problems(self, problems: list[str], broken: Mapping[str, list[str]]) -> None:
        """Note cards that could not be used; looking one up then says why."""
        self._problems.extend(problems)
        self._broken.update(broken)

    # --- display ---------------------------------------------------------------------------------

    def __repr__(self) -> str:
        from bundles.display import text_table

        return text_table(*self.table())

    def _repr_html_(self) -> str:
        from bundles.display import html_table

        return html_table(*self.table())

    def table(self, names: Iterable[str] | None = None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the columns and rows in which people see bundles; all of them without ``names``."""
        return _COLUMNS, [self._row(name) for name in (self if names is None else names)]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    # --- inside ----------------------------------------------------------------------------------

    def _fill(self) -> None:
        if self._filled:
            return
        with self._lock:
            populate, self._populate = self._populate, None
            if populate is None:  # filled by another thread meanwhile, or being filled by this one
                return
            try:
                populate(self)
                self._filled = True
            finally:
                if not self._filled:  # interrupted: begin again next time
                    self._empty()
                    self._populate = populate

    def _empty(self) -> None:
        for entries in (self._cards, self._bundles, self._broken, self._problems, self._by_lower):
            entries.clear()
        self._order = None
        self._largest = []

    def _claim(self, name: str, origin: str, override: bool) -> None:
        taken = self._by_lower.get(name.lower())
        if taken is not None:
            first = self._origin(taken)
            if not override:
                raise DuplicateBundleError(
                    taken_message(name, origin, taken, first, can_override=True),
                    name=name,
                    origins=(first, origin),
                )
            self._forget(taken)
        self._by_lower[name.lower()] = name
        self._mend(name)

    def _refusal(self, name: str, shelf: Shelf, can_override: bool) -> str:
        taken = self._by_lower[name.lower()]
        first = self._origin(taken)
        return taken_message(name, shelf.origin(name), taken, first, can_override=can_override)

    def _origin(self, name: str) -> str:
        return self._cards[name].origin(name) if name in self._cards else self._bundles[name].origin

    def _forget(self, name: str) -> None:
        self._cards.pop(name, None)
        self._bundles.pop(name, None)
        self._by_lower.pop(name.lower(), None)

    def _mend(self, name: str) -> None:
        """Drop the problems of a broken card whose name a good one has taken."""
        mended = self._broken.pop(name, [])
        self._problems = [problem for problem in self._problems if problem not in mended]

    def _metadata(self, name: str) -> Mapping[str, Any]:
        if name in self._cards:
            return facts_of(self._cards[name].card(name))
        bundle = self._bundles[name]
        known = {
            "builder": bundle.builder,
            "head_slot": bundle.head_slot,
            "num_features": bundle.num_features,
            **bundle.metadata,
        }
        return {key: value for key, value in known.items() if value is not None}

    def _facts(self, key: str) -> dict[str, Any]:
        """Return what bundles have at a key, by name.

        Raises:
            RegistryError: none has it.
        """
        self._fill()
        shelves = {id(shelf): shelf for shelf in self._cards.values()}
        found = {
            name: value
            for shelf in shelves.values()
            for name, value in shelf.facts(key).items()
            if self._cards.get(name) is shelf
        }
        made = ((name, self._metadata(name)) for name in self._bundles if name not in self._cards)
        found |= {name: facts[key] for name, facts in made if key in facts}
        if found:
            return found
        from bundles.spec.suggest import closest

        known = {field for name in self for field in self._metadata(name)}
        nearest = ", ".join(closest(key, known)) or "nothing, since there is no bundle"
        raise RegistryError(f"No bundle has the metadata {key!r}; the closest is {nearest}.")

    def _unknown(self, name: str) -> RegistryError:
        if name in self._broken:
            lines = self._broken[name]
            return CardError(f"The card of {name} is broken:\n" + "\n".join(lines), problems=tuple(lines))
        from bundles.spec.suggest import closest

        if other := instead_of(name):
            return UnknownBundleError(f"There is no bundle {name!r}: {other}.", name=name, closest=())
        nearest = closest(str(name), self)
        meant = f"did you mean {', '.join(nearest)}? " if nearest else ""
        return UnknownBundleError(
            f"There is no bundle {name!r}: {meant}`bundles list` lists all {len(self)}; your own need "
            f"bundles.register(...) first.",
            name=name,
            closest=nearest,
        )

    def _row(self, name: str) -> tuple[str, ...]:
        facts, weights = self._metadata(name), self[name].weights
        count = facts.get("num_parameters")
        return (
            name,
            str(facts.get("task", "")),
            str(facts.get("license", "")),
            f"{count:,}" if isinstance(count, int) and 0 < count < 2**63 else "",
            _short(weights.shown) if weights else "",
            str(facts.get("description", "")),
        )


def _short(uri: str) -> str:
    """Where weights come from, at a glance: on the web only the host, on the Hub the repository."""
    scheme, _, address = uri.partition(":")
    if scheme == "hf":
        return uri.partition("#")[0].partition("@")[0]
    return f"url:{address.split('/')[2]}" if scheme == "url" and address.count("/") > 1 else uri


def _matches(value: object, wanted: object) -> bool:
    if isinstance(value, list | tuple):
        return any(_matches(entry, wanted) for entry in value)
    if isinstance(value, str) and isinstance(wanted, str):
        from fnmatch import fnmatchcase

        return fnmatchcase(value.lower(), wanted.lower())
    return value == wanted
