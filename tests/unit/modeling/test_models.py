"""Models of the user's own, and frozen layers in training."""

import numpy as np
import pytest
import tensorflow as tf
from custom_models import create_small

from mnist_dist.device.train_loop import create_train_loop
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError, OwnCodeError
from mnist_dist.modeling.networks import create_model, freeze_layers
from mnist_dist.modeling.optimizers import create_schedule, create_update_rule

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("num_replicas", [1, 3])
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_layers_stay_and_others_start_from_what_was_set(
    num_replicas, frozen, create_strategy
):
    strategy = create_strategy(num_replicas)
    rule = create_update_rule("adamw", weight_decay=0.1)
    with strategy.scope():
        model = create_small()
        freeze_layers(model, ["hidden", "norm"] if frozen else [])
        state = TrainState(model, slot_names=rule.slots, with_ema=True)
    kernel = RNG.normal(size=(784, 8)).astype(np.float32)
    state.from_arrays({"model/hidden/kernel": kernel, "ema/hidden/kernel": kernel})
    train_loop = create_train_loop(
        strategy,
        state,
        update_rule=rule,
        schedule=create_schedule("constant", learning_rate=0.01, total_steps=9),
        global_batch_size=6,
        seed=0,
        ema_decay=0.9,
    )
    before = state.to_arrays()
    np.testing.assert_array_equal(before["model/hidden/kernel"], kernel)
    images = tf.constant(RNG.integers(0, 256, (60, 28, 28, 1), np.uint8))
    labels = tf.constant(RNG.integers(0, 10, 60).astype(np.int32))
    indices = tf.reshape(tf.range(54, dtype=tf.int32), [9, 6])
    train_loop(images, labels, indices, tf.constant(9), tf.zeros([2]))
    after = state.to_arrays()
    for name in before:
        if name.startswith(("model/", "ema/")):
            stays = frozen and "/head/" not in name
            same = before[name].tobytes() == after[name].tobytes()
            assert same == stays, name
    assert any("optimizer/mean/hidden" in name for name in after) != frozen


def test_freezing_names_the_layers_there_are():
    with pytest.raises(InputError, match=r"--freeze: found 'no', .*head, hidden, norm"):
        freeze_layers(create_small(), ["no"])
    with pytest.raises(InputError, match="expected one left to train"):
        freeze_layers(create_small(), ["hidden", "norm", "head"])


@pytest.mark.parametrize(
    "name", ["json:loads", "os:getcwd", "custom_models:create_small"]
)
def test_function_that_takes_something_else_is_refused(name):
    with pytest.raises(InputError, match=f"--model: .*{name}"):
        create_model(name, image_shape=(2, 3, 1), num_classes=4, seed=1)


WRONG = {
    "create_two_outputs": "gives 2 outputs (list), expected one, logits (None, 10)",
    "create_dict": "gives 1 outputs (dict), expected one, logits (None, 10)",
    "create_two_inputs": "takes (None, 28, 28, 1) and (None, 28, 28, 1), expected one input, images (None, 28, 28, 1)",
    "create_flat": "takes (None, 784), expected one input, images (None, 28, 28, 1)",
    # Keras 3.12 finds it when the model is traced, later ones when it is built.
    "create_too_many_poolings": ": ValueError: Exception encountered when calling MaxPooling2D.call(). ",
    "create_name_error": "it cannot be built: NameError: name 'nonsense' is not defined",
    "Dense": "returned Dense, expected a keras.Model",
    "create_hiding": "computes with variables that Keras does not know (scale:0)",
    "create_nothing": "has no attribute 'create_nothing'",
}  # fmt: skip


@pytest.mark.parametrize("function", WRONG)
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_model_that_cannot_be_trained_is_refused_in_one_line(
    function, num_replicas, create_strategy
):
    name = f"wrong_models:{function}"
    strategy = create_strategy(num_replicas)
    with strategy.scope(), pytest.raises(InputError) as caught:
        create_model(name, image_shape=(28, 28, 1), num_classes=10, seed=1)
    message = str(caught.value)
    assert message.startswith("--model: ")
    assert repr(name) in message
    assert WRONG[function] in message
    assert "\n" not in message
    assert "x1b" not in message  # Keras has its own in bold
    is_own_fault = isinstance(caught.value, OwnCodeError)
    assert is_own_fault == (
        function in ("create_too_many_poolings", "create_name_error")
    )


def test_module_with_a_fault_is_told_from_one_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "faulty_syntax.py").write_text("def create(:\n")
    (tmp_path / "faulty_import.py").write_text("import no_such_package_at_all\n")
    for name, words in (
        ("faulty_syntax:create", "its module cannot be imported: SyntaxError"),
        ("faulty_import:create", "ModuleNotFoundError: No module named 'no_such_"),
    ):
        with pytest.raises(OwnCodeError, match=words):
            create_model(name, image_shape=(2, 2, 1), num_classes=2, seed=1)
    with pytest.raises(
        InputError, match="cannot load 'no_such_module:create'"
    ) as caught:
        create_model(
            "no_such_module:create", image_shape=(2, 2, 1), num_classes=2, seed=1
        )
    assert not isinstance(caught.value, OwnCodeError)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("create_softmax", "applies softmax; the loss expects logits"),
        (
            "create_rescaling",
            "layer 'scaled' of 'wrong_models:create_rescaling' scales",
        ),
    ],
)
def test_habits_of_other_training_loops_are_warned_of(function, words, caplog):
    create_model(
        f"wrong_models:{function}", image_shape=(28, 28, 1), num_classes=10, seed=1
    )
    assert words in caplog.text


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("mlp", 785 * 128 + 129 * 10),
        ("cnn", 26 * 32 + 289 * 64 + 577 * 128 + 2049 * 10),
        # Two trained values a filter for the normalization, in place of a bias.
        ("cnn_bn", 27 * 16 + 146 * 32 + 290 * 64 + 1025 * 10),
    ],
)
def test_bundled_models_have_their_layers(name, num_parameters):
    model = create_model(name, image_shape=(28, 28, 1), num_classes=10, seed=1)
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == num_parameters
    assert model(np.zeros([3, 28, 28, 1], np.float32)).shape == (3, 10)


def test_bundled_models_of_small_images_can_be_built():
    for name in ("mlp", "cnn", "cnn_bn"):
        model = create_model(name, image_shape=(5, 4, 3), num_classes=2, seed=1)
        assert model.output_shape == (None, 2)
