"""The best evaluation of a run so far, as the run and its checkpoints know it."""

import dataclasses

import numpy as np

from mnist_dist.files.arrays import Arrays, Specs, specs_of


@dataclasses.dataclass
class Best:
    """The best accuracy so far, and how long ago it was reached.

    Attributes:
      accuracy: of the best evaluation; -1 before the first.
      step: of that evaluation; -1 before the first.
      evaluations_since: evaluations after it, none of which was better.
    """

    accuracy: float = -1.0
    step: int = -1
    evaluations_since: int = 0

    def note(self, accuracy: float, step: int) -> bool:
        """Counts an evaluation; returns whether it is the best so far."""
        if accuracy > self.accuracy:
            self.accuracy, self.step, self.evaluations_since = accuracy, step, 0
            return True
        self.evaluations_since += 1
        return False

    def to_arrays(self) -> Arrays:
        """Returns the entries of a checkpoint: scalars float64, int64, int64."""
        return {
            "best/accuracy": np.array(self.accuracy, np.float64),
            "best/step": np.array(self.step, np.int64),
            "best/evaluations_since": np.array(self.evaluations_since, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "Best":
        """Reads the entries of a checkpoint; what it lacks is as before the first."""
        known = cls().to_arrays() | arrays
        return cls(
            accuracy=float(known["best/accuracy"]),
            step=int(known["best/step"]),
            evaluations_since=int(known["best/evaluations_since"]),
        )

    @classmethod
    def specs(cls) -> Specs:
        """Returns shape and dtype of the entries of a checkpoint."""
        return specs_of(cls().to_arrays())
