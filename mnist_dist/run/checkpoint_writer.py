"""Checkpoints beside the training: a thread of their own writes them."""

import concurrent.futures
from collections.abc import Callable

from mnist_dist.files.arrays import Arrays
from mnist_dist.run.checkpoints import save_checkpoint
from mnist_dist.run.object_graph import KerasObjects, create_object_graph


class CheckpointWriter:
    """Writes checkpoints one after the other in the background.

    Args:
      keras_objects: how a Keras model finds its weights in them.
    """

    def __init__(self, keras_objects: KerasObjects | None = None) -> None:
        self._keras_objects = keras_objects or {}
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending: list[concurrent.futures.Future[str]] = []
        self._finished: list[str] = []

    def save(
        self,
        arrays: Arrays,
        *,
        directory: str,
        step: int,
        max_to_keep: int,
        first: Callable[[], None] | None = None,
    ) -> None:
        """Begins to write `directory/ckpt-<step>`; the oldest past the limit are removed.

        Waits while two are being written.

        Args:
          arrays: what to write, by name; not to be changed any more.
          directory: holds the checkpoints.
          step: updates done, which names the checkpoint.
          max_to_keep: how many of the newest checkpoints stay.
          first: called in the background before anything is written.

        Raises:
          RunError: an earlier one could not be written.
        """
        self._take_finished()
        self._wait_until(num_pending=1)
        self._pending.append(
            self._thread.submit(
                save_checkpoint,
                arrays,
                directory=directory,
                step=step,
                max_to_keep=max_to_keep,
                graph=create_object_graph(arrays, self._keras_objects),
                first=first,
            )
        )

    def collect(self) -> list[str]:
        """Returns the paths of those that are on disk and were not returned before.

        Raises:
          RunError: one could not be written.
        """
        self._take_finished()
        finished, self._finished = self._finished, []
        return finished

    def close(self) -> list[str]:
        """Returns as `collect` does, when all that was saved is on disk.

        Raises:
          RunError: one could not be written.
        """
        try:
            self._wait_until(num_pending=0)
        finally:
            self._thread.shutdown()
        return self.collect()

    def _take_finished(self) -> None:
        while self._pending and self._pending[0].done():
            self._finished.append(self._pending.pop(0).result())

    def _wait_until(self, *, num_pending: int) -> None:
        while len(self._pending) > num_pending:
            self._finished.append(self._pending.pop(0).result())
