"""Turns step numbers into the indices of examples that the device loop takes."""

import numpy as np
import tensorflow as tf

from mnist_dist.data import ExampleStream
from mnist_dist.device.feed import DeviceSplit

MAX_STEPS_PER_CALL = 4096
MAX_INDICES_PER_CALL = 1 << 20
MAX_STREAMED_BYTES_PER_CALL = 1 << 26


class Batches:
    """The batches of a run, those of one call of the device loop at a time.

    Attributes:
      global_batch_size: examples a step.
      max_steps: most steps that one call can take.
    """

    def __init__(
        self,
        data: DeviceSplit,
        *,
        global_batch_size: int,
        seed: int,
        steps_per_loop: int = 0,
    ) -> None:
        """Prepares the batches of the examples in `data`.

        Args:
          data: the training examples on the devices.
          global_batch_size: examples a step.
          seed: of the order of the examples.
          steps_per_loop: most steps in a call; 0: as many as are useful.
        """
        self._data = data
        self._stream = ExampleStream(num_examples=data.num_examples, seed=seed)
        self.global_batch_size = global_batch_size
        # XLA compiles anew for each shape of the indices: they always have this one.
        rows = min(
            steps_per_loop or MAX_STEPS_PER_CALL,
            MAX_INDICES_PER_CALL // global_batch_size,
        )
        if not data.is_resident:
            step_bytes = data.bytes_per_example * global_batch_size
            rows = min(rows, MAX_STREAMED_BYTES_PER_CALL // step_bytes)
        self.max_steps = max(rows, 1)

    def feed(self, step: int, num_steps: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns what the device loop takes for the steps from `step` on.

        Returns:
          images, labels and indices as `DeviceSplit.feed` returns them; the indices
          have the shape [max_steps, global_batch_size], and are 0 past `num_steps`.
        """
        batch = self.global_batch_size
        indices = np.zeros([self.max_steps, batch], np.int32)
        indices[:num_steps] = self._stream.indices(
            step * batch, num_steps * batch
        ).reshape(num_steps, batch)
        return self._data.feed(indices)

    def epoch(self, step: int) -> float:
        """Returns how many times all examples were seen after so many steps."""
        return step * self.global_batch_size / self._data.num_examples
