"""A training run as the host sees it: the device loops and what is due between."""

import math
import sys
import time
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from mnist_dist.cluster.membership import Cluster
from mnist_dist.cluster.stop_request import StopRequest
from mnist_dist.data import Dataset, ExampleStream
from mnist_dist.device.evaluation import evaluate_split
from mnist_dist.device.feed import DeviceSplit, fits_on_device
from mnist_dist.device.steps import EvaluateLoop, TrainLoop
from mnist_dist.device.strategy import broadcast_from_chief
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import RunError
from mnist_dist.files.arrays import Arrays, Specs, specs_of
from mnist_dist.files.durable import remove_unfinished, reporting_errors
from mnist_dist.modeling.optimizers import Schedule
from mnist_dist.run import checkpoints
from mnist_dist.run.checkpoints import CheckpointWriter
from mnist_dist.run.directory import best_dir, checkpoint_dir
from mnist_dist.run.metrics import check_metrics
from mnist_dist.run.plan import RunPlan, is_finished
from mnist_dist.run.run_log import RunLog
from mnist_dist.training.pacing import Pacer
from mnist_dist.training.progress import Progress

MAX_STEPS_PER_CALL = 4096
MAX_INDICES_PER_CALL = 1 << 20
MAX_STREAMED_BYTES_PER_CALL = 1 << 26


class TrainingRun:
    """One run from step to step.

    Whatever `train_until_next_event` is given to do in one call, the results are
    the same to the last bit: the device loop adds up in the order of the steps.

    Several workers each have one and call the same methods in the same order: what
    the order hangs on is the same for all, as it came from the chief or through an
    all-reduce. The chief alone reads and writes `model_dir`.
    """

    def __init__(
        self,
        *,
        model_dir: str,
        plan: RunPlan,
        cluster: Cluster,
        stop: StopRequest,
        dataset: Dataset,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        train_loop: TrainLoop,
        evaluate_loop: EvaluateLoop,
        schedule: Schedule,
        global_batch_size: int,
        seed: int,
        data_on_device: str = "auto",
        show_progress: bool = True,
    ) -> None:
        self.model_dir = model_dir
        self.plan = plan
        self.dataset = dataset
        self.strategy = strategy
        self.state = state
        self.global_batch_size = global_batch_size
        self.is_resident = fits_on_device(
            data_on_device, num_bytes=dataset.num_bytes, strategy=strategy
        )
        self.step = 0
        self.cluster = cluster
        self._stop = stop
        self._train_loop = train_loop
        self._evaluate_loop = evaluate_loop
        self._train_data, self._eval_data = (
            DeviceSplit(strategy, split, is_resident=self.is_resident)
            for split in (dataset.train, dataset.evaluation)
        )
        self._stream = ExampleStream(num_examples=len(dataset.train.labels), seed=seed)
        self._schedule = schedule
        self._show_progress = show_progress
        self._writer = CheckpointWriter()
        self._saved_step = -1
        self._best_accuracy, self._best_step, self._evaluations_since_best = -1.0, -1, 0

        # XLA compiles anew for each shape of the indices: they always have this one.
        self._rows = min(
            plan.steps_per_loop or MAX_STEPS_PER_CALL,
            MAX_INDICES_PER_CALL // global_batch_size,
        )
        if not self.is_resident:
            step_bytes = self._train_data.bytes_per_example * global_batch_size
            self._rows = min(self._rows, MAX_STREAMED_BYTES_PER_CALL // step_bytes)
        self._rows = max(self._rows, 1)
        self._pacer = Pacer(steps_per_loop=plan.steps_per_loop, max_steps=self._rows)
        self._is_told_to_stop = False
        self._is_profiling = False
        self._train_seconds, self._train_examples = 0.0, 0

    def start(self, arrays: Arrays | None, *, texts: Mapping[str, str]) -> None:
        """Compiles the loop, and begins with the arrays that `claim_run` found.

        Of several workers the chief has the arrays, and sends them to the others. What
        the directory holds of later steps is dropped or set aside.

        Args:
          arrays: a checkpoint's, initial weights, or None for the state as it is.
          texts: Markdown for TensorBoard, by name.
        """
        has_eval = False
        if self.cluster.is_chief:
            if arrays is not None:
                self.state.from_arrays(arrays)
            self.step = int(self.state.step.numpy())
            self._open_directory(arrays)
            for name, text in texts.items():
                self.log.write_text(name, text)
            has_eval = self.log.has_eval(self.step)
        shared = broadcast_from_chief(
            self.strategy,
            self.state.to_arrays() | self._best() | {"has_eval": np.array(has_eval)},
        )
        self.state.from_arrays(shared)
        self.step = int(shared["step"])
        self._take_best(shared)
        self._evaluated_step = self.step if shared["has_eval"] else -1
        self._train_loop(
            *self._train_data.feed(self._indices(0)), tf.constant(0), tf.zeros([2])
        )
        self.progress = Progress(
            total_steps=self.plan.total_steps,
            first_step=self.step,
            stream=sys.stdout
            if self._show_progress and self.cluster.is_chief
            else None,
        )

    def specs(self) -> Specs:
        """Shape and dtype of all that a checkpoint of this run holds."""
        return {**self.state.specs(), **specs_of(self._best())}

    def is_due(self, interval: int) -> bool:
        """Whether what happens at this interval, and at the end, happens now."""
        return self.plan.is_due(interval, self.step)

    def is_done(self) -> bool:
        """Whether all steps are done, or a wish to stop early is met."""
        return is_finished(
            step=self.step,
            total_steps=self.plan.total_steps,
            best_accuracy=self._best_accuracy,
            target_accuracy=self.plan.target_accuracy,
            evaluations_since_best=self._evaluations_since_best,
            early_stopping_patience=self.plan.early_stopping_patience,
        )

    def is_evaluated(self) -> bool:
        """Whether the weights of this step were evaluated, by this start or before."""
        return self._evaluated_step == self.step

    def is_stopping(self) -> bool:
        """Whether a signal is to end the run, as all workers know after a call."""
        if self.cluster.num_workers > 1:
            return self._is_told_to_stop
        return self._stop.signal_name is not None

    def train_until_next_event(self) -> None:
        """Runs one call of the device loop, which ends at the next event at latest."""
        num_steps = min(self._pacer.steps, self.plan.steps_to_next_event(self.step))
        profile_first, profile_last = (
            self.plan.profile_steps if self.cluster.is_chief else None
        ) or (None, None)
        if self.step == profile_first:
            tf.profiler.experimental.start(f"{self.model_dir}/train")
            self._is_profiling = True
        feed = self._train_data.feed(self._indices(num_steps))
        wishes = [float(self._stop.signal_name is not None), self._pacer.wish]
        began = time.perf_counter()
        agreed = self._train_loop(*feed, tf.constant(num_steps), tf.constant(wishes))
        self.step = int(self.state.step.numpy())  # waits for the device
        seconds = time.perf_counter() - began
        if self.step == profile_last:
            self._end_profile()

        self._train_seconds += seconds
        self._train_examples += num_steps * self.global_batch_size
        self._pacer.measure(num_steps, seconds)
        is_alone = self.cluster.num_workers == 1
        self._pacer.take(self._pacer.wish if is_alone else float(agreed[1]))
        self._is_told_to_stop = bool(agreed[0] > 0)
        self._writer.raise_failure()
        streak = int(self.state.nonfinite_streak.numpy())
        if streak >= self.plan.max_nonfinite_steps:
            self.summarize()
            raise RunError(
                f"steps {self.step - streak} to {self.step - 1} were skipped, their "
                "loss or gradients were not finite; the last good checkpoint is kept"
            )

    def summarize(self) -> None:
        """Writes the training metrics since the last summary."""
        sums = {name: float(v.numpy()) for name, v in self.state.sums.items()}
        self.state.reset_sums()
        examples = sums["examples"] or math.nan  # all steps were skipped
        rate = self._train_examples / max(self._train_seconds, 1e-9)
        self._train_seconds, self._train_examples = 0.0, 0
        if not self.cluster.is_chief:
            return
        metrics = {
            "epoch": self._epoch(),
            "loss": sums["loss"] / examples,
            "accuracy": sums["correct"] / examples,
            "images_per_second": rate,
        }
        last_step = tf.constant(self.step - 1, tf.float32)
        self.log.write_train(
            step=self.step,
            **metrics,
            learning_rate=float(self._schedule(last_step)),
            nonfinite_steps=sums["nonfinite_steps"],
        )
        self.progress.update(step=self.step, **metrics)

    def evaluate(self) -> None:
        """Evaluates, records the result, and keeps the checkpoint if it is the best."""
        result = evaluate_split(
            self._evaluate_loop,
            self._eval_data,
            num_replicas=self.strategy.num_replicas_in_sync,
        )
        self._evaluated_step = self.step
        self._saved_step = -1  # a checkpoint of this step does not know the result
        self._evaluations_since_best += 1
        is_best = result.accuracy > self._best_accuracy
        split = self.dataset.evaluation.name
        if self.cluster.is_chief:
            self.log.write_eval(
                step=self.step,
                epoch=self._epoch(),
                loss=result.loss,
                accuracy=result.accuracy,
                split=split,
                num_examples=result.num_examples,
            )
        if is_best:
            self._note_best(result.accuracy)
        self.progress.message(
            f"step {self.step:,}  {split} accuracy {result.accuracy:.2%}  "
            f"loss {result.loss:.4f}  ({result.num_examples:,} images)"
        )

    def save(self) -> None:
        """Begins to write a checkpoint of this step, unless there is one.

        Raises:
          RunError: the weights are not finite, or an earlier one cannot be written.
        """
        if self.step in (0, self._saved_step) or not self.cluster.is_chief:
            return
        self._write(checkpoint_dir(self.model_dir), max_to_keep=self.plan.max_to_keep)
        self._saved_step = self.step

    def close(self) -> None:
        """Returns when everything is on disk."""
        self._end_profile()
        try:
            self._writer.close()
        finally:
            self.progress.close()  # first: what the log may raise needs a line of its own
            if self.cluster.is_chief:
                self.log.close()

    def _open_directory(self, arrays: Arrays | None) -> None:
        check_metrics(self.model_dir)  # before anything changes
        directories = checkpoint_dir(self.model_dir), best_dir(self.model_dir)
        for directory in directories:
            with reporting_errors(directory, so="the checkpoints in it are intact"):
                remove_unfinished(directory, is_mine=True)
                checkpoints.set_aside_later(directory, self.step)
        if self.step in checkpoints.list_checkpoints(directories[0]):
            self._saved_step = self.step
        self.log = RunLog(self.model_dir, resume_step=self.step)
        if arrays is not None and "best/step" in arrays:
            self._restore_best(arrays)
        # Killed between the record of an evaluation and the checkpoint that knows it.
        accuracy = self.log.eval_accuracy(self.step)
        if accuracy is not None and accuracy > self._best_accuracy:
            self._note_best(accuracy)

    def _restore_best(self, arrays: Arrays) -> None:
        """Takes the best so far over, if the checkpoint that it belongs to is there."""
        best_step = int(arrays["best/step"])
        directory = best_dir(self.model_dir)
        is_kept = best_step in checkpoints.list_checkpoints(directory)
        if is_kept or best_step == self.step:
            self._take_best(arrays)
        if best_step == self.step and not is_kept:
            self._write(directory, max_to_keep=1)

    def _note_best(self, accuracy: float) -> None:
        self._best_accuracy, self._best_step = accuracy, self.step
        self._evaluations_since_best = 0
        if self.cluster.is_chief:
            self._write(best_dir(self.model_dir), max_to_keep=1)

    def _take_best(self, arrays: Arrays) -> None:
        self._best_accuracy = float(arrays["best/accuracy"])
        self._best_step = int(arrays["best/step"])
        self._evaluations_since_best = int(arrays["best/evaluations_since"])

    def _write(self, directory: str, *, max_to_keep: int) -> None:
        arrays = self.state.to_arrays()
        weights = [a for name, a in arrays.items() if name.startswith("model/")]
        if not all(np.all(np.isfinite(array)) for array in weights):
            # They would push the good ones out, and no step from them is finite.
            raise RunError(
                f"the weights at step {self.step} are not finite; the last good "
                "checkpoint is kept"
            )
        self._writer.save(
            arrays | self._best(),
            directory=directory,
            step=self.step,
            max_to_keep=max_to_keep,
            # What a checkpoint follows must not get lost before it.
            first=self.log.flush,
        )

    def _end_profile(self) -> None:
        if self._is_profiling:
            self._is_profiling = False
            tf.profiler.experimental.stop()

    def _best(self) -> Arrays:
        return {
            "best/accuracy": np.array(self._best_accuracy, np.float64),
            "best/step": np.array(self._best_step, np.int64),
            "best/evaluations_since": np.array(self._evaluations_since_best, np.int64),
        }

    def _epoch(self) -> float:
        return self.step * self.global_batch_size / self._train_data.num_examples

    def _indices(self, num_steps: int) -> np.ndarray:
        batch = self.global_batch_size
        indices = np.zeros([self._rows, batch], np.int32)
        indices[:num_steps] = self._stream.indices(
            self.step * batch, num_steps * batch
        ).reshape(num_steps, batch)
        return indices
