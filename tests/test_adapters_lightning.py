"""Lightning: what is frozen stays so in its trainer, and a resumed run ends with the same bits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import bundles
from adapter_checks import (
    BATCH,
    BUFFERS,
    EPOCHS,
    FROZEN,
    GOOD,
    ITEMS,
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
from bundles.errors import (
    DeltaBaseError,
    FreezeArgumentError,
    FrozenDriftError,
    NothingTrainableWarning,
    StateDictMismatchError,
)
from toys import contents

pl: Any = pytest.importorskip("pytorch_lightning")


class Lit(pl.LightningModule):  # type: ignore[misc]
    """A module as people write it; the optimizer is over what requires grad, as Lightning advises."""

    def __init__(self, model: nn.Module, *, over_all: bool = False, seeded: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.over_all, self.seeded = over_all, seeded
        self.seen: list[list[str]] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad or self.over_all]
        optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]

    def on_train_batch_start(self, batch: list[Tensor], index: int) -> None:
        if self.seeded:  # Lightning keeps no random states
            torch.manual_seed(self.global_step)

    def on_train_epoch_start(self) -> None:
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        groups = self.optimizers().param_groups
        self.seen.append([names[id(p)] for group in groups for p in group["params"]])


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(f"{name}") for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def fit(
    module: Lit, epochs: int, folder: Path, *callbacks: Any, resume: bool | Path = False, **options: Any
) -> Any:
    """Fit up to a number of epochs, and leave a checkpoint."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"enable_checkpointing": False, **options},
    )
    path = folder / "run.ckpt" if resume is True else resume or None
    with warnings.catch_warnings():
        # of torch and Lightning: few workers, an old API, the length of the interval between logs
        warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning|torch")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        trainer.fit(module, DataLoader(make_data(), BATCH), ckpt_path=path)
        trainer.save_checkpoint(folder / "run.ckpt")
    return trainer


def ours(model: Model, epochs: int, folder: Path, *, resume: bool, **options: Any) -> Any:
    """The callback, with what the optimizer is over as Lightning advises."""
    from bundles.adapters.lightning import FreezeCallback

    return fit(Lit(model), epochs, folder, FreezeCallback(freeze="encoder", **options), resume=resume)


def scheduled(model: Model, epochs: int, folder: Path, *, resume: bool, **options: Any) -> Lit:
    """The callback with a schedule that thaws before the half and after it."""
    from bundles.adapters.lightning import FreezeCallback

    module = Lit(model, seeded=True)
    fit(module, epochs, folder, FreezeCallback(schedule(), **options), resume=resume)
    return module


def by_hand(model: Model, epochs: int, folder: Path, *, resume: bool) -> None:
    """``requires_grad_(False)`` and nothing else."""
    frozen_by_hand(model)
    fit(Lit(model), epochs, folder, resume=resume)


def by_hand_and_eval(model: Model, epochs: int, folder: Path, *, resume: bool) -> None:
    """``requires_grad_(False)`` and ``eval()`` before ``fit``."""
    frozen_by_hand(model)
    model.encoder.eval()
    fit(Lit(model), epochs, folder, resume=resume)


def finetuning(model: Model, epochs: int, folder: Path, *, resume: bool) -> None:
    """Lightning's own callback, as its documentation has it."""

    class Finetuning(pl.callbacks.BaseFinetuning):  # type: ignore[misc]
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.model.encoder)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None: ...

    fit(Lit(model), epochs, folder, Finetuning(), resume=resume)


# --- frozen, and resumed --------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [False, True])
def test_the_callback_keeps_frozen_what_is_frozen_and_resumes_exactly(tmp_path: Path, delta: bool) -> None:
    def recipe(model: Model, epochs: int, folder: Path, *, resume: bool) -> None:
        ours(model, epochs, folder, resume=resume, verify="step", delta=delta)

    assert trial(recipe, tmp_path) == GOOD


def test_what_the_same_recipe_does_without_the_callback(tmp_path: Path) -> None:
    """The checks can fail: statistics move, noise is on."""
    assert trial(by_hand, tmp_path / "hand") == {
        FROZEN: True,
        BUFFERS: False,
        MOVED: True,
        NOISE: False,
        RESUME: False,
    }


@pytest.mark.parametrize("delta", [False, True])
def test_a_schedule_is_followed_and_resumed_exactly(tmp_path: Path, delta: bool) -> None:
    """Thaws with a warm-up, momentum and a learning-rate scheduler."""
    whole = make_model()
    seen = scheduled(whole, EPOCHS, tmp_path / "whole", resume=False, delta=delta).seen
    assert [len(names) for names in seen] == [2, 6, 6, 14]
    assert seen[1][0].startswith("model.encoder.blocks.2.")  # in the place where configure_optimizers put it
    half = make_model()
    scheduled(half, 2, tmp_path / "half", resume=False, delta=delta)
    again = make_model()
    later = scheduled(again, EPOCHS, tmp_path / "half", resume=True, delta=delta).seen
    assert later == seen[2:]
    assert same_contents(again, whole)


def test_a_schedule_goes_on_after_an_epochs_last_batch(tmp_path: Path) -> None:
    """Lightning begins the epoch after such a checkpoint without ``on_train_epoch_start()``."""
    from bundles.adapters.lightning import FreezeCallback

    class Steady(Lit):
        def configure_optimizers(self) -> Any:
            return super().configure_optimizers()[0]  # a resumed scheduler lacks the step of that epoch's end

    steps = ITEMS // BATCH
    saves = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1)
    whole, plan = make_model(), schedule()
    fit(Steady(whole, seeded=True), EPOCHS, tmp_path, FreezeCallback(plan), saves, enable_checkpointing=True)
    for epochs in (1, 3):  # the next one thaws
        module, path = Steady(make_model(), seeded=True), tmp_path / f"step={epochs * steps}.ckpt"
        fit(module, EPOCHS, tmp_path, FreezeCallback(plan), resume=path)
        assert same_contents(module.model, whole)


def test_a_schedule_may_count_steps(tmp_path: Path) -> None:
    from bundles.adapters.lightning import FreezeCallback

    class Recording(Lit):
        steps: list[int]

        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.steps.append(sum(p.requires_grad for p in self.parameters()))

    module = Recording(make_model())
    module.steps = []
    callback = FreezeCallback(bundles.UnfreezeSchedule({0: "encoder", 4: "none"}), unit="step")
    fit(module, 1, tmp_path, callback)
    assert module.steps == [2, 2, 2, 2, 14, 14]


def test_optimizers_over_everything_hold_what_trains(tmp_path: Path) -> None:
    from bundles.adapters.lightning import FreezeCallback

    model = make_model()
    watch, module = Watch(model), Lit(model, over_all=True)
    fit(module, 1, tmp_path, FreezeCallback(freeze="encoder"))
    assert module.seen == [["model.head.1.weight", "model.head.1.bias"]]
    assert watch.frozen_equal()
    assert watch.buffers_equal()
    assert watch.head_moved()


def test_the_head_trains_with_its_dropout_although_get_model_returns_eval(tmp_path: Path) -> None:
    """Lightning trains a module in the mode in which it comes."""
    from bundles.adapters.lightning import FreezeCallback

    model: Any = bundles.freeze(make_model(), "encoder").eval()
    fit(Lit(model), 1, tmp_path, FreezeCallback())
    assert (model.head[0].training, model.encoder.blocks[0].norm.training) == (True, False)


class Converts(pl.strategies.SingleDeviceStrategy):  # type: ignore[misc]
    """Does on one device what ``Trainer(sync_batchnorm=True)`` does on several: after ``setup()``."""

    sync = pl.plugins.layer_sync.TorchSyncBatchNorm()

    def setup(self, trainer: Any) -> None:
        self.model: Any = self.sync.apply(self.model)
        super().setup(trainer)

    def teardown(self) -> None:
        self.model = self.sync.revert(self.model)
        super().teardown()


def test_norms_that_lightning_converts_for_several_devices_stay_frozen(tmp_path: Path) -> None:
    from bundles.adapters.lightning import FreezeCallback

    class Looks(Lit):
        def on_train_start(self) -> None:
            assert type(self.model.encoder.blocks[0].norm).__name__ == "SyncBatchNorm"

    plain: Any = make_model()
    model: Any = make_model()
    watch = Watch(model)
    ours(plain, 2, tmp_path, resume=False)
    fit(Looks(model), 2, tmp_path, FreezeCallback(freeze="encoder"), strategy=Converts(torch.device("cpu")))
    assert (watch.frozen_equal(), watch.buffers_equal(), watch.head_moved()) == (True, True, True)
    assert same_contents(model, plain)
    assert not model.train().encoder.blocks[0].norm.training


class LoadsLate(pl.strategies.SingleDeviceStrategy):  # type: ignore[misc]
    """Loads checkpoints after ``on_fit_start()``, as strategies do that shard."""

    restore_checkpoint_after_setup = True


def test_a_strategy_may_load_a_checkpoint_after_the_start(tmp_path: Path) -> None:
    """A delta of a schedule, within it; and another freeze, before the optimizer's state is loaded."""
    from bundles.adapters.lightning import FreezeCallback

    device = torch.device("cpu")
    whole, again = make_model(), make_model()
    scheduled(whole, EPOCHS, tmp_path / "whole", resume=False)
    scheduled(make_model(), 2, tmp_path, resume=False, delta=True)
    module, callback = Lit(again, seeded=True), FreezeCallback(schedule(), delta=True)
    fit(module, EPOCHS, tmp_path, callback, resume=True, strategy=LoadsLate(device))
    assert same_contents(again, whole)
    other = FreezeCallback(freeze="last:1", delta=True)
    with pytest.raises(FreezeArgumentError, match=r"saved with Unfreeze.*goes on with ExceptLast\(1\)"):
        fit(Lit(make_model()), EPOCHS, tmp_path, other, resume=True, strategy=LoadsLate(device))


class Validated(Lit):
    """Lightning writes the flags of modules back after a validation, past ``train()``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.modes: list[list[bool]] = []

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        assert not any(module.training for module in self.modules())

    def val_dataloader(self) -> Any:
        return DataLoader(make_data(), BATCH)

    def on_train_batch_start(self, batch: list[Tensor], index: int) -> None:
        if index == 0:
            blocks = self.model.encoder.blocks
            self.modes.append([*(block.norm.training for block in blocks), self.model.head[0].training])


def test_what_thaws_after_a_validation_trains_in_training_mode(tmp_path: Path) -> None:
    from bundles.adapters.lightning import FreezeCallback

    module = Validated(make_model())
    fit(module, EPOCHS, tmp_path, FreezeCallback(schedule()), num_sanity_val_steps=1)
    held, last, every = [False, False, False, True], [False, False, True, True], [True] * 4
    assert module.modes == [held, last, last, every]


def test_a_bundles_own_groups_count(tmp_path: Path) -> None:
    """``last:1`` of CREPE is its last block and the classifier, by its card."""
    from bundles.adapters.lightning import FreezeCallback

    class Pitch(Lit):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            made: Tensor = self.model(batch[0].repeat(1, 128)).square().mean()
            return made

    model = bundles.CREPE_TINY.get_model()
    before = contents(model)
    fit(Pitch(model), 1, tmp_path, FreezeCallback(freeze="last:1"), limit_train_batches=1)
    moved = {name.partition(".")[0] for name, value in contents(model).items() if before[name] != value}
    assert moved == {"conv6", "conv6_BN", "classifier"}


# --- proof ----------------------------------------------------------------------------------------


class Drifting(Lit):
    """Writes to what is frozen."""

    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            self.model.encoder.blocks[0].norm.running_mean.add_(1)


@pytest.mark.parametrize("verify", ["epoch", "step"])
def test_drift_ends_the_run(tmp_path: Path, verify: Any) -> None:
    from bundles.adapters.lightning import FreezeCallback

    module = Drifting(make_model())
    with pytest.raises(FrozenDriftError, match=r"encoder\.blocks\.0\.norm\.running_mean"):
        fit(module, 3, tmp_path, FreezeCallback(freeze="encoder", verify=verify))
    assert len(module.seen) == 1


def test_nothing_that_drifted_is_written(tmp_path: Path) -> None:
    from bundles.adapters.lightning import FreezeCallback

    saves = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    callbacks = [saves, FreezeCallback(freeze="encoder")]
    with pytest.raises(FrozenDriftError, match="moved"):
        fit(Drifting(make_model()), 1, tmp_path, *callbacks, enable_checkpointing=True)
    assert not list(tmp_path.glob("*.ckpt"))
    fit(Lit(make_model()), 1, tmp_path, *callbacks, enable_checkpointing=True)
    assert (tmp_path / "last.ckpt").exists()


def test_drift_is_left_alone_where_nobody_verifies(tmp_path: Path) -> None:
    from bundles.adapters.lightning import FreezeCallback

    fit(Drifting(make_model()), 1, tmp_path, FreezeCallback(freeze="encoder", verify=False))


def test_a_resume_with_another_freeze_is_refused(tmp_path: Path) -> None:
    from bundles.adapters.lightning import FreezeCallback

    ours(make_model(), 1, tmp_path, resume=False)
    with pytest.raises(FreezeArgumentError, match=r"saved with Encoder\(\).*goes on with ExceptLast\(1\)"):
        fit(Lit(make_model()), 2, tmp_path, FreezeCallback(freeze="last:1"), resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freeze": "all", "freeze_mode": "features"}, r"Nothing trains with All\(\): freeze less"),
        (
            {"schedule": bundles.UnfreezeSchedule({0: "encoder", 2: "all"}, mode="features")},
            r"Nothing trains from 2 on, where the schedule has All\(\)",
        ),
        ({}, "Nothing trains in the model, which comes with all of it frozen"),
    ],
)
def test_a_run_in_which_nothing_trains_is_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    """Before torch does it in the first ``backward()``; an optimizer over nothing torch refuses earlier."""
    from bundles.adapters.lightning import FreezeCallback

    model = make_model() if arguments else bundles.freeze(make_model(), "all", "features")
    with pytest.raises(FreezeArgumentError, match=message):
        fit(Lit(model, over_all=True), 3, tmp_path, FreezeCallback(**arguments))


def frozen_whole(mode: str = "eval") -> Any:
    with pytest.warns(NothingTrainableWarning, match="Nothing is left to train"):
        return bundles.freeze(make_model(), "all", mode)


class Topped(Lit):
    """Has its head only after the callbacks' ``setup()``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.top: Any = None

    def configure_model(self) -> None:
        if self.top is None:
            self.top = nn.Linear(3, 3)
            nn.init.zeros_(self.top.weight)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.top(self.model(batch[0])), batch[1])

    def trained(self) -> Tensor:
        found: Tensor = self.top.weight
        return found


class ToppedInSetup(Topped):
    """Makes its head one hook earlier."""

    def setup(self, stage: str) -> None:
        super().configure_model()

    def configure_model(self) -> None: ...


class Prompted(Lit):
    """Trains a tensor that is no parameter of the module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.prompt = [torch.zeros(8, requires_grad=True)]

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0] + self.prompt[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.prompt, lr=0.1)

    def on_train_epoch_start(self) -> None: ...

    def trained(self) -> Tensor:
        return self.prompt[0]


@pytest.mark.parametrize("make", [Topped, ToppedInSetup, Prompted])
def test_a_frozen_model_may_come_before_what_trains(tmp_path: Path, make: Any) -> None:
    from bundles.adapters.lightning import FreezeCallback

    model = frozen_whole()
    before, module = contents(model), make(model)
    fit(module, 1, tmp_path, FreezeCallback(), limit_train_batches=2)
    assert contents(model) == before
    assert module.trained().all()


def test_a_module_may_thaw_itself_in_its_setup(tmp_path: Path) -> None:
    from bundles.adapters.lightning import FreezeCallback

    class Thaws(Lit):
        def setup(self, stage: str) -> None:
            bundles.freeze(self.model, "encoder")

    model = frozen_whole()
    watch = Watch(model)
    fit(Thaws(model), 1, tmp_path, FreezeCallback())
    assert (watch.frozen_equal(), watch.buffers_equal(), watch.head_moved()) == (True, True, True)


def test_statistics_may_be_measured_without_an_optimizer(tmp_path: Path) -> None:
    """As batch norm is adapted to new data."""
    from bundles.adapters.lightning import FreezeCallback

    class Measures(Lit):
        def training_step(self, batch: list[Tensor], index: int) -> Any:
            self.model(batch[0])

        def configure_optimizers(self) -> Any: ...

        def on_train_epoch_start(self) -> None: ...

    model = frozen_whole("frontend")
    watch = Watch(model)
    fit(Measures(model), 1, tmp_path, FreezeCallback())
    assert {name.rpartition(".")[2] for name in watch.moved()} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"verify": "batch"}, "verify='batch' is none of"),
        ({"unit": "batch"}, "unit='batch' is neither"),
        ({"schedule": {0: "encoder"}}, "is not a bundles.UnfreezeSchedule"),
        ({"schedule": schedule(), "freeze": "encoder"}, "Both schedule= and freeze='encoder'"),
        ({"freeze": "encoders"}, "encoders"),
    ],
)
def test_wrong_arguments_say_what_is_right(arguments: dict[str, Any], message: str) -> None:
    from bundles.adapters.lightning import FreezeCallback

    with pytest.raises(FreezeArgumentError, match=message):
        FreezeCallback(**arguments)


# --- delta checkpoints ----------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def test_a_delta_checkpoint_holds_what_trains_and_the_pin_of_the_rest(tmp_path: Path) -> None:
    from bundles.adapters.lightning import FreezeCallback
    from bundles.heads import CTCHead

    class Spotting(Lit):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            made: Tensor = self.model(batch[0].repeat(1, 128)).square().mean()
            return made

    def make() -> Any:
        torch.manual_seed(0)
        return bundles.CREPE_TINY.get_model(freeze=True, head=lambda size: CTCHead(size, num_labels=5))

    whole, model = make(), make()
    options: dict[str, Any] = {"limit_train_batches": 2}
    fit(Spotting(whole), 2, tmp_path / "whole", FreezeCallback(delta=True), **options)
    fit(Spotting(model), 1, tmp_path, FreezeCallback(delta=True), **options)
    checkpoint = read(tmp_path / "run.ckpt")
    assert set(checkpoint["state_dict"]) == {
        f"model.classifier.{name}" for name in model.classifier.state_dict()
    }
    assert checkpoint["bundles"]["pins"] == {"model": bundles.CREPE_TINY.pin()}
    again = make()
    fit(Spotting(again), 2, tmp_path, FreezeCallback(delta=True), resume=True, **options)
    assert same_contents(again, whole)


def test_another_base_is_refused(tmp_path: Path) -> None:
    ours(make_model(), 1, tmp_path, resume=False, delta=True)
    other: Any = make_model()
    with torch.no_grad():
        other.encoder.blocks[1].linear.bias.add_(1e-3)
    with pytest.raises(DeltaBaseError, match=r"1 frozen tensors .* model\.encoder\.blocks\.1\.linear\.bias"):
        ours(other, 2, tmp_path, resume=True, delta=True)


def test_a_delta_goes_on_as_a_whole_checkpoint(tmp_path: Path) -> None:
    whole, again = make_model(), make_model()
    ours(whole, EPOCHS, tmp_path / "whole", resume=False)
    ours(make_model(), 2, tmp_path, resume=False, delta=True)
    ours(again, EPOCHS, tmp_path, resume=True, delta=False)
    assert same_contents(again, whole)
    assert len(read(tmp_path / "run.ckpt")["state_dict"]) == len(again.state_dict())


@pytest.mark.parametrize("exact", [True, False])
def test_averages_that_move_frozen_weights_are_found(exact: bool, tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import WeightAveraging
    from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn

    from bundles.adapters.lightning import FreezeCallback

    made: dict[str, Any] = {"avg_fn": get_ema_avg_fn(0.9)}  # type: ignore[no-untyped-call]
    if exact:
        made = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}  # type: ignore[no-untyped-call]
    model = make_model()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    callbacks = (FreezeCallback(freeze="encoder"), WeightAveraging(**made))
    if exact:
        fit(Lit(model), 2, tmp_path, *callbacks)
        assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
        return
    with pytest.raises(bundles.FrozenDriftError, match=r"encoder\."):
        fit(Lit(model), 2, tmp_path, *callbacks)


def test_loading_stays_strict(tmp_path: Path) -> None:
    """What is missing and was not left out is named, also from a checkpoint that is whole."""
    for delta in (False, True):
        ours(make_model(), 1, tmp_path, resume=False, delta=delta)
        checkpoint = read(tmp_path / "run.ckpt")
        del checkpoint["state_dict"]["model.head.1.bias"]
        torch.save(checkpoint, tmp_path / "run.ckpt")
        with pytest.raises(StateDictMismatchError, match=r"lacks 1 tensors .* model\.head\.1\.bias"):
            ours(make_model(), 2, tmp_path, resume=True, delta=True)


def test_a_whole_checkpoint_goes_on_as_a_delta(tmp_path: Path) -> None:
    whole = make_model()
    ours(whole, EPOCHS, tmp_path / "whole", resume=False)
    ours(make_model(), 2, tmp_path, resume=False, delta=False)
    again = make_model()
    ours(again, EPOCHS, tmp_path, resume=True, delta=True)
    assert same_contents(again, whole)


def test_load_from_checkpoint_completes_a_delta(tmp_path: Path) -> None:
    from bundles.adapters.partial import complete

    class Complete(Lit):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            complete(checkpoint, self)

    model = make_model()
    for delta in (True, False):
        ours(model, 1, tmp_path, resume=False, delta=delta)
        again = Complete.load_from_checkpoint(tmp_path / "run.ckpt", model=make_model())
        assert same_contents(again.model, model)
