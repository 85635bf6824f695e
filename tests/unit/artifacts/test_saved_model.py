"""What is exported, read by TensorFlow and by readers that are not TensorFlow."""

import hashlib
import io
import json
import os
import shutil
import tempfile
from types import SimpleNamespace

import numpy as np
import openvino
import pytest
import tensorflow as tf
from custom_models import mixed_logits
from google.protobuf.unknown_fields import UnknownFieldSet
from PIL import Image
from run_factory import create_run, save_data_set
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from mnist_dist.artifacts import saved_model, verification
from mnist_dist.artifacts.picture_decoding import decode_picture
from mnist_dist.artifacts.saved_model import export_saved_model
from mnist_dist.data import load_dataset
from mnist_dist.errors import InputError, RunError
from mnist_dist.files.durable import staging_folder
from mnist_dist.inference.model_card import load_model_card
from mnist_dist.inference.trained_model import load_trained_model
from mnist_dist.pictures import decoding as pictures
from mnist_dist.pictures.digit_images import fit_images

SHAPE, NUM_CLASSES = (6, 5, 3), 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of `create_mixed` with the steps 1 and 2: directory, arrays, data."""
    folder = tmp_path_factory.mktemp("run")
    data_dir = save_data_set(folder / "data", shape=SHAPE, num_classes=NUM_CLASSES)
    written = create_run(
        folder, model="custom_models:create_mixed", data_dir=data_dir, steps=(1, 2)
    )
    return str(folder), written, load_dataset(data_dir)


def export(run, directory, *, checkpoint="latest", use_ema=None, data=True, **kwargs):
    trained = load_trained_model(run[0], checkpoint=checkpoint, use_ema=use_ema)
    return export_saved_model(
        trained.state,
        str(directory),
        config=trained.config,
        uses_ema=trained.uses_ema,
        evaluation=run[2].test if data else None,
        **kwargs,
    )


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("export")).path


def expected_logits(run, step=2, source="ema/"):
    weights = {
        name.removeprefix(source): array
        for name, array in run[1][step].items()
        if name.startswith(source)
    }
    return mixed_logits(weights, run[2].test.images)


def test_export_is_verified_on_the_cpu_wherever_the_weights_lie(
    run, tmp_path, monkeypatch
):
    load, forward_pass = tf.saved_model.load, verification.run_forward_pass
    places = set()

    def note(logits):
        places.add(logits.device.rpartition("device:")[2])

    def load_noting(folder):
        def noting(signature):
            def serve(images):
                outputs = signature(images=images)
                note(outputs["logits"])
                return outputs

            return serve

        signatures = load(folder).signatures
        return SimpleNamespace(
            signatures={name: noting(f) for name, f in signatures.items()}
        )

    def forward_noting(*args, **kwargs):
        forward = forward_pass(*args, **kwargs)
        note(forward.logits)
        return forward

    monkeypatch.setattr(tf.saved_model, "load", load_noting)
    monkeypatch.setattr(verification, "run_forward_pass", forward_noting)
    with tf.device("/CPU:2"):  # stands in for a GPU
        assert export(run, tmp_path).is_new
    assert places == {"CPU:0"}


def assert_outputs(outputs, logits):
    found = {name: np.asarray(value) for name, value in outputs.items()}
    assert found.keys() == {"probabilities", "classes", "logits"}
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-5)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        found["probabilities"], exp / exp.sum(axis=1, keepdims=True), rtol=1e-4
    )
    np.testing.assert_array_equal(found["classes"], logits.argmax(axis=1))
    assert found["classes"].dtype == np.int64


@pytest.mark.parametrize("count", [0, 1, 53])
def test_every_signature_infers_as_numpy_does(run, exported, count):
    images = run[2].test.images[:count]
    logits = expected_logits(run)[:count]
    serve = tf.saved_model.load(exported).signatures
    floats = tf.constant(images.astype(np.float32) / 255)
    encoded = tf.constant([tf.io.encode_png(i).numpy() for i in images], tf.string)
    assert_outputs(serve["serving_default"](images=tf.constant(images)), logits)
    assert_outputs(serve["serving_float"](images=floats), logits)
    assert_outputs(serve["serving_png"](images=encoded), logits)


def test_openvino_agrees_without_tensorflow(run, exported):
    model = openvino.Core().compile_model(
        exported, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    outputs = model(run[2].test.images)
    assert_outputs(
        {key.get_any_name(): value for key, value in outputs.items()},
        expected_logits(run),
    )


def test_pictures_of_any_size_and_kind_are_resized_in_the_graph(exported):
    serve = tf.saved_model.load(exported).signatures
    rng = np.random.default_rng(3)
    # Blocks of one colour each: any good way to make it smaller gives the colours.
    small = rng.integers(0, 256, SHAPE, np.uint8)
    large = small.repeat(8, axis=0).repeat(8, axis=1)
    grey = np.broadcast_to(small[..., :1], SHAPE)
    with_alpha = np.concatenate([small, np.full_like(small[..., :1], 255)], axis=2)
    pictures = [
        (tf.io.encode_png(large), small, 0.15),
        (tf.io.encode_jpeg(large, quality=100, chroma_downsampling=False), small, 0.2),
        (tf.io.encode_png(small[..., :1]), grey, 1e-5),
        (tf.io.encode_png(with_alpha), small, 1e-5),
    ]
    encoded = tf.stack([picture for picture, _, _ in pictures])
    found = serve["serving_png"](images=encoded)["logits"].numpy()
    pixels = tf.constant(np.stack([image for _, image, _ in pictures]))
    expected = serve["serving_default"](images=pixels)["logits"].numpy()
    for a, b, (_, _, tolerance) in zip(found, expected, pictures, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)
    with pytest.raises(tf.errors.InvalidArgumentError):
        serve["serving_png"](images=tf.constant([b"no picture"]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
@pytest.mark.parametrize("is_light", [False, True])
def test_transparent_png_is_seen_as_predict_sees_it(mode, channels, is_light):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 90, (6, 5), np.uint8) + (160 if is_light else 0)
    alpha = rng.choice(np.array([0, 128, 255], np.uint8), (6, 5))
    image = Image.merge("LA", [Image.fromarray(levels), Image.fromarray(alpha)])
    image = image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 0
    data = io.BytesIO()
    image.save(data, "PNG")
    found = decode_picture(tf.constant(data.getvalue()), channels=channels)
    expected = fit_images(
        pictures.decode_picture(data.getvalue(), name="x")[np.newaxis],
        image_shape=(6, 5, channels),
        preprocess="off",
        name="x",
    )[0]
    assert found.shape == (6, 5, channels)
    # Pillow's sums are of integers.
    np.testing.assert_allclose(found, expected.astype(np.float32), atol=2)


def test_jpeg_that_is_to_be_turned_is_refused():
    image = Image.fromarray(np.zeros((6, 5), np.uint8))
    for orientation, is_refused in ((1, False), (6, True), (3, True)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = io.BytesIO()
        image.save(data, "JPEG", exif=exif)
        encoded = tf.constant(data.getvalue())
        if is_refused:
            with pytest.raises(tf.errors.InvalidArgumentError, match="EXIF says to tu"):
                decode_picture(encoded, channels=1)
        else:
            assert decode_picture(encoded, channels=1).shape == (6, 5, 1)


def test_warm_up_requests_are_read_by_servings_own_parser_and_answered(exported):
    path = f"{exported}/assets.extra/tf_serving_warmup_requests"
    logs = [
        PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(path)
    ]
    serve = tf.saved_model.load(exported).signatures
    asked = []
    for log in logs:
        request = log.predict_log.request
        # What it does not know it would keep, and write after what it knows.
        assert len(UnknownFieldSet(request)) == 0
        name = request.model_spec.signature_name
        inputs = {
            key: tf.constant(tf.make_ndarray(tensor))
            for key, tensor in request.inputs.items()
        }
        outputs = serve[name](**inputs)
        asked.append((name, len(outputs["classes"])))
    signatures = ("serving_default", "serving_float", "serving_png")
    assert asked == [(name, n) for n in (1, 32) for name in signatures]


def test_card_says_what_it_is_and_sums_up_every_file(run, exported):
    with open(f"{exported}/model_card.json", encoding="utf-8") as file:
        card = json.load(file)
    labels = run[2].test.labels
    num_correct = int((expected_logits(run).argmax(axis=1) == labels).sum())
    assert card["evaluation"]["num_correct"] == num_correct
    assert card["evaluation"]["accuracy"] == num_correct / len(labels)
    assert card["evaluation"]["split"] == "test"
    assert (card["step"], card["moving_average"]) == (2, True)
    assert card["data"]["sha256"] == run[2].checksum
    assert card["settings"]["data_dir"] == card["data"]["data_dir"]
    assert card["exported_with"]["tensorflow"] == tf.__version__
    assert card["signatures"]["serving_png"]["inputs"] == {"images": "string [batch]"}
    assert card["signatures"]["serving_default"] == {
        "inputs": {"images": "uint8 [batch, 6, 5, 3]"},
        "outputs": {
            "probabilities": "float32 [batch, 4]",
            "classes": "int64 [batch]",
            "logits": "float32 [batch, 4]",
        },
    }
    on_disk = {
        os.path.relpath(os.path.join(folder, name), exported)
        for folder, _, names in os.walk(exported)
        for name in names
    }
    assert set(card["files"]) == on_disk - {"model_card.json"}
    for name, checksum in card["files"].items():
        with open(f"{exported}/{name}", "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == checksum


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_found_by_the_cards_sums(name, damage, exported, tmp_path):
    path = str(shutil.copytree(exported, tmp_path / "2"))
    file = f"{path}/{name}"
    if damage == "remove":
        os.remove(file)
    elif damage == "truncate":
        os.truncate(file, os.path.getsize(file) - 1)
    else:
        with open(file, "r+b") as opened:
            byte = opened.read(1)[0]
            opened.seek(0)
            opened.write(bytes([byte ^ 1]))
    with pytest.raises(InputError, match=f"{name}.* damaged or half copied"):
        load_model_card(path)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"step": "2"}, "'step' is '2', not of type int"),
        ({"step": True}, "'step' is True, not of type int"),
        ({"data": []}, r"'data' is \[\], not of type dict"),
        ({"data": {"data_dir": 1}}, "'data_dir' is 1, not of type str"),
        ({"data": None, "step": None}, None),
    ],
)
def test_card_that_says_something_of_another_type(said, message, tmp_path):
    (tmp_path / "model_card.json").write_text(json.dumps({"files": {}} | said))
    if message is None:
        assert load_model_card(str(tmp_path)) == {"files": {}} | said
        return
    with pytest.raises(InputError, match=f"model_card.json: .*{message}"):
        load_model_card(str(tmp_path))


def test_same_model_is_not_written_twice_nor_another_replaced(run, tmp_path):
    first = export(run, tmp_path)
    assert first == saved_model.Export(f"{tmp_path}/2", is_new=True)
    inode = os.stat(first.path).st_ino
    assert export(run, tmp_path) == saved_model.Export(first.path, is_new=False)
    other = export(run, tmp_path, use_ema=False)
    assert other == saved_model.Export(f"{tmp_path}/3", is_new=True)
    assert not export(run, tmp_path, use_ema=False).is_new
    assert export(run, tmp_path, checkpoint="1").path == f"{tmp_path}/1"
    with pytest.raises(InputError, match=r"/1: found another model, .*--overwrite"):
        export(run, tmp_path, version=1)
    assert export(run, tmp_path, version=9).path == f"{tmp_path}/9"
    assert os.stat(first.path).st_ino == inode
    replaced = export(run, tmp_path, version=1, overwrite=True)
    assert replaced == saved_model.Export(f"{tmp_path}/1", is_new=True)
    logits = tf.saved_model.load(replaced.path).signatures["serving_default"](
        images=tf.constant(run[2].test.images)
    )["logits"]
    np.testing.assert_allclose(logits, expected_logits(run), rtol=1e-4, atol=1e-5)
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "3", "9"]


def test_damaged_version_is_neither_believed_nor_replaced(run, exported, tmp_path):
    first = shutil.copytree(exported, tmp_path / "2")
    os.truncate(first / "saved_model.pb", 10)
    assert export(run, tmp_path) == saved_model.Export(f"{tmp_path}/3", is_new=True)
    assert os.path.getsize(first / "saved_model.pb") == 10


def test_what_does_not_compute_the_same_is_not_published(run, tmp_path, monkeypatch):
    def logits(state, images):
        return np.zeros((len(images), NUM_CLASSES), np.float32)

    monkeypatch.setattr(saved_model, "inference_logits", logits)
    with pytest.raises(RunError, match="serving_default: its logits differ"):
        export(run, tmp_path)
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_in_the_temporary_directory(run, tmp_path, monkeypatch):
    """A worker ends without exit handlers, which would remove it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    export(run, tmp_path / "export", data=False)
    assert os.listdir(tmp_path / "temporary") == []


def test_only_leftovers_of_dead_processes_are_removed(run, tmp_path):
    (tmp_path / "notes").mkdir()
    with staging_folder(str(tmp_path)) as living:
        (tmp_path / ".writing-dead").mkdir()
        (tmp_path / ".writing-dead" / ".lock").touch()  # which nobody holds
        export(run, tmp_path, data=False)
        left = sorted([os.path.basename(living), "notes", "2"])
        assert sorted(os.listdir(tmp_path)) == left


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_directory_that_cannot_be_is_named(kind, run, tmp_path):
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / ("" if kind == "file" else "export")
    with pytest.raises(InputError, match=r"--export_dir: found .*/file"):
        export(run, directory)
