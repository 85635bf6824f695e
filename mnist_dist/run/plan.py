"""How long a run is, why it ends, and what happens at which of its steps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # NumPy starts threads, which would not wait for a StopRequest
    from mnist_dist.run.best import Best


@dataclasses.dataclass(frozen=True)
class StoppingRule:
    """When a run ends.

    Attributes:
      total_steps: the run's length.
      target_accuracy: ends the run when an evaluation reaches it; None: never.
      early_stopping_patience: evaluations in a row without a new best that end the
        run; 0: they never do.
    """

    total_steps: int
    target_accuracy: float | None = None
    early_stopping_patience: int = 0

    def reason_to_end(self, step: int, best: Best) -> str | None:
        """Returns why the run ends at `step`, or None if it goes on."""
        if self.target_accuracy is not None and best.accuracy >= self.target_accuracy:
            return f"the accuracy reached {self.target_accuracy:g} (--target_accuracy)"
        if 0 < self.early_stopping_patience <= best.evaluations_since:
            return (
                f"{best.evaluations_since} evaluations in a row brought no new best "
                "(--early_stopping_patience)"
            )
        if step >= self.total_steps:
            return "all steps are done"
        return None


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What happens at which step of a run; all in steps, but for what says otherwise.

    Attributes:
      stopping: when the run ends.
      steps_per_epoch: rounded; an epoch's end need not fall between two steps.
      eval_interval: between two evaluations; one at the end in any case.
      checkpoint_interval: between two checkpoints, likewise.
      summary_interval: between two points of the training curves, likewise.
      steps_per_loop: most steps in one call of the device; 0: about half a second.
      max_to_keep: checkpoints that are kept.
      max_nonfinite_steps: skipped steps in a row that end the run.
      profile_steps: first and last step of a profile.
    """

    stopping: StoppingRule
    steps_per_epoch: int
    eval_interval: int
    checkpoint_interval: int
    summary_interval: int
    steps_per_loop: int = 0
    max_to_keep: int = 3
    max_nonfinite_steps: int = 50
    profile_steps: tuple[int, int] | None = None

    @property
    def total_steps(self) -> int:
        """The run's length, unless it stops early."""
        return self.stopping.total_steps

    def is_due(self, interval: int, step: int) -> bool:
        """Whether what happens at this interval, and at the end, happens at `step`."""
        return step > 0 and (step % interval == 0 or step >= self.total_steps)

    def steps_to_next_event(self, step: int) -> int:
        """Steps from `step` until something is due that the host must do.

        In a profile that is each step: the host marks where it begins and ends.
        """
        if self.profile_steps and step in range(*self.profile_steps):
            return 1
        intervals = (
            self.eval_interval,
            self.checkpoint_interval,
            self.summary_interval,
        )
        events = [step - step % interval + interval for interval in intervals]
        events.append(self.total_steps)
        events += [edge for edge in self.profile_steps or () if edge > step]
        return min(events) - step
