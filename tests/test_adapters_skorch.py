"""skorch: real epochs, resumed through its ``Checkpoint``; clones; and its own ``Freezer`` without us."""

from __future__ import annotations

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
    FROZEN,
    GOOD,
    MOVED,
    NOISE,
    RESUME,
    Model,
    Watch,
    make_data,
    make_model,
    same_contents,
    schedule,
    seed,
    trial,
)

pytest.importorskip("skorch")
import skorch
import skorch.callbacks

from bundles.adapters.skorch import FreezeCallback

X, Y = (tensor.numpy() for tensor in make_data().tensors)


class Seeds(skorch.callbacks.Callback):  # type: ignore[misc]
    """skorch keeps no random states."""

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        seed(len(net.history))


def net_for(model: nn.Module | type[nn.Module], *callbacks: Any, epochs: int = 4, **options: Any) -> Any:
    return skorch.NeuralNetClassifier(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=0.1,
        lr=0.05,
        batch_size=BATCH,
        max_epochs=epochs,
        train_split=None,
        iterator_train__shuffle=False,
        classes=[0, 1, 2],
        verbose=0,
        callbacks=[Seeds(), *callbacks],
        **options,
    )


def recipe(
    model: nn.Module,
    epochs: int,
    folder: Path,
    *,
    resume: bool,
    own: Any = None,
    by_callback: bool = False,
    **options: Any,
) -> Any:
    saves = skorch.callbacks.Checkpoint(monitor=None, dirname=str(folder), f_criterion=None)
    loads = [skorch.callbacks.LoadInitState(saves)] if by_callback else []
    net = net_for(model, *loads, own or FreezeCallback(**options), saves).initialize()
    if resume and not by_callback:
        net.load_params(checkpoint=saves)
    net.set_params(max_epochs=epochs // 2 if resume else epochs)
    return net.partial_fit(X, Y)


def test_what_is_frozen_stays_so_and_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    assert trial(partial(recipe, freeze="encoder", verify="step"), tmp_path) == GOOD


def test_its_freezer_leaves_buffers_and_noise_and_freezes_nothing_after_a_resume(tmp_path: Path) -> None:
    found = trial(partial(recipe, own=skorch.callbacks.Freezer("encoder.*")), tmp_path)
    assert found == {FROZEN: True, BUFFERS: False, MOVED: True, NOISE: False, RESUME: False}
    net = recipe(make_model(), 4, tmp_path / "whole", resume=True, own=skorch.callbacks.Freezer("encoder.*"))
    assert all(parameter.requires_grad for parameter in net.module_.parameters())


STEPS = bundles.UnfreezeSchedule({0: "encoder", 4: "last:1", 16: "none"}, warmup=3)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": schedule()},
        {"schedule": schedule(), "by_callback": True},
        {"schedule": STEPS, "unit": "step"},
    ],
    ids=["epochs", "LoadInitState", "steps"],
)
def test_a_schedule_goes_on_where_the_history_ends(tmp_path: Path, options: dict[str, Any]) -> None:
    found = trial(partial(recipe, **options), tmp_path)
    assert found == {FROZEN: False, BUFFERS: False, MOVED: True, NOISE: False, RESUME: True}


def test_each_epoch_trains_what_the_schedule_says() -> None:
    trained: list[set[str]] = []

    class Looks(skorch.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
            named = net.module_.named_parameters()
            assert sum(len(group["params"]) for group in net.optimizer_.param_groups) == 14
            trained.append({name.rpartition(".linear")[0] for name, p in named if p.requires_grad} - {""})

    net_for(make_model(), FreezeCallback(schedule()), Looks()).fit(X, Y)
    blocks = [f"encoder.blocks.{n}" for n in range(3)]
    assert trained == [set(), {blocks[2]}, {blocks[2]}, {*blocks}]


def test_a_second_fit_begins_at_the_beginning_and_partial_fit_does_not() -> None:
    net = net_for(Model, FreezeCallback(bundles.UnfreezeSchedule.lp_ft(at=2)), epochs=2).fit(X, Y)
    assert not net.module_.encoder.blocks[0].linear.weight.requires_grad
    net.fit(X, Y)
    assert not net.module_.encoder.blocks[0].linear.weight.requires_grad
    net.partial_fit(X, Y)
    assert net.module_.encoder.blocks[0].linear.weight.requires_grad


def test_clones_parameters_and_pickles_are_those_of_scikit_learn(tmp_path: Path) -> None:
    import pickle

    from sklearn.base import clone  # type: ignore[import-untyped]

    net = net_for(Model, FreezeCallback(freeze="first:1"), epochs=1).fit(X, Y)
    again = clone(net).set_params(callbacks__FreezeCallback__freeze="first:2").fit(X, Y)
    frozen = [
        [not block.linear.weight.requires_grad for block in n.module_.encoder.blocks] for n in (net, again)
    ]
    assert frozen == [[True, False, False], [True, True, False]]
    revived = pickle.loads(pickle.dumps(net))
    watch = Watch(revived.module_, "encoder.blocks.0")
    revived.partial_fit(X, Y)
    assert (watch.frozen_equal(), watch.buffers_equal(), watch.head_moved()) == (True, True, True)


def test_a_delta_with_the_optimizer_is_all_that_going_on_needs(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole, model = make_model(), make_model()
    net_for(whole, FreezeCallback(schedule())).fit(X, Y)
    first = net_for(model, FreezeCallback(schedule(), delta=path), epochs=2).fit(X, Y)
    first.save_params(f_history=str(tmp_path / "history.json"))
    again = make_model()
    net = net_for(again, FreezeCallback(schedule()), epochs=2).initialize()
    bundles.load_delta(path, again, optimizer=net.optimizer_)
    assert same_contents(again, model)
    net.load_params(f_history=str(tmp_path / "history.json"))
    net.partial_fit(X, Y)
    assert same_contents(again, whole)


def test_what_moves_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    class Writes(skorch.callbacks.Callback):  # type: ignore[misc]
        def on_batch_end(self, net: Any, batch: Any = None, training: Any = None, **kwargs: Any) -> None:
            net.module_.encoder.blocks[1].norm.running_mean += 1

    def run(**options: Any) -> None:
        saves = skorch.callbacks.Checkpoint(monitor=None, dirname=str(tmp_path))
        net_for(make_model(), Writes(), FreezeCallback(freeze="encoder", **options), saves).fit(X, Y)

    with pytest.raises(bundles.FrozenDriftError, match=r"1 of \d+ frozen tensors moved.*1\.norm\.running"):
        run()
    assert list(tmp_path.iterdir()) == []
    run(verify=False)


def test_a_run_in_which_nothing_trains_is_refused() -> None:
    with pytest.raises(bundles.FreezeArgumentError, match=r"Nothing trains with All\(\): freeze less"):
        net_for(make_model(), FreezeCallback(freeze="all", freeze_mode="features")).fit(X, Y)


def test_a_second_module_is_named() -> None:
    class Two(skorch.NeuralNetClassifier):  # type: ignore[misc]
        def initialize_module(self) -> Any:
            super().initialize_module()
            self.teacher_ = make_model()
            return self

        def get_loss(self, y_pred: Any, y_true: Tensor, X: Any = None, **kwargs: Any) -> Tensor:
            loss: Tensor = super().get_loss(y_pred, y_true) + self.teacher_(X).square().mean()
            return loss

    def fit(name: str) -> Any:
        options = {"train_split": None, "verbose": 0, "max_epochs": 1, "criterion": nn.CrossEntropyLoss}
        callbacks = [FreezeCallback(freeze="all", freeze_mode="features", module=name)]
        return Two(Model, callbacks=callbacks, **options).fit(X, Y)

    net = fit("teacher")
    assert same_contents(net.teacher_, make_model())
    with pytest.raises(
        bundles.FreezeArgumentError, match="module='student' names no module of the Two: it has"
    ):
        fit("student")


def test_arguments_that_are_none_are_named() -> None:
    for options, match in (
        ({"unit": "batch"}, "unit='batch' is neither 'epoch' nor 'step'"),
        ({"verify": True}, "verify=True is none of 'epoch', 'step' and False"),
        ({"schedule": {0: "encoder"}}, "is not a bundles.UnfreezeSchedule"),
    ):
        with pytest.raises(bundles.FreezeArgumentError, match=match):
            net_for(make_model(), FreezeCallback(**options)).fit(X, Y)
