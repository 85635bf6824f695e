"""The host's side of training: one call of the device after the other, and what is due.

Each worker runs this loop, and all take the same actions in the same order, because they
decide by values that came from the chief or through an all-reduce. Only the chief reads
and writes the run's directory.
"""

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import tensorflow as tf

from mnist_dist.device.batch_statistics import RenewStatistics
from mnist_dist.device.evaluate_loop import EvaluateLoop, Evaluation, evaluate_split
from mnist_dist.device.feed import DeviceSplit
from mnist_dist.device.peers import broadcast_from_chief
from mnist_dist.device.progress_watch import ProgressWatch
from mnist_dist.device.step_probe import StepProbe
from mnist_dist.device.train_loop import TrainLoop
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import RunError
from mnist_dist.modeling.optimizers import Schedule
from mnist_dist.run.best import Best
from mnist_dist.run.plan import RunPlan
from mnist_dist.training.batches import Batches
from mnist_dist.training.control import Control
from mnist_dist.training.profile import StepProfile
from mnist_dist.training.recorder import Recorder
from mnist_dist.training.restore import Start
from mnist_dist.training.stopwatch import Stopwatch


class HostLoop:
    """One run from step to step.

    However many steps a call takes, the results are the same to the last bit: the
    device loop adds up in the order of the steps.

    Attributes:
      step: updates done.
      best: the best evaluation so far.
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        schedule: Schedule,
        train_loop: TrainLoop,
        evaluate_loop: EvaluateLoop,
        renew_statistics: RenewStatistics | None,
        statistics_batches: int,
        batches: Batches,
        evaluation: DeviceSplit,
        control: Control,
        profile: StepProfile,
        watch: ProgressWatch,
        compute_logits: Callable[..., np.ndarray] | None,
        step_probe: StepProbe | None,
    ) -> None:
        self.step = 0
        self.best = Best()
        self._plan = plan
        self._strategy = strategy
        self._state = state
        self._schedule = schedule
        self._train_loop = train_loop
        self._evaluate_loop = evaluate_loop
        self._renew_statistics = renew_statistics
        self._statistics_batches = statistics_batches
        self._batches = batches
        self._evaluation = evaluation
        self._control = control
        self._profile = profile
        self._watch = watch
        self._compute_logits = compute_logits
        self._step_probe = step_probe
        self._evaluated_step = -1
        self._train_seconds, self._train_examples = 0.0, 0
        self._stopwatch = Stopwatch()

    def begin(self, start: Start | None) -> None:
        """Takes over where the chief begins, on all workers, and compiles the loop.

        Args:
          start: what `restore_run` found; None on workers that are not the chief.
        """
        is_evaluated = False
        if start is not None:
            self._state.from_arrays(start.arrays)
            self.best = start.best
            is_evaluated = start.log.has_eval(start.step)
        shared = broadcast_from_chief(
            self._strategy,
            self._state.to_arrays()
            | self.best.to_arrays()
            | {"is_evaluated": np.array(is_evaluated)},
        )
        self._state.from_arrays(shared)
        self.best = Best.from_arrays(shared)
        self.step = int(shared["step"])
        self._evaluated_step = self.step if shared["is_evaluated"] else -1
        self._train_loop(
            *self._batches.feed(self.step, 0), tf.constant(0), tf.zeros([2])
        )

    def try_evaluation(self) -> None:
        """Evaluates and forgets the result, to see that the model can be evaluated."""
        self._evaluate_weights()

    def run(self, recorder: Recorder | None) -> str | None:
        """Trains to the end of the run, or until it is to stop.

        Args:
          recorder: writes and tells of the run; None on workers that are not the chief.

        Returns:
          Why the run has ended; None if it was stopped before.

        Raises:
          RunError: too many steps in a row were not finite, or the run cannot be
            written.
        """
        plan = self._plan
        self._stopwatch.take()  # the time before the loop is start-up
        with contextlib.ExitStack() as closing:
            if recorder:
                closing.callback(recorder.close)
                closing.enter_context(recorder.showing_failure(lambda: self.step))
            closing.callback(self._profile.close)
            while True:
                is_evaluated = self._evaluated_step == self.step
                if plan.is_due(plan.eval_interval, self.step) and not is_evaluated:
                    self._evaluate(recorder)
                if plan.is_due(plan.checkpoint_interval, self.step):
                    self.save(recorder)
                reason = plan.stopping.reason_to_end(self.step, self.best)
                if reason or self._control.is_stopping:
                    break
                self.train_until_next_event()
                if recorder:
                    recorder.collect()
                streak = int(self._state.nonfinite_streak.numpy())
                is_lost = streak >= plan.max_nonfinite_steps
                if is_lost or plan.is_due(plan.summary_interval, self.step):
                    self._summarize(recorder)
                if is_lost:
                    raise RunError(
                        f"steps {self.step - streak} to {self.step - 1} were skipped, "
                        "their loss or gradients were not finite; the last good "
                        "checkpoint is kept"
                    )
            self.save(recorder)
            if recorder:
                recorder.wait_for_checkpoints()
                if not self._control.is_stopping:
                    recorder.end(self.step, has_failed=False)
        return None if self._control.is_stopping else reason

    def train_until_next_event(self) -> None:
        """Runs one call of the device loop, which ends at the next event at latest."""
        num_steps = min(
            self._control.num_steps, self._plan.steps_to_next_event(self.step)
        )
        self._profile.before(self.step)
        with self._stopwatch.measuring("input"):
            feed = self._batches.feed(self.step, num_steps)
        control = tf.constant(self._control.values())
        began = time.perf_counter()
        with self._watch.call(self.step), self._profile.marking(self.step):
            agreed = self._train_loop(*feed, tf.constant(num_steps), control)
            self.step = int(self._state.step.numpy())  # waits for the device
        seconds = time.perf_counter() - began
        self._profile.after(self.step)
        self._stopwatch.add("step", seconds)
        self._train_seconds += seconds
        self._train_examples += num_steps * self._batches.global_batch_size
        self._control.update(
            num_steps, seconds, agreed=(float(agreed[0]), float(agreed[1]))
        )

    def save(self, recorder: Recorder | None) -> None:
        """Begins to write the checkpoint of this step, unless there is one."""
        with self._stopwatch.measuring("checkpoint"):
            if recorder:
                recorder.save(self.step, self._state.to_arrays, self.best)

    def _evaluate(self, recorder: Recorder | None) -> None:
        """Evaluates, records the result, and keeps the weights if they are the best."""
        with self._stopwatch.measuring("evaluation"):
            result = self._evaluate_weights()
            logits = None
            if self._compute_logits:
                logits = self._compute_logits(around_call=self._around_call)
        self._evaluated_step = self.step
        is_best = self.best.note(result.accuracy, self.step)
        if recorder is None:
            return
        with self._stopwatch.measuring("evaluation"):
            recorder.write_eval(
                step=self.step,
                epoch=self._batches.epoch(self.step),
                loss=result.loss,
                accuracy=result.accuracy,
                split=self._evaluation.name,
                num_examples=result.num_examples,
                logits=logits,
            )
        if is_best:
            with self._stopwatch.measuring("checkpoint"):
                recorder.save_best(self.step, self._state.to_arrays(), self.best)

    def _evaluate_weights(self) -> Evaluation:
        """Evaluates, with statistics of the last batches where that is asked for."""
        if self._renew_statistics:
            num_batches = self._statistics_batches
            first = max(self.step - num_batches, 0)
            self._renew_statistics(
                *self._batches.feed(first, num_batches),
                tf.constant(num_batches),
                tf.constant(first * self._batches.global_batch_size, tf.int64),
            )
        return evaluate_split(
            self._evaluate_loop,
            self._evaluation,
            num_replicas=self._strategy.num_replicas_in_sync,
            around_call=self._around_call,
        )

    def _around_call(self) -> AbstractContextManager[None]:
        return self._watch.call(self.step)

    def _summarize(self, recorder: Recorder | None) -> None:
        """Records the training metrics since the last time."""
        sums = {name: float(v.numpy()) for name, v in self._state.sums.items()}
        self._state.reset_sums()
        examples = sums["examples"] or math.nan  # all steps were skipped
        rate = self._train_examples / max(self._train_seconds, 1e-9)
        self._train_seconds, self._train_examples = 0.0, 0
        figures = None
        if self._step_probe:
            with self._around_call():
                figures = self._step_probe(*self._batches.feed(self.step, 1))
        if recorder is None:
            return
        last_step = tf.constant(self.step - 1, tf.float32)
        recorder.write_train(
            step=self.step,
            epoch=self._batches.epoch(self.step),
            loss=sums["loss"] / examples,
            accuracy=sums["correct"] / examples,
            images_per_second=rate,
            learning_rate=float(self._schedule(last_step)),
            nonfinite_steps=sums["nonfinite_steps"],
        )
        recorder.show_interval(self.step, self._stopwatch.take(), figures)
