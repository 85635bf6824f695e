"""Runs without training: random weights in checkpoints, and what `train` records."""

import numpy as np

from mnist_dist.artifacts.saved_model import export_saved_model
from mnist_dist.data import load_dataset
from mnist_dist.device.train_state import TrainState
from mnist_dist.modeling.networks import create_model
from mnist_dist.run.checkpoint_writer import CheckpointWriter
from mnist_dist.run.config import RunConfig, save_config
from mnist_dist.run.paths import best_dir, checkpoint_dir
from mnist_dist.run.plan import StoppingRule


def create_run(
    model_dir,
    *,
    model="mlp",
    data_dir=None,
    steps=(1,),
    best_step=None,
    with_ema=True,
    total_steps=None,
    target_accuracy=None,
    patience=0,
    best_accuracy=0.5,
    evaluations_since_best=0,
    seed=0,
    dtype="float32",
):
    """Writes a run of these steps; returns each step's arrays."""
    dataset = load_dataset(data_dir)
    state = TrainState(
        create_model(
            model,
            image_shape=dataset.image_shape,
            num_classes=dataset.num_classes,
            seed=1,
        ),
        slot_names=("mean",),
        with_ema=with_ema,
    )
    model_dir.mkdir(parents=True, exist_ok=True)
    save_config(
        str(model_dir),
        settings={"model": model, "seed": 1, "dropout": 0.0, "dtype": dtype}
        | {"validation_examples": 0, "data_checksum": dataset.checksum},
        flags={"data_dir": None if data_dir is None else str(data_dir)}
        | {"target_accuracy": target_accuracy, "early_stopping_patience": patience},
        resolved={"data": dataset.source, "image_shape": dataset.image_shape}
        | {"num_classes": dataset.num_classes}
        | {"total_steps": total_steps or max(steps)},
    )
    writer = CheckpointWriter()
    written = {}
    for step in steps:
        written[step] = random_arrays(state, seed=seed + step) | {
            "step": np.array(step, np.int64),
            "best/accuracy": np.array(best_accuracy),
            "best/step": np.array(best_step or step, np.int64),
            "best/evaluations_since": np.array(evaluations_since_best, np.int64),
        }
        writer.save(
            written[step],
            directory=checkpoint_dir(str(model_dir)),
            step=step,
            max_to_keep=len(steps),
        )
        if step == best_step:
            writer.save(
                written[step],
                directory=best_dir(str(model_dir)),
                step=step,
                max_to_keep=1,
            )
    writer.close()
    return written


def random_arrays(state, *, seed):
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, (shape, dtype) in state.specs().items():
        values = rng.normal(0, 0.3, shape)
        # A variance is positive.
        arrays[name] = (np.abs(values) + 0.1 if "variance" in name else values).astype(
            dtype
        )
    return arrays


def save_data_set(directory, *, shape=(6, 5, 3), num_classes=4, num_test=53, seed=0):
    """Writes a small data set of noise."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(
        directory / "mnist.npz",
        x_train=rng.integers(0, 256, (20, *shape), np.uint8),
        y_train=(np.arange(20) % num_classes).astype(np.uint8),
        x_test=rng.integers(0, 256, (num_test, *shape), np.uint8),
        y_test=rng.permutation(np.arange(num_test) % num_classes).astype(np.uint8),
    )
    return directory


def export_untrained(
    directory, *, image_shape=(28, 28, 1), num_classes=10, resolved=None
):
    """Exports an `mlp` with initial weights; returns the version's path."""
    state = TrainState(
        create_model("mlp", image_shape=image_shape, num_classes=num_classes, seed=1),
        slot_names=[],
    )
    config = RunConfig(
        model="mlp",
        image_shape=image_shape,
        num_classes=num_classes,
        seed=1,
        dropout=0.0,
        dtype="float32",
        data_dir=None,
        data_checksum="",
        validation_examples=0,
        validation_split="stratified",
        stopping=StoppingRule(total_steps=1),
        contents={"resolved": resolved or {}},
    )
    return export_saved_model(
        state, str(directory), config=config, uses_ema=False, evaluation=None
    ).path
