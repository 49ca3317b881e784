"""Image models of torchvision and timm: bit for bit as their own loaders, frozen as said, no network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import bundles
from bundles.builders.table import build
from bundles.builders.timm_config import describe
from bundles.errors import (
    BuildArgumentError,
    BuildError,
    ChecksumError,
    FreezeArgumentError,
    MissingDependencyError,
)
from bundles.sources.fetch import fetch
from bundles.spec.bundle import Bundle
from bundles.spec.groups import idle_patterns, match_layers, parse_rules
from bundles.spec.source import WeightSource
from downloading import QUICK, isolate
from loopback import Loopback
from zoo import load_script

script = load_script("vision_cards")
typeless: Any = timm  # most of it says no types
CARDS: dict[str, Any] = script.read_cards(script.CARDS)
every = pytest.mark.parametrize("name", CARDS)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
VIT: dict[str, Any] = {"architecture": "test_vit"}
SMALL = ["test_vit", "test_vit3", "test_resnet", "test_convnext", "test_efficientnet"]


def randomised(model: nn.Module) -> nn.Module:
    """The model with other values in every parameter and statistic than a constructor gives."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.02, 0.02, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.1, 0.1, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return model


def with_file(bundle: Bundle, path: Path) -> Bundle:
    return replace(bundle, weights=WeightSource(f"file:{path}"))


# --- the cards ------------------------------------------------------------------------------------


@every
def test_a_card_says_what_the_library_says_and_its_groups_partition_the_model(name: str) -> None:
    card = CARDS[name]
    assert list(script.differences({name: card})) == []
    assert name == script.name_of(card)
    bundle = bundles.get_bundle(name)
    model = build(bundle, parameters="meta")
    names = [key for key, _ in model.named_parameters()]
    groups = match_layers(bundle.rules, names)  # raises where it is no partition
    assert idle_patterns(bundle.rules, [key for key, _ in model.named_modules()] + names) == []
    assert bundle.head_slot is not None
    slot = model.get_submodule(bundle.head_slot)
    is_encoder = bundle.task == "image_features"
    assert isinstance(slot, nn.Identity if is_encoder else nn.Linear)
    assert is_encoder or slot.in_features == bundle.num_features
    heads = [key for group in groups if group.role == "head" for key in group.parameters]
    assert is_encoder or f"{bundle.head_slot}.weight" in heads
    assert len(groups.blocks) >= 4
    assert {"license", "paper", "training_data", "description", "homepage"} <= bundle.metadata.keys()


def test_there_are_as_many_as_are_used_most() -> None:
    assert len(bundles.list_bundles(modality="vision")) == len(CARDS) >= 40
    assert len(bundles.list_bundles(classes="imagenet-1k", builder="timm") or CARDS) >= 20
    assert bundles.list_bundles("TIMM_*", license="CC-BY-NC*") == ["TIMM_CONVNEXTV2_TINY_FCMAE_FT_IN22K_IN1K"]


@every
def test_a_digest_begins_as_the_name_of_its_file_says(name: str) -> None:
    weights = bundles.get_bundle(name).weights
    assert weights is not None
    if weights.scheme == "url":
        assert weights.name[-12:-4] == (weights.sha256 or weights.name[-12:-4])[:8]
    else:
        assert "@" in weights.uri or weights.sha256 is None  # no digest without the commit it was said of


def test_blocks_are_residual_blocks_stage_by_stage_and_what_halves_the_image_is_one() -> None:
    resnet = bundles.RESNET50_IMAGENET1K_V2.plan(freeze="last:2")
    trained = {tensor.name for tensor in resnet.tensors if tensor.state == "trainable"}
    assert {name.partition(".")[0] for name in trained} == {"layer4", "fc"}
    assert {name.split(".")[1] for name in trained if name.startswith("layer4")} == {"1", "2"}
    assert len([group for group in resnet.groups if group.kind == "block"]) == 3 + 4 + 6 + 3
    blocks = [
        group.match for group in bundles.CONVNEXT_TINY_IMAGENET1K_V1.plan().groups if group.kind == "block"
    ]
    assert len(blocks) == 3 + 1 + 3 + 1 + 9 + 1 + 3
    assert blocks[2:5] == [("features.1.2",), ("features.2",), ("features.3.0",)]


def test_a_block_without_a_number_is_one_under_a_name_of_its_own() -> None:
    rules = parse_rules({"blocks": "a.{i}", "down": {"match": ["b", "c"], "kind": "block"}, "head": "fc"})
    groups = match_layers(rules, ["a.0.w", "a.1.w", "b.w", "c.w", "fc.w"])
    assert groups.names == ("block.0", "block.1", "block.2", "head")
    assert groups.blocks[2].parameters == ("b.w", "c.w")
    with pytest.raises(FreezeArgumentError, match=r"must contain \{i\} once"):
        parse_rules({"blocks": "layer"})
    with pytest.raises(FreezeArgumentError, match=r"must contain \{i\} once"):
        parse_rules({"more": {"match": ["a.{i}", "b"], "kind": "block"}})


# --- bit for bit as upstream ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("RESNET18_IMAGENET1K_V1", 64),
        ("MOBILENET_V3_SMALL_IMAGENET1K_V1", 64),
        ("EFFICIENTNET_B0_IMAGENET1K_V1", 64),
        ("GOOGLENET_IMAGENET1K_V1", 64),
        ("INCEPTION_V3_IMAGENET1K_V1", 75),
    ],
)
def test_torchvisions_own_loader_gives_the_same_bits(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles.get_bundle(name)
    assert bundle.weights is not None
    arguments = {"init_weights": False, "aux_logits": True} if name[0] in "GI" else {}
    made = torchvision.models.get_model(bundle.architecture["model"], weights=None, **arguments)
    folder = tmp_path / "hub" / "checkpoints"  # where torchvision keeps what it has downloaded
    folder.mkdir(parents=True)
    torch.save(randomised(made).state_dict(), folder / bundle.weights.name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = torchvision.models.get_model(
        bundle.architecture["model"], weights=torchvision.models.get_weight(bundle.torchvision_weights)
    ).eval()
    ours = with_file(bundle, folder / bundle.weights.name).get_model()
    assert type(ours) is type(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        assert theirs(images).std() > 0
    if name == "INCEPTION_V3_IMAGENET1K_V1":
        assert ours.train()(torch.randn(2, 3, 299, 299)).aux_logits.shape == (2, 1000)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("name", SMALL)
def test_timms_own_loader_gives_the_same_bits(name: str, ending: str, tmp_path: Path) -> None:
    made = randomised(timm.create_model(name, num_classes=7))
    path = tmp_path / f"model.{ending}"
    (save_file if ending == "safetensors" else torch.save)(made.state_dict(), path)
    theirs = typeless.create_model(name, num_classes=7, checkpoint_path=path).eval()
    settings: dict[str, Any] = theirs.pretrained_cfg
    config = {"architecture": name, "num_classes": 7, "pretrained_cfg": settings}
    ours = Bundle("ANY", weights=WeightSource(f"file:{path}"), **describe(config)).get_model()
    assert type(ours) is type(theirs)
    images = torch.randn(2, *settings["input_size"])
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        assert torch.equal(theirs(images), made.eval()(images))


@pytest.mark.parametrize(
    "model", ["eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"]
)
@pytest.mark.parametrize("parameters", ["meta", "empty"])
def test_buffers_that_no_file_holds_are_those_of_timm(model: str, parameters: str) -> None:
    theirs = dict(timm.create_model(model).named_buffers())
    ours = dict(build(Bundle("ANY", "timm", {"model": model}), parameters=parameters).named_buffers())
    assert ours.keys() == theirs.keys() != set()
    assert all(torch.equal(buffer, theirs[name]) for name, buffer in ours.items())


@pytest.mark.slow
@every
def test_every_card_loads_what_upstream_saved(name: str, tmp_path: Path) -> None:
    bundle = bundles.get_bundle(name)
    theirs = randomised(build(bundle)).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = with_file(bundle, tmp_path / "model.safetensors").get_model()
    for found, wanted in (
        (ours.state_dict(), theirs.state_dict()),
        (dict(ours.named_buffers()), dict(theirs.named_buffers())),
    ):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    images = torch.randn(bundle.input_shape)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_buffers_in_files_of_an_older_timm_are_passed_over(tmp_path: Path) -> None:
    name = "test_vit"
    made = randomised(timm.create_model(name))
    state = {**made.state_dict(), "blocks.0.attn.relative_position_index": torch.arange(4)}
    save_file(state, tmp_path / "model.safetensors")
    bundle = Bundle("ANY", **describe({"architecture": name, "pretrained_cfg": made.pretrained_cfg}))
    ours = with_file(bundle, tmp_path / "model.safetensors").get_model()
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())


# --- freezing -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Bundles with random weights in files of their own."""
    folder = tmp_path_factory.mktemp("vision")
    names = ["RESNET18_IMAGENET1K_V1", "MOBILENET_V3_SMALL_IMAGENET1K_V1", "EFFICIENTNET_B0_IMAGENET1K_V1"]
    found = {}
    for name in names:
        bundle = bundles.get_bundle(name)
        save_file(randomised(build(bundle)).state_dict(), folder / f"{name}.safetensors")
        found[name] = with_file(bundle, folder / f"{name}.safetensors")
    for name in ("test_vit", "test_convnext", "test_efficientnet"):
        made = randomised(timm.create_model(name))
        save_file(made.state_dict(), folder / f"{name}.safetensors")
        config = {
            "architecture": name,
            "pretrained_cfg": made.pretrained_cfg,
            "model_args": {"drop_path_rate": 0.5},
        }
        found[name] = with_file(Bundle(name, **describe(config)), folder / f"{name}.safetensors")
    return found


KINDS = [
    *("RESNET18_IMAGENET1K_V1", "MOBILENET_V3_SMALL_IMAGENET1K_V1", "EFFICIENTNET_B0_IMAGENET1K_V1"),
    *("test_vit", "test_convnext", "test_efficientnet"),
]


@pytest.mark.parametrize("name", KINDS)
def test_only_a_new_head_moves_and_batch_norm_stands_still(name: str, files: dict[str, Bundle]) -> None:
    bundle = files[name]
    model = bundle.get_model(freeze=True, head=lambda size: nn.Linear(size, 5)).train()
    assert bundle.head_slot is not None
    assert model.get_submodule(bundle.head_slot).out_features == 5
    images = torch.randn(4, *bundle.input_shape[1:]) if name.startswith("test") else IMAGES.repeat(2, 1, 1, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {f"{bundle.head_slot}.weight", f"{bundle.head_slot}.bias"}


@pytest.mark.parametrize("name", ["EFFICIENTNET_B0_IMAGENET1K_V1", "test_vit", "test_convnext"])
def test_stochastic_depth_is_off_in_a_frozen_part_and_follows_where_asked(
    name: str, files: dict[str, Bundle]
) -> None:
    bundle = files[name]
    images = torch.randn(4, *bundle.input_shape[1:]) if name.startswith("test") else IMAGES.repeat(2, 1, 1, 1)
    drops = (torchvision.ops.StochasticDepth, typeless.layers.DropPath)

    def features(model: nn.Module) -> Any:
        with torch.no_grad():
            return model(images)

    def frozen(mode: str) -> nn.Module:
        with pytest.warns(bundles.NothingTrainableWarning):
            return bundle.get_model(freeze="all", freeze_mode=mode)

    held = frozen("eval")
    assert any(isinstance(module, drops) for module in held.modules())
    expected = features(held)
    assert torch.equal(features(held.train()), expected)
    assert not any(module.training for module in held.modules() if isinstance(module, drops))
    for mode in ("regularized", "weights"):
        loud = frozen(mode).train()
        assert all(module.training for module in loud.modules() if isinstance(module, drops))
        assert not torch.equal(features(loud), features(loud))


# --- what goes with a model -----------------------------------------------------------------------

PICTURE = Image.effect_noise((320, 280), 64).convert("RGB")


@pytest.mark.parametrize(
    "name", ["RESNET50_IMAGENET1K_V2", "VIT_B_16_IMAGENET1K_V1", "INCEPTION_V3_IMAGENET1K_V1"]
)
def test_transforms_are_those_of_torchvisions_weights(name: str) -> None:
    bundle = bundles.get_bundle(name)
    ours = bundle.transforms()(PICTURE)
    assert torch.equal(ours, torchvision.models.get_weight(bundle.torchvision_weights).transforms()(PICTURE))
    assert (1, *ours.shape) == bundle.input_shape
    assert bundle.transforms(crop_size=32)(PICTURE).shape == (3, 32, 32)
    assert bundle.get_labels() == tuple(torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"])


@pytest.mark.parametrize(
    "name", ["resnet50.a1_in1k", "swinv2_tiny_window8_256.ms_in1k", "vit_small_patch14_dinov2.lvd142m"]
)
def test_transforms_are_those_of_timms_weights(name: str) -> None:
    bundle = bundles.get_bundle("TIMM_" + name.replace(".", "_").upper())
    config = typeless.data.resolve_data_config(pretrained_cfg=typeless.get_pretrained_cfg(name).to_dict())
    ours = bundle.transforms()(PICTURE)
    assert torch.equal(ours, typeless.data.create_transform(**config, is_training=False)(PICTURE))
    assert (1, *ours.shape) == bundle.input_shape
    torch.manual_seed(3)
    trained = bundle.transforms(is_training=True)
    assert not torch.equal(trained(PICTURE), trained(PICTURE))


def test_labels_are_those_of_the_classes() -> None:
    labels = bundles.TIMM_RESNET50_A1_IN1K.get_labels()
    assert (len(labels), labels[0], labels[1]) == (1000, "tench, Tinca tinca", "goldfish, Carassius auratus")
    with pytest.raises(
        BuildError, match="TIMM_VIT_SMALL_PATCH14_DINOV2_LVD142M gives features and no classes"
    ):
        bundles.TIMM_VIT_SMALL_PATCH14_DINOV2_LVD142M.get_labels()
    named = {
        "architecture": "test_vit",
        "num_classes": 2,
        "label_names": ["cat", "dog"],
        "pretrained_cfg": {},
    }
    assert Bundle("PETS", **describe(named)).get_labels() == ("cat", "dog")
    with pytest.raises(BuildError, match="Nobody says what the 7 classes of X are"):
        Bundle(
            "X", **describe({"architecture": "test_vit", "num_classes": 7, "pretrained_cfg": {}})
        ).get_labels()


def test_what_companions_cannot_give_is_said() -> None:
    with pytest.raises(BuildArgumentError, match="RESNET18_IMAGENET1K_V1 has no transforms for training"):
        bundles.RESNET18_IMAGENET1K_V1.transforms(is_training=True)
    with pytest.raises(BuildArgumentError, match="unexpected keyword argument 'crop'"):
        bundles.RESNET18_IMAGENET1K_V1.transforms(crop=3)
    own = Bundle("OWN", "torchvision", {"model": "resnet18"}, metadata={"companions": "vision"})
    with pytest.raises(BuildError, match="OWN does not say which images it takes"):
        own.transforms()
    wrong = replace(own, metadata={"companions": "vision", "torchvision_weights": "ResNet18_Weights.V9"})
    with pytest.raises(BuildError, match=r"no weights 'ResNet18_Weights\.V9', which OWN names"):
        wrong.transforms()
    odd = describe(VIT | {"pretrained_cfg": {"interpolation": "nowhere"}})
    with pytest.raises(BuildError, match=r"transforms of ODD cannot be made .*'nowhere'.*: check mean"):
        Bundle("ODD", **odd).transforms()


@pytest.mark.parametrize(("library", "extra"), [("timm", "timm"), ("torchvision", "vision")])
def test_what_is_not_installed_is_said_with_what_to_type(
    library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    model = {"timm": "test_vit", "torchvision": "resnet18"}[library]
    with pytest.raises(MissingDependencyError, match=rf"pip install 'pretrained-bundles\[{extra}\]'"):
        Bundle("X", library, {"model": model}).get_model(pretrained=False)


# --- configurations of the Hub --------------------------------------------------------------------


def test_a_config_that_timm_wrote_is_read(tmp_path: Path) -> None:
    made = randomised(timm.create_model("test_vit", num_classes=3, img_size=96, in_chans=1))
    typeless.models.save_for_hf(made, tmp_path, safe_serialization=True)
    found = describe(json.loads((tmp_path / "config.json").read_text()))
    bundle = with_file(Bundle("OWN", **found), tmp_path / "model.safetensors")
    assert (bundle.head_slot, bundle.num_features, bundle.input_shape) == ("head", 64, (1, 1, 96, 96))
    assert list(bundle.layers) == ["stem", "blocks", "norm", "head"]
    images = torch.randn(2, 1, 96, 96)
    assert torch.equal(bundle.get_model()(images), made.eval()(images))


def test_older_configs_have_everything_in_one_table() -> None:
    config = {
        "architecture": "test_resnet",
        "num_classes": 4,
        "input_size": [3, 96, 96],
        "labels": ["a", "b", "c", "d"],
    }
    bundle = Bundle("OLD", **describe(config))
    assert bundle.get_labels() == ("a", "b", "c", "d")
    assert bundle.input_shape == (1, 3, 96, 96)


def test_a_family_that_is_not_known_has_its_layers_derived() -> None:
    found = describe({"architecture": "test_nfnet", "pretrained_cfg": {}})
    assert (found["layers"], found["head_slot"]) == ({}, "head.fc")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "names no model of timm: its 'architecture' is None"),
        ({"architecture": 3}, "its 'architecture' is 3"),
        ({"architecture": "resnet5"}, "has no model 'resnet5': the closest are resnet"),
        ({"architecture": "hf-hub:timm/resnet18"}, "has no model 'hf-hub:timm/resnet18'"),
        ({"architecture": "local-dir:/etc"}, "has no model 'local-dir:/etc'"),
        ({"architecture": "resnet18.nowhere"}, "has no weights 'nowhere' of resnet18: there is"),
        (VIT | {"pretrained_cfg": 3}, "pretrained_cfg of the config.json is 3, not a table"),
        (VIT | {"model_args": [1]}, r"model_args of the config.json are \[1\], not a table"),
        (VIT | {"model_args": {"pretrained": True}}, "'timm' takes model, pretrained_cfg"),
        (VIT | {"model_args": {"checkpoint_path": "/x"}}, "its checkpoint_path is not an argument"),
        (VIT | {"model_args": {"img_size": [96, 64]}}, "its img_size .* is not an int"),
        (VIT | {"model_args": {"drop_path_rate": 7}}, "its drop_path_rate 7 is not a float"),
        (
            VIT | {"pretrained_cfg": {"label_descriptions": {"auto_map": "x"}}},
            "the key 'auto_map', which names",
        ),
        (
            VIT | {"pretrained_cfg": {"input_size": [3]}},
            r"input_size \[3\] is not a list of channels, height",
        ),
        (
            VIT | {"pretrained_cfg": {"input_size": [3, "x", 4]}},
            "is not a list of channels, height and width",
        ),
        (VIT | {"pretrained_cfg": {"input_size": 8}}, "The input_size 8 is not a list"),
        (VIT | {"num_classes": 10**13}, "timm cannot build test_vit"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BuildError, match=words):
        describe(config)


def test_addresses_in_a_configuration_are_left_out_and_refused_in_a_card() -> None:
    settings = {"url": "https://example.org/x.pth", "file": "/x", "hf_hub_id": "a/b", "custom_load": True}
    found = describe({"architecture": "test_vit", "pretrained_cfg": settings})
    assert found["architecture"]["pretrained_cfg"] == {}
    bundle = Bundle("X", "timm", {"model": "test_vit", "pretrained_cfg": settings})
    with pytest.raises(
        BuildError, match="pretrained_cfg of test_vit holds custom_load, file, hf_hub_id, which"
    ):
        bundle.get_model(pretrained=False)


@pytest.mark.parametrize("model", ["resnet5", "fasterrcnn_resnet50_fpn", "quantized_resnet18", "r3d_18"])
def test_torchvision_builds_classifiers_alone(model: str) -> None:
    with pytest.raises(BuildError, match=f"has no classifier '{model}': the closest are"):
        Bundle("X", "torchvision", {"model": model}).get_model(pretrained=False)


# --- names that say how digests begin -------------------------------------------------------------

DATA = bytes(range(256)) * 200


@pytest.fixture
def mirror(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    isolate(tmp_path, monkeypatch)
    with Loopback(DATA) as server:
        place = server.uri("models").removeprefix("url:")
        monkeypatch.setenv("BUNDLES_MIRROR", f"https://download.pytorch.org/models={place}")
        yield server


def test_an_unpinned_file_begins_as_its_name_says(mirror: Loopback, empty_cache: Path) -> None:
    right = hashlib.sha256(DATA).hexdigest()
    base = "url:https://download.pytorch.org/models"
    with contextlib.suppress(bundles.UnpinnedSourceWarning):
        path = fetch(WeightSource(f"{base}/net-{right[:8]}.pth"), options=QUICK)
    assert path.read_bytes() == DATA
    mirror.forget()
    with pytest.raises(
        ChecksumError, match=rf"expected sha256 0123abcd\.\.\., as its name says, found sha256 {right}"
    ):
        fetch(WeightSource(f"{base}/net-0123abcd.pth"), options=QUICK)
    assert {request.path for request in mirror.requests} == {"/models/net-0123abcd.pth"}
    records = [json.loads(path.read_text())["uri"] for path in (empty_cache / "records").iterdir()]
    assert records == [f"{base}/net-{right[:8]}.pth"]  # nothing is recorded of what was refused


def test_eight_digits_elsewhere_say_nothing(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path, monkeypatch)
    with Loopback(DATA) as server:
        assert fetch(WeightSource(server.uri("net-20240131.pth")), options=QUICK).read_bytes() == DATA


def test_the_page_counts_the_pinned_cards_right() -> None:
    page = " ".join((Path(__file__).parent.parent / "docs" / "vision.md").read_text().split())
    made = [bundles.get_bundle(name) for name in bundles.list_bundles(modality="vision")]
    weights = {
        builder: [bundle.weights for bundle in made if bundle.builder == builder and bundle.weights]
        for builder in ("torchvision", "timm")
    }
    whole = sum(source.sha256 is not None for source in weights["torchvision"])
    assert f"{whole} of {len(weights['torchvision'])} cards have the whole digest" in page
    pinned = sum(source.sha256 is not None and "@" in source.uri for source in weights["timm"])
    assert f"{pinned} of {len(weights['timm'])} with commit and digest" in page
