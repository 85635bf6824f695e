"""Pictures and arrays of images -> the classes that a SavedModel gives them."""

import dataclasses
import functools
import os
import shlex
from collections.abc import Iterable, Iterator

import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.inference.classifier import (
    Classifier,
    find_saved_model,
    load_classifier,
    select_best,
)
from mnist_dist.pictures.digit_images import PREPROCESS, fit_images
from mnist_dist.pictures.image_files import Batch, find_files, read_batches
from mnist_dist.run.paths import export_dir as default_export_dir

_IMAGES_PER_CALL = 256


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePredictions:
    """What a model says of n images.

    Attributes:
      classes: int64 [n], the most probable class of each.
      probabilities: float32 [n, num_classes].
      files: for each image its file; of images that came as an array, None.
      indices: for each image its index in the array, or in the one that its file
        holds; None if the file is a picture.
      class_names: the name of each class; None where the model card has none.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    files: list[str | None]
    indices: list[int | None]
    class_names: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPredictions:
    """What a model says of the n images of a batch.

    Attributes:
      batch: the images, in the form that the model takes, and whence they came.
      classes: int64 [n, k], the k most probable classes, the likeliest first.
      probabilities: float32 [n, k], theirs.
      class_names: the name of each class of the model; None where they have none.
    """

    batch: Batch
    classes: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...] | None


def predict_images(
    images: np.ndarray | str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    model_dir: str | None = None,
    export_dir: str | None = None,
    preprocess: str = "auto",
) -> ImagePredictions:
    """Classifies images with a SavedModel that `train` or `export` wrote.

    Args:
      images: uint8 [n, height, width] or [n, height, width, 1 or 3]; or the path of a
        file or folder, or several, each as the program `predict` takes it.
      model_dir: run whose newest SavedModel to use; or give `export_dir`.
      export_dir: a SavedModel, or a directory of its versions.
      preprocess: `mnist`, `resize`, `off`, or `auto`; see `fit_images`. Images of the
        model's size are left as they are by all but `mnist`.

    Raises:
      InputError: there is no SavedModel, or it is damaged; or an image or a file is
        not one that can be classified.
    """
    classifier = _load(model_dir, export_dir, preprocess=preprocess)
    if isinstance(images, np.ndarray):
        batches: Iterable[Batch | InputError] = _split(
            images, classifier, preprocess=preprocess
        )
    else:
        paths = [images] if isinstance(images, str | os.PathLike) else images
        batches = _read(
            map(os.fspath, paths),
            classifier,
            preprocess=preprocess,
            images_per_call=_IMAGES_PER_CALL,
        )
    is_array = isinstance(images, np.ndarray)
    files: list[str | None] = []
    indices: list[int | None] = []
    classes, probabilities = [], []
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        found, logits = classifier.classify(batch.images)
        classes.append(select_best(found, logits, 1)[0][:, 0])
        probabilities.append(found)
        files += [None] * len(found) if is_array else batch.files
        indices += batch.indices
    if not classes:
        raise InputError("found no image, expected at least one")
    return ImagePredictions(
        np.concatenate(classes),
        np.concatenate(probabilities),
        files,
        indices,
        classifier.class_names,
    )


def predict_files(
    files: Iterable[str],
    *,
    model_dir: str | None = None,
    export_dir: str | None = None,
    preprocess: str = "auto",
    top_k: int = 1,
    images_per_call: int = _IMAGES_PER_CALL,
) -> Iterator[BatchPredictions | InputError]:
    """Classifies a stream of files of any length in bounded memory, in their order.

    Args:
      files: files; folders, which stand for all files in them; `-` is standard input.
      model_dir: as in `predict_images`.
      export_dir: as in `predict_images`.
      preprocess: as in `predict_images`.
      top_k: how many classes to give for each image.
      images_per_call: images given to the model at a time.

    Yields:
      The predictions of each batch; and in the place of a file that is wrong, an
      `InputError`.

    Raises:
      InputError: there is no SavedModel, it is damaged, or has fewer classes than
        `top_k`. Raised before anything is yielded.
    """
    classifier = _load(model_dir, export_dir, preprocess=preprocess)
    if top_k > classifier.num_classes:
        raise InputError(
            f"--top_k: found {top_k}, expected at most the {classifier.num_classes} "
            "classes of the model"
        )

    def predictions() -> Iterator[BatchPredictions | InputError]:
        for batch in _read(
            files, classifier, preprocess=preprocess, images_per_call=images_per_call
        ):
            if isinstance(batch, InputError):
                yield batch
            else:
                classes, chances = select_best(
                    *classifier.classify(batch.images), top_k
                )
                yield BatchPredictions(batch, classes, chances, classifier.class_names)

    return predictions()


def _load(
    model_dir: str | None, export_dir: str | None, *, preprocess: str
) -> Classifier:
    if bool(model_dir) == bool(export_dir):
        raise InputError(
            f"--model_dir and --export_dir: found {'both' if model_dir else 'neither'}"
            ", expected one of the two"
        )
    if preprocess not in PREPROCESS:
        raise InputError(
            f"--preprocess: found {preprocess!r}, expected {', '.join(PREPROCESS)}"
        )
    try:
        path = find_saved_model(export_dir or default_export_dir(str(model_dir)))
    except InputError as error:
        if export_dir:
            raise
        raise InputError(
            f"{error}; `mnist-dist export --model_dir={shlex.quote(str(model_dir))}` "
            "writes one"
        ) from None
    return load_classifier(path)


def _read(
    files: Iterable[str],
    classifier: Classifier,
    *,
    preprocess: str,
    images_per_call: int,
) -> Iterator[Batch | InputError]:
    return read_batches(
        find_files(files),
        prepare=functools.partial(
            fit_images,
            image_shape=classifier.image_shape,
            preprocess=preprocess,
            are_digits=classifier.takes_digits,
            edge_shade=classifier.edge_shade,
            may_invert=classifier.inverts_pictures,
        ),
        images_per_batch=images_per_call,
        # Each may hold a large photograph; and much of the work is Python's own.
        num_threads=min(os.cpu_count() or 1, 4),
    )


def _split(
    images: np.ndarray, classifier: Classifier, *, preprocess: str
) -> Iterator[Batch]:
    is_gray = images.ndim == 3
    is_colour = images.ndim == 4 and images.shape[3] in (1, 3)
    if images.dtype != np.uint8 or not (is_gray or is_colour) or 0 in images.shape[1:]:
        raise InputError(
            f"images: found {images.dtype} {list(images.shape)}, expected uint8 "
            "[n, height, width] or [n, height, width, 1 or 3]"
        )
    for start in range(0, len(images), _IMAGES_PER_CALL):
        part = images[start : start + _IMAGES_PER_CALL]
        fitted = fit_images(
            part,
            image_shape=classifier.image_shape,
            preprocess=preprocess,
            are_digits=classifier.takes_digits,
            edge_shade=classifier.edge_shade,
            may_invert=classifier.inverts_pictures,
            name="images",
        )
        names = [""] * len(part)
        yield Batch(names, list(range(start, start + len(part))), fitted)
