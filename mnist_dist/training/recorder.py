"""What the chief writes and tells of a run: records, checkpoints, progress, hooks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mnist_dist.device.step_probe import StepFigures
from mnist_dist.errors import RunError
from mnist_dist.files.arrays import Arrays
from mnist_dist.run.best import Best
from mnist_dist.run.checkpoint_writer import CheckpointWriter
from mnist_dist.run.checkpoints import list_checkpoints
from mnist_dist.run.object_graph import KerasObjects
from mnist_dist.run.paths import best_dir, checkpoint_dir
from mnist_dist.run.run_log import RunLog
from mnist_dist.training.board import Board
from mnist_dist.training.progress import Progress

Hook = Callable[[Mapping[str, Any]], None]


class Recorder:
    """Writes one run; the chief has one, other workers have none.

    Checkpoints are written in a thread of their own. Hooks are called in the thread
    that calls the recorder.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        log: RunLog,
        progress: Progress,
        max_to_keep: int,
        keras_objects: KerasObjects | None = None,
        board: Board | None = None,
        on_record: Hook | None = None,
        on_evaluation: Hook | None = None,
        on_checkpoint: Callable[[str], None] | None = None,
    ) -> None:
        """Begins to write a run that is at the last step of `log`.

        Args:
          model_dir: of the run.
          log: its records, open for writing.
          progress: what a person sees.
          max_to_keep: checkpoints that are kept, beside the best.
          keras_objects: how a Keras model finds its weights in a checkpoint.
          board: shows in TensorBoard what is in no record; None shows nothing more.
          on_record: called with each training record: `step`, `epoch` and the metrics.
          on_evaluation: called with each evaluation, likewise, with `split` and
            `num_examples`.
          on_checkpoint: called with the path of each checkpoint that is on disk.
        """
        self.log = log
        self._model_dir = model_dir
        self._progress = progress
        self._max_to_keep = max_to_keep
        self._board = board
        self._on_record = on_record
        self._on_evaluation = on_evaluation
        self._on_checkpoint = on_checkpoint
        self._writer = CheckpointWriter(keras_objects)
        self._saved_step = max(list_checkpoints(checkpoint_dir(model_dir)), default=-1)

    def write_train(self, *, step: int, epoch: float, **metrics: float) -> None:
        """Records training metrics, and shows them."""
        self.log.write_train(step=step, epoch=epoch, **metrics)
        self._progress.update(
            step=step,
            epoch=epoch,
            loss=metrics["loss"],
            accuracy=metrics["accuracy"],
            images_per_second=metrics["images_per_second"],
        )
        if self._on_record:
            self._on_record({"step": step, "epoch": epoch, **metrics})

    def show_interval(
        self, step: int, seconds: Mapping[str, float], figures: StepFigures | None
    ) -> None:
        """Shows what the board does of the steps since the last training record."""
        if self._board:
            self._board.show_interval(step, seconds, figures)

    def end(self, step: int, *, has_failed: bool) -> None:
        """Shows that the run is at its end, at this step."""
        if self._board:
            self._board.show_end(step, has_failed=has_failed)

    @contextlib.contextmanager
    def showing_failure(self, current_step: Callable[[], int]) -> Iterator[None]:
        """Shows that the run has failed, whatever ends it, and lets the error go on."""
        try:
            yield
        except Exception:
            # The disk may be full: one error will do.
            with contextlib.suppress(RunError):
                self.end(current_step(), has_failed=True)
            raise

    def write_eval(
        self,
        *,
        step: int,
        epoch: float,
        loss: float,
        accuracy: float,
        split: str,
        num_examples: int,
        logits: np.ndarray | None = None,
    ) -> None:
        """Records an evaluation, and shows it; `logits` as the board takes them."""
        self._saved_step = -1  # a checkpoint of this step does not know the result
        record: dict[str, Any] = {
            "step": step,
            "epoch": epoch,
            "loss": loss,
            "accuracy": accuracy,
            "split": split,
            "num_examples": num_examples,
        }
        self.log.write_eval(**record)
        if self._board:
            self._board.show_evaluation(step, logits)
        self._progress.message(
            f"step {step:,}  {split} accuracy {accuracy:.2%}  loss {loss:.4f}  "
            f"({num_examples:,} images)"
        )
        if self._on_evaluation:
            self._on_evaluation(record)

    def save(self, step: int, arrays: Callable[[], Arrays], best: Best) -> None:
        """Begins to write the checkpoint of a step, unless there is one.

        Args:
          step: updates done.
          arrays: gives all that it holds, but for the entries of `best`.
          best: the best evaluation so far.

        Raises:
          RunError: the weights are not finite, or an earlier one cannot be written.
        """
        if step in (0, self._saved_step):
            return
        self._save(step, arrays(), best, checkpoint_dir(self._model_dir))
        self._saved_step = step

    def save_best(self, step: int, arrays: Arrays, best: Best) -> None:
        """Begins to write the checkpoint of the best evaluation so far.

        Raises:
          RunError: as `save`.
        """
        self._save(step, arrays, best, best_dir(self._model_dir))

    def _save(self, step: int, arrays: Arrays, best: Best, directory: str) -> None:
        weights = [a for name, a in arrays.items() if name.startswith("model/")]
        if not all(np.all(np.isfinite(array)) for array in weights):
            # They would push the good ones out, and no step from them is finite.
            raise RunError(
                f"the weights at step {step} are not finite; the last good checkpoint "
                "is kept"
            )
        self._writer.save(
            arrays | best.to_arrays(),
            directory=directory,
            step=step,
            max_to_keep=1
            if directory == best_dir(self._model_dir)
            else self._max_to_keep,
            # What a checkpoint follows must not get lost before it.
            first=self.log.flush,
        )

    def collect(self) -> None:
        """Tells of checkpoints that are on disk by now.

        Raises:
          RunError: one could not be written.
        """
        self._tell(self._writer.collect())

    def wait_for_checkpoints(self) -> None:
        """Returns when the last checkpoint is on disk; no other can be saved then.

        Raises:
          RunError: one could not be written.
        """
        self._tell(self._writer.close())

    def close(self) -> None:
        """Returns when everything is on disk.

        Raises:
          RunError: it could not be written.
        """
        try:
            self.wait_for_checkpoints()
        finally:
            # Ends the progress line first: an error of the log needs a line of its own.
            self._progress.close()
            self.log.close()

    def _tell(self, paths: list[str]) -> None:
        if self._on_checkpoint:
            for path in paths:
                self._on_checkpoint(path)
