"""Exports a checkpoint of a run as a SavedModel, a .keras, .tflite or .onnx file.

The newest checkpoint, or the best one, as a SavedModel in MODEL_DIR/export/STEP/:
  python -m mnist_dist.export --model_dir=runs/mnist
  python -m mnist_dist.export --model_dir=runs/mnist --checkpoint=best
TensorFlow Serving serves this directory. TensorFlow alone loads it:
  tf.saved_model.load("runs/mnist/export/1875").signatures["serving_default"]
One file, for Keras, for TensorFlow Lite, or for ONNX:
  python -m mnist_dist.export --model_dir=runs/mnist --format=keras
  python -m mnist_dist.export --model_dir=runs/mnist --format=tflite
  python -m mnist_dist.export --model_dir=runs/mnist --format=onnx
The last needs what `pip install 'mnist-dist[onnx]'` brings.

Each export is loaded again and compared with the model before it is published. The same
model is not written twice. Another model of the same version is not replaced without
--overwrite: the new SavedModel gets the next free version.
"""

from collections.abc import Sequence

from absl import flags

from mnist_dist.cli import model_flags, program
from mnist_dist.errors import InputError

model_flags.define_run()
model_flags.define_model()
flags.DEFINE_string("export_dir", None, "Where to write. Default: MODEL_DIR/export.")
flags.DEFINE_enum(
    "format",
    "saved_model",
    ["saved_model", "keras", "tflite", "onnx"],
    "What to write.",
)
flags.DEFINE_integer(
    "version",
    None,
    "Version of the SavedModel. Default: the step.",
    lower_bound=0,
    upper_bound=(1 << 63) - 1,  # TensorFlow Serving's
)
flags.DEFINE_bool("overwrite", False, "Replace another model of the same name.")
model_flags.define_data_dir()

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Exports one checkpoint; returns the exit code."""
    del argv
    check_flags()
    program.import_tensorflow_without_gpus()
    from mnist_dist.artifacts.model_export import export_model

    export = export_model(
        **program.pick(
            "model_dir model checkpoint use_ema format export_dir version overwrite "
            "data_dir"
        )
    )
    weights = "moving average of the weights" if export.moving_average else "weights"
    print(f"checkpoint  {export.checkpoint}, {weights}")
    note = "" if export.is_new else "  (it was there, the same model)"
    print(f"export      {export.path}{note}")
    served = export.served_version
    if served is not None and not export.path.endswith(f"/{served}"):
        print(f"note        TensorFlow Serving serves the highest: {served}")
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
