"""Export: a SavedModel that needs no code of ours, checked before it gets its name."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mnist_dist.artifacts.picture_decoding import decode_picture
from mnist_dist.artifacts.staging import exporting, prepare_directory
from mnist_dist.artifacts.verification import (
    check_logits,
    evaluate_export,
    inference_logits,
    noise_images,
)
from mnist_dist.artifacts.warmup_requests import save_warmup_requests
from mnist_dist.data import Split
from mnist_dist.device.train_state import TrainState, weight_path
from mnist_dist.errors import InputError
from mnist_dist.files.local import plain_folder
from mnist_dist.inference import model_card
from mnist_dist.modeling.forward_pass import run_forward_pass
from mnist_dist.modeling.networks import normalize
from mnist_dist.modeling.randomness import seed_generators
from mnist_dist.run.config import RunConfig
from mnist_dist.run.directory import list_versions

SIGNATURES = ("serving_default", "serving_float", "serving_png")

_WARMUP_BATCHES = (1, 32)
_NUM_VERIFIED_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Export:
    """Where an export lies, and whether it was written just now or found there."""

    path: str
    is_new: bool


def export_saved_model(
    state: TrainState,
    directory: str,
    *,
    config: RunConfig,
    uses_ema: bool,
    evaluation: Split | None,
    evaluation_checksum: str | None = None,
    version: int | None = None,
    overwrite: bool = False,
) -> Export:
    """Writes the state's inference weights as `directory/<version>/`.

    Signatures, whose input `images` has one type each: `serving_default` takes uint8
    [batch, height, width, channels]; `serving_float` float32 in [0, 1] of that shape;
    `serving_png` strings [batch], each a PNG or JPEG file of any size, which is
    resized to height x width; it does not cut digits out, as `predict` does of
    pictures of another size. All return `probabilities` float32 [batch,
    num_classes], `classes` int64 [batch] and `logits` float32 [batch, num_classes],
    for a batch of any size, 0 too.

    Beside it lie `model_card.json` and TensorFlow Serving's warm-up requests. What
    is there already is never replaced unasked: where any version holds the same
    model, that one is returned; where the version holds another, the next free
    number is taken.

    Args:
      state: what was trained.
      directory: gets a folder named by the version, as TensorFlow Serving wants it.
      config: of the run, for the model card.
      uses_ema: whether the inference weights are a moving average.
      evaluation: images and labels whose results go on the model card, and whose
        predictions must survive the round trip; None takes noise for that.
      evaluation_checksum: of the data set that they are of; None: the run's.
      version: number of the version; None is the step.
      overwrite: replace another model under this number.

    Raises:
      InputError: `version` is given, and holds another model; or the directory cannot
        be written to.
      RunError: writing it failed, or it does not predict what the model does.
    """
    number = int(state.step.numpy()) if version is None else version
    prepare_directory(directory)
    content = model_card.identify_model(state, config=config)
    taken = list_versions(directory)
    for existing in [number] if version is not None else taken:
        path = os.path.join(directory, str(existing))
        if existing in taken and model_card.holds_model(path, content):
            return Export(path, is_new=False)
    if number in taken and not overwrite:
        if version is not None:
            raise InputError(
                f"{os.path.join(directory, str(number))}: found another model, expected "
                "none or the same; give another --version or --overwrite"
            )
        number = taken[0] + 1

    path = os.path.join(directory, str(number))
    with exporting(path, overwrite=overwrite) as staging:
        with tf.device("/CPU:0"):
            module = create_serving_module(state, image_shape=config.image_shape)
        signatures = {name: getattr(module, name) for name in SIGNATURES}
        # AutoGraph would leave a file in TMPDIR: a worker ends without exit handlers.
        save = tf.autograph.experimental.do_not_convert(tf.saved_model.save)
        save(module, staging, signatures=signatures)
        save_warmup_requests(staging, _warmup_requests(config.image_shape))
        with tf.device("/CPU:0"):
            results = _verify(staging, state, config, evaluation)
        about = model_card.describe_model(
            state,
            config=config,
            uses_ema=uses_ema,
            evaluation=results,
            evaluation_checksum=evaluation_checksum,
        )
        about["signatures"] = _describe_signatures(signatures)
        model_card.save_model_card(staging, content | about)
    return Export(path, is_new=True)


def trace_signatures(state: TrainState, *, image_shape: tuple[int, int, int]) -> None:
    """Traces all signatures and writes nothing, to see that a model can be exported."""
    with tf.device("/CPU:0"):
        module = create_serving_module(state, image_shape=image_shape)
    for name in SIGNATURES:
        getattr(module, name).get_concrete_function()


def create_serving_module(
    state: TrainState, *, image_shape: tuple[int, int, int]
) -> tf.Module:
    """Builds a module with its own copy of the weights, outside any strategy.

    Returns:
      A module with a function for each of `SIGNATURES`.
    """
    model = state.model
    copies = [tf.Variable(v.numpy()) for v in state.inference_weights()]
    # Keras's RNN layers with dropout read their seeds in inference too, for nothing.
    seeds = [generator.state for generator in seed_generators(model)]
    seed_values = [seed.numpy() for seed in seeds]
    height, width, channels = image_shape

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        count = tf.shape(images)[0]
        # Batch normalisation's kernel refuses no images: it gets one, for nothing.
        one_if_empty = tf.cast(count == 0, tf.int32)
        padded = tf.pad(images, [[0, one_if_empty], [0, 0], [0, 0], [0, 0]])
        # The converter to LiteRT must know height and width, which the padding hides.
        padded = tf.reshape(padded, [-1, *image_shape])
        logits = run_forward_pass(
            model,
            padded,
            variables=state.keras_weights + seeds,
            # Constants of the graph: the converter to ONNX takes captured ones for inputs.
            values=[tf.identity(v) for v in copies] + [*map(tf.constant, seed_values)],
            training=False,
        ).logits[:count]
        return {
            "probabilities": tf.nn.softmax(logits),
            "classes": tf.argmax(logits, axis=1),
            "logits": logits,
        }

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        image = decode_picture(encoded, channels=channels)
        image = tf.image.resize(image, [height, width], antialias=True)
        # To whole numbers again, so that an image of the right size stays as it is.
        return tf.saturate_cast(tf.round(image), tf.uint8)

    def classify_encoded(images: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = tf.TensorSpec([height, width, channels], tf.uint8)
        decoded = tf.map_fn(decode, images, fn_output_signature=spec)
        return classify(normalize(decoded))

    def signature(function: Callable, dtype: tf.DType, *shape: int) -> Callable:
        spec = tf.TensorSpec([None, *shape], dtype, name="images")
        return tf.function(function, input_signature=[spec], autograph=False)

    module = tf.Module()
    paths = [weight_path(model, v) for v in state.keras_weights]
    module.model = _nest(dict(zip(paths, copies, strict=True)))
    module.serving_default = signature(
        lambda images: classify(normalize(images)), tf.uint8, *image_shape
    )
    module.serving_float = signature(classify, tf.float32, *image_shape)
    module.serving_png = signature(classify_encoded, tf.string)
    return module


def _verify(
    path: str, state: TrainState, config: RunConfig, split: Split | None
) -> dict[str, Any] | None:
    """Compares all signatures with the model; returns what it gets right."""
    with plain_folder(path) as folder:
        serve = tf.saved_model.load(folder).signatures
    images = (
        noise_images(config.image_shape, _NUM_VERIFIED_IMAGES)
        if split is None
        else split.images[:_NUM_VERIFIED_IMAGES]
    )
    encoded = tf.stack([tf.io.encode_png(image) for image in images])
    inputs = {
        "serving_default": tf.constant(images),
        "serving_float": normalize(tf.constant(images)),
        "serving_png": encoded,
    }
    expected = inference_logits(state, images)
    for name, value in inputs.items():
        check_logits(
            f"{path}: {name}",
            serve[name](images=value)["logits"].numpy(),
            expected=expected,
            dtype=state.model.compute_dtype,
        )
    return evaluate_export(
        lambda x: serve["serving_default"](images=tf.constant(x))["logits"].numpy(),
        split,
        num_classes=config.num_classes,
    )


def _warmup_requests(
    image_shape: tuple[int, int, int],
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    # Noise, for an export may go where the data must not.
    for batch in _WARMUP_BATCHES:
        images = noise_images(image_shape, batch)
        encoded = np.array([tf.io.encode_png(i).numpy() for i in images], object)
        yield "serving_default", {"images": images}
        yield "serving_float", {"images": images.astype(np.float32) / 255}
        yield "serving_png", {"images": encoded}


def _nest(named: Mapping[str, tf.Variable]) -> dict[str, Any]:
    """Turns names with slashes into nested dictionaries, whose keys TensorFlow joins."""
    tree: dict[str, Any] = {}
    for name, value in named.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


def _describe_signatures(signatures: dict[str, Any]) -> dict[str, Any]:
    def describe(specs: dict[str, Any]) -> dict[str, str]:
        return {
            name: f"{spec.dtype.name} {['batch', *spec.shape.as_list()[1:]]}".replace(
                "'", ""
            )
            for name, spec in specs.items()
        }

    return {
        name: {
            "inputs": describe({"images": function.input_signature[0]}),
            "outputs": describe(function.get_concrete_function().structured_outputs),
        }
        for name, function in signatures.items()
    }
