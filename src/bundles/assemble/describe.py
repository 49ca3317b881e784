"""Write a bundle as a card: the inverse of reading one, for bundles that a card can describe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bundles.errors import BundlesError, CardError
from bundles.registry.names import name_problem
from bundles.registry.schema import METADATA, problems_of
from bundles.spec.bundle import Bundle
from bundles.spec.groups import LayerGroups, match_layers, parse_rules
from bundles.spec.mode import PRESETS, parse_mode
from bundles.spec.policy import FreezePolicy, parse_policy
from bundles.spec.values import plain_value, shown

Card = dict[str, Any]


def card_of(bundle: Bundle, groups: LayerGroups) -> Card:
    """Return the card of a bundle whose file holds the tensors under the model's own names.

    So it has neither ``keys`` nor ``prefix``, and no ``weights`` yet; its ``assets`` are where the bundle has
    them. Metadata that a card has no place for are left out.

    Args:
        bundle: the descriptor.
        groups: of its model, for a bundle without layers of its own.

    Raises:
        CardError: a card cannot say that: the builder is a function, a policy or mode has no name.
    """
    if not isinstance(bundle.builder, str):
        raise _unspeakable(bundle, "its builder is a function, and a card names none")
    policy, mode = parse_policy(bundle.default_policy), parse_mode(bundle.default_mode)
    if (freeze := policy_text(policy)) is None:
        raise _unspeakable(bundle, f"freeze={policy!r} is no word of a card")
    if str(mode) not in PRESETS:
        raise _unspeakable(bundle, f"freeze_mode={mode!r} is no preset")
    slot = bundle.prefix + bundle.head_slot if bundle.head_slot else None
    card = {
        **_metadata(bundle),
        "builder": bundle.builder,
        "architecture": without_null(plain_value(bundle.architecture)),
        "layers": _own_layers(bundle) if bundle.layers else layers_of(bundle, groups),
        "head_slot": slot,
        "num_features": bundle.num_features,
        "freeze": freeze,
        "freeze_mode": str(mode),
        "assets": {key: {"source": asset.uri} for key, asset in bundle.assets.items()} or None,
    }
    card = {key: value for key, value in card.items() if value is not None}
    if problems := [f"{'.'.join(key)} {what}" for key, what in problems_of(card)]:
        raise _unspeakable(bundle, "; ".join(problems))
    return card


def plain_name(name: str) -> str:
    """Return a name that a card may have, for a bundle that was found by its address.

    >>> plain_name("hf:facebook/wav2vec2-base@main"), plain_name("CREPE_TINY")
    ('wav2vec2-base', 'CREPE_TINY')
    """
    if not name_problem(name):
        return name
    own = name.partition("@")[0].rstrip("/").rpartition("/")[2]
    own = re.sub(r"[^A-Za-z0-9_.-]+", "_", own).strip("_.-")
    return own if own and not name_problem(own) else "MODEL"


def policy_text(policy: FreezePolicy) -> str | None:
    """Return the string that stands for a policy, or ``None`` where none does.

    >>> from bundles.spec.policy import Encoder, ExceptLast
    >>> policy_text(ExceptLast(2)), policy_text(Encoder() & ~ExceptLast(2))
    ('last:2', None)
    """
    texts = ["encoder", "head", "all", "none", "loaded", "feature_extractor"]
    texts += [f"{word}:{getattr(policy, 'n', '')}" for word in ("last", "first")]
    texts.append(f"blocks:{','.join(map(str, getattr(policy, 'indices', ())))}")
    texts.append(f"match:{getattr(policy, 'glob', '')}")
    return next((text for text in texts if _stands_for(text, policy)), None)


def without_null(value: Any) -> Any:
    """Return a value without entries that are ``None``, which TOML cannot say."""
    if isinstance(value, Mapping):
        return {key: without_null(entry) for key, entry in value.items() if entry is not None}
    return [without_null(entry) for entry in value] if isinstance(value, list) else value


def layers_of(bundle: Bundle, groups: LayerGroups) -> dict[str, Any]:
    """Return the ``layers`` table for groups that were derived from the module.

    Raises:
        CardError: the blocks' names do not count up, so that no pattern says them.
    """
    layers: dict[str, Any] = {}
    for group in groups:
        if group.kind != "block":
            layers[group.name] = _entry(group.name, group.kind, group.match)
        elif "blocks" not in layers:
            for index, row in enumerate(_rows(groups)):
                name = f"blocks_{index + 1}" if index else "blocks"
                layers[name] = _entry(name, "block", row)
    names = [name for group in groups for name in group.parameters]
    try:
        found = match_layers(parse_rules(layers), names)
        same = [(g.name, set(g.parameters)) for g in found] == [(g.name, set(g.parameters)) for g in groups]
    except BundlesError:
        same = False
    if not same:
        raise _unspeakable(bundle, f"no pattern says its blocks, {', '.join(groups.names)}: give it layers=")
    return layers


def _rows(groups: LayerGroups) -> list[tuple[str, ...]]:
    """The patterns of the blocks, one for each run of them whose names count up."""
    runs: list[list[tuple[str, ...]]] = []
    for block in groups.blocks:
        if runs and len(_counted([*runs[-1], block.match])) == len(block.match):
            runs[-1].append(block.match)
        else:
            runs.append([block.match])
    return [_counted(run) for run in runs]


def _counted(matches: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The patterns with ``{i}`` that give these blocks, as far as there are such."""
    shared = []
    for patterns in zip(*matches, strict=False):
        places = [{f"{p[: m.start()]}{{i}}{p[m.end() :]}" for m in re.finditer(r"\d+", p)} for p in patterns]
        shared += sorted(set.intersection(*places))[:1]
    return tuple(shared)


def _own_layers(bundle: Bundle) -> dict[str, Any]:
    """The bundle's own layers, as names of the whole model."""
    layers: dict[str, Any] = {}
    for name, rule in zip(bundle.layers, bundle.rules, strict=True):
        layers[name] = _entry(name, rule.kind, rule.match)
        if rule.always:
            layers[name] = {"match": list(rule.match), "kind": rule.kind, "always": rule.always}
    return layers


def _entry(name: str, kind: str, match: tuple[str, ...]) -> Any:
    """A line of ``layers``, as short as it can be said: some names tell their kind."""
    if kind != {"blocks": "block"}.get(name, name):
        return {"match": list(match), "kind": kind}
    return match[0] if len(match) == 1 else list(match)


def _metadata(bundle: Bundle) -> Card:
    known = {key: plain_value(value) for key, value in bundle.metadata.items()}
    card = {key: value for key, value in known.items() if key in METADATA}
    card["extra"] = {key: value for key, value in known.items() if key not in METADATA}
    wrong = [key for key, _ in problems_of({**card, "builder": bundle.builder, "layers": {"head": "*"}})]
    for path in wrong:
        if path[0] == "extra" and len(path) > 1:
            card["extra"].pop(path[1], None)
        elif path[0] in METADATA and path[0] != "companions":
            card.pop(path[0], None)
    return card if card["extra"] else {key: value for key, value in card.items() if key != "extra"}


def _stands_for(text: str, policy: FreezePolicy) -> bool:
    try:
        return parse_policy(text) == policy
    except BundlesError:
        return False


def _unspeakable(bundle: Bundle, why: str) -> CardError:
    return CardError(f"The bundle {shown(bundle.name)} cannot be written as a card: {why}.", problems=(why,))
