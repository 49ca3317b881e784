"""Keras 3 on torch: what is frozen stays so in real ``fit()``, by every axis of the mode."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bundles
from bundles.adapters import keras as adapter

os.environ["KERAS_BACKEND"] = "torch"  # read where keras is imported, which is inside the tests

pytest.importorskip("torchcrepe")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture(scope="module")
def keras() -> Any:
    return pytest.importorskip("keras")


@pytest.fixture(autouse=True)
def _as_in_a_new_process(keras: Any) -> None:
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    forget_what_froze(keras)


def forget_what_froze(keras: Any) -> None:
    """Take off what the first freeze in a process puts on Keras' classes."""
    if "__reduce__" in vars(keras.Layer):
        del keras.Layer.__reduce__


def flat(keras: Any, rate: float = 0.5) -> Any:
    """Two blocks with batch norm and dropout, and a head."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, name="one", activation="relu"),
            layers.BatchNormalization(name="one_norm"),
            layers.Dropout(rate, name="one_drop"),
            layers.Dense(16, name="two", activation="relu"),
            layers.Dropout(rate, name="two_drop"),
            layers.Dense(2, name="top"),
        ],
        name="net",
    )


def nested(keras: Any) -> Any:
    """A backbone as a model of its own, then a head."""
    layers = keras.layers
    inside = keras.Input((6, 8))
    hidden = layers.MultiHeadAttention(2, 4, dropout=0.3, name="attention")(inside, inside)
    hidden = layers.LSTM(8, dropout=0.3, name="recurrent")(hidden)
    backbone = keras.Model(inside, hidden, name="backbone")
    given = keras.Input((6, 8))
    return keras.Model(given, layers.Dense(2, name="top")(backbone(given)))


def data(*shape: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((24, *shape)).astype("float32")
    return inputs, (inputs.reshape(24, -1)[:, 0] > 0).astype("int64")


def values(model: Any) -> dict[str, bytes]:
    return {v.path: v.numpy().tobytes() for v in model.weights}


def moved(model: Any, before: dict[str, bytes]) -> set[str]:
    return {path.partition("net/")[2] or path for path, now in values(model).items() if before[path] != now}


def fit(model: Any, inputs: Any, labels: Any, **more: Any) -> None:
    if not model.compiled:
        model.compile("adam", "mse")
    targets = np.stack([labels, 1 - labels], 1).astype("float32")
    model.fit(inputs, targets, batch_size=8, shuffle=False, verbose=0, **{"epochs": 2, **more})


def in_training(model: Any, inputs: Any) -> Any:
    return model(torch.from_numpy(inputs), training=True).detach()


HEAD = {"top/kernel", "top/bias"}
STATISTICS = {"one_norm/moving_mean", "one_norm/moving_variance"}
NORM = {"one_norm/gamma", "one_norm/beta"}


def test_frozen_bytes_and_statistics_are_equal_and_the_head_moved(keras: Any) -> None:
    model, (inputs, labels) = adapter.freeze(flat(keras)), data(8)
    before, taken = values(model), adapter.snapshot(model)
    fit(model, inputs, labels, callbacks=[adapter.FreezeCallback()])
    adapter.verify_frozen(model, taken)
    assert moved(model, before) == HEAD
    assert len(taken) == 8  # weights and statistics of the frozen part


def test_what_trainable_false_leaves_on_without_us(keras: Any) -> None:
    model, (inputs, _) = flat(keras), data(8)
    middle = keras.Model(model.inputs, model.get_layer("two").output)
    middle.trainable = False
    assert not torch.equal(in_training(middle, inputs), in_training(middle, inputs))


def test_noise_between_frozen_layers_is_off_in_training_and_follows_in_regularized(keras: Any) -> None:
    model, (inputs, _) = flat(keras), data(8)
    middle = keras.Model(model.inputs, model.get_layer("one_drop").output)
    adapter.freeze(model, "encoder", "eval")
    assert torch.equal(in_training(middle, inputs), middle(torch.from_numpy(inputs), training=False))
    adapter.freeze(model, "encoder", "regularized")
    assert not torch.equal(in_training(middle, inputs), in_training(middle, inputs))
    assert not model.get_layer("one_norm").trainable


def test_augmentation_before_what_is_frozen_stays_on(keras: Any) -> None:
    layers, pictures = keras.layers, np.random.default_rng(0).random((8, 4, 4, 1)).astype("float32")
    augment = keras.Sequential([layers.RandomFlip(), layers.RandomTranslation(0.2, 0.2)], name="augment")
    given = keras.Input((4, 4, 1))
    hidden = layers.Dropout(0.5)(layers.Dense(4)(layers.Flatten()(augment(given))))
    adapter.freeze(keras.Model(given, layers.Dense(2, name="top")(layers.Dense(4)(hidden))))
    augmented, encoded = augment, keras.Model(augment.output, hidden)
    assert not torch.equal(in_training(augmented, pictures), torch.from_numpy(pictures))
    assert torch.equal(in_training(encoded, pictures), in_training(encoded, pictures))


def test_noise_stays_on_in_predict_in_mc(keras: Any) -> None:
    model, (inputs, _) = adapter.freeze(flat(keras), "all", "mc"), data(8)
    first, second = model.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    assert not np.array_equal(first, second)
    adapter.unfreeze(model)
    first, second = model.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("mode", "also"), [("frontend", STATISTICS), ("regularized", set())])
def test_statistics_follow_or_hold_under_frozen_weights(keras: Any, mode: str, also: set[str]) -> None:
    model, (inputs, labels) = adapter.freeze(flat(keras), "encoder", mode), data(8)
    before = values(model)
    fit(model, inputs, labels, callbacks=[adapter.FreezeCallback()])
    assert moved(model, before) == HEAD | also


def test_gradient_flows_through_or_is_cut(keras: Any) -> None:
    model, (inputs, _) = flat(keras), data(8)
    for mode, flows in (("eval", True), ("features", False)):
        adapter.freeze(model, "encoder", mode)
        given = torch.from_numpy(inputs).requires_grad_()
        loss = model(given, training=True).sum()
        loss.backward()
        assert (given.grad is not None) is flows
        assert model.get_layer("top").kernel.value.grad is not None


def test_a_cut_above_something_that_trains_is_refused(keras: Any) -> None:
    with pytest.raises(bundles.InexpressibleModeError, match="one_norm"):
        adapter.freeze(flat(keras), "match:one_norm.gamma", "features")


def test_spectral_normalization_cannot_follow_over_a_frozen_kernel(keras: Any) -> None:
    wrapped = keras.layers.SpectralNormalization(keras.layers.Dense(4), name="spectral")
    model = keras.Sequential([keras.Input((8,)), wrapped, keras.layers.Dense(2, name="top")], name="net")
    with pytest.raises(bundles.InexpressibleModeError, match="spectral would write") as caught:
        adapter.freeze(model, "encoder", "frontend")
    assert caught.value.modules == ("spectral",)
    inputs, labels = data(8)
    before = values(adapter.freeze(model))
    fit(model, inputs, labels)
    assert moved(model, before) == HEAD


def test_attention_and_recurrent_dropout_inside_a_backbone_are_held(keras: Any) -> None:
    model, (inputs, labels) = adapter.freeze(nested(keras)), data(6, 8)
    assert torch.equal(in_training(model, inputs), model(torch.from_numpy(inputs), training=False).detach())
    before = values(model)
    fit(model, inputs, labels)
    assert moved(model, before) == HEAD


def test_policies_speak_of_layers(keras: Any) -> None:
    groups = adapter.layer_groups(flat(keras))
    assert [(g.name, g.parameters[0]) for g in groups] == [
        ("block.0", "one.kernel"),
        ("block.1", "two.kernel"),
        ("head", "top.kernel"),
    ]
    assert adapter.layer_groups(nested(keras)).names == ("block.0", "block.1", "head")
    model = adapter.freeze(flat(keras), "last:1")
    assert {v.path for v in model.trainable_weights} == {
        f"net/{n}" for n in ("two/kernel", "two/bias", *HEAD)
    }
    adapter.freeze(model, "match:*.bias")
    assert {v.path for v in model.weights if not v.trainable} == {
        f"net/{n}" for n in ("one/bias", "two/bias", "top/bias", *STATISTICS)
    }
    adapter.freeze(model, "encoder", groups={"stem": "one*", "head": ["two", "top"]})
    assert {v.path for v in model.trainable_weights} == {
        f"net/{n}" for n in ("two/kernel", "two/bias", *HEAD)
    }


def test_unfreeze_gives_back_what_was_there(keras: Any) -> None:
    model, (inputs, _) = flat(keras), data(8)
    model.get_layer("two").trainable = False
    state = [(layer.trainable, "call" in vars(layer)) for layer in model.layers]
    trained = [v.trainable for v in model.weights]
    adapter.freeze(adapter.freeze(model, "encoder", "mc"), "all", "features")
    adapter.unfreeze(model)
    assert [(layer.trainable, "call" in vars(layer)) for layer in model.layers] == state
    assert [v.trainable for v in model.weights] == trained
    assert adapter.freeze_plan(model) is None
    assert not torch.equal(in_training(model, inputs), in_training(model, inputs))


def test_a_layer_is_held_by_one_freeze(keras: Any) -> None:
    model = nested(keras)
    backbone = adapter.freeze(model.get_layer("backbone"), "encoder")
    with pytest.raises(
        bundles.FreezeArgumentError, match=r"The layer backbone\.attention\.\S+ is held already"
    ):
        adapter.freeze(model)
    adapter.unfreeze(backbone)
    assert adapter.freeze_plan(adapter.freeze(model)) is not None


def test_classes_config_and_files_are_those_of_keras(keras: Any, tmp_path: Path) -> None:
    plain, model, (inputs, labels) = flat(keras, rate=0.0), flat(keras, rate=0.0), data(8)
    config, paths = model.get_config(), [v.path for v in model.weights]
    adapter.freeze(model)
    for before, now in zip(config["layers"], model.get_config()["layers"], strict=True):
        before["config"].pop("trainable", None), now["config"].pop("trainable", None)
        assert before == now
    assert [v.path for v in model.weights] == paths
    assert "call" in vars(model.get_layer("one_norm"))
    assert [type(layer) for layer in model.layers] == [type(layer) for layer in plain.layers]
    fit(model, inputs, labels)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")  # safe mode: nothing of ours is in the file
    assert list(values(again).values()) == list(values(model).values())
    assert [layer.trainable for layer in again.layers] == [layer.trainable for layer in model.layers]
    assert not any("call" in vars(layer) for layer in again.layers)  # what is held is not in the file
    adapter.freeze(again)
    for each in (model, again):
        fit(each, inputs, labels)
    assert list(values(again).values()) == list(values(model).values())  # the optimizer went on, too


def test_a_schedule_by_epochs_thaws_and_resumes_at_an_epoch(keras: Any) -> None:
    schedule = bundles.UnfreezeSchedule({0: "encoder", 1: "last:1", 2: "none"})
    inputs, labels = data(8)
    whole = flat(keras, rate=0.0)
    parts = keras.models.clone_model(whole)
    parts.set_weights(whole.get_weights())
    before, seen = values(whole), []

    class Watch(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(moved(whole, before))

    fit(whole, inputs, labels, epochs=3, callbacks=[adapter.FreezeCallback(schedule), Watch()])
    assert seen[0] == HEAD
    assert seen[1] == HEAD | {"two/kernel", "two/bias"}
    assert seen[2] == seen[1] | {"one/kernel", "one/bias"} | NORM | STATISTICS
    for epoch in range(3):  # a fit() per epoch is the run in one piece
        fit(
            parts,
            inputs,
            labels,
            epochs=epoch + 1,
            initial_epoch=epoch,
            callbacks=[adapter.FreezeCallback(schedule)],
        )
    assert list(values(parts).values()) == list(values(whole).values())


@pytest.mark.parametrize("way", ["load_model", "copy", "BackupAndRestore"])
def test_a_schedule_goes_on_with_the_whole_optimizer(keras: Any, tmp_path: Path, way: str) -> None:
    schedule = bundles.UnfreezeSchedule({0: "encoder", 2: "last:1", 3: "none"})
    (inputs, labels), whole, half = data(8), flat(keras, rate=0.0), flat(keras, rate=0.0)
    half.set_weights(whole.get_weights())
    fit(whole, inputs, labels, epochs=4, callbacks=[adapter.FreezeCallback(schedule)])

    def kept() -> Any:
        if way == "BackupAndRestore":
            return keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        return keras.callbacks.ModelCheckpoint(tmp_path / "half.keras")

    fit(half, inputs, labels, epochs=2, callbacks=[adapter.FreezeCallback(schedule), kept()])
    if way == "load_model":
        again = keras.saving.load_model(tmp_path / "half.keras")
    else:
        again = copy.deepcopy(half) if way == "copy" else flat(keras, rate=0.0)
    start = 0 if way == "BackupAndRestore" else 2  # which reads the epoch, too
    callbacks = [adapter.FreezeCallback(schedule), kept()]
    fit(again, inputs, labels, epochs=4, initial_epoch=start, callbacks=callbacks)
    assert list(values(again).values()) == list(values(whole).values())


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
}


def flags(model: Any) -> list[tuple[str, bool, bool]]:
    layers = model._flatten_layers()
    return [
        *((type(layer).__name__, layer.trainable, "call" in vars(layer)) for layer in layers),
        *((v.name, v.trainable, False) for v in model.weights),
    ]


@pytest.mark.parametrize("way", COPIES)
def test_copies_and_pickles_are_frozen(keras: Any, way: str) -> None:
    (inputs, labels), model = data(6, 8), nested(keras)
    model.get_layer("backbone").get_layer("recurrent").trainable = False
    thawed = flags(model)
    adapter.freeze(model, "match:*.kernel", "eval")
    again = COPIES[way](model)
    assert flags(again) == flags(model) != thawed
    plans = adapter.freeze_plan(model), adapter.freeze_plan(again)  # layers without a name are numbered on
    assert len({str(plan).rpartition(",")[0] for plan in plans}) == 1
    before = values(again)
    fit(again, inputs, labels, callbacks=[adapter.FreezeCallback()])
    assert {path.rpartition("/")[2] for path in moved(again, before)} == {"bias"}
    assert flags(adapter.unfreeze(again)) == thawed
    assert adapter.freeze_plan(model) is not None


def test_a_copy_keeps_the_freeze_of_a_model_inside(keras: Any) -> None:
    model, (inputs, _) = nested(keras), data(6, 8)
    adapter.freeze(model.get_layer("backbone"), "all", "features")
    again = copy.deepcopy(model)
    assert torch.equal(in_training(again, inputs), in_training(again, inputs))
    assert adapter.freeze_plan(again) is None
    assert adapter.freeze_plan(again.get_layer("backbone")).policy == "All()"  # type: ignore[union-attr]


@pytest.mark.parametrize("outer", ["Functional", "a class made later"])
def test_a_model_of_another_class_is_copied_with_the_frozen_one_inside(keras: Any, outer: str) -> None:
    class Outer(keras.Model):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.inside, self.top = flat(keras), keras.layers.Dense(2, name="outer")

        def call(self, x: Any, training: bool = False) -> Any:
            return self.top(self.inside(x, training=training))

    given, (inputs, labels) = keras.Input((8,)), data(8)
    model = keras.Model(given, keras.layers.Dense(2, name="outer")(flat(keras)(given)))
    if outer != "Functional":
        model = Outer()
        model(torch.from_numpy(inputs))
    adapter.freeze(model.get_layer("net"), "all", "features")
    ways = COPIES if outer == "Functional" else ["deepcopy"]  # pickle finds no class inside a function
    for way in ways:
        with keras.saving.custom_object_scope({"Outer": Outer}):
            again = COPIES[way](model)
        before, inside = values(again), again.get_layer("net")
        fit(again, inputs, labels, epochs=1, callbacks=[adapter.FreezeCallback()])
        assert {path.rpartition("outer/")[2] for path in moved(again, before)} == {"kernel", "bias"}
        still = inside(torch.from_numpy(inputs), training=False)
        assert torch.equal(in_training(inside, inputs), still)
        assert len(adapter.unfreeze(inside).trainable_weights) == 8
        assert len(again.trainable_weights) == 10


def test_a_model_inside_without_a_name_is_found_in_the_copy(keras: Any) -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.inside = keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.5)])

        def call(self, x: Any, training: bool = False) -> Any:
            return self.inside(x, training=training)

    model, (inputs, _) = Own(), data(8)
    model(torch.from_numpy(inputs))
    adapter.freeze(model.inside, "all", "features")
    with keras.saving.custom_object_scope({"Own": Own}):
        again = copy.deepcopy(model)
    assert again.inside.name != model.inside.name
    assert torch.equal(in_training(again, inputs), again(torch.from_numpy(inputs)))


def test_a_process_that_loads_a_frozen_model_copies_it_frozen(keras: Any) -> None:
    pickled = pickle.dumps(adapter.freeze(flat(keras)))
    forget_what_froze(keras)
    again = copy.deepcopy(pickle.loads(pickled))
    assert adapter.freeze_plan(again) is not None


def replace_top(model: Any, keras: Any) -> None:
    model.pop()
    model.add(keras.layers.Dense(2, name="top"))


def take_out_dropout(model: Any, keras: Any) -> None:
    top = model.get_layer("top")
    model.pop(), model.pop(), model.add(top)


CHANGES: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "enable_lora": (r"one\.lora_kernel_a", lambda model, keras: model.get_layer("one").enable_lora(2)),
    "quantize": (r"one\.kernel", lambda model, keras: model.get_layer("one").quantize("int8")),
    "add": (r"extra\.bias", lambda model, keras: model.add(keras.layers.Dense(2, name="extra"))),
    "add without weights": ("extra", lambda model, keras: model.add(keras.layers.ReLU(name="extra"))),
    "take out without weights": ("two_drop", take_out_dropout),
    "pop": (r"top\.bias", lambda model, keras: model.pop()),
    "pop, add of the same name": (r"top\.kernel", replace_top),
}


def test_a_model_changed_after_its_freeze_is_not_copied(keras: Any) -> None:
    for named, edit in CHANGES.values():
        model, again = adapter.freeze(flat(keras)), flat(keras)
        edit(model, keras)
        with pytest.raises(
            bundles.FreezeArgumentError,
            match=rf"The model 'net' was changed after it was frozen \({named} came, went or was",
        ):
            copy.deepcopy(model)
        edit(again, keras)
        adapter.freeze(again)
        assert flags(copy.deepcopy(again)) == flags(again)


def test_a_wrapper_given_another_module_after_the_freeze_is_not_copied(keras: Any) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8))
    wrapped = keras.layers.TorchModuleWrapper(module, name="torch", output_shape=(None, 8))
    model = keras.Sequential([keras.Input((8,)), wrapped, keras.layers.Dense(2, name="top")])
    adapter.freeze(model)
    wrapped.module = torch.nn.Sequential(*module)  # with the parameters that Keras knows
    with pytest.raises(bundles.FreezeArgumentError, match=r"after it was frozen \(Sequential came, went"):
        copy.deepcopy(model)


def test_a_copy_keeps_both_freezes_of_a_wrapped_bundle(keras: Any) -> None:
    wrapped = Wrapped(keras, freeze="match:conv1*")
    adapter.freeze(wrapped.model)
    again = copy.deepcopy(wrapped.model)
    module = again.get_layer("crepe").module
    assert adapter.freeze_plan(again) == adapter.freeze_plan(wrapped.model)
    assert bundles.freeze_plan(module) == bundles.freeze_plan(wrapped.torch)
    adapter.unfreeze(again)
    assert bundles.freeze_plan(module).policy == "Match('conv1*')"  # type: ignore[union-attr]
    assert {name.partition(".")[0] for name, p in module.named_parameters() if not p.requires_grad} == {
        "conv1",
        "conv1_BN",
    }


@pytest.mark.parametrize("made", ["clone_model", "deepcopy of a part"])
def test_a_clone_and_a_part_have_the_flags_alone(keras: Any, made: str) -> None:
    whole = flat(keras)
    model = whole if made == "clone_model" else keras.Model(whole.inputs, whole.get_layer("two").output)
    adapter.freeze(whole)
    again = keras.models.clone_model(model) if made == "clone_model" else copy.deepcopy(model)
    assert [layer.trainable for layer in again.layers] == [layer.trainable for layer in model.layers]
    assert not any("call" in vars(layer) for layer in again.layers)
    assert adapter.freeze_plan(again) is None


def test_layers_of_ones_own(keras: Any) -> None:
    """A layer that draws by itself is held; one made of layers hands the argument on; names stay apart."""

    class Noisy(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.one, self.two = (self.add_weight(shape=(8,), name="w") for _ in range(2))

        def call(self, x: Any, training: bool = False) -> Any:
            return x * self.one + self.two + (torch.rand(8) if training else 0)

    class Block(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.noisy, self.norm = Noisy(name="noisy"), keras.layers.BatchNormalization(name="one_norm")

        def call(self, x: Any, training: bool = False) -> Any:
            return self.norm(self.noisy(x, training=training), training=training)

    block = Block(name="block")
    block(torch.zeros(1, 8))
    model = keras.Sequential([keras.Input((8,)), block, keras.layers.Dense(2, name="top")], name="net")
    adapter.freeze(model, "encoder", bundles.FreezeMode(stats="follow"))
    holds = {hold.module: hold.training for hold in adapter.freeze_plan(model).holds}  # type: ignore[union-attr]
    assert holds == {"block.noisy": False}
    assert [name for name in adapter.freeze_plan(model).frozen if "noisy" in name] == [  # type: ignore[union-attr]
        "block.noisy.w",
        "block.noisy.w_1",
    ]
    inputs, labels = data(8)
    before = values(model)
    fit(model, inputs, labels)
    assert {path.rpartition("/")[2] for path in moved(model, before)} == {
        *("kernel", "bias"),
        *("moving_mean", "moving_variance"),
    }


def test_a_wrapped_module_that_cannot_show_the_mode_leaves_everything_as_it_was(keras: Any) -> None:
    recurrent = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 8))
    wrapped = keras.layers.TorchModuleWrapper(recurrent, name="torch", output_shape=(None, 8))
    model = keras.Sequential([keras.Input((8,)), wrapped, keras.layers.Dense(2, name="top")])
    with pytest.raises(bundles.InexpressibleModeError, match="0"):
        adapter.freeze(model, "match:torch.0.weight", "features")
    assert adapter.freeze_plan(model) is None
    assert all(v.trainable for v in model.weights)
    assert bundles.freeze_plan(recurrent) is None


def test_what_the_optimizer_does_not_know_is_refused_at_the_first_epoch(keras: Any) -> None:
    model, (inputs, labels) = adapter.freeze(flat(keras)), data(8)
    callback = adapter.FreezeCallback(bundles.UnfreezeSchedule.lp_ft(at=5))
    with pytest.raises(
        bundles.FreezeArgumentError, match=r"At epoch 5 one\.kernel and 5 other weights train"
    ):
        fit(model, inputs, labels, callbacks=[callback])


def test_a_schedule_that_finds_everything_frozen_is_refused(keras: Any, tmp_path: Path) -> None:
    model, (inputs, labels) = adapter.freeze(flat(keras)), data(8)
    callback = adapter.FreezeCallback(bundles.UnfreezeSchedule.lp_ft(at=5))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    with pytest.raises(
        bundles.FreezeArgumentError, match=r"changes nothing at epoch 5, since one\.kernel and 5 other"
    ):
        fit(again, inputs, labels, callbacks=[callback])
    again.trainable = True
    again.compile("adam", "mse")
    fit(again, inputs, labels, epochs=1, callbacks=[callback])


def test_averages_over_what_is_frozen_are_refused(keras: Any) -> None:
    optimizers, (inputs, labels) = keras.optimizers, data(8)
    schedule, late = bundles.UnfreezeSchedule.lp_ft(at=1), flat(keras)
    late.compile(optimizers.Adam(use_ema=True, ema_overwrite_frequency=2), "mse")
    with pytest.raises(
        bundles.FreezeArgumentError, match=r"one\.kernel and 5 other .* by use_ema=True it writes averages"
    ):
        fit(late, inputs, labels, callbacks=[adapter.FreezeCallback(schedule)])
    with pytest.raises(bundles.FreezeArgumentError, match="use_ema=True"):
        fit(adapter.freeze(late), inputs, labels, callbacks=[adapter.FreezeCallback()])
    early = adapter.freeze(flat(keras))
    early.compile(optimizers.Adam(use_ema=True, ema_overwrite_frequency=2), "mse")
    before = values(early)
    fit(early, inputs, labels, callbacks=[adapter.FreezeCallback()])
    assert moved(early, before) == HEAD
    several = flat(keras)
    several.compile(optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD())), "mse")
    with pytest.raises(bundles.FreezeArgumentError, match="MultiOptimizer it wants gradients"):
        fit(several, inputs, labels, callbacks=[adapter.FreezeCallback(schedule)])


def test_what_is_for_torch_modules_refuses_a_keras_model(keras: Any, tmp_path: Path) -> None:
    model = flat(keras)
    with pytest.raises(bundles.FreezeArgumentError, match=r"A Sequential of Keras .* save by model\.save_w"):
        bundles.save_delta(model, tmp_path / "delta.safetensors")
    with pytest.raises(bundles.FreezeArgumentError, match=r"type bundles\.adapters\.keras\.freeze"):
        bundles.freeze(model)
    assert all(v.value.requires_grad for v in model.trainable_weights)


def test_the_callback_finds_what_moved(keras: Any) -> None:
    model, (inputs, labels) = adapter.freeze(flat(keras)), data(8)

    class Meddle(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            kernel = model.get_layer("one").kernel
            kernel.assign(kernel + 1e-3)

    with pytest.raises(bundles.FrozenDriftError, match=r"1 of 8 frozen tensors moved: one\.kernel") as caught:
        fit(model, inputs, labels, callbacks=[Meddle(), adapter.FreezeCallback()])
    assert caught.value.moved == ("one.kernel",)


class Wrapped:
    """CREPE_TINY inside a Keras model."""

    def __init__(self, keras: Any, **build: Any) -> None:
        self.torch = bundles.CREPE_TINY.get_model(**build)
        self.layer = keras.layers.TorchModuleWrapper(self.torch, name="crepe", output_shape=(None, 360))
        self.model = keras.Sequential([keras.Input((1024,)), self.layer, keras.layers.Dense(2, name="top")])


@pytest.mark.parametrize("way", ["get_model(freeze='all')", "keras.freeze(model)"])
def test_a_bundle_in_a_torch_module_wrapper_stays_frozen_in_fit(keras: Any, way: str) -> None:
    ours = way.startswith("keras")
    with pytest.warns(bundles.NothingTrainableWarning) if not ours else nullcontext():
        wrapped = Wrapped(keras, freeze=False if ours else "all")
    model, (inputs, labels) = wrapped.model, data(1024)
    if ours:
        adapter.freeze(model)
    before = {name: t.clone() for name, t in wrapped.torch.state_dict().items()}
    assert {v.path.rpartition("/")[0].rpartition("/")[2] for v in model.trainable_weights} == {"top"}
    head = values(model.get_layer("top"))
    fit(model, inputs[:16], labels[:16], callbacks=[adapter.FreezeCallback()])
    assert all(torch.equal(before[name], now) for name, now in wrapped.torch.state_dict().items())
    assert all(now != head[path] for path, now in values(model.get_layer("top")).items())
    norms = [module for module in wrapped.torch.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert [module.training for module in norms] == [False] * 6
    if ours:
        adapter.unfreeze(model)
        assert all(p.requires_grad for p in wrapped.torch.parameters())


def test_part_of_a_wrapped_bundle_trains(keras: Any) -> None:
    wrapped = Wrapped(keras)
    model, (inputs, labels) = wrapped.model, data(1024)
    adapter.freeze(model, "match:crepe.conv*")
    before = {name: t.clone() for name, t in wrapped.torch.state_dict().items()}
    fit(model, inputs[:16], labels[:16], epochs=1, callbacks=[adapter.FreezeCallback()])
    changed = {name for name, now in wrapped.torch.state_dict().items() if not torch.equal(before[name], now)}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_what_a_wrapped_bundle_does_in_fit_without_us(keras: Any) -> None:
    wrapped = Wrapped(keras)
    model, (inputs, labels) = wrapped.model, data(1024)
    wrapped.layer.trainable = False
    before = {name: t.clone() for name, t in wrapped.torch.state_dict().items()}
    fit(model, inputs[:16], labels[:16], epochs=1)
    changed = {name for name, now in wrapped.torch.state_dict().items() if not torch.equal(before[name], now)}
    assert "conv1_BN.num_batches_tracked" in changed


def test_bad_arguments_are_one_sentence(keras: Any) -> None:
    model = flat(keras)
    with pytest.raises(bundles.FreezeArgumentError, match="A Linear is no Keras model or layer"):
        adapter.freeze(torch.nn.Linear(2, 2))
    with pytest.raises(bundles.FreezeArgumentError, match="has no weights yet"):
        adapter.freeze(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(bundles.NothingSelectedError, match=r"selects no parameter; the groups are block\.0"):
        adapter.freeze(model, "match:three")
    with pytest.raises(bundles.FreezeArgumentError, match="match nothing in the model"):
        adapter.freeze(model, groups={"blocks": "layer{i}"})
    with pytest.raises(bundles.FreezeArgumentError, match="is neither a LayerGroups nor a mapping"):
        adapter.freeze(model, groups=["one"])  # type: ignore[arg-type]
    mask = np.zeros((8, 16), bool)
    mask[0] = True
    with pytest.raises(bundles.FreezeArgumentError, match=r"freezes single elements of one\.kernel"):
        adapter.freeze(model, bundles.Elements({"one.kernel": mask}))
    with pytest.raises(bundles.FreezeArgumentError, match=r"is not a bundles\.UnfreezeSchedule"):
        adapter.FreezeCallback({0: "encoder"})
    with pytest.raises(bundles.FreezeArgumentError, match="warmup=5, and Keras' optimizers"):
        adapter.FreezeCallback(bundles.UnfreezeSchedule({0: "encoder"}, warmup=5))
    with pytest.warns(bundles.NothingTrainableWarning, match="Nothing is left to train"):
        adapter.freeze(model, "all")


def test_another_backend_is_refused(keras: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = flat(keras)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")  # which is not installed
    with pytest.raises(
        bundles.FreezeArgumentError, match="Keras runs on jax, where layers cannot be held: set"
    ):
        adapter.freeze(model)


def test_a_backend_that_is_not_there_says_what_to_set() -> None:
    pytest.importorskip("keras")
    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow is installed")
    code = "from bundles.adapters import keras; keras.FreezeCallback"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "MissingDependencyError: Keras is set to run on tensorflow, which is not installed" in done.stderr
