"""Files of transformers as they lie on the Hub: older names, other classes' parts, and what is refused."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import bundles
from bundles.builders.transformers.build import build
from bundles.builders.transformers.describe import describe
from transformers_zoo import TINY

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "disabled", True)


def saved(folder: Path, name: str, change: Callable[[Tensors], Tensors] = dict, **config: Any) -> Path:
    """A folder that the upstream class of a tiny model saved, with its tensors changed afterwards."""
    tiny = TINY[name]
    made = transformers.CONFIG_MAPPING[tiny.config["model_type"]](**{**tiny.config, **config})
    getattr(transformers, tiny.model_class)(made).save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({key: value.clone() for key, value in change(load_file(file)).items()}, file)
    return folder


def bundle_of(folder: Path, **architectures: Any) -> bundles.Bundle:
    config = json.loads((folder / "config.json").read_text())
    return bundles.Bundle(
        "TINY",
        **describe({**config, **architectures}),
        weights=bundles.WeightSource(f"file:{folder}/model.safetensors"),
    )


def as_before(replaced: Mapping[str, str]) -> Callable[[Tensors], Tensors]:
    def rename(tensors: Tensors) -> Tensors:
        names = {}
        for key in tensors:
            new = key
            for today, once in replaced.items():
                new = new.replace(today, once)
            names[key] = new
        assert any(key != new for key, new in names.items())
        return {names[key]: value for key, value in tensors.items()}

    return rename


def with_more(**more: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {key.replace("__", "."): value for key, value in more.items()}


IDS = torch.arange(24).view(1, -1)
FILES: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "gamma and beta": (
        "BertForMaskedLM",
        as_before({"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}),
    ),
    "weight_g": (
        "Wav2Vec2ForCTC",
        as_before(
            {
                ".parametrizations.weight.original0": ".weight_g",
                ".parametrizations.weight.original1": ".weight_v",
            }
        ),
    ),
    "position_ids": ("RobertaForMaskedLM", with_more(roberta__embeddings__position_ids=IDS)),
    "position_ids of two towers": (
        "CLIPModel",
        with_more(text_model__embeddings__position_ids=IDS, vision_model__embeddings__position_ids=IDS),
    ),
    "a pooler that the class lacks": (
        "BertForMaskedLM",
        with_more(bert__pooler__dense__weight=torch.ones(32, 32), bert__pooler__dense__bias=torch.ones(32)),
    ),
    "heads of pretraining": (
        "BertForMaskedLM",
        with_more(cls__seq_relationship__weight=torch.ones(2, 32), cls__seq_relationship__bias=torch.ones(2)),
    ),
    "no prefix": ("GPT2LMHeadModel", as_before({"transformer.": ""})),
    "buffers of attention": (
        "GPT2LMHeadModel",
        with_more(transformer__h__0__attn__bias=torch.ones(1, 1, 4, 4)),
    ),
    "embeddings thrice": (
        "T5ForConditionalGeneration",
        lambda tensors: {
            **tensors,
            **dict.fromkeys(
                ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
                tensors["shared.weight"],
            ),
        },
    ),
    "ViT of version 4": ("ViTForImageClassification", dict),
    "Swin of version 4": ("SwinForImageClassification", dict),
}


@pytest.mark.parametrize("kind", FILES)
def test_an_older_file_loads_as_upstream_loads_it(kind: str, tmp_path: Path) -> None:
    name, change = FILES[kind]
    folder = saved(tmp_path, name, change)
    ours = bundle_of(folder).get_model().state_dict()
    theirs = getattr(transformers, TINY[name].model_class).from_pretrained(folder).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "SwinForImageClassification"])
def test_vision_models_are_saved_under_the_names_of_version_4(name: str, tmp_path: Path) -> None:
    """Or the two cases above would show nothing."""
    model = bundle_of(saved(tmp_path, name)).get_model()
    assert not load_file(tmp_path / "model.safetensors").keys() <= model.state_dict().keys()


def test_a_whole_models_checkpoint_fills_its_base_model(tmp_path: Path) -> None:
    folder = saved(tmp_path, "RobertaForMaskedLM")
    told = bundle_of(folder)
    bare = bundles.Bundle(
        "BARE", "transformers", {**told.architecture, "whole": False}, weights=told.weights, num_features=32
    ).get_model()
    theirs = transformers.RobertaModel.from_pretrained(folder, add_pooling_layer=False).state_dict()
    ours = bare.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_no_class_explains_is_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path, "BertForMaskedLM", with_more(bert__adapter__weight=torch.ones(2)))
    with pytest.raises(
        bundles.StateDictMismatchError, match=r"unexpected in the file: bert\.adapter\.weight"
    ):
        bundle_of(folder).get_model()


def test_a_head_that_the_file_lacks_is_an_error_not_random(tmp_path: Path) -> None:
    folder = saved(tmp_path, "BertModel")
    bundle = bundle_of(folder, architectures=["BertForSequenceClassification"])
    with pytest.raises(bundles.StateDictMismatchError, match=r"missing in the file: classifier\.bias"):
        bundle.get_model()
    assert bundle.get_model(head=lambda n: nn.Linear(n, 3)).get_submodule("classifier").out_features == 3


def test_a_layout_that_must_be_converted_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "Dinov2Model", use_swiglu_ffn=True)
    assert any("weights_in" in key for key in load_file(folder / "model.safetensors"))
    with pytest.raises(
        bundles.WeightsFileError, match=r"weights_in.* no renaming mends: load it with Dinov2Model"
    ):
        bundle_of(folder).get_model()


BERT = TINY["BertModel"].config
REFUSED = {
    "code": ({**BERT, "auto_map": {"AutoModel": "evil.Model"}}, r"key 'auto_map', so its model is code"),
    "quantized": ({**BERT, "quantization_config": {"bits": 4}}, r"quantized \('quantization_config'\)"),
    "no type": ({"hidden_size": 4}, r"has no model_type, as 'bert'"),
    "unknown type": ({"model_type": "bertt"}, r"has no model_type 'bertt'; the closest are bert"),
    "type of another kind": ({"model_type": ["bert"]}, r"has no model_type, as 'bert'"),
    "another's class": (
        {**BERT, "architectures": ["GPT2Model"]},
        r"'GPT2Model' is none .* 'bert': there is Bert",
    ),
    "an import path": (
        {**BERT, "architectures": ["os.system"]},
        r"'os.system' is none that transformers has",
    ),
    "no class": ({**BERT, "architectures": [3]}, r"architectures are \[3\]: a list with a class's name"),
    "wrong values": ({**BERT, "hidden_size": "many"}, r"BertConfig does not take the configuration"),
    "values that do not fit": ({**BERT, "num_attention_heads": 5}, r"BertModel cannot be built .*ValueError"),
    "endless": (
        {**BERT, "num_hidden_layers": 10**9},
        r"num_hidden_layers = 1000000000 is more than can be meant",
    ),
    "endless stages": (
        {"model_type": "swin", "depths": [900, 900], "num_heads": [1, 1]},
        r"depths = \[900, 900\] is more than can be meant",
    ),
    "positions": ({**BERT, "max_position_embeddings": 10**10}, r"= 10000000000 is more than can be meant"),
    "huge": ({**BERT, "vocab_size": 2**55}, r"vocab_size = 36028797018963968 is more than can be meant"),
    "timm's": ({"model_type": "timm_wrapper"}, r"'timm_wrapper' is timm's: use the builder 'timm'"),
    "an address": ({**BERT, "backbone": "hf-hub:evil/model"}, r"'hf-hub:evil/model' is an address"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_configuration_that_is_refused_says_why(kind: str) -> None:
    config, why = REFUSED[kind]
    with pytest.raises(bundles.BuildError, match=why) as caught:
        describe(config)
    assert "\n" not in str(caught.value)


def test_what_old_configurations_carry_is_no_obstacle() -> None:
    """Keys of version 2 to 4, and labels that look like private names."""
    old = {
        "_name_or_path": "/home/me",
        "_num_labels": 2,
        "_attn_implementation": "flash_attention_2",
        "attn_implementation": "evil/kernel",
        "transformers_version": "2.3",
        "torch_dtype": "float16",
        "gradient_checkpointing": True,
        "output_past": True,
        "pruned_heads": {},
        "directionality": "bidi",
        "id2label": {"0": "_silence_", "1": "yes"},
        "label2id": {"_silence_": 0, "yes": 1},
    }
    told = describe({**BERT, **old, "architectures": ["BertForSequenceClassification"]})
    model: Any = bundles.Bundle("OLD", **told).get_model(pretrained=False)
    assert told["metadata"]["labels"] == ("_silence_", "yes")
    assert model.config.label2id == {"_silence_": 0, "yes": 1}
    assert model.config._attn_implementation == "sdpa"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not {key for key in told["architecture"]["config"] if key.startswith("_")}


def test_keys_that_name_code_do_no_harm_where_they_are_empty() -> None:
    """Older versions wrote every key, into the configurations of both towers, too."""
    empty = {
        "quantization_config": None,
        "auto_map": None,
        "torch_dtype": None,
        "_name_or_path": "",
        "prefix": None,
    }
    clip = TINY["CLIPModel"].file
    towers = {key: {**clip[key], **empty} for key in ("text_config", "vision_config")}
    told, wanted = describe({**clip, **empty, **towers}), describe(clip)
    assert told["metadata"] == wanted["metadata"]
    assert told["layers"] == wanted["layers"]


@pytest.mark.parametrize("key", ["auto_map", "quantization_config", "trust_remote_code"])
def test_keys_that_name_code_are_refused_in_an_inner_configuration_too(key: str) -> None:
    clip = TINY["CLIPModel"].file
    with pytest.raises(bundles.BuildError, match=f"holds the key '{key}', which names code"):
        describe({**clip, "text_config": {**clip["text_config"], key: {"AutoModel": "evil.Model"}}})


def test_a_card_goes_through_the_same_checks() -> None:
    with pytest.raises(bundles.BuildError, match=r"holds the key 'auto_map', which names code"):
        build("BertModel", {**BERT, "auto_map": {}})


def test_a_family_that_nobody_declared_has_its_groups_derived() -> None:
    config = {"model_type": "fnet", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}
    told = describe({**config, "intermediate_size": 16, "max_position_embeddings": 8})
    blind = {"model_type": "perceiver", "num_latents": 4, "d_latents": 16, "d_model": 8, "num_blocks": 1}
    assert told["layers"]
    assert describe({**blind, "num_self_attends_per_block": 2})["layers"] == {}
    model = bundles.Bundle("BLIND", **describe(blind)).get_model(pretrained=False)
    assert len(bundles.layer_groups(model)) > 1


def test_without_the_library_the_line_to_type_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        bundles.MissingDependencyError, match=r"pip install 'pretrained-bundles\[transformers\]'"
    ):
        build("BertModel", BERT)
