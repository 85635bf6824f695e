"""Export into one file: the file and its card are of one model, whatever happens."""

import json
import os
import tempfile
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from full_disk import file_size_limit
from run_factory import create_run, save_data_set

from mnist_dist.artifacts import model_files
from mnist_dist.artifacts.model_export import export_model
from mnist_dist.errors import InputError, RunError
from mnist_dist.files import durable
from mnist_dist.inference.model_card import load_model_card
from mnist_dist.inference.trained_model import load_trained_model


def is_card(path):
    return path.endswith(".json")


@pytest.fixture
def export(tmp_path):
    run = tmp_path / "run"
    data_dir = save_data_set(tmp_path / "data")
    create_run(run, data_dir=data_dir, steps=(5,))

    def export(*, use_ema, file_format="keras", **kwargs):
        trained = load_trained_model(str(run), use_ema=use_ema)
        return model_files.export_file(
            trained.state,
            str(tmp_path / "export"),
            file_format=file_format,
            config=trained.config,
            uses_ema=use_ema,
            evaluation=None,
            **kwargs,
        )

    return export


@pytest.fixture
def fail(monkeypatch):
    """Has the file or the card fail just before it gets its name."""
    rename = tf.io.gfile.rename

    def fail(is_meant, error):
        def failing(source, target, overwrite=False):
            if is_meant(target):
                raise error
            rename(source, target, overwrite=overwrite)

        monkeypatch.setattr(durable.tf.io.gfile, "rename", failing)

    yield fail
    monkeypatch.undo()


@pytest.mark.parametrize("is_meant", [is_card, lambda path: not is_card(path)])
def test_no_model_lies_beside_the_card_of_another(is_meant, export, fail, tmp_path):
    path = export(use_ema=True).path
    before = Path(path).read_bytes()
    fail(is_meant, KeyboardInterrupt())  # as a kill does, it leaves all as it lies
    with pytest.raises(KeyboardInterrupt):
        export(use_ema=False, overwrite=True)
    assert os.listdir(tmp_path / "export") == ["model-5.keras"]
    is_old = Path(path).read_bytes() == before
    assert is_old == (is_meant is not is_card)
    assert load_model_card(path) is None


@pytest.mark.parametrize("is_meant", [is_card, lambda path: not is_card(path)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_after_a_kill_the_same_command_goes_on(is_meant, overwrite, export, fail):
    if overwrite:
        export(use_ema=True)
    fail(is_meant, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        export(use_ema=False, overwrite=overwrite)
    fail(lambda path: False, None)
    done = export(use_ema=False, overwrite=overwrite)
    assert done.is_new
    assert load_model_card(done.path)["moving_average"] is False


def test_full_disk_before_the_file_leaves_the_old_pair(export, monkeypatch):
    path = export(use_ema=True).path
    card = load_model_card(path)

    def copy(source, target, overwrite=False):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(model_files.tf.io.gfile, "copy", copy)
    with pytest.raises(
        RunError, match=r"model-5\.keras cannot .*nothing was published"
    ):
        export(use_ema=False, overwrite=True)
    assert load_model_card(path) == card


@pytest.mark.parametrize("file_format", ["keras", "tflite", "onnx"])
def test_full_temporary_directory_is_no_fault_of_the_model(
    file_format, export, tmp_path
):
    with (
        file_size_limit(100),
        pytest.raises(RunError, match=r"cannot .*File too large; nothing was publ"),
    ):
        export(use_ema=True, file_format=file_format)
    assert os.listdir(tmp_path / "export") == []


@keras.saving.register_keras_serializable("test_model_files")
class NotSerializable(keras.layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def create_not_serializable(*, image_shape, num_classes):
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            NotSerializable(lambda x: 2 * x, name="twice"),
            keras.layers.Dense(num_classes, name="head"),
        ],
        name="mine",
    )


def test_reason_that_keras_gives_is_whole_and_in_one_line(tmp_path):
    data_dir = save_data_set(tmp_path / "data")
    model = f"{__name__}:create_not_serializable"
    create_run(tmp_path / "run", model=model, data_dir=data_dir)
    with pytest.raises(InputError) as caught:
        export_model(str(tmp_path / "run"), format="keras")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("--format=keras: the model 'mine' cannot be")
    assert "Object NotSerializable was created by passing non-serializable" in line
    assert "must override `get_config()` in order to be serializable" in line


def test_no_temporary_directory_is_told_as_that(export, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    with pytest.raises(RunError, match=r"nothing/.* cannot be written: No such file"):
        export(use_ema=True)


def test_card_that_fails_alone_is_told_as_that(export, fail):
    fail(is_card, OSError(28, os.strerror(28)))
    with pytest.raises(RunError, match=r"\.json cannot .*nothing was published"):
        export(use_ema=True)
    fail(lambda path: False, None)
    export(use_ema=True)
    fail(is_card, OSError(28, os.strerror(28)))
    with pytest.raises(RunError, match=r"\.json cannot .*published without its card"):
        export(use_ema=False, overwrite=True)


def test_file_that_another_process_was_first_with_keeps_its_card(
    export, monkeypatch, tmp_path
):
    copy = tf.io.gfile.copy

    def copy_late(source, target, overwrite=False):
        for name in ("model-5.keras", "model-5.keras.json"):
            (tmp_path / "export" / name).write_text(json.dumps(name))
        copy(source, target, overwrite=overwrite)

    monkeypatch.setattr(model_files.tf.io.gfile, "copy", copy_late)
    with pytest.raises(InputError, match=r"appeared while .*nothing was replaced"):
        export(use_ema=True)
    for name in ("model-5.keras", "model-5.keras.json"):
        assert (tmp_path / "export" / name).read_text() == json.dumps(name)
