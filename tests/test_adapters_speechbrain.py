"""SpeechBrain: real epochs of ``Brain.fit``, resumed by its ``Checkpointer``; and ``Brain`` without us."""

from __future__ import annotations

import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bundles
from adapter_checks import (
    BATCH,
    BUFFERS,
    FROZEN,
    GOOD,
    MOVED,
    NOISE,
    RESUME,
    Watch,
    frozen_by_hand,
    make_data,
    make_model,
    noise_held,
    same_contents,
    schedule,
    seed,
    trial,
)
from bundles.delta import read_delta
from redirects import forget_redirects

pytest.importorskip("speechbrain")
import speechbrain as sb

from bundles.adapters.speechbrain import FreezeBrain

forget_redirects()  # as the tests of others are collected

CONFIGS = Path(__file__).parent.parent / "configs" / "hyperpyyaml"


class Task:
    """What both kinds of ``Brain`` do here; the hooks do not call ``super()``, as most recipes do not."""

    modules: Any
    checkpointer: Any

    def compute_forward(self, batch: list[Tensor], stage: Any) -> Tensor:
        logits: Tensor = self.modules.model(batch[0])
        return logits

    def compute_objectives(self, predictions: Tensor, batch: list[Tensor], stage: Any) -> Tensor:
        return nn.functional.cross_entropy(predictions, batch[1])

    def on_stage_start(self, stage: Any, epoch: int | None = None) -> None:
        seed(epoch or 0)  # SpeechBrain keeps no random states

    def on_stage_end(self, stage: Any, stage_loss: float, epoch: int | None = None) -> None:
        if stage is sb.Stage.VALID and self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(meta={"loss": stage_loss})


class Ours(Task, FreezeBrain): ...


class Theirs(Task, sb.Brain): ...  # type: ignore[misc]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)


def loader() -> Any:
    return sb.dataio.dataloader.make_dataloader(make_data(), batch_size=BATCH)


def brain_for(
    model: nn.Module, folder: Path, epochs: int, cls: type[Any] = Ours, **options: Any
) -> tuple[Any, Any]:
    counter = sb.utils.epoch_loop.EpochCounter(epochs)
    saved = {"counter": counter} if options.get("delta") else {"counter": counter, "model": model}
    checkpointer = sb.utils.checkpoints.Checkpointer(folder, saved)
    return cls({"model": model}, adamw, checkpointer=checkpointer, **options), counter


def recipe(model: nn.Module, epochs: int, folder: Path, *, resume: bool, **options: Any) -> Any:
    brain, counter = brain_for(model, folder, epochs, **options)
    assert (brain.checkpointer.find_checkpoint() is not None) is resume
    brain.fit(counter, loader(), loader(), progressbar=False)
    return brain


def by_hand(model: Any, epochs: int, folder: Path, *, resume: bool) -> None:
    """As recipes of SpeechBrain freeze: ``requires_grad``, and ``eval()`` once."""
    frozen_by_hand(model)
    model.encoder.eval()
    recipe(model, epochs, folder, resume=resume, cls=Theirs)


@pytest.mark.parametrize("delta", [False, True], ids=["whole", "delta"])
def test_what_is_frozen_stays_so_and_a_resumed_run_ends_with_the_same_bytes(
    tmp_path: Path, delta: bool
) -> None:
    assert trial(partial(recipe, freeze="encoder", delta=delta, verify="step"), tmp_path) == GOOD


def test_train_of_each_epoch_undoes_an_eval_and_a_requires_grad_of_ones_own(tmp_path: Path) -> None:
    found = trial(by_hand, tmp_path)
    assert found == {FROZEN: True, BUFFERS: False, MOVED: True, NOISE: False, RESUME: True}


def test_the_freeze_needs_no_brain_of_ours(tmp_path: Path) -> None:
    model = bundles.freeze(make_model(), "encoder")
    watch = Watch(model)
    recipe(model, 2, tmp_path, resume=False, cls=Theirs)
    assert (watch.frozen_equal(), watch.buffers_equal(), watch.head_moved()) == (True, True, True)
    assert noise_held(model.encoder, make_data().tensors[0])


STEPS = bundles.UnfreezeSchedule({0: "encoder", 4: "last:1", 16: "none"}, warmup=3)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"schedule": schedule()}, marks=pytest.mark.slow),
        {"schedule": schedule(), "delta": True},
        pytest.param({"schedule": STEPS, "unit": "step"}, marks=pytest.mark.slow),
    ],
    ids=["epochs", "epochs and delta", "steps"],
)
def test_a_schedule_goes_on_where_it_was(tmp_path: Path, options: dict[str, Any]) -> None:
    found = trial(partial(recipe, **options), tmp_path)
    assert found == {FROZEN: False, BUFFERS: False, MOVED: True, NOISE: False, RESUME: True}


@pytest.mark.filterwarnings("ignore:The freeze leaves the AdamW:bundles.NothingTrainableWarning")
def test_two_optimizers_of_ones_own_go_on_too(tmp_path: Path) -> None:
    class Two(Ours):
        def init_optimizers(self) -> None:
            self.body = adamw(self.modules.model.encoder.parameters())
            self.top = adamw(self.modules.model.head.parameters())
            self.optimizers_dict = {"body": self.body, "top": self.top}
            self.checkpointer.add_recoverable("body", self.body)
            self.checkpointer.add_recoverable("top", self.top)

    found = trial(partial(recipe, cls=Two, schedule=schedule()), tmp_path)
    assert found == {FROZEN: False, BUFFERS: False, MOVED: True, NOISE: False, RESUME: True}


def test_each_epoch_trains_what_the_schedule_says(tmp_path: Path) -> None:
    model = make_model()
    trained: list[set[str]] = []

    class Looks(Ours):
        def on_stage_end(self, stage: Any, stage_loss: float, epoch: int | None = None) -> None:
            if stage is sb.Stage.TRAIN:
                named = model.named_parameters()
                stepped = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
                assert stepped == {id(p) for p in model.parameters() if p.requires_grad}
                trained.append({name.partition(".linear")[0] for name, p in named if p.requires_grad})

    recipe(model, 4, tmp_path, resume=False, cls=Looks, schedule=schedule())
    blocks = [{name for name in names if "norm" not in name} for names in trained]
    last = {"encoder.blocks.2", "head.1.weight", "head.1.bias"}
    head = {"head.1.weight", "head.1.bias"}
    assert blocks == [head, last, last, last | {"encoder.blocks.0", "encoder.blocks.1"}]


def test_a_run_killed_within_an_epoch_goes_on_from_the_step(tmp_path: Path) -> None:
    class Killed(Ours):
        stop_at = 0

        def on_fit_batch_start(self, batch: Any, should_step: bool) -> None:
            seed(self.optimizer_step)

        def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:
            if self.optimizer_step == self.stop_at:
                raise KeyboardInterrupt

    def run(model: nn.Module, folder: Path, stop_at: int = 0) -> None:
        options = {"schedule": STEPS, "unit": "step", "run_opts": {"ckpt_interval_steps": 2}}
        brain, counter = brain_for(model, folder, 3, Killed, **options)
        brain.stop_at = stop_at
        brain.fit(counter, make_data(), progressbar=False, train_loader_kwargs={"batch_size": BATCH})
        assert brain.optimizer_step == 18

    whole, again = make_model(), make_model()
    run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(make_model(), tmp_path / "killed", stop_at=11)  # the last checkpoint is that of step 10
    run(again, tmp_path / "killed")
    assert same_contents(again, whole)


def test_a_delta_is_all_that_evaluation_needs(tmp_path: Path) -> None:
    model = make_model()
    brain = recipe(model, 2, tmp_path, resume=False, freeze="encoder", delta=True)
    saved = brain.checkpointer.find_checkpoint()
    assert sorted(saved.paramfiles) == ["brain", "counter", "delta", "freeze", "optimizer"]
    assert read_delta(saved.paramfiles["delta"]).step == 1
    again, _ = brain_for(make_model(), tmp_path, 2, freeze="encoder", delta=True)
    loss = again.evaluate(loader(), min_key="loss", progressbar=False)
    assert loss == brain.evaluate(loader(), min_key="loss", progressbar=False)
    assert same_contents(again.modules.model, model)


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    """Without a checkpointer, too: epochs are counted over both."""
    whole, parts = make_model(), make_model()
    plan = bundles.UnfreezeSchedule({0: "encoder", 1: "last:1"})
    Ours({"model": whole}, sgd, schedule=plan).fit([1, 2], loader(), progressbar=False)
    brain = Ours({"model": parts}, sgd, schedule=plan)
    brain.fit([1], loader(), progressbar=False)
    brain.fit([2], loader(), progressbar=False)
    assert same_contents(parts, whole)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def test_what_moves_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    class Writes(Ours):
        def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:
            self.modules.model.encoder.blocks[1].norm.running_mean += 1

    with pytest.raises(bundles.FrozenDriftError, match=r"1 of \d+ frozen tensors moved.*1\.norm\.running"):
        recipe(make_model(), 2, tmp_path, resume=False, cls=Writes, freeze="encoder")
    assert list(tmp_path.iterdir()) == []
    recipe(make_model(), 2, tmp_path, resume=False, cls=Writes, freeze="encoder", verify=False)


def test_another_freeze_is_refused_on_the_way(tmp_path: Path) -> None:
    recipe(make_model(), 1, tmp_path, resume=False, freeze="encoder")
    with pytest.raises(bundles.FreezeArgumentError, match=r"was saved with Encoder\(\).* with .*First\(1\)"):
        recipe(make_model(), 2, tmp_path, resume=True, freeze="first:1")


def test_a_run_in_which_nothing_trains_is_refused(tmp_path: Path) -> None:
    plan = bundles.UnfreezeSchedule({0: "encoder", 2: "all"}, mode="features")
    with pytest.raises(bundles.FreezeArgumentError, match="Nothing trains from 2 on, where the schedule has"):
        recipe(make_model(), 1, tmp_path, resume=False, schedule=plan)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    brain = recipe(make_model(), 1, tmp_path, resume=False, freeze="encoder")
    saved = brain.checkpointer.find_checkpoint().paramfiles["freeze"]
    for text in ('{"step": 0', "[]", '{"step": 0}'):
        saved.write_text(text)
        with pytest.raises(bundles.PinError, match=r"freeze\.ckpt does not say where a run is"):
            recipe(make_model(), 2, tmp_path, resume=True, freeze="encoder")


def test_one_module_of_several_or_all_of_them(tmp_path: Path) -> None:
    class Two(Task, FreezeBrain):
        def compute_forward(self, batch: list[Tensor], stage: Any) -> Tensor:
            logits: Tensor = self.modules.probe(self.modules.wav2vec2(batch[0]))
            return logits

    def run(**options: Any) -> tuple[Watch, Watch]:
        body, probe = make_model().encoder, make_model().head
        watches = Watch(body, ""), Watch(probe, "none")
        Two({"wav2vec2": body, "probe": probe}, adamw, **options).fit([1], loader(), progressbar=False)
        return watches

    for options in (
        {"freeze": "all", "frozen_module": "wav2vec2", "freeze_mode": "features"},
        {"freeze": "match:wav2vec2"},
    ):
        body, probe = run(**options)
        assert (body.moved(), probe.head_moved()) == (set(), True)


def test_its_own_frozen_wav2vec2_drops_out_in_training_and_ours_does_not(tmp_path: Path) -> None:
    """``Wav2Vec2(freeze=True)`` calls ``eval()`` when it is made, and ``Brain`` calls ``train()``."""
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
    from transformers import Wav2Vec2FeatureExtractor

    tiny_wav2vec2().save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)  # type: ignore[no-untyped-call]

    class Probe(Task, FreezeBrain):
        is_same = True

        def compute_forward(self, batch: list[Tensor], stage: Any) -> Tensor:
            features, again = (self.modules.wav2vec2(batch[0]) for _ in range(2))
            self.is_same &= torch.equal(features, again)
            logits: Tensor = self.modules.probe(features.mean(1))
            return logits

    data = TensorDataset(torch.randn(4, 1600), torch.arange(4) % 3)
    for freeze in (None, "all"):
        modules = {"wav2vec2": Wav2Vec2(str(tmp_path), str(tmp_path), freeze=True), "probe": nn.Linear(16, 3)}
        brain = Probe(modules, adamw, freeze=freeze, freeze_mode="features", frozen_module="wav2vec2")
        brain.fit([1], data, progressbar=False)
        assert brain.is_same is (freeze is not None)


def tiny_wav2vec2() -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return Wav2Vec2Model(config)


@pytest.mark.parametrize(
    "freeze", [{"freeze": "encoder"}, {"schedule": schedule()}], ids=["policy", "schedule"]
)
def test_norms_that_are_made_anew_for_ddp_are_frozen_too(freeze: dict[str, Any]) -> None:
    """``Brain`` puts ``SyncBatchNorm`` in their place; DDP itself takes such on a GPU only."""

    class Converts(sb.Brain):  # type: ignore[misc]
        def _wrap_distributed(self) -> None:
            for name, module in self.modules.items():
                self.modules[name] = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]

    class Converted(Task, FreezeBrain, Converts): ...

    model, plain = make_model(), make_model()
    watch = Watch(model)
    brain = Converted({"model": model}, adamw, **freeze)
    for epoch in range(1, 5):
        brain.fit([epoch], loader(), progressbar=False)
        assert (watch.frozen_equal(), watch.buffers_equal()) == (("freeze" in freeze or epoch == 1),) * 2
    assert type(model.encoder.blocks[0].norm).__name__ == "SyncBatchNorm"
    one = Ours({"model": plain}, adamw, **freeze)
    for epoch in range(1, 5):
        one.fit([epoch], loader(), progressbar=False)
    assert same_contents(model, plain)


def test_arguments_that_are_none_are_named() -> None:
    modules = {"model": make_model()}
    for options, match in (
        ({"unit": "batch"}, "unit='batch' is neither 'epoch' nor 'step'"),
        ({"verify": True}, "verify=True is none of 'epoch', 'step' and False"),
        ({"frozen_module": "encoder"}, "frozen_module='encoder' is not one of modules: model"),
        ({"schedule": {0: "encoder"}}, "is not a bundles.UnfreezeSchedule"),
    ):
        with pytest.raises(bundles.FreezeArgumentError, match=match):
            Ours(modules, adamw, **options)


def test_what_is_wrapped_one_by_one_is_named_one_by_one() -> None:
    modules = {"wav2vec2": make_model().encoder, "probe": make_model().head}
    brain = Ours(modules, adamw, freeze="match:wav2vec2")
    brain.distributed_launch = True  # as torchrun has it
    with pytest.raises(bundles.FreezeArgumentError, match=r"Each of the modules wav2vec2, probe is wrapped"):
        brain.fit([1], loader(), progressbar=False)


def test_a_schedule_of_steps_that_is_told_of_none_is_an_error() -> None:
    class Own(Ours):
        def fit_batch(self, batch: Any) -> Tensor:
            loss = self.compute_objectives(self.compute_forward(batch, None), batch, None)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizers_step()
            return loss.detach()

    brain = Own({"model": make_model()}, adamw, schedule=STEPS, unit="step")
    with pytest.raises(bundles.FreezeArgumentError, match=r"fit_batch\(\) of Own call super\(\)\.fit_batch"):
        brain.fit([1], loader(), progressbar=False)


def test_the_hyperpyyaml_recipe_runs_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(epochs: int) -> Any:
        options = f"--output_folder={tmp_path}", f"--number_of_epochs={epochs}", "--device=cpu"
        yaml, *argv = str(CONFIGS / "brain.yaml"), *options, "--batch_size=35", "--noprogressbar"
        monkeypatch.setattr(sys, "argv", ["brain.py", yaml, *argv])
        return runpy.run_path(str(CONFIGS / "brain.py"), run_name="__main__")["brain"]

    run(1)
    brain = run(2)
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["epoch 1", "epoch 2"]
    head = partial(bundles.heads.MeanPoolClassifier, num_classes=5)
    encoder = bundles.WAV2VEC2_NANO_DIGITS.get_model(head=head).encoder
    assert same_contents(brain.modules.model.encoder, encoder)
