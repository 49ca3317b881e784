"""Any repository of the Hub, and any folder, as a bundle: by a card, or by its library's configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import bundles
from bundles.assemble.weights import read_weights
from bundles.cli.main import group
from bundles.sources.verify import sha256_of
from hub import Hub

CARD = """
[MINE]
builder = "torchcrepe"
architecture.model = "tiny"
layers = { blocks = ["conv{i}", "conv{i}_BN"], head = "classifier" }
head_slot = "classifier"
num_features = 256
license = "MIT"
weights.source = "file:weights/crepe.safetensors"
"""
FRAMES = torch.linspace(-1, 1, 2 * 1024).reshape(2, 1024)


@pytest.fixture
def crepe() -> nn.Module:
    return bundles.get_model("CREPE_TINY")


@pytest.fixture
def carded(tmp_path: Path, crepe: nn.Module) -> Path:
    """A folder that carries a card of ours."""
    folder = tmp_path / "carded"
    (folder / "weights").mkdir(parents=True)
    save_file(crepe.state_dict(), folder / "weights" / "crepe.safetensors")
    (folder / "bundle.toml").write_text(CARD)
    return folder


def outputs(model: nn.Module, *inputs: torch.Tensor, **named: torch.Tensor) -> list[torch.Tensor]:
    """What a model gives, whatever it wraps it in."""
    with torch.no_grad():
        found: Any = model(*inputs, **named)
    if isinstance(found, torch.Tensor):
        return [found]
    values = found.values() if hasattr(found, "values") else found
    return [value for value in values if isinstance(value, torch.Tensor)]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) > 0 and all(map(torch.equal, ours, theirs))


# --- folders that carry a card --------------------------------------------------------------------


def test_a_folder_with_a_card_is_a_bundle(carded: Path, crepe: nn.Module) -> None:
    bundle = bundles.get_bundle(f"file:{carded}")
    assert bundle.name == f"file:{carded}"
    assert bundle.weights == bundles.WeightSource(f"file:{carded}/weights/crepe.safetensors")
    assert (bundle.license, bundle.num_features, bundle.head_slot) == ("MIT", 256, "classifier")
    assert bundle.origin == f"file:{carded}/bundle.toml"
    assert same(outputs(bundle.get_model(), FRAMES), outputs(crepe, FRAMES))


def test_a_bundle_of_a_folder_is_found_again_by_its_name(carded: Path) -> None:
    bundle = bundles.get_bundle(f"file:{carded}")
    assert bundles.get_bundle(bundle.name) == bundle


def test_get_model_and_load_into_take_the_address(carded: Path, crepe: nn.Module) -> None:
    model = bundles.get_model(f"file:{carded}", freeze=True).train()
    assert not model.get_submodule("conv1_BN").training
    part = nn.ModuleDict({"pitch": bundles.CREPE_TINY.get_model(pretrained=False)})
    report = bundles.load_into(part, f"file:{carded}", prefix="pitch")
    assert report.missing == report.unexpected == ()
    assert same(outputs(part["pitch"].eval(), FRAMES), outputs(crepe, FRAMES))


def test_a_folder_is_looked_for_where_python_is(
    carded: Path, monkeypatch: pytest.MonkeyPatch, crepe: nn.Module
) -> None:
    monkeypatch.chdir(carded.parent)
    bundle = bundles.get_bundle("file:carded")
    assert bundle.name == f"file:{carded}"
    monkeypatch.chdir("/")
    assert same(outputs(bundle.get_model(), FRAMES), outputs(crepe, FRAMES))


def test_the_path_of_a_folder_will_do(carded: Path) -> None:
    assert bundles.get_bundle(str(carded)) == bundles.get_bundle(f"file:{carded}")
    with pytest.raises(bundles.UnknownBundleError, match="There is no bundle"):
        bundles.get_bundle(f"{carded}/nowhere")


def test_a_folder_in_the_home_folder(carded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(carded.parent))
    assert bundles.get_bundle("file:~/carded").name == f"file:{carded}"


def test_a_digest_in_the_card_is_checked(carded: Path) -> None:
    digest = sha256_of(carded / "weights" / "crepe.safetensors")
    (carded / "bundle.toml").write_text(f'{CARD}weights.sha256 = "{digest}"\n')
    bundles.get_model(f"file:{carded}")
    (carded / "bundle.toml").write_text(f'{CARD}weights.sha256 = "{"0" * 64}"\n')
    with pytest.raises(bundles.ChecksumError, match=r"crepe\.safetensors is not what"):
        bundles.get_model(f"file:{carded}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"bundle\.toml: describes 0 bundles \(none\), and has to describe one"),
        (CARD + CARD.replace("MINE", "YOURS"), r"describes 2 bundles \(MINE, YOURS\)"),
        ("[MINE", r"bundle\.toml:\d*:? is not a card"),
        (
            CARD.replace("torchcrepe", "os.system"),
            r"bundle\.toml:3: MINE.builder 'os.system' is not a builder",
        ),
        (CARD.replace("weights/", "../"), r"bundle\.toml:9: MINE.weights.source leaves the card's folder"),
        (CARD.replace("file:weights", "file:/etc"), "MINE.weights.source leaves the card's folder"),
    ],
)
def test_a_wrong_card_is_refused_with_file_and_line(carded: Path, text: str, words: str) -> None:
    (carded / "bundle.toml").write_text(text)
    with pytest.raises(bundles.CardError, match=words) as caught:
        bundles.get_bundle(f"file:{carded}")
    assert all(line.startswith(f"file:{carded}/bundle.toml") for line in caught.value.problems)


# --- folders of transformers and timm -------------------------------------------------------------


TEXT = torch.arange(2, 14).reshape(2, 6)
SOUND = torch.linspace(-1, 1, 2 * 800).reshape(2, 800)


def tiny_bert(folder: Path, **saving: Any) -> type:
    from transformers import BertConfig, BertForSequenceClassification

    settings: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_labels": 5}
    config = BertConfig(**settings, num_attention_heads=2, intermediate_size=64)
    torch.manual_seed(2)
    BertForSequenceClassification(config).save_pretrained(folder, **saving)
    return BertForSequenceClassification


def tiny_wav2vec2(folder: Path, **saving: Any) -> type:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=12,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(3)
    Wav2Vec2ForCTC(config).save_pretrained(folder, **saving)
    return Wav2Vec2ForCTC


def loaded(cls: Any, folder: Path) -> nn.Module:
    """What transformers makes of a folder."""
    model: nn.Module = cls.from_pretrained(folder)
    model.train(False)
    return model


MODELS = pytest.mark.parametrize(
    ("save", "inputs"), [(tiny_bert, TEXT), (tiny_wav2vec2, SOUND)], ids=["bert", "wav2vec2"]
)


@MODELS
@pytest.mark.parametrize("layout", ["whole", "sharded", "pickled"])
def test_a_folder_of_transformers_gives_what_transformers_gives(
    tmp_path: Path, save: Callable[..., type], inputs: torch.Tensor, layout: str
) -> None:
    cls = save(tmp_path, **({"max_shard_size": "20KB"} if layout == "sharded" else {}))
    theirs = loaded(cls, tmp_path)
    if layout == "pickled":
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    bundle = bundles.get_bundle(f"file:{tmp_path}")
    ours = bundle.get_model()
    assert type(ours) is cls
    assert bundle.weights is not None
    assert bundle.weights.is_index == (layout == "sharded")
    assert same(outputs(ours, inputs), outputs(theirs, inputs))


@MODELS
def test_what_is_frozen_survives_train_and_a_loop_of_adamw(
    tmp_path: Path, save: Callable[..., type], inputs: torch.Tensor
) -> None:
    cls = save(tmp_path)
    model = bundles.get_model(f"file:{tmp_path}", freeze=True, head=lambda size: nn.Linear(size, 3)).train()
    assert isinstance(model, cls)
    assert trains_the_head_alone(model, lambda: model(inputs))


@MODELS
def test_the_last_block_thaws_as_asked(
    tmp_path: Path, save: Callable[..., type], inputs: torch.Tensor
) -> None:
    save(tmp_path)
    model = bundles.get_model(f"file:{tmp_path}", freeze="last:1").train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(".layer" in name for name in trained)
    assert not any(".0." in name or "embeddings" in name for name in trained if ".layer" in name)
    assert trains_the_head_alone(model, lambda: model(inputs))


def test_a_folder_gets_a_name_of_its_own(tmp_path: Path, default: bundles.Registry) -> None:
    tiny_bert(tmp_path)
    bundles.register(replace(bundles.get_bundle(f"file:{tmp_path}"), name="MY_BERT"))
    assert bundles.list_bundles("MY_*", modality="text") == ["MY_BERT"]
    assert outputs(bundles.get_model("MY_BERT"), TEXT)


def test_a_head_takes_the_place_of_what_a_model_was_pretrained_with(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertModel

    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    model: Any = bundles.get_model(f"file:{tmp_path}", head=lambda size: nn.Linear(size, 3), freeze=True)
    assert isinstance(model, bundles.EncoderWithHead)
    reference: Any = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    reference.train(False)
    with torch.no_grad():
        features = reference(TEXT).last_hidden_state
        assert torch.equal(model(TEXT), model.head(features))
    assert trains_the_head_alone(model.train(), lambda: model(TEXT))


@pytest.mark.parametrize("give", ["file:{}".format, str, Path])
def test_load_into_takes_a_folder_of_transformers(tmp_path: Path, give: Callable[[Path], Any]) -> None:
    theirs = loaded(tiny_bert(tmp_path), tmp_path)
    part = nn.ModuleDict({"text": type(theirs)(theirs.config)})
    report = bundles.load_into(part, give(tmp_path), prefix="text")
    assert report.missing == report.unexpected == ()
    assert same(outputs(part["text"].eval(), TEXT), outputs(theirs, TEXT))


def test_load_into_fills_a_base_model_from_an_older_checkpoint_of_a_whole_one(tmp_path: Path) -> None:
    theirs: Any = loaded(tiny_wav2vec2(tmp_path), tmp_path)
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = theirs.state_dict()
    for new, name in old.items():
        state = {key.replace(new, name): tensor for key, tensor in state.items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    part = nn.ModuleDict({"speech": type(theirs.wav2vec2)(theirs.config)})
    report = bundles.load_into(part, f"file:{tmp_path}", prefix="speech.")
    assert (report.missing, report.unexpected) == ((), ("lm_head.bias", "lm_head.weight"))
    assert same(outputs(part["speech"].eval(), SOUND), outputs(theirs.wav2vec2, SOUND))


def test_safetensors_come_before_shards_and_shards_before_pickles(tmp_path: Path) -> None:
    tiny_bert(tmp_path, max_shard_size="20KB")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never looked at")
    weights = bundles.get_bundle(f"file:{tmp_path}").weights
    assert weights is not None
    assert weights.name == "model.safetensors.index.json"
    save_file({}, tmp_path / "model.safetensors")
    weights = bundles.get_bundle(f"file:{tmp_path}").weights
    assert weights is not None
    assert weights.name == "model.safetensors"


@pytest.mark.parametrize("key", ["auto_map", "custom_pipelines"])
def test_code_in_a_folder_is_refused_and_not_run(tmp_path: Path, key: str) -> None:
    tiny_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    (tmp_path / "config.json").write_text(json.dumps({**config, key: {"AutoModel": "evil.Model"}}))
    with pytest.raises(bundles.BuildError, match=f"'{key}'.*nothing from elsewhere is executed"):
        bundles.get_model(f"file:{tmp_path}")
    assert not (tmp_path / "canary").exists()


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(canary), "w")

    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(bundles.UnsafeWeightsError, match="could run code"):
        bundles.get_model(f"file:{tmp_path}")
    assert not canary.exists()


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import timm
    from timm.models import save_for_hf

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=7)
    save_for_hf(model, str(folder), model_config={"num_classes": 7}, safe_serialization=True)
    return folder


def test_a_folder_of_timm_gives_what_timm_gives(timm_folder: Path) -> None:
    import timm

    theirs = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
    bundle = bundles.get_bundle(f"file:{timm_folder}")
    images = torch.randn(2, 3, 160, 160)
    assert same(outputs(bundle.get_model(), images), outputs(theirs, images))
    assert (bundle.builder, bundle.name) == ("timm", f"file:{timm_folder}")


def test_a_head_on_a_folder_of_timm_trains_alone(timm_folder: Path) -> None:
    bundle = bundles.get_bundle(f"file:{timm_folder}")
    model = bundle.get_model(head=lambda size: nn.Linear(size, 3), freeze=True).train()
    assert trains_the_head_alone(model, lambda: model(torch.randn(2, 3, 160, 160)))


def trains_the_head_alone(model: nn.Module, forward: Callable[[], Any]) -> bool:
    """Whether AdamW steps move what is to train and nothing else, and what is frozen stays as in eval."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    snapshot = bundles.snapshot(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        found = forward()
        found = found if isinstance(found, torch.Tensor) else found.logits
        found.float().square().mean().backward()
        optimizer.step()
        model.train()
    bundles.verify_frozen(model, snapshot)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return moved == trained and 0 < len(trained) < len(before)


# --- folders that cannot be used ------------------------------------------------------------------


def empty(folder: Path) -> None:
    (folder / "README.md").write_text("nothing here")


def text(content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()

    def write(folder: Path) -> None:
        (folder / "config.json").write_bytes(data)

    return write


UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda folder: None, r"neither bundle\.toml nor config\.json .*; there is nothing"),
    "no config": (empty, r"neither bundle\.toml nor config\.json .*; there is 'README\.md'"),
    "not JSON": (text("{"), r"config\.json of file:\S+ is not JSON \("),
    "not UTF-8": (text(b"\xff\xfe{}"), "is not JSON"),
    "web page": (text("<html>"), "is not JSON"),
    "nested deep": (text("[" * 100_000), "is not JSON"),
    "list": (text("[]"), r"holds \[\]: a table is needed"),
    "no library": (text("{}"), "has neither the model_type of transformers nor the architecture of timm"),
    "too large": (text(" " * (1 << 20) + "{}"), "is larger than 1 MiB, which no configuration is"),
    "number for a type": (text('{"model_type": 3}'), "model_type"),
    "unknown type": (text('{"model_type": "evil"}'), "evil"),
    "unknown of timm": (text('{"architecture": "evil", "num_classes": 2}'), "evil"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path, case: str) -> None:
    spoil, words = UNUSABLE[case]
    spoil(tmp_path)
    if (tmp_path / "config.json").exists():
        save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(bundles.BuildError, match=words):
        bundles.get_bundle(f"file:{tmp_path}")


def test_a_folder_without_weights_says_what_is_there(timm_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((timm_folder / "config.json").read_text())
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    words = (
        r"no weights to load in .*: one of model\.safetensors, .* there is 'config\.json', 'flax_model\.msg"
    )
    with pytest.raises(bundles.BuildError, match=words):
        bundles.get_bundle(f"file:{tmp_path}")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(bundles.SourceNotFoundError, match=r"no folder 'file:.*nowhere': check the path"):
        bundles.get_bundle(f"file:{tmp_path}/nowhere")
    with pytest.raises(bundles.SourceNotFoundError, match="names no folder: type 'file:DIR'"):
        bundles.get_bundle("file:")
    with pytest.raises(bundles.SourceNotFoundError, match="check the path"):
        bundles.get_bundle("file:a\0b")
    with pytest.raises(bundles.SourceNotFoundError, match="check the path"):
        bundles.get_bundle("file:" + "a" * 5000)


def test_a_file_is_no_folder(carded: Path) -> None:
    with pytest.raises(bundles.SourceNotFoundError, match="is a file: give the folder that it is in"):
        bundles.get_bundle(f"file:{carded}/bundle.toml")


# --- repositories of the Hub ----------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, and caches of the test's own."""
    with Hub() as hub:
        for name, value in hub.env(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "cache"))
        yield hub


def published(hub: Hub, folder: Path, name: str = "owner/name", small: Collection[str] = ()) -> str:
    """Put a folder on the Hub and return its address with the commit."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    large = {path for path in files if path.endswith((".safetensors", ".bin")) and path not in small}
    return f"hf:{name}@{hub.repo(name).commit(files, lfs=large)}"


@MODELS
@pytest.mark.parametrize("layout", ["whole", "sharded", "pickled"])
def test_a_repository_gives_what_transformers_gives_and_is_asked_once(
    hub: Hub, tmp_path: Path, save: Callable[..., type], inputs: torch.Tensor, layout: str
) -> None:
    folder = tmp_path / "folder"
    cls = save(folder, **({"max_shard_size": "20KB"} if layout == "sharded" else {}))
    theirs = loaded(cls, folder)
    if layout == "pickled":
        (folder / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    address = published(hub, folder)
    bundle = bundles.get_bundle(address)
    assert not any("model.safetensors" in request.path for request in hub.requests)
    assert same(outputs(bundle.get_model(), inputs), outputs(theirs, inputs))
    assert bundle.name == address
    hub.forget()
    assert same(outputs(bundles.get_model(address), inputs), outputs(theirs, inputs))
    assert hub.requests == []


def test_load_into_takes_a_repository_or_a_file_of_it(hub: Hub, tmp_path: Path) -> None:
    theirs = loaded(tiny_bert(tmp_path / "folder", max_shard_size="20KB"), tmp_path / "folder")
    address = published(hub, tmp_path / "folder")
    for given in (address, f"{address}#model.safetensors.index.json"):
        model = type(theirs)(theirs.config)
        report = bundles.load_into(model, given)
        assert (report.missing, report.source) == ((), f"{address}#model.safetensors.index.json")
        assert same(outputs(model.eval(), TEXT), outputs(theirs, TEXT))


def test_weights_carry_commit_digest_and_size(hub: Hub, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "folder")
    address = published(hub, tmp_path / "folder")
    weights = bundles.get_bundle(address).weights
    file = tmp_path / "folder" / "model.safetensors"
    assert weights == bundles.WeightSource(
        f"{address}#model.safetensors", sha256_of(file), file.stat().st_size
    )


def test_shards_carry_digests_and_sizes(hub: Hub, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "folder", max_shard_size="20KB")
    weights = bundles.get_bundle(published(hub, tmp_path / "folder")).weights
    assert weights is not None
    shards = list((tmp_path / "folder").glob("*.safetensors"))
    assert len(shards) > 2
    expected = {path.name: {"sha256": sha256_of(path), "size": path.stat().st_size} for path in shards}
    assert weights.shards == expected
    assert read_weights(weights)[1] is False  # blobs of the client's cache are mapped


def test_a_shard_that_is_not_the_published_one_is_refused(hub: Hub, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "folder", max_shard_size="20KB")
    address = published(hub, tmp_path / "folder")
    bundle = bundles.get_bundle(address)
    shard = sorted((tmp_path / "folder").glob("*.safetensors"))[1]
    hub.fault("corrupt", match=sha256_of(shard))
    with pytest.raises(bundles.ChecksumError, match=shard.name):
        bundle.get_model()


def test_a_shard_that_the_repository_lacks_is_named(hub: Hub, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "folder", max_shard_size="20KB")
    shard = sorted((tmp_path / "folder").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(bundles.WeightsFileError, match=f"names {shard.name}, which is not there"):
        bundles.get_model(published(hub, tmp_path / "folder"))


def test_a_branch_warns_and_means_the_commit_of_now(hub: Hub, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "folder")
    address = published(hub, tmp_path / "folder")
    hub.repo("owner/name").tag("v1")
    for moving in ("hf:owner/name", "hf:owner/name@main", "hf:owner/name@v1"):
        with pytest.warns(bundles.UnpinnedSourceWarning, match=f"{moving} means {address} now and may"):
            bundle = bundles.get_bundle(moving)
        assert bundle.name == address
    tiny_bert(tmp_path / "other", max_shard_size="20KB")
    later = published(hub, tmp_path / "other")
    assert later != address
    with pytest.warns(bundles.UnpinnedSourceWarning, match=later):
        assert bundles.get_bundle("hf:owner/name").name == later
    assert bundles.get_bundle(address).name == address


def test_a_repository_of_timm(hub: Hub, timm_folder: Path) -> None:
    import timm

    address = published(hub, timm_folder, "timm/test_vit.mine")
    theirs = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 160, 160)
    assert same(outputs(bundles.get_model(address), images), outputs(theirs, images))


def test_what_the_hub_says_is_metadata(hub: Hub, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "folder")
    hub.repo("owner/name").info.update(
        pipeline_tag="fill-mask", cardData={"license": "mit"}, tags=["license:mit"]
    )
    bundle = bundles.get_bundle(published(hub, tmp_path / "folder"))
    assert (bundle.task, bundle.license, bundle.modality) == ("fill-mask", "mit", "text")


def test_offline_a_pinned_address_needs_nothing_but_the_cache(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = loaded(tiny_bert(tmp_path / "folder"), tmp_path / "folder")
    address = published(hub, tmp_path / "folder")
    bundles.get_model(address)
    hub.forget()
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    assert same(outputs(bundles.get_model(address), TEXT), outputs(theirs, TEXT))
    monkeypatch.setenv("BUNDLES_CACHE", str(tmp_path / "another"))  # what transformers alone has fetched
    assert same(outputs(bundles.get_model(address), TEXT), outputs(theirs, TEXT))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    with pytest.raises(bundles.OfflineError, match="is on this machine and BUNDLES_OFFLINE is set"):
        bundles.get_bundle(address)
    assert hub.requests == []


def test_what_the_client_fetched_is_used_where_it_lies(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    theirs = loaded(tiny_bert(tmp_path / "folder"), tmp_path / "folder")
    address = published(hub, tmp_path / "folder")
    commit = address.partition("@")[2]
    place = tmp_path / "hf" / "hub"
    snapshot_download("owner/name", revision=commit, cache_dir=place, endpoint=hub.url)
    hub.forget()
    assert same(outputs(bundles.get_model(address), TEXT), outputs(theirs, TEXT))
    assert {request.kind for request in hub.requests} == {"api"}


def test_in_a_fresh_process_a_warm_address_imports_no_client(hub: Hub, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "folder")
    address = published(hub, tmp_path / "folder")
    bundles.get_model(address)
    hub.forget()
    code = (
        "import sys; from bundles.assemble.places import open_place; from bundles.sources.fetch import fetch;"
        "[fetch(source) for source in open_place(sys.argv[1]).files.values()];"
        "print('huggingface_hub' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, address], check=True, capture_output=True, text=True)
    assert (done.stdout.split(), hub.requests) == (["False", "False"], [])


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("hf:owner/gone@" + "a" * 40, bundles.SourceNotFoundError, "no repository owner/gone"),
        ("hf:owner/name@" + "a" * 40, bundles.SourceNotFoundError, "no revision"),
        ("hf:owner/name@abcdef0", bundles.PinError, "is a short commit"),
        ("hf:owner", bundles.PinError, "does not read 'hf:owner/repo@commit"),
        ("hf:owner/name/more", bundles.PinError, "does not read"),
        ("hf:", bundles.PinError, "does not read"),
        ("hf:owner/name@main#config.json", bundles.PinError, "is one of a file: leave out '#config.json'"),
    ],
)
def test_a_wrong_address_is_refused(hub: Hub, address: str, error: type[Exception], words: str) -> None:
    hub.repo("owner/name").commit({"README.md": b""})
    with pytest.raises(error, match=words):
        bundles.get_bundle(address)


def test_a_gated_repository_says_how_to_log_in(hub: Hub, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "folder")
    address = published(hub, tmp_path / "folder")
    hub.repo("owner/name").gate()
    with pytest.raises(bundles.SourceAccessError, match=r"is gated: accept its terms .* `hf auth login`"):
        bundles.get_model(address)


def test_a_pickle_without_a_digest_is_refused(hub: Hub, tmp_path: Path) -> None:
    theirs = loaded(tiny_bert(tmp_path / "folder"), tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "folder" / "pytorch_model.bin")
    address = published(hub, tmp_path / "folder", small={"pytorch_model.bin"})
    with pytest.raises(bundles.BuildError, match="is a pickle and the Hub publishes no digest of it"):
        bundles.get_bundle(address)


@pytest.mark.parametrize("name", ["config.json", "bundle.toml"])
def test_a_configuration_or_card_too_large_is_not_fetched(hub: Hub, name: str) -> None:
    commit = hub.repo("owner/name").commit({name: b" " * (1 << 20) + b"{}"})
    with pytest.raises(bundles.BuildError, match=f"{name} of hf:.* is larger than 1 MiB, which no"):
        bundles.get_bundle(f"hf:owner/name@{commit}")
    assert not [request for request in hub.requests if request.kind == "body"]


# --- repositories that carry a card ---------------------------------------------------------------


def test_a_card_on_the_hub_names_its_own_files(hub: Hub, carded: Path, crepe: nn.Module) -> None:
    address = published(hub, carded)
    bundle = bundles.get_bundle(address)
    file = carded / "weights" / "crepe.safetensors"
    source = bundles.WeightSource(
        f"{address}#weights/crepe.safetensors", sha256_of(file), file.stat().st_size
    )
    assert (bundle.name, bundle.weights, bundle.license) == (address, source, "MIT")
    assert same(outputs(bundle.get_model(), FRAMES), outputs(crepe, FRAMES))
    hub.forget()
    bundles.get_model(address)
    assert hub.requests == []


def test_a_card_may_name_its_own_repository_without_a_commit(hub: Hub, carded: Path) -> None:
    (carded / "bundle.toml").write_text(CARD.replace("file:", "hf:owner/name#"))
    address = published(hub, carded)
    weights = bundles.get_bundle(address).weights
    assert weights is not None
    assert weights.uri == f"{address}#weights/crepe.safetensors"
    assert weights.sha256 is not None


def test_a_card_of_a_sharded_checkpoint(hub: Hub, carded: Path, crepe: nn.Module) -> None:
    state = crepe.state_dict()
    names = sorted(state)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for shard, members in parts.items():
        save_file({name: state[name] for name in members}, carded / shard)
    places = {name: shard for shard, members in parts.items() for name in members}
    (carded / "all.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    digest = sha256_of(carded / "all.safetensors.index.json")
    text = CARD.replace("weights/crepe.safetensors", "all.safetensors.index.json")
    (carded / "bundle.toml").write_text(f'{text}weights.sha256 = "{digest}"\n')
    for address in (f"file:{carded}", published(hub, carded)):
        bundle = bundles.get_bundle(address)
        assert same(outputs(bundle.get_model(), FRAMES), outputs(crepe, FRAMES))
    assert bundle.weights is not None
    assert bundle.weights.shards["b.safetensors"]["sha256"] == sha256_of(carded / "b.safetensors")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "/crepe",
            "/none",
            r"bundle\.toml: MINE.weights.source names 'weights/none.safetensors', which is not in",
        ),
        ("file:weights", "file:../weights", "leaves the card's folder"),
        ("file:weights", "file:/etc", "leaves the card's folder"),
        ("file:weights", "file:C:/etc", "leaves the card's folder"),
        ("file:weights", "file:~/etc", "leaves the card's folder"),
        ("file:weights", "url:http://example.org", "is read by anybody on the way: give an https:// address"),
        ("file:weights", "url:https://example.org", "MINE.weights.sha256 is missing"),
        ("file:weights/", "hf:else/where#", "MINE.weights.sha256 is missing"),
        ("file:weights/", "hf:owner/name@main#", "MINE.weights.sha256 is missing"),
        ("torchcrepe", "os.system", "'os.system' is not a builder"),
    ],
)
def test_a_card_on_the_hub_names_nothing_that_it_must_not(
    hub: Hub, carded: Path, old: str, new: str, words: str
) -> None:
    (carded / "bundle.toml").write_text(CARD.replace(old, new))
    address = published(hub, carded)
    with pytest.raises(bundles.CardError, match=words) as caught:
        bundles.get_bundle(address)
    assert caught.value.problems[0].startswith(f"{address}#bundle.toml")


@pytest.mark.parametrize(
    ("alternate", "words"),
    [
        ("file:/etc/hostname", "leaves the card's folder"),
        ("file:../../weights", "leaves the card's folder"),
        ("file:weights/none", r"MINE\.weights\.alternates names 'weights/none', which is not in"),
        ("url:http://example.org/x", r"MINE\.weights\.alternates .*is read by anybody on the way"),
    ],
)
def test_other_addresses_in_a_card_on_the_hub_are_held_to_the_same(
    hub: Hub, carded: Path, alternate: str, words: str
) -> None:
    digest = sha256_of(carded / "weights" / "crepe.safetensors")
    more = f'weights.sha256 = "{digest}"\nweights.alternates = ["{alternate}"]\n'
    (carded / "bundle.toml").write_text(CARD + more)
    address = published(hub, carded)
    with pytest.raises(bundles.CardError, match=words):
        bundles.get_bundle(address)


def test_other_addresses_in_a_card_on_the_hub_are_at_its_commit(hub: Hub, carded: Path) -> None:
    digest = sha256_of(carded / "weights" / "crepe.safetensors")
    others = '["hf:owner/name#bundle.toml", "url:https://example.org/x"]'
    (carded / "bundle.toml").write_text(f'{CARD}weights.sha256 = "{digest}"\nweights.alternates = {others}\n')
    address = published(hub, carded)
    weights = bundles.get_bundle(address).weights
    assert weights is not None
    assert weights.alternates == (f"{address}#bundle.toml", "url:https://example.org/x")


def test_a_small_file_needs_its_digest_in_the_card(hub: Hub, carded: Path, crepe: nn.Module) -> None:
    address = published(hub, carded, small={"weights/crepe.safetensors"})
    with pytest.raises(bundles.CardError, match=r"weights\.sha256 is missing, and the Hub publishes none"):
        bundles.get_bundle(address)
    digest = sha256_of(carded / "weights" / "crepe.safetensors")
    (carded / "bundle.toml").write_text(f'{CARD}weights.sha256 = "{digest}"\n')
    address = published(hub, carded, small={"weights/crepe.safetensors"})
    assert same(outputs(bundles.get_model(address), FRAMES), outputs(crepe, FRAMES))


# --- names, and the command line ------------------------------------------------------------------


def test_looking_up_a_name_imports_nothing_heavy() -> None:
    code = "import sys, bundles; bundles.get_bundle('CREPE_TINY'); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "huggingface_hub", "bundles.assemble.model", "bundles.assemble.repository"}
    assert heavy.isdisjoint(out.stdout.split())


@pytest.mark.parametrize("command", ["show", "plan"])
def test_the_command_line_takes_addresses(carded: Path, command: str) -> None:
    done = CliRunner().invoke(group, [command, f"file:{carded}"])
    assert (done.exit_code, "classifier" in done.stdout or "head" in done.stdout) == (0, True)
    assert command == "show" or f"bundles.get_bundle('file:{carded}').get_model(" in done.stderr
    with pytest.raises(bundles.SourceNotFoundError, match="check the path"):
        group([command, f"file:{carded}/nowhere"], standalone_mode=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("google/vit", r"type bundles\.get_bundle\('hf:google/vit'\)"),
        ("https://huggingface.co/google/vit", r"type bundles\.get_bundle\('hf:google/vit'\)"),
        ("HF://google/vit/", r"type bundles\.get_bundle\('hf:google/vit'\)"),
        (" hf:google/vit", r"type bundles\.get_bundle\('hf:google/vit'\)"),
        ("./nowhere", "nor is there such a folder: check the path"),
        ("/nowhere/at/all", "nor is there such a folder: check the path"),
        (Path("models/vit"), "a name is text: give 'file:models/vit'"),
        (None, "a name is text, as 'CREPE_TINY'"),
    ],
)
def test_what_is_no_name_is_told_what_to_type(name: Any, words: str) -> None:
    with pytest.raises(bundles.UnknownBundleError, match=words) as caught:
        bundles.get_bundle(name)
    assert "did you mean" not in str(caught.value)


def test_an_address_without_an_owner_shows_the_form_of_one() -> None:
    with pytest.raises(bundles.PinError, match=r"does not read 'hf:owner/repo@commit'\.$"):
        bundles.get_bundle("hf:gpt2")


def test_a_name_that_is_none() -> None:
    with pytest.raises(bundles.UnknownBundleError, match="CREPE_TINY"):
        bundles.get_bundle("CREPE_TINI")
