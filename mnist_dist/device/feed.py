"""A split on the devices: resident, or streamed in pieces in the same order."""

import numpy as np
import tensorflow as tf

from mnist_dist.data import Split
from mnist_dist.device.devices import gpu_memory
from mnist_dist.errors import InputError

_SHARE = 0.5  # of a device's memory that a resident split may take


class DeviceSplit:
    """Images and labels as the device loops take them.

    Resident: the whole split lies on every replica's device as uint8, and a call
    sends indices alone. Streamed: a call sends the examples it needs, and indices
    into those. The loops cannot tell the difference, nor can the results.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, split: Split, *, is_resident: bool
    ) -> None:
        self.name = split.name
        self.num_examples = len(split.labels)
        self.bytes_per_example = split.images[0].nbytes
        self.is_resident = is_resident
        self._strategy = strategy
        self._split = split
        self._resident = (
            self._put_examples(split.images, split.labels) if is_resident else None
        )

    def feed(self, indices: np.ndarray) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns what a device loop takes for these examples.

        Args:
          indices: int32 of any shape; -1 is padding.

        Returns:
          images uint8 [n, height, width, channels] and labels int64 [n] on every
          replica, and int64 indices into them. TensorFlow would keep int32 in the
          host's memory, and copy it to a GPU in each step.
        """
        if self._resident is not None:
            return *self._resident, tf.constant(indices, tf.int64)
        flat = indices.reshape(-1)
        places = np.where(indices < 0, -1, np.arange(flat.size).reshape(indices.shape))
        return (
            *self._put_examples(self._split.images[flat], self._split.labels[flat]),
            tf.constant(places, tf.int64),
        )

    def _put_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return self._put(images), self._put(labels.astype(np.int64))

    def _put(self, array: np.ndarray) -> tf.Tensor:
        devices = self._strategy.extended.worker_devices  # this worker's

        def copy(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
            # The strategy leaves all copies on the first device.
            local_id = context.replica_id_in_sync_group % len(devices)
            with tf.device(devices[local_id]):
                return tf.constant(array)

        return self._strategy.experimental_distribute_values_from_function(copy)


def fits_on_device(
    placement: str, *, num_bytes: int, strategy: tf.distribute.Strategy
) -> bool:
    """Decides whether a data set is kept on the device.

    Args:
      placement: `on`, `off`, or `auto`: on where it fits in half the memory.
      num_bytes: of all its images.
      strategy: whose devices are meant.

    Raises:
      InputError: `on`, and it does not fit.
    """
    limit = gpu_memory(strategy.extended.worker_devices)
    fits = limit is None or num_bytes <= _SHARE * limit
    if placement == "on" and not fits:
        raise InputError(
            f"--data_on_device=on: the data set has {num_bytes:,} bytes, expected at "
            f"most half of the device's {limit:,}; off streams it"
        )
    return fits and placement != "off"
