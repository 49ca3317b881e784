"""Check a card beyond its text: does it build, are its groups a partition, are its weights what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bundles.assemble.draft import Draft, build_draft
from bundles.assemble.planning import plan_draft
from bundles.assemble.request import read_request
from bundles.errors import BundlesError
from bundles.registry.cards import Card, CardFile, read_card_file, to_bundle
from bundles.registry.lines import Path
from bundles.registry.schema import Problem
from bundles.spec.bundle import Bundle
from bundles.spec.groups import idle_patterns
from bundles.spec.hub import parse_hub
from bundles.spec.source import WeightSource

if TYPE_CHECKING:
    from torch import nn


@dataclass
class CardCheck:
    """What is known of one card after it was built and its sources were looked at.

    Attributes:
        name: of the bundle.
        problems: why it cannot be used as it is, a line each: file, line, key, cause.
        warnings: what a reader of the card would like to know, likewise.
        groups: how many layer groups it has.
        num_parameters: how many parameters it has.
        values: what the card does not say, or says too vaguely, by the key's path in it.
    """

    name: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    groups: int = 0
    num_parameters: int = 0
    values: dict[Path, Any] = field(default_factory=dict)


@dataclass
class FileCheck:
    """What is known of one card file.

    Attributes:
        path: of the file.
        problems: with the file, and of cards of it that do not follow the format.
        cards: the others.
    """

    path: str
    problems: list[str]
    cards: list[CardCheck]

    @property
    def is_good(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems and not any(card.problems for card in self.cards)


def check_file(path: str, *, offline: bool = False, fill: bool = False) -> FileCheck:
    """Check every card of a file: its text, what it builds, and where its weights are.

    Args:
        path: of the file.
        offline: leave alone what would need a network.
        fill: also download what has to be hashed because nobody publishes its digest.
    """
    found = read_card_file(path)
    cards = [_check_card(found, name, card, offline, fill) for name, card in found.cards.items()]
    return FileCheck(path, found.problems, cards)


def _check_card(found: CardFile, name: str, card: Card, offline: bool, fill: bool) -> CardCheck:
    check = CardCheck(name)
    bundle = to_bundle(name, card, found.path)
    problems = [*_check_model(bundle, card, check), *_check_sources(bundle, card, check, offline, fill)]
    check.problems = [found.told((name, *key), why) for key, why in problems]
    check.warnings = [found.told((name, *key), why) for key, why in _remarks(bundle)]
    return check


def _check_model(bundle: Bundle, card: Card, check: CardCheck) -> Iterator[Problem]:
    """Build the bundle on the meta device and hold it against its card."""
    try:
        draft = build_draft(bundle, None, "meta")
    except BundlesError as error:
        yield ("architecture",), _sentence(error)
        return
    except Exception as error:  # noqa: BLE001 - values of a card, and somebody else's library
        yield ("architecture",), f"cannot be built ({type(error).__name__}: {error}): check its values"
        return
    check.num_parameters = sum(parameter.numel() for parameter in draft.model.parameters())
    said = card.get("num_parameters")
    if said is None:
        check.values["num_parameters",] = check.num_parameters
    elif said != check.num_parameters:
        yield ("num_parameters",), f"{said} is not the number of its parameters, {check.num_parameters}"
    try:
        check.groups = len(draft.groups())
    except BundlesError as error:
        yield ("layers",), _sentence(error)
    else:
        yield from _check_policy(bundle, draft)
    yield from _idle(bundle, draft.model)
    yield from _check_slot(bundle, draft.model)


def _check_policy(bundle: Bundle, draft: Draft) -> Iterator[Problem]:
    try:
        check_policy(bundle, draft)
    except BundlesError as error:
        yield ("freeze",), _sentence(error)


def check_policy(bundle: Bundle, draft: Draft) -> None:
    """Raise what ``freeze=True`` would raise; a policy that asks what fits a machine is left to that machine.

    Raises:
        FreezeError: the bundle's default policy or mode is none for its model.
    """
    request = read_request(bundle, True, None)
    if not request[0].unsettled:
        plan_draft(draft, request, pretrained=True)


def _idle(bundle: Bundle, model: nn.Module) -> Iterator[Problem]:
    names = [name for name, _ in model.named_modules()]
    names += [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in idle_patterns(bundle.rules, names):
        if not _is_left_empty(model, pattern):
            yield ("layers",), f"{pattern!r} matches nothing in the model: check its spelling"


def _is_left_empty(model: nn.Module, name: str) -> bool:
    """Whether a model has a place of that name, and nothing there: a head that only some bundles have."""
    parent, _, last = name.rpartition(".")
    try:
        return getattr(model.get_submodule(parent), last, ...) is None
    except AttributeError:
        return False


def _check_slot(bundle: Bundle, model: nn.Module) -> Iterator[Problem]:
    if bundle.head_slot is None:
        return
    try:
        slot = model.get_submodule(bundle.prefix + bundle.head_slot)
    except AttributeError:
        there = ", ".join(name for name, _ in model.named_children())
        yield ("head_slot",), f"{bundle.head_slot!r} is not a module of the model, which has {there}"
        return
    takes = _input_size(slot)
    if takes is not None and bundle.num_features not in (None, takes):
        yield ("num_features",), f"{bundle.num_features} is not what {bundle.head_slot} takes, {takes}"


def _input_size(module: nn.Module) -> int | None:
    """Return the size of the features that a head takes, by its first linear or convolutional layer."""
    sizes = (getattr(part, "in_features", getattr(part, "in_channels", None)) for part in module.modules())
    return next((size for size in sizes if isinstance(size, int)), None)


# --- sources ------------------------------------------------------------------------------------


def _check_sources(
    bundle: Bundle, card: Card, check: CardCheck, offline: bool, fill: bool
) -> Iterator[Problem]:
    sources: dict[Path, WeightSource] = {("assets", name): source for name, source in bundle.assets.items()}
    if bundle.weights:
        sources["weights",] = bundle.weights
    for key, source in sources.items():
        try:
            known = _identify(source, offline, fill)
        except BundlesError as error:
            yield (*key, "source"), _sentence(error)
            continue
        new: dict[Path, Any] = {}
        yield from _compare(key, source, known, new)
        if new and key[0] == "assets":  # what is inherited of those is inherited as a whole
            new = {(*key, "source"): card["assets"][key[1]]["source"]} | new
        check.values |= new


def _compare(key: Path, source: WeightSource, known: WeightSource, new: dict[Path, Any]) -> Iterator[Problem]:
    """Note what a card does not say of a source, and yield what it says that is not so."""
    if known.uri != source.uri:
        new[*key, "source"] = known.uri
    for part in ("sha256", "size", "shards"):
        said, true = getattr(source, part), getattr(known, part)
        if true and not said:
            new[*key, part] = true
        elif true and said != true:
            yield (*key, part), f"{said} is not what {source.shown} has: {true}"


def _identify(source: WeightSource, offline: bool, fill: bool) -> WeightSource:
    """Return a source with all that can be known of its bytes.

    What is on this machine is hashed. The Hub tells what it has. From elsewhere a file has to be downloaded,
    which is done only to fill in what the card lacks.
    """
    from bundles.sources.fetch import fetch
    from bundles.sources.hub.repository import pin
    from bundles.sources.verify import stamped_sha256

    if source.scheme == "hf":
        return source if offline else pin(parse_hub(source.address))
    is_local = source.scheme in ("file", "package")
    is_vague = source.sha256 is None or source.size is None
    if not is_local and (offline or not fill or not is_vague):
        return source
    path = fetch(source)
    return replace(source, sha256=stamped_sha256(path), size=path.stat().st_size or None)


# --- remarks ------------------------------------------------------------------------------------


def _remarks(bundle: Bundle) -> Iterator[Problem]:
    """Yield what is not wrong, and yet worth a word."""
    license_ = bundle.metadata.get("license")
    if license_ is None:
        yield ("license",), "is missing: whoever uses the weights has to know"
    elif license_.lower() in ("other", "unknown"):
        yield ("license",), f"{license_!r} says nothing: name it, or give its address"
    if bundle.num_features is None and bundle.head_slot:
        yield ("num_features",), "is missing: a head that is made by a function needs it"
    for key, source in {"weights": bundle.weights, **bundle.assets}.items():
        path = (key,) if key == "weights" else ("assets", key)
        if source is None:
            continue
        if source.scheme == "hf" and parse_hub(source.address).commit is None:
            yield (*path, "source"), "names no commit, so it may mean other bytes tomorrow: add --write"
        elif source.sha256 is None:
            yield (*path, "sha256"), "is missing, so what comes first is believed: add --write"


def _sentence(error: BundlesError) -> str:
    return str(error).rstrip(".")
