"""fastai: real epochs beside ``learn.freeze()`` and ``learn.unfreeze()``, and resumed by ``learn.load()``."""

from __future__ import annotations

import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bundles
from adapter_checks import (
    BATCH,
    BUFFERS,
    CLASSES,
    FROZEN,
    GOOD,
    MOVED,
    NOISE,
    RESUME,
    WIDTH,
    Watch,
    make_data,
    make_model,
    noise_held,
    same_contents,
    seed,
    trial,
)

pytest.importorskip("fastai")
with warnings.catch_warnings():  # of pandas 3
    warnings.filterwarnings("ignore", message="The 'mode.chained_assignment' option is deprecated")
    from fastai.callback.core import Callback
    from fastai.callback.progress import ProgressCallback
    from fastai.callback.schedule import minimum  # noqa: F401 - adds fit_one_cycle() and lr_find()
    from fastai.callback.tracker import SaveModelCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    from bundles.adapters.fastai import FreezeCallback, splitter

pytestmark = pytest.mark.filterwarnings(
    "ignore:numpy.core is deprecated:DeprecationWarning"
)  # by learn.load()

SCHEDULE = bundles.UnfreezeSchedule({0: "encoder", 1: "last:1", 3: "none"})
WRAPPED = partial(OptimWrapper, opt=torch.optim.AdamW)


class Seeds(Callback):  # type: ignore[misc]
    """fastai keeps no random states."""

    def before_train(self) -> None:
        seed(self.learn.epoch)


def quiet(log: Any) -> None: ...


def learner(model: nn.Module, *callbacks: Any, folder: Path | None = None, **options: Any) -> Any:
    data = make_data()
    dls = DataLoaders.from_dsets(data, data, bs=BATCH, shuffle=False, device="cpu", num_workers=0)
    options = {"splitter": splitter, "lr": 0.05, "wd": 0.1, "path": folder, **options}
    learn = Learner(dls, model, nn.CrossEntropyLoss(), cbs=[Seeds(), *callbacks], **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = quiet
    return learn


def recipe(
    model: nn.Module,
    epochs: int,
    folder: Path,
    *,
    resume: bool,
    ours: bool = True,
    options: dict[str, Any] | None = None,
    **freeze: Any,
) -> Any:
    saves = SaveModelCallback(every_epoch=True, with_opt=True)
    callbacks = [FreezeCallback(**freeze)] if ours else []
    learn = learner(model, saves, *callbacks, folder=folder, **(options or {}))
    if not ours:
        learn.freeze()
    if resume:
        learn.load(f"model_{epochs // 2 - 1}")
    learn.fit(epochs, start_epoch=epochs // 2 if resume else 0)
    return learn


@pytest.mark.parametrize("options", [{}, {"opt_func": WRAPPED}], ids=["fastai's Adam", "torch's AdamW"])
def test_what_is_frozen_stays_so_and_a_resumed_run_ends_with_the_same_bytes(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    assert trial(partial(recipe, freeze="encoder", verify="step", options=options), tmp_path) == GOOD


@pytest.mark.parametrize("train_bn", [True, False])
def test_its_own_freeze_trains_norms_or_at_least_their_statistics(tmp_path: Path, train_bn: bool) -> None:
    def two_groups(model: Any) -> list[list[nn.Parameter]]:
        return [list(model.encoder.parameters()), list(model.head.parameters())]

    options = {"train_bn": train_bn, "splitter": two_groups}
    found = trial(partial(recipe, ours=False, options=options), tmp_path)
    assert found == {FROZEN: not train_bn, BUFFERS: False, MOVED: True, NOISE: False, RESUME: True}


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": SCHEDULE},
        {"schedule": SCHEDULE, "options": {"opt_func": WRAPPED}},
        {
            "schedule": bundles.UnfreezeSchedule({0: "encoder", 4: "last:1", 16: "none"}, warmup=3),
            "unit": "step",
            "options": {"opt_func": WRAPPED},
        },
    ],
    ids=["fastai's Adam", "torch's AdamW", "steps with a warm-up"],
)
def test_a_schedule_goes_on_with_start_epoch(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = trial(partial(recipe, **settings), tmp_path)
    assert found == {FROZEN: False, BUFFERS: False, MOVED: True, NOISE: False, RESUME: True}


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


class Looks(Callback):  # type: ignore[misc]
    """Notes what trains in each epoch."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def after_train(self) -> None:
        self.seen.append(trained(self.learn.model))


@pytest.mark.parametrize("given", ["at creation", "to fit"])
def test_what_trains_is_what_neither_freezes(given: str) -> None:
    looks = Looks()
    callback = FreezeCallback(SCHEDULE)
    learn = learner(make_model(), looks, *([callback] if given == "at creation" else []), train_bn=False)
    learn.freeze_to(2)  # the blocks are groups 0 to 2
    learn.fit(4, cbs=[] if given == "at creation" else callback)
    learn.unfreeze()
    learn.fit(4, cbs=[] if given == "at creation" else callback)
    head, blocks = {"head.1.weight", "head.1.bias"}, [f"encoder.blocks.{n}." for n in range(3)]
    last = {name for name in dict(learn.model.named_parameters()) if name.startswith(blocks[2])} | head
    everything = set(dict(learn.model.named_parameters()))
    assert looks.seen == [head, last, last, last, head, last, last, everything]


def test_unfreeze_and_train_bn_do_not_touch_what_we_freeze() -> None:
    model = make_model()
    watch = Watch(model)
    learn = learner(model, FreezeCallback(freeze="encoder"))
    learn.fine_tune(2, freeze_epochs=1)  # freeze(), fit, unfreeze(), fit
    learn.unfreeze()
    learn.fit_one_cycle(1)
    assert (watch.frozen_equal(), watch.buffers_equal(), watch.head_moved()) == (True, True, True)
    assert noise_held(model.encoder, make_data().tensors[0])


def test_the_freeze_needs_no_callback_of_ours_but_against_unfreeze() -> None:
    model = bundles.freeze(make_model(), "encoder")
    watch = Watch(model)
    learner(model).fit(2)
    assert watch.moved() == {"head.1.weight", "head.1.bias"}
    learn = learner(model, FreezeCallback())
    learn.unfreeze()
    learn.fit(1)
    assert watch.moved() == {"head.1.weight", "head.1.bias"}


def test_weight_decay_goes_on_after_a_freeze_of_its_own_and_not_beside_ours() -> None:
    """Zero gradients are left by ``zero_grad()``; fastai's Adam decays what has one."""
    for callbacks, moves in (([], True), ([FreezeCallback(freeze="first:1")], False)):
        learn = learner(make_model(), *callbacks, train_bn=False)
        learn.fit(1)
        learn.freeze()
        before = learn.model.encoder.blocks[2].linear.weight.clone()
        learn.fit(1)
        assert torch.equal(learn.model.encoder.blocks[2].linear.weight, before) is not moves


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_freeze_to_and_policies_mean_the_same_layers(blocks: int) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(WIDTH, WIDTH)
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.norm = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = layer(x)
            logits: Tensor = self.head(self.norm(x))
            return logits

    theirs, ours = Normed(), Normed()
    learn = learner(theirs, train_bn=False)
    learn.freeze_to(-1 - blocks)
    bundles.freeze(ours, f"last:{blocks}" if blocks else "encoder")
    assert trained(theirs) == trained(ours)
    learn.fit(1, lr=slice(1e-5, 1e-1))
    assert [round(hyper["lr"], 7) for hyper in learn.opt.hypers] == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]


def test_splitter_has_each_tensor_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert [len(parameters) for parameters in splitter(model)] == [2, 2, 1]


def test_predictions_between_fits_leave_the_schedule_alone(tmp_path: Path) -> None:
    model = make_model()
    learn = learner(model, FreezeCallback(SCHEDULE), folder=tmp_path)
    learn.fit(2)
    at = trained(model)
    learn.get_preds()
    learn.validate()
    learn.predict(make_data()[0])
    assert trained(model) == at
    learn.lr_find(num_it=4, show_plot=False)
    learn.save("before")
    learn.fit(1)
    learn.load("before")  # other weights than those of the last snapshot
    learn.fit(1)


def test_a_delta_after_each_epoch(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "run.safetensors"
    learner(model, FreezeCallback(freeze="encoder", delta=path)).fit(2)
    assert same_contents(bundles.load_delta(path, make_model()), model)


def test_a_pickled_learner_goes_on() -> None:
    learn = learner(make_model(), FreezeCallback(freeze="encoder"))
    learn.fit(1)
    again = pickle.loads(pickle.dumps(learn))
    watch = Watch(again.model)
    again.fit(1)
    assert watch.moved() == {"head.1.weight", "head.1.bias"}


def test_what_moves_ends_the_fit() -> None:
    class Writes(Callback):  # type: ignore[misc]
        def after_batch(self) -> None:
            if self.learn.training:
                self.learn.model.encoder.blocks[1].norm.running_mean.add_(1)

    with pytest.raises(bundles.FrozenDriftError, match=r"1 of \d+ frozen tensors moved.*1\.norm\.running"):
        learner(make_model(), Writes(), FreezeCallback(freeze="encoder")).fit(2)
    learner(make_model(), Writes(), FreezeCallback(freeze="encoder", verify=False)).fit(1)


def test_what_cannot_follow_is_refused() -> None:
    for options, match in (
        ({"unit": "batch"}, "unit='batch' is neither 'epoch' nor 'step'"),
        ({"verify": True}, "verify=True is none of 'epoch', 'step' and False"),
        ({"schedule": {0: "encoder"}}, "is not a bundles.UnfreezeSchedule"),
    ):
        with pytest.raises(bundles.FreezeArgumentError, match=match):
            FreezeCallback(**options)
    warm = bundles.UnfreezeSchedule.lp_ft(at=1, warmup=2)
    with pytest.raises(
        bundles.FreezeArgumentError, match=r"warmup=2 needs an optimizer of torch: give Learner"
    ):
        learner(make_model(), FreezeCallback(warm)).fit(1)
    with pytest.raises(bundles.FreezeArgumentError, match=r"Nothing trains with All\(\): freeze less"):
        learner(make_model(), FreezeCallback(freeze="all", freeze_mode="features")).fit(1)
    mask = bundles.Elements({"head.1.bias": [True, False, False]})
    with pytest.raises(
        bundles.FreezeArgumentError, match=r"Single elements of head\.1\.bias are frozen.*Optim"
    ):
        learner(make_model(), FreezeCallback(freeze=mask)).fit(1)
    model = make_model()
    before = model.get_parameter("head.1.bias").clone()
    learner(model, FreezeCallback(freeze=mask), opt_func=WRAPPED).fit(1)
    assert torch.eq(model.get_parameter("head.1.bias"), before).tolist() == [True, False, False]


def test_an_optimizer_without_what_thaws_is_refused() -> None:
    model = bundles.freeze(make_model(), "encoder")
    learn = learner(model, splitter=lambda model: [p for p in model.parameters() if p.requires_grad])
    learn.create_opt()
    learn.add_cb(FreezeCallback(bundles.UnfreezeSchedule.lp_ft(at=1)))
    with pytest.raises(bundles.FreezeArgumentError, match=r"12 parameters thaw that the optimizer does not"):
        learn.fit(2)
