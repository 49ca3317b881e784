"""torchtext's bundles: the real classes bit for bit, its spellings, its tokens; heads behind Transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

import bundles
from bundles.builders.table import build
from bundles.companions.text import Tokenizer as OurTokenizer
from bundles.errors import (
    BuildArgumentError,
    BuildError,
    FreezeArgumentError,
    FreezeWithoutWeightsWarning,
    HeadError,
    NothingTrainableWarning,
    StateDictMismatchError,
)
from bundles.heads import CTCHead, MeanPoolClassifier, TextClassifier, WeightedLayers
from bundles.spec.groups import match_layers
from hubbing import at, hub_at

library: Any = transformers  # whose types are not strict
ENCODERS = [
    *("XLMR_BASE_ENCODER", "XLMR_LARGE_ENCODER"),
    *("ROBERTA_BASE_ENCODER", "ROBERTA_LARGE_ENCODER", "ROBERTA_DISTILLED_ENCODER"),
]
SIZES = [f"T5_{size}" for size in ("SMALL", "BASE", "LARGE", "3B", "11B")]
SIZES += [f"FLAN_T5_{size}" for size in ("BASE", "LARGE", "XL", "XXL")]
T5 = [f"{size}{part}" for size in SIZES for part in ("_ENCODER", "", "_GENERATION")]
BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
T5_BLOCKS = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
WHOLE = [*ENCODERS, *(f"{size}_GENERATION" for size in SIZES)]  # those that are all that is in their file
# A bundle of each architecture, and the class by which Transformers reads its file.
READ_BY = {
    "ROBERTA_BASE_ENCODER": "RobertaModel",
    "ROBERTA_DISTILLED_ENCODER": "RobertaModel",
    "XLMR_LARGE_ENCODER": "XLMRobertaModel",
    "T5_SMALL_ENCODER": "T5EncoderModel",
    "T5_SMALL": "T5Model",
    "T5_SMALL_GENERATION": "T5ForConditionalGeneration",
    "FLAN_T5_XL_ENCODER": "T5EncoderModel",
    "FLAN_T5_BASE": "T5Model",
    "FLAN_T5_BASE_GENERATION": "T5ForConditionalGeneration",
}
each = pytest.mark.parametrize("name", READ_BY)
TEXTS = torch.randint(5, 90, (3, 9), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(9) < torch.tensor([[9], [4], [7]])).long()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLES_OFFLINE", "1")
    library.logging.set_verbosity_error()


def is_t5(name: str) -> bool:
    return "T5" in name


def call(model: nn.Module, name: str) -> Any:
    more = {"decoder_input_ids": TEXTS[:, :5]} if is_t5(name) and not name.endswith("_ENCODER") else {}
    return model(input_ids=TEXTS, attention_mask=MASK, **more)


def published(name: str, folder: Path) -> bundles.Bundle:
    """A small sibling of a bundle, with a checkpoint of the real class as it is on the Hub."""
    card = bundles.get_bundle(name)
    config = {**card.architecture["config"], **(T5_BLOCKS if is_t5(name) else BLOCKS), "vocab_size": 90}
    cls = "T5ForConditionalGeneration" if is_t5(name) else card.architecture["model_class"]
    real: Any = getattr(library, cls)
    torch.manual_seed(3)
    model = real(real.config_class(**{key: value for key, value in config.items() if key != "model_type"}))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(load_file(file) | old_tensors(name), file, {"format": "pt"})
    return replace(
        card,
        architecture={**card.architecture, "config": config},
        weights=bundles.WeightSource(f"file:{file}"),
        num_features=card.num_features and 32,
    )


def old_tensors(name: str) -> dict[str, Tensor]:
    """What published files hold besides, and models no longer do."""
    if not is_t5(name):
        pooler = {f"roberta.pooler.dense.{end}": torch.randn(32, 32)[slice(1)] for end in ("weight", "bias")}
        return pooler | {"roberta.embeddings.position_ids": torch.arange(514)[None]}
    never = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    words = {"lm_head.weight": torch.randn(90, 32)} if name.startswith("FLAN") else {}
    return {never: torch.randn(32, 4), **words}


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[bundles.Bundle, Path]]:
    made: dict[str, tuple[bundles.Bundle, Path]] = {}

    def find(name: str) -> tuple[bundles.Bundle, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = published(name, folder), folder
        return made[name]

    return find


Sibling = Callable[[str], tuple[bundles.Bundle, Path]]

# --- the 32 cards ---------------------------------------------------------------------------------


def test_every_name_of_torchtext_is_there() -> None:
    assert len(ENCODERS + T5) == 32
    assert set(bundles.list_bundles(modality="text")) >= {*ENCODERS, *T5}


@pytest.mark.parametrize("name", ENCODERS + T5)
def test_a_card_builds_and_its_groups_and_counts_are_right(name: str) -> None:
    bundle = bundles.get_bundle(name)
    model: Any = build(bundle, parameters="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == bundle.num_parameters
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    kinds = [group.kind for group in match_layers(bundle.rules, names)]
    config = model.config
    decoder = getattr(config, "num_decoder_layers", 0) if not name.endswith("_ENCODER") else 0
    assert kinds.count("block") == config.num_hidden_layers + decoder
    assert kinds.count("head") == int(name.startswith("FLAN") and name.endswith("_GENERATION"))
    assert (bundle.num_features is None) == name.endswith("_GENERATION")
    assert bundle.num_features in (None, config.hidden_size)
    assert (bundle.companions, bundle.modality) == ("text", "text")


def size_of(name: str) -> int:
    weights = bundles.get_bundle(name).weights
    return (weights and weights.size) or 0


@pytest.mark.parametrize("name", [name for name in WHOLE if size_of(name)])
def test_the_published_file_holds_as_many_bytes_as_the_card_has_parameters(name: str) -> None:
    """Sizes are the Hub's, counts are ours: a wrong width or depth would show."""
    bundle = bundles.get_bundle(name)
    config, size, floats = bundle.architecture["config"], size_of(name), bundle.num_parameters
    if not is_t5(name):  # the head of the masked language model, and XLM-R's pooler
        dim, words = config["hidden_size"], config["vocab_size"]
        square = dim * dim + dim
        floats += square + 2 * dim + words + square * name.startswith("XLMR")
    assert 0 < size - 4 * floats < 200_000  # names and shapes


# --- the same numbers as Transformers' own loader -------------------------------------------------


@each
def test_outputs_are_those_of_from_pretrained(name: str, sibling: Sibling) -> None:
    bundle, folder = sibling(name)
    ours = bundle.get_model()
    more = {} if is_t5(name) else {"add_pooling_layer": False}
    theirs = getattr(library, READ_BY[name]).from_pretrained(folder, **more)
    assert type(ours) is type(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())
    with torch.no_grad():
        mine, other = call(ours, name), call(theirs.eval(), name)
    assert type(mine) is type(other)
    key = "logits" if name.endswith("_GENERATION") else "last_hidden_state"
    assert torch.equal(mine[key], other[key])


@pytest.mark.parametrize("name", ["T5_SMALL_GENERATION", "FLAN_T5_BASE_GENERATION"])
def test_generate_gives_what_upstream_gives(name: str, sibling: Sibling) -> None:
    bundle, folder = sibling(name)
    ours: Any = bundle.get_model(freeze=True)
    theirs = library.T5ForConditionalGeneration.from_pretrained(folder)
    how: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(ours.generate(TEXTS, **how), theirs.generate(TEXTS, **how))


def test_flan_has_words_of_its_own_and_t5_has_its_embeddings(sibling: Sibling) -> None:
    flan: Any = sibling("FLAN_T5_BASE_GENERATION")[0].get_model()
    plain: Any = sibling("T5_SMALL_GENERATION")[0].get_model()
    assert flan.lm_head.weight is not flan.shared.weight
    assert plain.lm_head.weight is plain.shared.weight is plain.decoder.embed_tokens.weight


def test_a_sharded_checkpoint_and_a_pickled_one_are_read_alike(sibling: Sibling, tmp_path: Path) -> None:
    """FLAN-T5 XL and XXL are published in shards, T5 11B as a pickle."""
    bundle, folder = sibling("FLAN_T5_BASE_GENERATION")
    model: Any = bundle.get_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    for name in ("model.safetensors.index.json", "pytorch_model.bin"):
        source = bundles.WeightSource(f"file:{tmp_path / name}")
        state = replace(bundle, weights=source).get_model().state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_that_does_not_fit_is_refused(sibling: Sibling, tmp_path: Path) -> None:
    """torchtext loaded what there was, without a word."""
    bundle, folder = sibling("ROBERTA_BASE_ENCODER")
    tensors = load_file(folder / "model.safetensors")
    gone = "encoder.layer.1.output.dense.bias"
    tensors["roberta.extra.weight"] = tensors.pop(f"roberta.{gone}")
    save_file(tensors, tmp_path / "model.safetensors")
    source = bundles.WeightSource(f"file:{tmp_path / 'model.safetensors'}")
    with pytest.raises(
        StateDictMismatchError, match=rf"missing in the file: {gone}; unexpected .* extra.weight"
    ):
        replace(bundle, weights=source).get_model()


def test_the_encoder_goes_into_a_part_of_somebody_s_own_model(sibling: Sibling) -> None:
    bundle, folder = sibling("ROBERTA_BASE_ENCODER")
    config = library.RobertaConfig.from_pretrained(folder, num_labels=2)
    model = library.RobertaForSequenceClassification(config)
    report = bundles.load_into(model, bundle, prefix="roberta.", freeze=True)
    assert (report.missing, report.unexpected) == ((), ())
    encoder = bundle.get_model().state_dict()
    assert all(torch.equal(model.state_dict()[f"roberta.{key}"], value) for key, value in encoder.items())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"classifier.{part}.{end}" for part in ("dense", "out_proj") for end in ("weight", "bias")
    }


def test_weights_and_tokenizer_come_from_the_hub_once(
    sibling: Sibling, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, folder = sibling("XLMR_LARGE_ENCODER")
    TOKENIZERS["XLMR_BASE_ENCODER"]().save(str(tmp_path / "tokenizer.json"))
    files = {"model.safetensors": (folder / "model.safetensors").read_bytes()}
    files["tokenizer.json"] = (tmp_path / "tokenizer.json").read_bytes()
    monkeypatch.delenv("BUNDLES_OFFLINE")
    with hub_at(tmp_path, monkeypatch) as hub:
        commit = hub.repo("owner/name").commit(files, lfs={"model.safetensors"})
        weights, tokenizer = (at(commit, name, data) for name, data in files.items())
        ours = replace(bundle, weights=weights, assets={"tokenizer": tokenizer})

        def run() -> Tensor:
            model: Any = ours.get_model(head=lambda dim: nn.Identity())
            return model(**ours.transform().batch(["a dog", "the cat sat"]))  # type: ignore[no-any-return]

        first = run()
        assert {request.kind for request in hub.requests} == {"head", "body"}
        hub.requests.clear()
        assert torch.equal(run(), first)
        assert hub.requests == []


def test_without_weights_the_words_of_flan_are_drawn_and_saved(sibling: Sibling, tmp_path: Path) -> None:
    model: Any = sibling("FLAN_T5_BASE_GENERATION")[0].get_model(pretrained=False)
    assert 0.9 < float(model.lm_head.weight.detach().std()) < 1.1
    model.save_pretrained(tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["lm_head.weight"], model.lm_head.weight)


# --- freezing -------------------------------------------------------------------------------------


def moved(model: nn.Module, step: Callable[[], Tensor]) -> set[str]:
    """The parameters that three steps of AdamW change."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        step().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("name", ["ROBERTA_BASE_ENCODER", "XLMR_LARGE_ENCODER"])
def test_freeze_encoder_holds_it_and_a_classifier_learns(name: str, sibling: Sibling) -> None:
    with pytest.warns(DeprecationWarning, match="freeze_encoder= is deprecated: take freeze=True"):
        model: Any = sibling(name)[0].get_model(
            freeze_encoder=True, head=lambda dim: TextClassifier(dim, 2, dropout=0.0)
        )
    expected = model(TEXTS, MASK)
    model.train()
    assert not any(part.training for part in model.encoder.modules() if isinstance(part, nn.Dropout))
    assert torch.equal(model(TEXTS, MASK), expected)  # torchtext's was noisy here
    labels = torch.tensor([0, 1, 1])
    changed = moved(model, lambda: nn.functional.cross_entropy(model(TEXTS, MASK), labels))
    assert changed == {f"head.{part}.{end}" for part in ("dense", "out_proj") for end in ("weight", "bias")}


@pytest.mark.parametrize("name", ["T5_SMALL_GENERATION", "FLAN_T5_BASE_GENERATION"])
def test_freezing_a_t5_freezes_its_encoder_and_the_embeddings(name: str, sibling: Sibling) -> None:
    model: Any = sibling(name)[0].get_model(freeze=True).train()
    assert not any(part.training for part in model.encoder.modules() if isinstance(part, nn.Dropout))
    assert any(part.training for part in model.decoder.modules() if isinstance(part, nn.Dropout))
    state = model.encoder(TEXTS, MASK).last_hidden_state
    assert torch.equal(state, model.encoder(TEXTS, MASK).last_hidden_state)
    labels = TEXTS[:, :4].contiguous()
    changed = moved(model, lambda: model(input_ids=TEXTS, attention_mask=MASK, labels=labels).loss)
    words = {"lm_head.weight"} if name.startswith("FLAN") else set()
    decoder = {key for key in model.state_dict() if key.startswith("decoder.")}
    assert changed == decoder - {"decoder.embed_tokens.weight"} | words


def test_depth_counts_the_decoder_after_the_encoder(sibling: Sibling) -> None:
    plan = sibling("T5_SMALL")[0].plan(freeze="last:1")
    trained = {name.rpartition(".layer.")[0] for name in plan.trained if "block" in name}
    assert trained == {"decoder.block.1"}


# --- torchtext's spellings ------------------------------------------------------------------------


def test_freeze_model_freezes_all_of_it(sibling: Sibling) -> None:
    bundle, _ = sibling("T5_SMALL_GENERATION")
    with (
        pytest.warns(DeprecationWarning, match="freeze_model= is deprecated: take freeze='all'"),
        pytest.warns(NothingTrainableWarning),
    ):
        model = bundle.get_model(freeze_model=True)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_load_weights_is_pretrained(sibling: Sibling) -> None:
    bundle, _ = sibling("ROBERTA_BASE_ENCODER")
    with pytest.warns(DeprecationWarning, match="load_weights= is deprecated"):
        fresh = bundle.get_model(load_weights=False)
    with pytest.warns(DeprecationWarning, match="pretrained=True or False"):
        loaded = bundle.get_model(load_weights=True)
    wanted = bundle.get_model().state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in loaded.state_dict().items())
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(fresh.state_dict()[name], wanted[name])


@pytest.mark.filterwarnings("ignore:load_weights= is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:freeze_encoder= is deprecated:DeprecationWarning")
def test_what_torchtext_only_logged_is_a_warning_or_an_error(sibling: Sibling) -> None:
    bundle, _ = sibling("ROBERTA_BASE_ENCODER")
    with pytest.raises(BuildError, match="has no weights: pass pretrained=False"):
        replace(bundle, weights=None).get_model(load_weights=True)
    with pytest.warns(FreezeWithoutWeightsWarning):
        bundle.get_model(load_weights=False, freeze_encoder=True, head=lambda dim: TextClassifier(dim, 2))


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"freeze_encoder": True, "freeze": "all"}, FreezeArgumentError, "and freeze='all' both say"),
    ({"freeze_encoder": True, "freeze": True}, FreezeArgumentError, "leave freeze_encoder= out"),
    ({"freeze_encoder": True, "freeze_model": True}, FreezeArgumentError, "and freeze_model=True both"),
    ({"load_weights": True, "pretrained": False}, BuildArgumentError, "contradicts pretrained=False"),
    ({"load_weights": "yes"}, BuildArgumentError, "load_weights='yes' is neither True nor False"),
    ({"with_generation_utils": True}, BuildArgumentError, r"call generate\(\) of the model"),
    ({"gen_kwargs": {"max_length": 9}}, BuildArgumentError, r"give its entries to generate\(\)"),
    ({"strict": True}, BuildArgumentError, "has no argument 'strict'"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("arguments", "error", "match"), REFUSED, ids=lambda value: str(value)[:40])
def test_contradictions_are_refused(
    arguments: dict[str, Any], error: type[Exception], match: str, sibling: Sibling
) -> None:
    with pytest.raises(error, match=match):
        sibling("T5_SMALL_GENERATION")[0].get_model(**arguments)


def test_what_torchtext_takes_by_default_is_taken(sibling: Sibling) -> None:
    with (
        pytest.warns(DeprecationWarning, match="with_generation_utils= is deprecated: take the model's own"),
        pytest.warns(DeprecationWarning, match="gen_kwargs= is deprecated"),
        pytest.warns(DeprecationWarning, match="load_weights= is deprecated"),
        pytest.warns(DeprecationWarning, match="freeze_model= is deprecated"),
    ):
        model = sibling("T5_SMALL_GENERATION")[0].get_model(
            with_generation_utils=False, load_weights=True, freeze_model=False, gen_kwargs=None
        )
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_other_bundles_do_not_take_them() -> None:
    with pytest.raises(BuildArgumentError, match="get_model of CREPE_TINY has no argument 'freeze_encoder'"):
        bundles.CREPE_TINY.get_model(freeze_encoder=True)


# --- tokens ---------------------------------------------------------------------------------------

SENTENCES = ["the cat sat on the mat", "a  dog was there, too!", "naïve cafés cost 3 €", "the the the"] * 3


def roberta_tokenizer() -> Tokenizer:
    """Byte-level BPE with the pre-tokenizer, post-processor and special tokens of RoBERTa's file."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return made


def unigram_tokenizer(special: list[str], single: str) -> Tokenizer:
    """Unigram over words marked with ``▁``, as of T5's and XLM-R's files."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    made.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(
            vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    ids = [(token, made.token_to_id(token)) for token in special if token in single]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return made


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "ROBERTA_BASE_ENCODER": roberta_tokenizer,
    "XLMR_BASE_ENCODER": lambda: unigram_tokenizer(["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>"),
    "T5_SMALL_GENERATION": lambda: unigram_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>"),
}


def with_tokenizer(name: str, folder: Path, made: Tokenizer | None = None) -> bundles.Bundle:
    made = made or TOKENIZERS[name]()
    made.save(str(folder / "tokenizer.json"))
    source = bundles.WeightSource(f"file:{folder / 'tokenizer.json'}")
    return replace(bundles.get_bundle(name), assets={"tokenizer": source})


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_the_file_between_the_ends_of_a_text(name: str, tmp_path: Path) -> None:
    bundle = with_tokenizer(name, tmp_path)
    transform, raw = bundle.transform(), Tokenizer.from_file(bundle.assets["tokenizer"].address)
    begin = [] if name.startswith("T5") else [0]
    end = [1] if name.startswith("T5") else [2]
    for text in ["the cat", "a dog  was here", "naïve", ""]:
        assert transform(text) == begin + raw.encode(text, add_special_tokens=False).ids + end
    assert transform(["the cat", "a"]) == [transform("the cat"), transform("a")]
    assert transform([]) == []
    assert transform.decode(transform("the cat sat")) == "the cat sat"
    assert transform.decode([transform("the cat"), transform("a dog")]) == ["the cat", "a dog"]


@pytest.mark.parametrize("name", ["ROBERTA_BASE_ENCODER", "ROBERTA_LARGE_ENCODER", "T5_SMALL_GENERATION"])
def test_a_long_text_is_cut_where_torchtext_cuts_it(name: str, tmp_path: Path) -> None:
    made = (roberta_tokenizer if "ROBERTA" in name else TOKENIZERS[name])()
    made.enable_truncation(7)  # what the file says of length and padding is not torchtext's
    made.enable_padding(length=40)
    transform = with_tokenizer(name, tmp_path, made).transform()
    made.no_truncation()
    made.no_padding()
    ids = made.encode("the cat sat " * 300, add_special_tokens=False).ids
    ends: dict[str, Any] = {"ROBERTA_BASE_ENCODER": (254, [0], [2]), "ROBERTA_LARGE_ENCODER": (510, [0], [2])}
    most, begin, end = ends.get(name, (512, [], [1]))
    assert transform("the cat sat " * 300) == begin + ids[:most] + end
    assert len(transform("the")) < 7


def test_a_batch_goes_into_the_model_and_padding_changes_nothing(sibling: Sibling, tmp_path: Path) -> None:
    transform = with_tokenizer("XLMR_BASE_ENCODER", tmp_path).transform()
    batch = transform.batch(["the cat sat on the mat", "a dog"])
    short = transform("a dog")
    assert batch["input_ids"][1].tolist() == short + [1] * (batch["input_ids"].shape[1] - len(short))
    assert batch["attention_mask"].sum(1).tolist() == [len(transform("the cat sat on the mat")), len(short)]
    model = sibling("XLMR_LARGE_ENCODER")[0].get_model(freeze=True, head=lambda dim: TextClassifier(dim, 2))
    alone = model(**transform.batch(["a dog"]))
    torch.testing.assert_close(model(**batch)[1:], alone)


@pytest.mark.parametrize("wrong", [3, None, [1, 2], ["a", 1]], ids=str)
def test_what_is_no_text_is_refused(wrong: Any, tmp_path: Path) -> None:
    transform = with_tokenizer("ROBERTA_BASE_ENCODER", tmp_path).transform()
    with pytest.raises(BuildArgumentError, match="is neither a text nor a list of texts"):
        transform(wrong)
    with pytest.raises(BuildArgumentError, match="A batch is a list of at least one text"):
        transform.batch([])
    with pytest.raises(BuildArgumentError, match="A batch is a list of at least one text"):
        transform.batch("a text")


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": "9"}', b"\xff\xfe"], ids=str)
def test_what_is_no_tokenizer_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    source = bundles.WeightSource(f"file:{tmp_path / 'tokenizer.json'}")
    bundle = replace(bundles.ROBERTA_BASE_ENCODER, assets={"tokenizer": source})
    with pytest.raises(BuildError, match=r"The tokenizer of ROBERTA_BASE_ENCODER, .* is no tokenizer.json"):
        bundle.transform()
    with pytest.raises(BuildError, match="needs tokenizer, which the bundle has not"):
        replace(bundle, assets={}).transform()
    with pytest.raises(BuildError, match="has no '<pad>'"):
        OurTokenizer(Tokenizer(models.BPE()), 9)


# --- heads behind models of Transformers ----------------------------------------------------------


def test_a_text_classifier_counts_as_roberta_s_does() -> None:
    head: Any = library.models.roberta.modeling_roberta.RobertaClassificationHead
    config = library.RobertaConfig(hidden_size=32, num_labels=3, num_attention_heads=4)
    theirs, ours = head(config), TextClassifier(32, 3, activation="tanh")
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(4, 7, 32)
    for train in (False, True):  # in training the same elements are dropped
        torch.manual_seed(5)
        expected = theirs.train(train)(features)
        torch.manual_seed(5)
        assert torch.equal(ours.train(train)(features), expected)
    ours.activation = nn.ReLU()
    relu = ours.out_proj(ours.dense(features[:, 0]).relu())
    assert torch.equal(TextClassifier(32, 3).eval().activation(relu), relu.relu())
    assert torch.equal(ours.eval()(features), relu)


def test_a_text_classifier_has_a_hidden_size_and_refuses_the_rest() -> None:
    assert TextClassifier(32, 3, hidden=8, activation="gelu")(torch.randn(2, 5, 32)).shape == (2, 3)
    with pytest.raises(HeadError, match="activation='swish' is not one of 'gelu', 'relu', 'tanh'"):
        TextClassifier(32, 3, activation="swish")
    with pytest.raises(HeadError, match=r"shape \[2, 32\] and takes \[batch, tokens, dim\].*Linear\(32, "):
        TextClassifier(32, 3)(torch.randn(2, 32))


def test_lengths_come_from_the_mask_however_it_is_given(sibling: Sibling) -> None:
    model: Any = sibling("T5_SMALL_ENCODER")[0].get_model(head=lambda dim: MeanPoolClassifier(dim, 2))
    features = model.encoder(TEXTS, MASK).last_hidden_state
    expected = model.head(features, MASK.sum(1))
    assert not torch.equal(expected, model.head(features))
    assert torch.equal(model(TEXTS, MASK), expected)
    assert torch.equal(model(attention_mask=MASK.bool(), input_ids=TEXTS), expected)
    assert torch.equal(model(TEXTS), model.head(model.encoder(TEXTS).last_hidden_state))
    with pytest.raises(HeadError, match=r"attention_mask has shape \[3, 1, 1, 9\]"):
        model(TEXTS, MASK[:, None, None])


def test_a_head_behind_a_decoder_has_the_decoder_s_lengths(sibling: Sibling) -> None:
    model: Any = sibling("T5_SMALL")[0].get_model(head=lambda dim: MeanPoolClassifier(dim, 2))
    given = {"input_ids": TEXTS, "attention_mask": MASK, "decoder_input_ids": TEXTS[:, :5]}
    short = (torch.arange(5) < torch.tensor([[5], [2], [3]])).long()
    features = model.encoder(**given, decoder_attention_mask=short).last_hidden_state
    assert torch.equal(model(**given, decoder_attention_mask=short), model.head(features, short.sum(1)))
    assert torch.equal(model(**given), model.head(model.encoder(**given).last_hidden_state))


def test_a_head_on_layers_is_given_the_outputs_of_all(sibling: Sibling) -> None:
    def head(dim: int) -> nn.Module:
        return WeightedLayers(dim, 2, MeanPoolClassifier(dim, 3))

    model: Any = sibling("ROBERTA_BASE_ENCODER")[0].get_model(head=head, freeze=True)
    output = model.encoder(TEXTS, MASK, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(model(TEXTS, MASK), model.head(list(output.hidden_states[1:]), MASK.sum(1)))
    with pytest.raises(HeadError, match="takes 12 layers and the encoder has 2"):
        sibling("ROBERTA_BASE_ENCODER")[0].get_model(
            head=lambda dim: WeightedLayers(dim, 12, MeanPoolClassifier(dim, 3))
        )
    with pytest.raises(HeadError, match="takes its hidden_states"):
        sibling("T5_SMALL")[0].get_model(head=head)(input_ids=TEXTS, decoder_input_ids=TEXTS)


def test_a_model_with_a_head_of_its_own_has_no_features_for_another(sibling: Sibling) -> None:
    bundle, _ = sibling("T5_SMALL_GENERATION")
    with pytest.raises(HeadError, match="does not say how many features"):
        bundle.get_model(head=lambda dim: TextClassifier(dim, 2))
    model = bundle.get_model(head=TextClassifier(32, 2))
    with pytest.raises(HeadError, match=r"returns logits.* takes its last_hidden_state"):
        model(input_ids=TEXTS, decoder_input_ids=TEXTS)


def test_speech_models_of_transformers_give_lengths_in_frames() -> None:
    frontend = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2)}
    config = library.Wav2Vec2Config(**BLOCKS, **frontend, num_feat_extract_layers=2, mask_time_prob=0.0)
    encoder = library.Wav2Vec2Model(config).eval()
    waveforms = torch.randn(2, 800)
    mask = (torch.arange(800) < torch.tensor([[800], [420]])).long()
    model = bundles.EncoderWithHead(encoder, MeanPoolClassifier(32, 3)).eval()
    features = encoder(waveforms, attention_mask=mask).last_hidden_state
    frames = torch.tensor([79, 41])
    assert features.shape[1] == 79
    assert torch.equal(model(waveforms, attention_mask=mask), model.head(features, frames))
    layers = bundles.EncoderWithHead(encoder, WeightedLayers(32, 2, CTCHead(32, 5))).eval()
    states = encoder(waveforms, attention_mask=mask, output_hidden_states=True).hidden_states
    logits, lengths = layers(waveforms, attention_mask=mask)
    assert torch.equal(logits, layers.head(list(states[1:]), frames)[0])
    assert lengths.tolist() == [79, 41]


def test_a_plain_dict_goes_to_the_head_as_it_is() -> None:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"coarse": x, "fine": 2 * x}

    class Head(nn.Module):
        def forward(self, features: dict[str, Tensor]) -> Tensor:
            return features["coarse"] + features["fine"]

    assert bundles.EncoderWithHead(Encoder(), Head())(torch.ones(2)).tolist() == [3, 3]


def test_patches_of_an_image_are_features() -> None:
    config = library.ViTConfig(**BLOCKS, image_size=32, patch_size=8)
    encoder = library.ViTModel(config, add_pooling_layer=False).eval()
    images = torch.randn(2, 3, 32, 32)
    features = encoder(images).last_hidden_state
    assert features.shape == (2, 17, 32)
    for head in (MeanPoolClassifier(32, 3), TextClassifier(32, 3).eval(), nn.Linear(32, 3)):
        model = bundles.EncoderWithHead(encoder, head)
        assert torch.equal(model(images), head(features))


def test_a_model_behind_which_a_head_sits_can_be_copied_saved_and_frozen_for_features(
    sibling: Sibling, tmp_path: Path
) -> None:
    model: Any = sibling("XLMR_LARGE_ENCODER")[0].get_model(
        freeze=True, freeze_mode="features", head=lambda dim: MeanPoolClassifier(dim, 2)
    )
    expected = model(TEXTS, MASK)
    assert expected.requires_grad
    assert not model.encoder(TEXTS, MASK).last_hidden_state.requires_grad
    twin = copy.deepcopy(model)
    assert torch.equal(twin(TEXTS, MASK), expected)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    twin.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(twin(TEXTS, MASK), expected)
