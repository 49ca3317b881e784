"""Compare the image cards with the installed torchvision and timm, key by key, and write what differs.

Run it when either publishes a release::

    python scripts/vision_cards.py            # prints what differs; exit status 1 if anything does
    python scripts/vision_cards.py --write    # puts their values into the cards

For another model write a table with its ``architecture`` (and, of torchvision, its weights under
``extra.torchvision_weights``), then ``--write``. What the libraries do not know (licence of torchvision's
weights, paper, training data, digests) is written by people and left as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import tomlkit
import torchvision
from torch import nn

import bundles.registry
from bundles.builders.image_layers import image_layers
from bundles.builders.table import build
from bundles.builders.timm_config import LICENSES, computed_in, groups_of
from bundles.registry.cards import read_card_file
from bundles.spec.bundle import Bundle

CARDS = Path(bundles.registry.__file__).parent / "cards"
FILES = ("torchvision.toml", "timm.toml")
Facts = dict[tuple[str, ...], Any]  # path of a key in a card -> the library's value

_MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_FOUR = ("features.1.{i}", "features.3.{i}", "features.5.{i}", "features.7.{i}")
# Where torchvision's blocks are, by the beginning of the model's name; VGG's are written by hand.
ROWS: dict[str, tuple[str, ...]] = {
    "convnext": _FOUR,
    "densenet": ("features.denseblock{s}.denselayer{i}",),
    "efficientnet": ("features.{s}.{i}.block",),
    "googlenet": tuple(f"inception{name}" for name in ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]),
    "inception": tuple(f"Mixed_{name}" for name in _MIXED),
    "maxvit": ("blocks.{s}.layers.{i}",),
    "mobilenet_v2": ("features.{i}.conv",),
    "mobilenet_v3": ("features.{i}.block",),
    "regnet": tuple(f"trunk_output.block{s}.block{s}-{{i}}" for s in range(1, 5)),
    "resne": ("layer{s}.{i}",),
    "swin": _FOUR,
    "vit": ("encoder.layers.encoder_layer_{i}",),
    "wide_resnet": ("layer{s}.{i}",),
}


def facts_of(card: dict[str, Any]) -> Facts:
    """Return everything that the library knows of a card's model, by the keys of our cards."""
    model = build(Bundle("ANY", card["builder"], card["architecture"]), parameters="meta")
    facts: Facts = {("num_parameters",): sum(parameter.numel() for parameter in model.parameters())}
    facts |= _torchvision(card, model) if card["builder"] == "torchvision" else _timm(card, model)
    return {key: value for key, value in facts.items() if value not in (None, [], {})}


def name_of(card: dict[str, Any]) -> str:
    """Return the name that a card has by the rule: the library's own, in capitals."""
    if card["builder"] == "torchvision":
        return card["extra"]["torchvision_weights"].replace("_Weights.", "_").upper()  # type: ignore[no-any-return]
    return "TIMM_" + card["architecture"]["model"].replace(".", "_").upper()  # type: ignore[no-any-return]


def differences(cards: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any, Any]]:
    """Yield (bundle, key, the library's value, the card's) of everything that is not alike."""
    for name, card in cards.items():
        for key, value in facts_of(card).items():
            if (found := _at(card, key)) != value:
                yield name, key, value, found


def _torchvision(card: dict[str, Any], model: nn.Module) -> Facts:
    entry = torchvision.models.get_weight(card["extra"]["torchvision_weights"])
    slot, last = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    heads = [name for name, _ in model.named_children() if name.startswith(("aux", "Aux"))]
    rows = next((rows for start, rows in ROWS.items() if card["architecture"]["model"].startswith(start)), ())
    names = [name for name, _ in model.named_parameters()]
    return {
        ("weights", "source"): f"url:{entry.url}",
        ("num_features",): last.in_features,
        ("head_slot",): slot,
        ("layers",): image_layers(names, rows, (*heads, slot)),
        ("input_shape",): [1, 3, *entry.transforms().crop_size * 2],
        ("homepage",): entry.meta["recipe"],
        ("extra", "top1"): entry.meta["_metrics"]["ImageNet-1K"]["acc@1"],
    }


def _timm(card: dict[str, Any], model: nn.Module) -> Facts:
    settings: Any = timm.get_pretrained_cfg(card["architecture"]["model"])
    source = card.get("weights", {}).get("source", "")
    commit = source.partition("@")[2].partition("#")[0]
    address = f"{settings.hf_hub_id}@{commit}" if commit else settings.hf_hub_id
    return {
        ("weights", "source"): f"hf:{address}#model.safetensors",
        ("license",): LICENSES.get(settings.license),
        ("input_shape",): [1, *settings.input_size],
        ("task",): "image_classification" if settings.num_classes else "image_features",
        ("classes",): "imagenet-1k" if settings.num_classes == 1000 else None,
        ("keys", "ignore"): computed_in(model),
        **{(key,): value for key, value in groups_of(model).items()},
    }


def read_cards(folder: Path) -> dict[str, Any]:
    """Return every image card of a folder by name, inherited keys included."""
    return {name: card for file in FILES for name, card in read_card_file(str(folder / file)).cards.items()}


def write(folder: Path) -> None:
    """Put the libraries' values where a folder's cards say otherwise; the rest stays as it is."""
    changes = list(differences(read_cards(folder)))
    for file in FILES:
        document = tomlkit.parse((folder / file).read_text(encoding="utf-8"))
        for name, key, value, _ in changes:
            if name in document:
                _put(document[name], key, value)
        (folder / file).write_text(tomlkit.dumps(document), encoding="utf-8")


def _put(table: Any, key: tuple[str, ...], value: Any) -> None:
    for part in key[:-1]:
        table = table.setdefault(part, tomlkit.table())
    table[key[-1]] = value


def _at(card: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        card = card.get(part) if isinstance(card, dict) else None
    return card


def main() -> None:
    """Print what differs, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the libraries' values into the cards")
    parser.add_argument("--cards", type=Path, default=CARDS, help="another folder of cards than the built-in")
    arguments = parser.parse_args()
    found = list(differences(read_cards(arguments.cards)))
    for name, key, theirs, ours in found:
        print(f"{name}.{'.'.join(key)}: library {theirs!r}, card {ours!r}")
    if arguments.write:
        write(arguments.cards)
    elif found:
        sys.exit(1)


if __name__ == "__main__":
    main()
