"""Times `predict` on many PNG files beside a plain loop and a `tf.data` pipeline.

  python tools/benchmark_predict.py [--rounds=5] [--files=4000]

It writes test images as PNG files and exports an `mlp` and a `cnn`. All sides must give the
SavedModel's own classes for every file. Then they take turns, so that other load on the
machine meets all of them. `predict` is the program itself, timed from its first result to
its last, without its start. It prints files/s (median of the rounds) and the ratio of
`predict`'s speed to each peer's (median and range).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from absl import flags

from mnist_dist.cli import program

with program.quiet_imports():
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from mnist_dist.artifacts.saved_model import create_serving_module
    from mnist_dist.data import load_dataset
    from mnist_dist.device.train_state import TrainState
    from mnist_dist.modeling.networks import create_model

ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
FILES = flags.DEFINE_integer(
    "files", 4_000, "PNG files.", lower_bound=1000, upper_bound=10_000
)
IMAGE_SHAPE = (28, 28, 1)
BATCH = 256

# A peer classifies all files once: files/s, and the class of each.
Peer = Callable[[], tuple[float, np.ndarray]]


def predict(export_dir: str, folder: str) -> Peer:
    """The program."""
    command = [sys.executable, "-m", "mnist_dist.predict", f"--export_dir={export_dir}"]
    command += [f"--images_per_call={BATCH}", "--format=json", folder]

    def run() -> tuple[float, np.ndarray]:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            # Each time when a read returned, with the bytes that had come by then.
            arrivals = []
            output = b""
            while data := os.read(process.stdout.fileno(), 1 << 20):
                output += data
                arrivals.append((time.perf_counter(), output.count(b"\n")))
        assert process.returncode == 0
        (began, at_first), (ended, at_last) = arrivals[0], arrivals[-1]
        classes = [json.loads(line)["class"] for line in output.splitlines()]
        return (at_last - at_first) / (ended - began), np.array(classes)

    return run


def plain_loop(export_dir: str, files: list[str]) -> Peer:
    """Pillow opens a file, the SavedModel classifies it, and so on."""
    serve = tf.saved_model.load(export_dir).signatures["serving_default"]

    def run() -> tuple[float, np.ndarray]:
        classes = []
        began = time.perf_counter()
        for path in files:
            with Image.open(path) as picture:
                image = np.asarray(picture)[np.newaxis, ..., np.newaxis]
            classes.append(int(serve(images=tf.constant(image))["classes"][0]))
        return len(files) / (time.perf_counter() - began), np.array(classes)

    return run


def tf_data(export_dir: str, files: list[str]) -> Peer:
    """TensorFlow's own readers in parallel, and batches."""
    serve = tf.saved_model.load(export_dir).signatures["serving_default"]

    def read(path: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(
            tf.io.decode_png(tf.io.read_file(path), channels=1), IMAGE_SHAPE
        )

    images = (
        tf.data.Dataset.from_tensor_slices(files)
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH)
        .prefetch(tf.data.AUTOTUNE)
    )

    def run() -> tuple[float, np.ndarray]:
        began = time.perf_counter()
        classes = [serve(images=batch)["classes"].numpy() for batch in images]
        return len(files) / (time.perf_counter() - began), np.concatenate(classes)

    return run


def save_pngs(folder: str, images: np.ndarray) -> list[str]:
    """Writes each image as a file; returns their paths in order."""
    files = []
    for number, image in enumerate(images):
        files.append(os.path.join(folder, f"{number:05}.png"))
        Image.fromarray(image[..., 0]).save(files[-1])
    return files


def export(name: str, export_dir: str) -> None:
    """Exports a model with initial weights: what they are takes no time."""
    model = create_model(name, image_shape=IMAGE_SHAPE, num_classes=10, seed=1)
    module = create_serving_module(
        TrainState(model, slot_names=()), image_shape=IMAGE_SHAPE
    )
    signatures = {"serving_default": module.serving_default}
    tf.saved_model.save(module, export_dir, signatures=signatures)


def compare(name: str, *, folder: str, images: np.ndarray, files: list[str]) -> bool:
    """Checks and times one model; returns whether all gave its own answers."""
    with tempfile.TemporaryDirectory() as export_dir:
        export(name, export_dir)
        peers = {
            "mnist-dist predict": predict(export_dir, folder),
            "plain loop: Pillow, one call a file": plain_loop(export_dir, files),
            f"tf.data, batches of {BATCH}": tf_data(export_dir, files),
        }
        serve = tf.saved_model.load(export_dir).signatures["serving_default"]
        expected = np.concatenate(
            [
                serve(images=tf.constant(images[i : i + BATCH]))["classes"].numpy()
                for i in range(0, len(images), BATCH)
            ]
        )
        print(f"\n{name}, {len(files):,} PNG files, {os.cpu_count()} processors")
        for peer, run in peers.items():  # this first turn also warms up
            if not np.array_equal(run()[1], expected):
                print(f"  {peer}: not the SavedModel's own answers; nothing was timed")
                return False
        rates: dict[str, list[float]] = {peer: [] for peer in peers}
        for _ in range(ROUNDS.value):
            for peer, run in peers.items():
                rates[peer].append(run()[0])
    for peer, values in rates.items():
        ratios = [
            a / b for a, b in zip(next(iter(rates.values())), values, strict=True)
        ]
        print(
            f"  {peer:<36} {statistics.median(values):>7,.0f} files/s   "
            f"predict x{statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f})"
        )
    return True


def main(argv: Sequence[str]) -> int:
    """Compares with both models."""
    del argv
    images = load_dataset().test.images[: FILES.value]
    with tempfile.TemporaryDirectory() as folder:
        files = save_pngs(folder, images)
        results = [
            compare(name, folder=folder, images=images, files=files)
            for name in ("mlp", "cnn")
        ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    program.run(main)
