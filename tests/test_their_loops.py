"""What is frozen stays so in the training loops of the libraries that the models come from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bundles
from toys import as_bytes

pytest.importorskip("timm")
pytest.importorskip("transformers")


def contents(model: nn.Module, *, frozen: bool) -> dict[str, bytes]:
    """The parameters that are frozen, with all buffers; or those that train."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad is not frozen}
    return {
        name: as_bytes(value)
        for name, value in (named | dict(model.named_buffers() if frozen else ())).items()
    }


class Check:
    """Compares a model with itself before training."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.taken = model, bundles.snapshot(model)
        self.frozen, self.trained = contents(model, frozen=True), contents(model, frozen=False)
        assert self.frozen
        assert self.trained

    def holds(self) -> None:
        bundles.verify_frozen(self.model, self.taken)
        assert contents(self.model, frozen=True) == self.frozen
        now = contents(self.model, frozen=False)
        assert now.keys() == self.trained.keys()
        assert all(now[name] != before for name, before in self.trained.items())


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Twelve texts of six tokens in two classes."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(5, 60, (6,), generator=generator)
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones(6, dtype=torch.long),
            "labels": tokens[0] % 2,
        }


def test_transformers_trainer_with_weight_decay_evaluation_and_checkpoints(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    model = bundles.get_bundle(f"file:{tmp_path / 'base'}").get_model(freeze="encoder")
    check = Check(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        weight_decay=0.3,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations
        Trainer(model=model, args=arguments, train_dataset=Texts(), eval_dataset=Texts()).train()
    check.holds()
    again = BertForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint-6")
    now = model.state_dict()
    assert {name: as_bytes(value) for name, value in again.state_dict().items()} == {
        name: as_bytes(value) for name, value in now.items()
    }


def test_timms_optimizer_schedule_average_and_gradient_clipping() -> None:
    import timm
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]
    from timm.utils import ModelEmaV3, dispatch_clip_grad  # type: ignore[attr-defined]

    model: Any = bundles.freeze(
        timm.create_model("test_resnet", num_classes=3, drop_path_rate=0.2), "encoder"
    )
    check = Check(model)
    optimizer = create_optimizer_v2(model, opt="lamb", lr=0.05, weight_decay=0.3, layer_decay=0.7)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=3, warmup_epochs=1)
    average = ModelEmaV3(model, decay=0.9)
    start = contents(average.module, frozen=True)
    for epoch in range(2):
        model.train()
        for step in range(2):
            images = torch.randn(4, 3, 64, 64)
            loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            dispatch_clip_grad(model.parameters(), value=1.0)
            optimizer.step()
            average.update(model, step=2 * epoch + step + 1)
        schedule.step(epoch + 1)
    check.holds()
    assert contents(average.module, frozen=True) == start


def test_torchvisions_reference_loop_with_averaged_weights_and_buffers() -> None:
    """As ``references/classification/train.py``: ``train()`` each epoch, an average with buffers."""
    torchvision = pytest.importorskip("torchvision")
    model = bundles.freeze(torchvision.models.mobilenet_v3_small(num_classes=3), "encoder")
    check = Check(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.3, nesterov=True)
    swa: Any = torch.optim.swa_utils
    average = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(0.9), use_buffers=True)
    start = contents(average.module, frozen=True)
    for _ in range(2):
        model.train()
        for _ in range(2):
            loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(model)
        model.eval()
    check.holds()
    moved = [name for name, before in start.items() if contents(average.module, frozen=True)[name] != before]
    assert moved == []


def test_a_new_head_tells_transformers_how_many_labels_there_are(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    bundle = bundles.get_bundle(f"file:{tmp_path / 'base'}")
    model: Any = bundle.get_model(head=lambda size: nn.Linear(size, 7), freeze=True)
    tokens = torch.randint(5, 60, (3, 6))
    model(tokens, labels=torch.tensor([0, 6, 3])).loss.backward()
    model.save_pretrained(tmp_path / "tuned")
    again: Any = bundles.get_bundle(f"file:{tmp_path / 'tuned'}").get_model(freeze=True)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert again.config.num_labels == 7


def test_a_new_ctc_head_sets_the_vocabulary(tmp_path: Path) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path / "base")
    bundle = bundles.get_bundle(f"file:{tmp_path / 'base'}")
    model: Any = bundle.get_model(head=lambda size: nn.Linear(size, 50), freeze=True)
    loss = model(torch.randn(2, 800), labels=torch.tensor([[1, 49], [2, 3]])).loss
    assert loss.isfinite()
    assert model.config.vocab_size == 50
