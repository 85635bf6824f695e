"""Classifies image files with a SavedModel that `train` exported.

With the newest SavedModel of a run, or with another SavedModel:
  python -m mnist_dist.predict --model_dir=runs/mnist digit.png photos/
  python -m mnist_dist.predict --export_dir=runs/mnist/export/1875 digit.png
Files that hold many images; results for another program:
  python -m mnist_dist.predict --model_dir=runs/mnist --format=json t10k-images-idx3-ubyte.gz
  cat digit.png | python -m mnist_dist.predict --model_dir=runs/mnist --format=csv -

A file holds one picture of any size, grey or in colour (PNG, JPEG, GIF, BMP, PNM, TIFF,
WebP), or an array of images (.npy of uint8, IDX, IDX in gzip). Its content decides, not its
name. A folder stands for all files in it, and `-` for standard input.

It computes on the CPU: a training beside it keeps all memory of the GPUs.

Results come in the order of the files. A file that cannot be read is reported in one line
on standard error, the other files are classified, and the exit code is 2.
"""

import io
import sys
import warnings
from collections.abc import Sequence

from absl import flags

from mnist_dist.cli import program
from mnist_dist.cli.prediction_formats import (
    FORMATS,
    format_header,
    format_predictions,
)
from mnist_dist.errors import EXIT_INPUT, InputError
from mnist_dist.pictures.digit_images import PREPROCESS

_string, _enum = flags.DEFINE_string, flags.DEFINE_enum

_string("model_dir", None, "Run whose newest SavedModel to use.")
_string("export_dir", None, "SavedModel, or directory of versions, to use instead.")
_enum("format", "table", FORMATS, "Form of the results.")
_enum(
    "preprocess",
    "auto",
    PREPROCESS,
    "mnist: cut out the digit, dark on light or light on dark, scale and centre it as "
    "MNIST did. resize: scale the whole image. off: refuse images not of the model's "
    "size. auto: images of that size as they are, others by mnist if the model takes "
    "grey images, by resize if it takes colour; grey ones are inverted where all training "
    "images are the inverse.",
)
flags.DEFINE_integer(
    "top_k",
    1,
    "How many classes to print for each image, likeliest first.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "images_per_call", 256, "Images given to the model at a time.", lower_bound=1
)
flags.DEFINE_bool(
    "draw", None, "Show in the table what the model sees. Default: on a terminal."
)

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Classifies every file; returns the exit code."""
    files = argv[1:]
    check_flags(files)
    # TensorFlow takes seconds to import: not before the flags are known to be good.
    program.import_tensorflow_without_gpus()
    with program.quiet_imports():
        from mnist_dist.inference.image_predictions import predict_files

    # What Pillow finds odd in a file that it can read is nothing to tell.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    predictions = predict_files(
        files,
        **program.pick("model_dir export_dir preprocess top_k images_per_call"),
    )
    drawing = prepare_output()
    exit_code = 0
    print(format_header(FLAGS.format, top_k=FLAGS.top_k), end="", flush=True)
    for found in predictions:
        if isinstance(found, InputError):
            program.print_error(found)
            exit_code = EXIT_INPUT
            continue
        text = format_predictions(
            FLAGS.format,
            found.batch,
            found.classes,
            found.probabilities,
            class_names=found.class_names,
            drawing=drawing,
        )
        print(text, end="", flush=True)
    return exit_code


def check_flags(files: Sequence[str]) -> None:
    """Checks what one flag's own bounds cannot say.

    Raises:
      InputError: names the flag, what was found and what was expected.
    """
    program.check_one_of("model_dir", "export_dir")
    if not files:
        raise InputError("found no file, expected files, folders or - (standard input)")


def prepare_output() -> str | None:
    """Makes standard output take any file name; returns how to draw, if at all."""
    assert isinstance(sys.stdout, io.TextIOWrapper)
    if FLAGS.format == "csv":
        # Names that are not Unicode come out as the bytes that they are.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        return None
    sys.stdout.reconfigure(errors="backslashreplace")
    if not (sys.stdout.isatty() if FLAGS.draw is None else FLAGS.draw):
        return None
    try:
        "▀▄█".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return "ascii"
    return "blocks"


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
