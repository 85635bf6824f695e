"""Classifies image files with a SavedModel that `train` exported.

With the newest SavedModel of a run, or with any one:
  python -m mnist_dist.predict --model_dir=runs/mnist digit.png photos/
  python -m mnist_dist.predict --export_dir=runs/mnist/export/1875 digit.png
Arrays of many images, and results for another program:
  python -m mnist_dist.predict --model_dir=runs/mnist --format=json t10k-images-idx3-ubyte.gz
  curl ... | python -m mnist_dist.predict --model_dir=runs/mnist --format=csv -

A file may hold a picture of any size, grey or colour (PNG, JPEG, GIF, BMP, PNM, TIFF,
WebP), or many in one array (.npy of uint8, IDX, IDX in gzip): its content says which.
A folder stands for all files in it; `-` for standard input.

Results come in the order of the files. A file that is wrong is reported on standard
error, in one line, and the rest is done; the exit code is then 2.
"""

import functools
import os
import sys
import warnings
from collections.abc import Sequence

from absl import flags

from mnist_dist import program
from mnist_dist.errors import InputError

flags.DEFINE_string("model_dir", None, "Run whose newest SavedModel to use.")
flags.DEFINE_string(
    "export_dir", None, "SavedModel to use, or the directory of its versions."
)
flags.DEFINE_enum("format", "table", ["table", "json", "csv"], "Of the results.")
flags.DEFINE_enum(
    "preprocess",
    "auto",
    ["auto", "mnist", "resize", "off"],
    "mnist: find the digit, dark on light or light on dark, scale and centre it as in "
    "MNIST. resize: scale the whole picture. off: refuse other sizes than the model's. "
    "auto: the model's size as it is, others as mnist (grey models) or resize (colour).",
)
flags.DEFINE_integer("top_k", 1, "Give so many classes, best first.", lower_bound=1)
flags.DEFINE_bool(
    "draw", None, "Draw each image as the model sees it, in the table. Default: on a terminal."
)
flags.DEFINE_integer("batch_size", 256, "Images a call of the model.", lower_bound=1)

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Classifies every file; returns the exit code."""
    files = argv[1:]
    if (FLAGS.model_dir is None) == (FLAGS.export_dir is None):
        raise InputError(
            "--model_dir and --export_dir: found "
            f"{'neither' if FLAGS.model_dir is None else 'both'}, expected one of the two"
        )
    if not files:
        raise InputError("found no files, expected some, folders, or - (standard input)")
    with program.quiet_imports():
        from mnist_dist import run_directory
        from mnist_dist.classifier import find_saved_model, load_classifier
        from mnist_dist.digit_images import fit_images
        from mnist_dist.image_files import find_files, read_batches
        from mnist_dist.prediction_formats import (
            format_header,
            format_predictions,
            select_best,
        )

    classifier = load_classifier(
        find_saved_model(FLAGS.export_dir or run_directory.export_dir(FLAGS.model_dir))
    )
    if FLAGS.top_k > classifier.num_classes:
        raise InputError(
            f"--top_k: found {FLAGS.top_k}, expected at most the "
            f"{classifier.num_classes} classes of the model"
        )
    # What Pillow thinks odd in a file it can read is nothing to tell the user.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    batches = read_batches(
        find_files(files),
        prepare=functools.partial(
            fit_images,
            image_shape=classifier.image_shape,
            preprocess=FLAGS.preprocess,
        ),
        batch_size=FLAGS.batch_size,
        # More would only need more memory: most of the work holds Python's lock.
        num_threads=min(os.cpu_count() or 1, 4),
    )
    num_wrong = 0
    try:
        print(format_header(FLAGS.format, top_k=FLAGS.top_k), end="")
        for batch in batches:
            if isinstance(batch, InputError):
                program.print_error(batch)
                num_wrong += 1
                continue
            probabilities, logits = classifier.classify(batch.images)
            classes, probabilities = select_best(probabilities, logits, FLAGS.top_k)
            text = format_predictions(
                FLAGS.format, batch, classes, probabilities, draw=_drawing_style()
            )
            print(text, end="", flush=True)
    except BrokenPipeError:
        # The reader has seen enough, as `head` does. Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return program.EXIT_INPUT if num_wrong else 0


def _drawing_style() -> str | None:
    if not (sys.stdout.isatty() if FLAGS.draw is None else FLAGS.draw):
        return None
    try:
        "▄▀█".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return "ascii"
    return "blocks"


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
