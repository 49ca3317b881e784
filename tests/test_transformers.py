"""The builder of transformers: the real class, its groups, its ties, its weights, and nothing fetched."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

import bundles
from bundles.builders.table import build as construct
from bundles.builders.transformers.describe import describe
from transformers_zoo import TINY

names = pytest.mark.parametrize("name", TINY)


@pytest.fixture(autouse=True)
def _quiet_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket opens in any of these tests; transformers tells of odd token ids in tiny vocabularies."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(logging.getLogger("transformers"), "disabled", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Saved(tmp_path_factory.mktemp("saved"))


class Saved(dict[str, Path]):
    """Folders that the upstream class saved itself to, one per tiny model, made when they are asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, name: str) -> Path:
        tiny = TINY[name]
        config = transformers.CONFIG_MAPPING[tiny.config["model_type"]](**tiny.config)
        model = getattr(transformers, tiny.model_class)(config)
        with torch.no_grad():  # an initialised bias is zero, and a zero that is lost is not missed
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        model.save_pretrained(self.root / name)
        if tiny.config.get("tie_word_embeddings") is False:
            _save_untied(model, self.root / name)
        self[name] = self.root / name
        return self[name]


def _save_untied(model: nn.Module, folder: Path) -> None:
    """Save as FLAN-T5 is: with a layer over words of its own, and a configuration that says so."""
    file = folder / "model.safetensors"
    own = torch.randn_like(model.get_parameter("lm_head.weight"))
    safetensors.torch.save_file({**safetensors.torch.load_file(file), "lm_head.weight": own}, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


def upstream(name: str, folder: Path) -> nn.Module:
    model: nn.Module = getattr(transformers, TINY[name].model_class).from_pretrained(folder)
    return model


def bundle_of(folder: Path) -> bundles.Bundle:
    told = describe(json.loads((folder / "config.json").read_text()))
    source = bundles.WeightSource(f"file:{folder / 'model.safetensors'}")
    return bundles.Bundle("TINY", **told, weights=source)


def outputs(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(3)
    with torch.no_grad():
        return [value for value in tensors_in(model(**inputs)) if value is not None]


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_in(entry)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


def ties_of(model: nn.Module) -> set[frozenset[str]]:
    named: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in named.values() if len(group) > 1}


@names
def test_loads_what_upstream_loads_bit_for_bit(name: str, folders: dict[str, Path]) -> None:
    theirs, ours = upstream(name, folders[name]), bundle_of(folders[name]).get_model()
    assert type(ours) is type(theirs)
    assert ours.config._attn_implementation == theirs.config._attn_implementation  # type: ignore[union-attr]
    state, wanted = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[key], wanted[key]) for key in state)
    buffers, their_buffers = dict(ours.named_buffers()), dict(theirs.named_buffers())
    assert buffers.keys() == their_buffers.keys()
    assert all(torch.equal(buffers[key], their_buffers[key]) for key in buffers)
    assert ties_of(ours) == ties_of(theirs)
    inputs = TINY[name].make_input()
    assert same(outputs(ours, inputs), outputs(theirs, inputs))


@names
def test_on_meta_it_has_the_same_names_shapes_buffers_and_ties(name: str) -> None:
    bundle = bundles.Bundle("TINY", **describe(TINY[name].file))
    ghost, real = (construct(bundle, parameters=kind) for kind in ("meta", "initialised"))
    assert {k: v.shape for k, v in ghost.state_dict().items()} == {
        k: v.shape for k, v in real.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in ghost.parameters())
    buffers, wanted = dict(ghost.named_buffers()), dict(real.named_buffers())
    assert buffers.keys() == wanted.keys()
    assert all(torch.equal(buffers[key], wanted[key]) for key in buffers)
    assert ties_of(ghost) == ties_of(real)
    assert sum(p.numel() for p in real.parameters()) == bundle.num_parameters


@names
def test_groups_partition_it(name: str) -> None:
    bundle = bundles.Bundle("TINY", **describe(TINY[name].file))
    assert bundle.layers
    groups = bundles.layer_groups(bundle.get_model(pretrained=False))
    model = bundle.get_model(pretrained=False)
    named = [parameter for group in groups for parameter in group.parameters]
    assert sorted(named) == sorted(key for key, _ in model.named_parameters(remove_duplicate=False))
    assert len(groups.blocks) == TINY[name].blocks
    assert bundle.head_slot == TINY[name].slot


@names
def test_frozen_it_stays_as_in_eval(name: str, folders: dict[str, Path]) -> None:
    bundle = bundle_of(folders[name])
    with pytest.warns(bundles.NothingTrainableWarning):
        model = bundle.get_model(freeze="all")
    inputs = TINY[name].make_input()
    wanted = outputs(model, inputs)
    model.train()
    assert same(outputs(model, inputs), wanted)
    assert same(outputs(model, inputs), wanted)


@names
def test_without_a_freeze_train_changes_it(name: str) -> None:
    """Dropout, layer drop, masks, stochastic depth: there is something for the freeze to switch off."""
    model = bundles.Bundle("TINY", **describe(TINY[name].file)).get_model(pretrained=False)
    inputs = TINY[name].make_input()
    wanted = outputs(model, inputs)
    model.train()
    assert not same(outputs(model, inputs), wanted)


TRAINED = [name for name, tiny in TINY.items() if tiny.slot]


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_moves_the_new_head_and_nothing_else(name: str, folders: dict[str, Path]) -> None:
    bundle = bundle_of(folders[name])
    model = bundle.get_model(freeze=True, head=lambda n: nn.Linear(n, 5)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    slot = f"{bundle.head_slot}."
    heads = {key for key in before if key.startswith((slot, bundle.layers["head"][0] + "."))}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        result = model(**TINY[name].make_input()).logits
        assert result.shape[-1] == 5
        result.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in moved if key.startswith(slot)} == {key for key in before if key.startswith(slot)}
    assert moved <= heads | {key for key in before if key.split(".")[0] in bundle.layers["head"]}


class Passes(nn.Module):
    """A head that gives the features as they are, and takes lengths, which no slot gives."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        return features * self.scale


HEADED = [
    "BertForMaskedLM",
    "RobertaForSequenceClassification",
    "T5ForConditionalGeneration",
    "GPT2LMHeadModel",
]
HEADED += ["Wav2Vec2ForSequenceClassification", "Wav2Vec2ForPreTraining", "ViTModel", "WhisperModel"]


@pytest.mark.parametrize("name", HEADED)
def test_a_head_that_no_slot_feeds_follows_the_base_model(name: str, folders: dict[str, Path]) -> None:
    model = bundle_of(folders[name]).get_model(freeze=True, head=Passes)
    base = transformers.AutoModel.from_pretrained(folders[name])
    inputs = TINY[name].make_input()
    wanted = outputs(base, inputs)
    assert isinstance(model.get_submodule("encoder"), type(base))
    features = model.train()(**inputs)
    assert features.shape[-1] == model.get_submodule("head").in_features
    assert any(torch.equal(features, tensor) for tensor in wanted)
    assert [key for key, p in model.named_parameters() if p.requires_grad] == ["head.scale"]


STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "activation_dropout": 0.0}
STRUCTURE = {
    "layer drop": {"layerdrop": 0.999, "apply_spec_augment": False},
    "time masks": {"layerdrop": 0.0, "mask_time_prob": 0.8},
    "feature masks": {
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.8,
        "mask_feature_min_masks": 0,
    },
}


random_weights = pytest.mark.filterwarnings("ignore::bundles.FreezeWithoutWeightsWarning")


@random_weights
@pytest.mark.parametrize("kind", STRUCTURE)
@pytest.mark.parametrize("name", ["Wav2Vec2Model-do_stable_layer_norm", "HubertModel", "WavLMForCTC"])
def test_structure_is_off_where_a_part_is_frozen_and_follows_where_that_is_asked(
    name: str, kind: str
) -> None:
    """The rates are in a configuration that all modules share, so the flag of who reads them is held."""
    config = {**TINY[name].file, **STILL, **STRUCTURE[kind], "mask_feature_length": 4, "final_dropout": 0.0}
    bundle, inputs = bundles.Bundle("TINY", **describe(config)), TINY[name].make_input()
    model = bundle.get_model(freeze="last:1", pretrained=False)
    wanted = outputs(model, inputs)
    model.train()
    assert same(outputs(model, inputs), wanted)
    bundles.unfreeze(model)
    assert not same(outputs(model, inputs), wanted)
    bundles.freeze(model, "last:1", "weights")
    assert not same(outputs(model, inputs), wanted)


@random_weights
@pytest.mark.parametrize(
    "name", ["Dinov2Model", "ConvNextForImageClassification", "SwinForImageClassification"]
)
def test_stochastic_depth_is_off_in_a_frozen_block_alone(name: str) -> None:
    dropouts = {"hidden_dropout_prob": 0.0, "attention_dropout": 0.0, "attention_probs_dropout_prob": 0.0}
    bundle = bundles.Bundle("TINY", **describe({**TINY[name].file, **dropouts}))
    model, inputs = bundle.get_model(pretrained=False), TINY[name].make_input()
    wanted = outputs(model, inputs)
    bundles.freeze(model.train(), "blocks:0")
    assert not same(outputs(model, inputs), wanted)
    bundles.unfreeze(model)
    bundles.freeze(model, "first:2")
    assert same(outputs(model, inputs), wanted)


PARTLY = ["BertForSequenceClassification", "T5ForConditionalGeneration-untied", "CLIPModel"]
PARTLY += [
    "WhisperForConditionalGeneration",
    "Wav2Vec2ForCTC",
    "GPT2LMHeadModel",
    "SwinForImageClassification",
]


@pytest.mark.parametrize("name", PARTLY)
def test_depth_policies_freeze_what_they_say(name: str, folders: dict[str, Path]) -> None:
    bundle = bundle_of(folders[name])
    count = TINY[name].blocks

    def frozen_blocks(policy: str) -> list[str]:
        model = bundle.get_model(freeze=policy)
        groups = bundles.layer_groups(model)
        held = {key for key, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        assert all(set(g.parameters) <= held or held.isdisjoint(g.parameters) for g in groups.blocks)
        return [group.name for group in groups.blocks if set(group.parameters) <= held]

    assert frozen_blocks("last:1") == [f"block.{index}" for index in range(count - 1)]
    assert frozen_blocks("first:1") == ["block.0"]
    assert frozen_blocks(f"blocks:{count - 1}") == [f"block.{count - 1}"]


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration-untied", "WhisperForConditionalGeneration"])
def test_what_generates_has_its_encoder_frozen_by_default(name: str, folders: dict[str, Path]) -> None:
    model = bundle_of(folders[name]).get_model(freeze=True)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    start = "model." if "Whisper" in name else ""
    assert any(key.startswith(f"{start}decoder.") for key in trained)
    assert not any(key.startswith(f"{start}encoder.") for key in trained)


def test_the_encoder_tells_the_decoder_the_same_whether_it_trains_or_not(folders: dict[str, Path]) -> None:
    model: Any = bundle_of(folders["T5ForConditionalGeneration-untied"]).get_model(freeze=True)
    inputs = {"input_ids": torch.arange(3, 13).view(1, -1)}
    wanted = outputs(model.encoder, inputs)
    assert same(outputs(model.train().encoder, inputs), wanted)
    assert model.decoder.dropout.training


def test_constructing_for_weights_draws_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model of BERT: 20 ms where its initialisation takes a second."""
    bundle = bundles.Bundle("TINY", **describe(TINY["BertForMaskedLM"].file))
    drawn: list[object] = []
    normal = torch.Tensor.normal_

    def draw(tensor: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        drawn.append(tensor)
        return normal(tensor, *args, **named)

    monkeypatch.setattr(torch.Tensor, "normal_", draw)
    construct(bundle, parameters="empty")
    construct(bundle, parameters="meta")
    assert drawn == []
    construct(bundle)
    assert drawn
