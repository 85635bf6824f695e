"""How a training ended."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a training ended, and where what it made lies.

    Attributes:
      model_dir: of the run.
      step: updates done.
      ended: why it ended; None if it was stopped before.
      stopped_by: the signal that stopped it, by name; None if none did.
      accuracy: of the last evaluation; None if there was none.
      best_accuracy: of the best evaluation; None likewise.
      best_step: step of that evaluation; None likewise.
      checkpoint: path of the last checkpoint, as TensorFlow takes it.
      saved_model: path of the SavedModel; None if none was written.
      saved_model_step: of its weights; None likewise.
    """

    model_dir: str
    step: int
    ended: str | None
    stopped_by: str | None = None
    accuracy: float | None = None
    best_accuracy: float | None = None
    best_step: int | None = None
    checkpoint: str | None = None
    saved_model: str | None = None
    saved_model_step: int | None = None
