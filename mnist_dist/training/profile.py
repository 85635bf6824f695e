"""A TensorBoard profile of some steps."""

import tensorflow as tf


class StepProfile:
    """Profiles from the start of one step to the end of another."""

    def __init__(self, directory: str, steps: tuple[int, int] | None) -> None:
        """Chooses what to profile.

        Args:
          directory: of event files, where TensorBoard looks for profiles.
          steps: the first and the last step; None profiles nothing.
        """
        self._directory = directory
        self._steps = steps
        self._is_on = False

    def before(self, step: int) -> None:
        """Starts if the steps from `step` on are wanted."""
        if self._steps and step == self._steps[0]:
            tf.profiler.experimental.start(self._directory)
            self._is_on = True

    def after(self, step: int) -> None:
        """Ends if the steps up to `step` were wanted, and writes the profile."""
        if self._steps and step == self._steps[1]:
            self.close()

    def close(self) -> None:
        """Ends and writes the profile, if it is still going on."""
        if self._is_on:
            self._is_on = False
            tf.profiler.experimental.stop()
