"""The Trainer of transformers: what is frozen stays so, and a resumed run ends with the same bits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import bundles
from adapter_checks import (
    BATCH,
    BUFFERS,
    EPOCHS,
    FROZEN,
    GOOD,
    MOVED,
    NOISE,
    RESUME,
    Model,
    Watch,
    frozen_by_hand,
    make_data,
    make_model,
    same_contents,
    schedule,
    trial,
)
from bundles.errors import FreezeArgumentError, FrozenDriftError

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Named(Dataset[dict[str, Tensor]]):
    """The data, as keyword arguments of the model."""

    def __init__(self) -> None:
        self.tensors = make_data().tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.tensors[0][index], "labels": self.tensors[1][index]}


class WithLoss(nn.Module):
    """What the Trainer takes: a model that makes its own loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[int] = []

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if torch.is_grad_enabled():  # not by the flag: what reads it is held
            self.seen.append(sum(parameter.requires_grad for parameter in self.parameters()))
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def train(
    model: nn.Module, epochs: int, folder: Path, *callbacks: Any, resume: bool = False, **options: Any
) -> Any:
    """Train up to a number of epochs, a checkpoint after each; shuffled, with a learning-rate scheduler."""
    optimizers, data = options.pop("optimizers", (None, None)), options.pop("data", Named())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its own deprecations, and torch's
        warnings.simplefilter("ignore", DeprecationWarning)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            learning_rate=0.05,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=3,
            weight_decay=0.1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            logging_strategy="no",
            **{"save_strategy": "epoch", **options},
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            eval_dataset=data,
            callbacks=[*callbacks],
            optimizers=optimizers,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def ours(model: Model, epochs: int, folder: Path, *, resume: bool, **options: Any) -> None:
    """The callback."""
    from bundles.adapters.transformers import FreezeCallback

    train(WithLoss(model), epochs, folder, FreezeCallback(freeze="encoder", **options), resume=resume)


def by_hand(model: Model, epochs: int, folder: Path, *, resume: bool) -> None:
    """``requires_grad_(False)`` and nothing else."""
    frozen_by_hand(model)
    train(WithLoss(model), epochs, folder, resume=resume)


def by_hand_and_eval(model: Model, epochs: int, folder: Path, *, resume: bool) -> None:
    """``requires_grad_(False)`` and ``eval()``, before the Trainer calls ``train()``."""
    frozen_by_hand(model)
    model.encoder.eval()
    train(WithLoss(model), epochs, folder, resume=resume)


# --- frozen, and resumed --------------------------------------------------------------------------


def test_the_callback_keeps_frozen_what_is_frozen_and_resumes_exactly(tmp_path: Path) -> None:
    def recipe(model: Model, epochs: int, folder: Path, *, resume: bool) -> None:
        ours(model, epochs, folder, resume=resume, verify="step")

    assert trial(recipe, tmp_path, head_dropout=0.5) == GOOD


def test_what_the_same_recipe_does_without_the_callback(tmp_path: Path) -> None:
    """The checks can fail: statistics move, noise is on, also after an ``eval()``."""
    expected = {FROZEN: True, BUFFERS: False, MOVED: True, NOISE: False, RESUME: True}
    assert trial(by_hand_and_eval, tmp_path, head_dropout=0.5) == expected


def test_a_schedule_is_followed_and_resumed_exactly(tmp_path: Path) -> None:
    """Momentum, the learning-rate scheduler and random states go on, whatever had thawed."""
    from bundles.adapters.transformers import FreezeCallback

    def run(folder: Path, epochs: int, *, resume: bool = False) -> tuple[Model, list[int]]:
        wrapped = WithLoss(model := make_model(head_dropout=0.5))
        torch.manual_seed(99 if resume else 0)
        train(wrapped, epochs, folder, FreezeCallback(schedule()), resume=resume)
        return model, wrapped.seen

    whole, seen = run(tmp_path / "whole", EPOCHS)
    assert seen == [2] * 6 + [6] * 12 + [14] * 6
    run(tmp_path / "half", 2)
    again, later = run(tmp_path / "half", EPOCHS, resume=True)
    assert later == seen[12:]
    assert same_contents(again, whole)


def test_a_schedule_of_steps_is_resumed_exactly_within_an_epoch(tmp_path: Path) -> None:
    """Something thaws, and freezes again with the loss of its momentum."""
    from bundles.adapters.transformers import FreezeCallback

    plan = bundles.UnfreezeSchedule({0: "encoder", 2: "last:1", 7: "none", 9: "last:1"}, warmup=3)

    def run(folder: Path, steps: int, *, resume: bool = False) -> tuple[Model, list[int]]:
        wrapped = WithLoss(model := make_model(head_dropout=0.5))
        torch.manual_seed(99 if resume else 0)
        callback = FreezeCallback(plan, unit="step")
        options: dict[str, Any] = {
            "resume": resume,
            "max_steps": steps,
            "save_strategy": "steps",
            "save_steps": 8,
        }
        train(wrapped, EPOCHS, folder, callback, **options)
        return model, wrapped.seen

    whole, seen = run(tmp_path / "whole", 12)
    assert seen == [2, 2, 6, 6, 6, 6, 6, 14, 14, 6, 6, 6]
    run(tmp_path / "part", 8)
    again, later = run(tmp_path / "part", 12, resume=True)
    assert later == seen[8:]
    assert same_contents(again, whole)


def test_an_optimizer_over_everything_is_made_to_fit(tmp_path: Path) -> None:
    from bundles.adapters.transformers import FreezeCallback

    def run(model: Model, epochs: int, folder: Path, *, resume: bool) -> None:
        wrapped = WithLoss(model)
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.05, weight_decay=0.1)
        train(
            wrapped, epochs, folder, FreezeCallback(schedule()), resume=resume, optimizers=(optimizer, None)
        )

    whole, again = make_model(), make_model()
    torch.manual_seed(0)
    run(whole, EPOCHS, tmp_path / "whole", resume=False)
    torch.manual_seed(0)
    run(make_model(), 2, tmp_path / "half", resume=False)
    run(again, EPOCHS, tmp_path / "half", resume=True)
    assert same_contents(again, whole)


def test_what_thaws_has_the_weight_decay_that_the_trainer_gives_it(tmp_path: Path) -> None:
    """Biases and norms have none."""
    from bundles.adapters.transformers import FreezeCallback

    wrapped = WithLoss(make_model())
    callback = FreezeCallback(bundles.UnfreezeSchedule({0: "encoder", 1: "none"}))
    optimizer = train(wrapped, 2, tmp_path, callback).optimizer
    names = {id(parameter): name for name, parameter in wrapped.named_parameters()}
    decay = {
        group["weight_decay"]: [names[id(p)] for p in group["params"]] for group in optimizer.param_groups
    }
    assert all(name.endswith(("linear.weight", "head.1.weight")) for name in decay[0.1])
    assert [len(decay[0.1]), len(decay[0.0])] == [4, 10]


# --- a model of transformers ----------------------------------------------------------------------


class Words(Dataset[dict[str, Tensor]]):
    """Eight sentences in two classes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.randint(5, 60, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens[0] % 2}


def make_bert() -> Any:
    torch.manual_seed(1)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
        )
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_berts_last_block_trains_also_with_gradient_checkpointing(
    tmp_path: Path, checkpointing: bool
) -> None:
    """Dropout of the frozen blocks is off; evaluation, and checkpoints that load anywhere."""
    from bundles.adapters.transformers import FreezeCallback

    make_bert().save_pretrained(tmp_path / "base")
    model: Any = bundles.get_bundle(f"file:{tmp_path / 'base'}").get_model()
    watch = Watch(model)
    callback = FreezeCallback(freeze="last:1", verify="step")
    options = {"gradient_checkpointing": True} if checkpointing else {}
    train(model, 2, tmp_path, callback, data=Words(), eval_strategy="epoch", **options)
    moved = {name for name in watch.moved() if name in watch.names}
    assert moved == {
        n for n in watch.names if n.startswith(("bert.encoder.layer.2.", "bert.pooler.", "classifier."))
    }
    assert [layer.training for layer in model.train().bert.encoder.layer] == [False, False, True]
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert same_contents(again, model)


# --- proof, state and deltas ----------------------------------------------------------------------


class Drifting(transformers.TrainerCallback):  # type: ignore[misc]
    """Writes to what is frozen."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            kwargs["model"].model.encoder.blocks[0].norm.running_mean.add_(1)


@pytest.mark.parametrize(("verify", "steps"), [("epoch", 6), ("step", 1)])
def test_drift_ends_the_run_before_a_checkpoint_is_written(tmp_path: Path, verify: Any, steps: int) -> None:
    from bundles.adapters.transformers import FreezeCallback

    wrapped = WithLoss(make_model())
    callback = FreezeCallback(freeze="encoder", verify=verify)
    with pytest.raises(FrozenDriftError, match=r"encoder\.blocks\.0\.norm\.running_mean"):
        train(wrapped, 2, tmp_path, callback, Drifting())
    assert len(wrapped.seen) == steps
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_resume_with_another_freeze_or_other_values_is_refused(tmp_path: Path) -> None:
    from bundles.adapters.transformers import FreezeCallback

    ours(make_model(), 1, tmp_path, resume=False)
    with pytest.raises(
        FreezeArgumentError, match=r"saved with Encoder\(\).*goes on with Match\('\*encoder'\)"
    ):
        train(WithLoss(make_model()), 2, tmp_path, FreezeCallback(freeze="match:*encoder"), resume=True)
    with pytest.raises(
        ValueError, match="doesn't match the size of optimizer's group"
    ):  # no event comes before
        train(WithLoss(make_model()), 2, tmp_path, FreezeCallback(freeze="last:1"), resume=True)
    weights = tmp_path / "checkpoint-6" / "model.safetensors"
    state = load_file(weights)
    state["model.encoder.blocks.1.linear.bias"] += 1
    save_file(state, weights)
    with pytest.raises(FrozenDriftError, match=r"1 of 21 .* model\.encoder\.blocks\.1\.linear\.bias"):
        ours(make_model(), 2, tmp_path, resume=True)


def test_two_callbacks_are_refused_and_one_may_train_again(tmp_path: Path) -> None:
    from bundles.adapters.transformers import FreezeCallback

    first, same, other = (FreezeCallback(freeze=which) for which in ("encoder", "encoder", "last:1"))
    for callback in (same, other):
        with pytest.raises(FreezeArgumentError, match="The Trainer has two FreezeCallbacks"):
            train(WithLoss(make_model()), 1, tmp_path, first, callback)
    wrapped = WithLoss(make_model())
    watch = Watch(wrapped, "model.encoder.")
    train(wrapped, 1, tmp_path, first, max_steps=2).train()
    assert (watch.frozen_equal(), watch.buffers_equal(), watch.head_moved()) == (True, True, True)


def test_a_run_in_which_nothing_trains_is_refused(tmp_path: Path) -> None:
    from bundles.adapters.transformers import FreezeCallback

    with pytest.raises(FreezeArgumentError, match=r"Nothing trains with All\(\): freeze less"):
        train(WithLoss(make_model()), 1, tmp_path, FreezeCallback(freeze="all", freeze_mode="features"))


def test_a_checkpoint_written_without_the_callback_is_resumed_with_it(tmp_path: Path) -> None:
    from bundles.adapters.transformers import FreezeCallback

    train(WithLoss(bundles.freeze(make_model(), "encoder")), 1, tmp_path)
    model = bundles.freeze(make_model(), "encoder")
    watch = Watch(model)
    train(WithLoss(model), 2, tmp_path, FreezeCallback(), resume=True)
    assert (watch.frozen_equal(), watch.buffers_equal(), watch.head_moved()) == (True, True, True)


def test_deltas_lie_in_the_checkpoints(tmp_path: Path) -> None:
    from bundles.adapters.transformers import FreezeCallback

    def make() -> Any:
        return bundles.get_bundle(f"file:{tmp_path / 'base'}").get_model(freeze="last:1")

    make_bert().save_pretrained(tmp_path / "base")
    model = make()
    train(model, 1, tmp_path, FreezeCallback(delta=True), data=Words())
    delta = tmp_path / "checkpoint-2" / "delta.safetensors"
    assert delta.stat().st_size < (tmp_path / "checkpoint-2" / "model.safetensors").stat().st_size
    again = bundles.load_delta(delta)
    assert same_contents(again, model)
    assert bundles.freeze_plan(again) == bundles.freeze_plan(model)
    assert bundles.delta.read_delta(delta).step == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"verify": "batch"}, "verify='batch' is none of"), ({"unit": "batch"}, "unit='batch' is neither")],
)
def test_wrong_arguments_say_what_is_right(arguments: dict[str, Any], message: str) -> None:
    from bundles.adapters.transformers import FreezeCallback

    with pytest.raises(FreezeArgumentError, match=message):
        FreezeCallback(**arguments)
