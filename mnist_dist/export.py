"""Writes a model that others can use, from a checkpoint of a run.

The newest checkpoint, or the best, as MODEL_DIR/export/STEP/:
  python -m mnist_dist.export --model_dir=runs/mnist
  python -m mnist_dist.export --model_dir=runs/mnist --checkpoint=best
It is served by TensorFlow Serving as it lies, and loaded with TensorFlow alone:
  tf.saved_model.load("runs/mnist/export/1875").signatures["serving_default"]
In one file, for Keras or for TensorFlow Lite:
  python -m mnist_dist.export --model_dir=runs/mnist --format=keras
  python -m mnist_dist.export --model_dir=runs/mnist --format=tflite

What is written is loaded again, and must compute what the model does, before it gets
its name. The same model is never written twice, and no other one is replaced without
--overwrite: it then gets the next free version.
"""

import os
from collections.abc import Sequence

from absl import flags, logging

from mnist_dist.cli import program
from mnist_dist.errors import InputError

flags.DEFINE_string("model_dir", None, "Directory of the run.")
flags.DEFINE_string(
    "checkpoint", "latest", "Which checkpoint of the run: latest, best, or a step."
)
flags.DEFINE_bool(
    "use_ema", None, "Take the weights' moving average. Default: if the run kept one."
)
flags.DEFINE_string("export_dir", None, "Where to write. Default: MODEL_DIR/export.")
flags.DEFINE_enum(
    "format", "saved_model", ["saved_model", "keras", "tflite"], "What to write."
)
flags.DEFINE_integer(
    "version",
    None,
    "Version of the SavedModel. Default: the step.",
    lower_bound=0,
    upper_bound=(1 << 63) - 1,  # TensorFlow Serving's
)
flags.DEFINE_bool("overwrite", False, "Replace another model of the same name.")
flags.DEFINE_string(
    "data_dir",
    None,
    "Data set whose test images give the accuracy on the model card. Default: what the "
    "run was evaluated on.",
)

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Exports one checkpoint; returns the exit code."""
    del argv
    check_flags()
    with program.quiet_imports():
        import tensorflow as tf

        from mnist_dist.artifacts.model_files import export_file
        from mnist_dist.artifacts.saved_model import export_saved_model
        from mnist_dist.inference.split_predictions import (
            load_split,
            warn_of_other_data,
        )
        from mnist_dist.inference.trained_model import load_trained_model
        from mnist_dist.run import directory as run_directory

    # A training may need all of the GPUs' memory meanwhile.
    tf.config.set_visible_devices([], "GPU")
    trained = load_trained_model(
        FLAGS.model_dir, checkpoint=FLAGS.checkpoint, use_ema=FLAGS.use_ema
    )
    config = trained.config
    checksum = None
    has_validation = bool(config.validation_examples) and not FLAGS.data_dir
    try:
        split, dataset = load_split(
            "validation" if has_validation else "test",
            data_dir=FLAGS.data_dir or config.data_dir,
            validation_examples=config.validation_examples,
            image_shape=config.image_shape,
            num_classes=config.num_classes,
        )
    except InputError as error:
        if FLAGS.data_dir:
            raise
        logging.warning("no accuracy on the model card, for the run's data: %s", error)
        split = None
    else:
        checksum = dataset.checksum
        if not FLAGS.data_dir:
            warn_of_other_data(
                trained.checkpoint,
                expected=config.data_checksum,
                source=dataset.source,
                found=checksum,
            )
    directory = FLAGS.export_dir or run_directory.export_dir(FLAGS.model_dir)
    about = {
        "config": config,
        "uses_ema": trained.uses_ema,
        "evaluation": split,
        "evaluation_checksum": checksum,
        "overwrite": FLAGS.overwrite,
    }
    if FLAGS.format == "saved_model":
        export = export_saved_model(
            trained.state, directory, version=FLAGS.version, **about
        )
    else:
        export = export_file(
            trained.state, directory, file_format=FLAGS.format, **about
        )

    weights = "moving average of the weights" if trained.uses_ema else "weights"
    print(f"checkpoint  {trained.checkpoint}, {weights}")
    note = "" if export.is_new else "  (it was there, the same model)"
    print(f"export      {export.path}{note}")
    if FLAGS.format == "saved_model":
        newest = os.path.basename(run_directory.list_version_paths(directory)[0])
        if not export.path.endswith(f"/{newest}"):
            print(f"note        TensorFlow Serving serves the highest: {newest}")
    return 0


def check_flags() -> None:
    """Checks what one flag's own bounds cannot say.

    Raises:
      InputError: names the flag, what was found and what was expected.
    """
    if not FLAGS.model_dir:
        raise InputError("--model_dir: found nothing, expected the directory of a run")
    program.check_checkpoint(FLAGS.checkpoint)
    if FLAGS.version is not None and FLAGS.format != "saved_model":
        raise InputError(
            f"--version: found {FLAGS.version} with --format={FLAGS.format}, expected "
            "none: only SavedModels have versions"
        )


if __name__ == "__main__":
    program.run(main)
