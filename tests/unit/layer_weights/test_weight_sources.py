"""What Keras and others wrote is read by layer; what is none of it is one line."""

import os
import struct
import time
import zipfile

import keras
import pytest
import tensorflow as tf
from array_checks import assert_same_bytes
from custom_models import create_small
from run_factory import create_run

from mnist_dist.device.train_state import weight_path
from mnist_dist.errors import InputError
from mnist_dist.layer_weights.weight_sources import load_weights
from mnist_dist.run.checkpoints import OBJECT_GRAPH


def of_model(model):
    return {weight_path(model, v): v.numpy() for v in model.weights}


@pytest.mark.parametrize("name", ["m", "lr[0.1]", "a*\\?"])
@pytest.mark.parametrize("form", ["keras", "keras_export", "checkpoint_of_keras"])
def test_what_keras_wrote_is_read_by_layer(form, name, tmp_path):
    tmp_path /= name
    tmp_path.mkdir()
    model = create_small()
    if form == "keras":
        path = str(tmp_path / "m.keras")
        model.save(path)
    elif form == "keras_export":
        path = str(tmp_path / "1")
        model.export(path, verbose=False)
        assert load_weights(str(tmp_path)).source == path
    else:
        path = tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
    assert_same_bytes(load_weights(path).arrays, of_model(model))


@pytest.mark.parametrize("graph", [None, b"\xff\xff"])
def test_checkpoint_without_a_whole_graph_of_objects_is_an_input_error(graph, tmp_path):
    path = str(tmp_path / "c")
    names = ["hidden/kernel"] + ([OBJECT_GRAPH] if graph else [])
    tensors = [tf.ones([2])] + ([tf.constant(graph)] if graph else [])
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=tensors,
    )
    found = (
        r"c is damaged: [^\n]+" if graph else "c: found a checkpoint without a graph"
    )
    with pytest.raises(InputError, match=found):
        load_weights(path)


def test_run_with_a_scheme_is_read_as_a_local_one(tmp_path):
    create_run(tmp_path / "run")
    expected = load_weights(str(tmp_path / "run"))
    remote = "ram://weight_sources/run"
    for folder, _, names in os.walk(tmp_path / "run"):
        target = f"{remote}/{os.path.relpath(folder, tmp_path / 'run')}"
        target = target.removesuffix("/.")
        tf.io.gfile.makedirs(target)
        for name in names:
            tf.io.gfile.copy(os.path.join(folder, name), f"{target}/{name}")
    for path in (remote, f"{remote}/checkpoints/ckpt-1"):
        found = load_weights(path)
        assert found.source == f"{remote}/checkpoints/ckpt-1"
        assert_same_bytes(found.arrays, expected.arrays)


def test_keras_file_whose_layers_are_huge_is_refused_before_it_is_built(tmp_path):
    path = tmp_path / "m.keras"
    create_small().save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = members["config.json"].replace(b'"units": 10', b'"units": 2000000000')
    assert config != members["config.json"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {"config.json": config}).items():
            archive.writestr(name, data)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"its layers need \d{11} bytes"):
        load_weights(str(path))
    assert time.monotonic() - began < 5


def test_lambda_in_a_keras_file_is_not_run(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)])
    model.save(tmp_path / "m.keras")
    with pytest.raises(InputError, match=r"m\.keras': Keras cannot load it"):
        load_weights(str(tmp_path / "m.keras"))


def test_layer_class_of_ones_own_is_named_with_what_makes_it_known(tmp_path):
    class Mine(keras.layers.Layer):
        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), Mine()])
    model.save(tmp_path / "m.keras")
    with pytest.raises(InputError, match=r"'Mine'.*register_keras_serializable\(\)"):
        load_weights(str(tmp_path / "m.keras"))


@pytest.mark.parametrize("content", [b"", b"PK", struct.pack("100d", *range(100))])
def test_files_that_are_none_of_these_are_input_errors(content, tmp_path):
    for name in ("f.npz", "f.keras", "f.bin"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            load_weights(str(tmp_path / name))
