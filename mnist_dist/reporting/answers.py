"""What a run's weights answer: evaluated again, for the page of a report."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mnist_dist.device.strategy import create_strategy
from mnist_dist.errors import InputError
from mnist_dist.evaluation.classification_report import surest_mistakes
from mnist_dist.evaluation.loaded_model import LoadedModel, load_data
from mnist_dist.evaluation.model_evaluation import evaluate_loaded
from mnist_dist.inference.trained_model import load_trained_model
from mnist_dist.reporting.run_summary import RunSummary

NUM_MISTAKES = 36  # shown as pictures


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An image that got the wrong class.

    Attributes:
      picture: the image as a `data:` address of a PNG file.
      index: its position in the split.
      label: name or number of the right class.
      answer: name or number of the class that it got.
      confidence: the probability of that class, 0 to 1.
    """

    picture: str
    index: int
    label: str
    answer: str
    confidence: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a run's weights answer for a split.

    Attributes:
      step: of the checkpoint that was evaluated.
      split: what was evaluated on: `test` or `validation`.
      num_examples: images of the split.
      accuracy: share of them that got the right class.
      class_names: a name or number of each class.
      confusion: images by right class (row) and answer (column); None of too many
        classes.
      recall: share of each class's images that got it; None of a class without images.
      mistakes: the surest, the surest first.
    """

    step: int
    split: str
    num_examples: int
    accuracy: float
    class_names: Sequence[str]
    confusion: Sequence[Sequence[int]] | None
    recall: Sequence[float | None]
    mistakes: Sequence[Mistake]


def find_answers(run: RunSummary) -> Answers:
    """Evaluates a run's best checkpoint on the CPU; writes nothing.

    The newest is taken where none has been evaluated yet.

    Args:
      run: which may still be trained.

    Raises:
      InputError: there is no whole checkpoint, the model's code is not found, or the
        data set is not there any more.
    """
    strategy = create_strategy("one_device", num_gpus=0)
    with strategy.scope():
        trained = load_trained_model(
            run.model_dir,
            checkpoint="latest" if run.best_step is None else "best",
        )
    model = LoadedModel.of_checkpoint(trained, strategy)
    split = run.split or "test"
    data = load_data([model], data=None, data_dir=None, split=split)
    evaluation = evaluate_loaded([model], data)
    report = evaluation.report
    known = evaluation.class_names or ()
    names = [
        known[number] if number < len(known) else str(number)
        for number in range(len(report.support))
    ]
    return Answers(
        step=evaluation.models[0].step or 0,
        split=split,
        num_examples=report.num_examples,
        accuracy=report.accuracy,
        class_names=names,
        confusion=None if report.confusion is None else report.confusion.tolist(),
        recall=[float(r) if np.isfinite(r) else None for r in report.recall],
        mistakes=[
            Mistake(
                picture=_as_address(data.split.images[index]),
                index=int(index),
                label=names[report.labels[index]],
                answer=names[report.classes[index]],
                confidence=float(report.confidences[index]),
            )
            for index in surest_mistakes(report)[:NUM_MISTAKES]
        ],
    )


def try_to_find_answers(run: RunSummary) -> Answers | str:
    """Returns what `find_answers` does, or the reason why it cannot."""
    try:
        return find_answers(run)
    except InputError as error:
        return str(error)


def _as_address(image: np.ndarray) -> str:
    """Returns an image uint8 [height, width, 1 or 3] as the address of a PNG file."""
    file = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
