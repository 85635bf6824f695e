"""Weights of layers through every form they come in, and into other models."""

import io
import os
import struct
import time
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnist_dist import layer_weights
from mnist_dist.errors import InputError
from mnist_dist.layer_files import load_folder, load_npz, save_folder, save_npz
from mnist_dist.layer_weights import (
    Weights,
    diff_layers,
    fit_layers,
    freeze_layers,
    load_layer,
    load_weights,
    replace_weights,
    set_layer,
)
from mnist_dist.optimizers import create_schedule, create_update_rule
from mnist_dist.steps import create_train_loop
from mnist_dist.train_state import TrainState

RNG = np.random.default_rng(0)
ARRAYS = {
    "dense/kernel": RNG.normal(size=(4, 3)).astype(np.float32),
    "dense/bias": np.array([0.0, -0.0, np.nan], np.float32),
    "outer/inner/kernel": np.asfortranarray(RNG.normal(size=(2, 5)).astype(np.float32)),
    "scale/scale": np.array(3.5, np.float32),
}


def create_model(name="mine", hidden="hidden"):
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu", name=hidden),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(10, name="head"),
        ],
        name=name,
    )


def of_model(model):
    return {layer_weights.weight_path(model, v): v.numpy() for v in model.weights}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_layer_files_are_read_by_us_and_by_numpy_bit_for_bit(form, tmp_path):
    path = str(tmp_path / ("f.npz" if form == "npz" else "f"))
    (save_npz if form == "npz" else save_folder)(ARRAYS, path)
    assert_same(load_weights(path).arrays, ARRAYS)
    if form == "npz":
        with np.load(path) as file:
            assert_same(dict(file), ARRAYS)
    else:
        assert_same({n: np.load(f"{path}/{n}.npy") for n in ARRAYS}, ARRAYS)
    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_what_numpy_wrote_is_read(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "f.npz", **ARRAYS)
        assert_same(load_npz(str(tmp_path / "f.npz")), ARRAYS)


def test_folder_that_holds_something_is_not_touched(tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(InputError, match="new or empty folder"):
        save_folder(ARRAYS, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def npy(array, **kwargs):
    data = io.BytesIO()
    np.save(data, array, **kwargs)
    return data.getvalue()


def bomb():
    """A valid array of 4 GB of zeros, in 4 MB."""
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (1 << 30,)}
    np.lib.format.write_array_header_1_0(header, claim)
    return header.getvalue() + bytes(1 << 27)


ONE = npy(np.ones(3, np.float32))
HOSTILE = {
    "up": ({"../x/kernel.npy": ONE}, r"'\.\./x/kernel'"),
    "absolute": ({"/etc/kernel.npy": ONE}, "'/etc/kernel'"),
    "no layer": ({"kernel.npy": ONE}, "'kernel'"),
    "newline": ({"a\nb/kernel.npy": ONE}, r"a\\nb/kernel"),
    "not an array": ({"a/readme.txt": b"x"}, "readme.txt"),
    "pickle": ({"a/b.npy": npy(np.array([{}]), allow_pickle=True)}, "pickled"),
    "text": ({"a/b.npy": npy(np.array(["x"]))}, "expected numbers"),
    "short": ({"a/b.npy": ONE[:-1]}, "too short"),
    "long": ({"a/b.npy": ONE + b"x"}, "trailing bytes"),
    "bomb": ({"a/b.npy": bomb()}, "the header claims 4294967296 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_npz_is_one_clear_error_in_bounded_time(case, tmp_path):
    members, message = HOSTILE[case]
    path = str(tmp_path / "f.npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    began = time.monotonic()
    with pytest.raises(InputError, match=message) as error:
        load_weights(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 2


def test_nul_in_a_member_name_is_refused(tmp_path):
    path = tmp_path / "f.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/bXc.npy", ONE)
    path.write_bytes(path.read_bytes().replace(b"bXc", b"b\0c"))
    with pytest.raises(InputError, match=r"f\.npz"):
        load_npz(str(path))


@pytest.mark.parametrize("cut", [0, 1, 30, 200, -30, -1])
def test_damaged_npz_is_an_input_error(cut, tmp_path):
    path = tmp_path / "f.npz"
    save_npz(ARRAYS, str(path))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"f\.npz"):
        load_npz(str(path))


def test_folder_without_end_is_refused(tmp_path):
    (tmp_path / "/".join("abcdefghijk")).mkdir(parents=True)
    with pytest.raises(InputError, match="levels"):
        load_folder(str(tmp_path))


@pytest.mark.parametrize("form", ["keras", "keras_export", "checkpoint_of_keras"])
def test_what_keras_wrote_is_read_by_layer(form, tmp_path):
    model = create_model()
    if form == "keras":
        path = str(tmp_path / "m.keras")
        model.save(path)
    elif form == "keras_export":
        path = str(tmp_path / "1")
        model.export(path, verbose=False)
        assert load_weights(str(tmp_path)).source == path
    else:
        path = tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
    assert_same(load_weights(path).arrays, of_model(model))


def test_keras_file_whose_layers_are_huge_is_refused_before_it_is_built(tmp_path):
    path = tmp_path / "m.keras"
    create_model().save(path)
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


@pytest.mark.parametrize("content", [b"", b"PK", struct.pack("100d", *range(100))])
def test_files_that_are_none_of_these_are_input_errors(content, tmp_path):
    for name in ("f.npz", "f.keras", "f.bin"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            load_weights(str(tmp_path / name))


def test_three_lines_set_a_layer_of_ones_own(tmp_path):
    save_npz(
        {f"features/{n}": a for n, a in of_dense().items()}, str(tmp_path / "f.npz")
    )
    dense = tf.keras.layers.Dense(3)
    dense.build([None, 4])
    set_layer(dense, load_layer(str(tmp_path / "f.npz"), "features"))
    np.testing.assert_array_equal(dense.kernel, of_dense()["kernel"])
    np.testing.assert_array_equal(dense.bias, of_dense()["bias"])


def of_dense():
    return {"kernel": ARRAYS["dense/kernel"], "bias": np.arange(3, dtype=np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kernel": np.ones((3, 4), np.float32)},
            r"found float32 \[3, 4\], expected float32 \[4, 3\]",
        ),
        (
            {"bias": np.ones(3, np.float64)},
            r"d/bias: found float64 \[3\], expected float32",
        ),
        ({"gamma": np.ones(3, np.float32)}, "d/gamma: .* expected no such weight"),
        ({"bias": None}, r"d/bias: found nothing, expected float32 \[3\]"),
    ],
)
def test_layer_that_does_not_fit_is_left_as_it_was(change, message):
    dense = keras.layers.Dense(3, name="d")
    dense.build([None, 4])
    before = [v.numpy() for v in dense.weights]
    arrays = {n: a for n, a in (of_dense() | change).items() if a is not None}
    with pytest.raises(InputError, match=message):
        set_layer(dense, arrays)
    for old, new in zip(before, dense.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_layers_go_whole_or_not_at_all_and_every_one_is_accounted_for():
    source = {
        "a/kernel": np.ones((2, 2), np.float32),
        "a/bias": np.ones(2, np.float32),
        "b/kernel": np.ones((2, 2), np.float32),
        "b/bias": np.ones(3, np.float32),
        "c/kernel": np.ones(1, np.float32),
    }
    weights = Weights("S", source, {n: n for n in source})
    specs = {
        n: ((2, 2) if "kernel" in n else (2,), np.dtype("f4")) for n in list(source)[:4]
    }
    fit = fit_layers(weights, specs, target="T")
    assert fit.applied.keys() == {"a/kernel", "a/bias"}
    assert "found float32 [3], expected float32 [2]" in fit.skipped["b"]
    assert "T has no layer 'c', only a, b" in fit.skipped["c"]
    assert fit_layers(weights, specs, layer_map=[("a", "b")], target="T").taken == {
        "b": "a"
    }
    for pairs, message in [
        ([("b", "b")], "layer 'b'.*expected float32"),
        ([("a", "z")], "no layer 'z', only a, b"),
        ([("z", "a")], "no layer 'z', expected one of: a, b, c"),
        ([("a", "../a")], "found the layer name"),
        ([("a\0", "a")], "found the layer name"),
        ([("a", "a"), ("a", "a")], "two layers for 'a'"),
    ]:
        with pytest.raises(InputError, match=message):
            fit_layers(weights, specs, layer_map=pairs, target="T")
    with pytest.raises(InputError, match="no layer fits: c: "):
        fit_layers(
            Weights("S", {"c/kernel": source["c/kernel"]}, {}), specs, target="T"
        )


def test_replaced_weights_reset_slots_and_average_of_their_layer_alone():
    names = [
        "model/a/k",
        "ema/a/k",
        "optimizer/mean/a/k",
        "model/b/k",
        "optimizer/mean/b/k",
        "step",
    ]
    before = {n: np.full(2, 7.0, np.float32) for n in names}
    new = np.array([1, 2], np.float32)
    after = replace_weights(before, {"a/k": new})
    expected = before | {
        "model/a/k": new,
        "ema/a/k": new,
        "optimizer/mean/a/k": 0 * new,
    }
    assert_same(after, expected)


def test_differences_are_those_numpy_finds():
    a = {"x/k": np.array([3, 4], np.float32), "y/k": np.zeros(2, np.float32)}
    b = {"x/k": np.array([3, 4.5], np.float32), "y/k": np.zeros(3, np.float32)}
    x, y, z = diff_layers(
        Weights("A", a, {}), Weights("B", b | {"z/k": np.ones(1)}, {})
    )
    assert (x.num_values, x.num_different, x.max_abs, x.norm) == (2, 1, 0.5, 0.5)
    assert x.relative == pytest.approx(0.1)
    assert "found float32 [3], expected float32 [2]" in y.note
    assert z.note == "only in B"


@pytest.mark.parametrize("num_replicas", [1, 3])
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_layers_stay_and_others_start_from_what_was_set(
    num_replicas, frozen, create_strategy
):
    strategy = create_strategy(num_replicas)
    rule = create_update_rule("adamw", weight_decay=0.1)
    with strategy.scope():
        model = create_model()
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
        freeze_layers(create_model(), ["no"])
    with pytest.raises(InputError, match="expected one left to train"):
        freeze_layers(create_model(), ["hidden", "norm", "head"])
