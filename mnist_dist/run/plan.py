"""How long a run is, and what happens at which of its steps."""

import dataclasses


def is_finished(
    *,
    step: int,
    total_steps: int,
    best_accuracy: float,
    target_accuracy: float | None,
    evaluations_since_best: int,
    early_stopping_patience: int,
) -> bool:
    """Whether all steps are done, or a wish to stop early is met.

    Args:
      step: updates done.
      total_steps: the run's length.
      best_accuracy: of the evaluations so far; negative if there was none.
      target_accuracy: that ends the run when it is reached, if it has one.
      evaluations_since_best: how many in a row brought no new best.
      early_stopping_patience: as many of them end the run; 0: none do.
    """
    return (
        step >= total_steps
        or (target_accuracy is not None and best_accuracy >= target_accuracy)
        or 0 < early_stopping_patience <= evaluations_since_best
    )


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """All in steps, but for what says otherwise.

    Attributes:
      total_steps: the run's length.
      steps_per_epoch: rounded; an epoch's end need not fall between two steps.
      eval_interval: between two evaluations; one at the end in any case.
      checkpoint_interval: between two checkpoints, likewise.
      summary_interval: between two points of the training curves, likewise.
      steps_per_loop: most steps in one call of the device; 0: about half a second.
      max_to_keep: checkpoints that are kept.
      max_nonfinite_steps: skipped steps in a row that end the run.
      target_accuracy: ends the run when an evaluation reaches it.
      early_stopping_patience: evaluations without a new best that end it; 0: never.
      profile_steps: first and last step of a profile.
    """

    total_steps: int
    steps_per_epoch: int
    eval_interval: int
    checkpoint_interval: int
    summary_interval: int
    steps_per_loop: int = 0
    max_to_keep: int = 3
    max_nonfinite_steps: int = 50
    target_accuracy: float | None = None
    early_stopping_patience: int = 0
    profile_steps: tuple[int, int] | None = None

    def is_due(self, interval: int, step: int) -> bool:
        """Whether what happens at this interval, and at the end, happens at `step`."""
        return step > 0 and (step % interval == 0 or step >= self.total_steps)

    def steps_to_next_event(self, step: int) -> int:
        """Steps from `step` until something is due that the host must do."""
        intervals = (
            self.eval_interval,
            self.checkpoint_interval,
            self.summary_interval,
        )
        events = [step - step % interval + interval for interval in intervals]
        events.append(self.total_steps)
        events += [edge for edge in self.profile_steps or () if edge > step]
        return min(events) - step
