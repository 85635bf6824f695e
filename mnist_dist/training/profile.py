"""A TensorBoard profile of some steps."""

import contextlib
from contextlib import AbstractContextManager

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

from mnist_dist.files.durable import list_names, replacing


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
        self._earlier: list[str] = []  # traces

    def before(self, step: int) -> None:
        """Starts if the steps from `step` on are wanted."""
        if self._steps and step == self._steps[0]:
            self._earlier = self._list_traces()
            tf.profiler.experimental.start(self._directory)
            self._is_on = True

    def marking(self, step: int) -> AbstractContextManager[object]:
        """Is around a call of one step, whose time the profile then tells."""
        if not self._is_on:
            return contextlib.nullcontext()
        return tf.profiler.experimental.Trace("train", step_num=step, _r=1)

    def after(self, step: int) -> None:
        """Ends if the steps up to `step` were wanted, and writes the profile."""
        if self._steps and step == self._steps[1]:
            self.close()

    def close(self) -> None:
        """Ends and writes the profile, if it is still going on."""
        if self._is_on:
            self._is_on = False
            tf.profiler.experimental.stop()
            for path in self._list_traces():
                if path not in self._earlier:
                    _leave_steps_to_marks(path)

    def _list_traces(self) -> list[str]:
        root = f"{self._directory}/plugins/profile"
        return [
            f"{root}/{time}/{name}"
            for time in list_names(root)
            for name in list_names(f"{root}/{time}")
            if name.endswith(".xplane.pb")
        ]


def _leave_steps_to_marks(path: str) -> None:
    """Drops from a trace which iteration of a loop each operation belongs to.

    The profile plugin would take the iterations of any `tf.while_loop` for the steps, and
    ignore the marks. A loop that XLA compiled records none.
    """
    space = XSpace()
    with tf.io.gfile.GFile(path, "rb") as file, contextlib.suppress(DecodeError):
        space.ParseFromString(file.read())
    for plane in space.planes:
        dropped = {n for n, m in plane.stat_metadata.items() if m.name == "iter_num"}
        for line in plane.lines:
            for event in line.events:
                kept = [s for s in event.stats if s.metadata_id not in dropped]
                if len(kept) < len(event.stats):
                    del event.stats[:]
                    event.stats.extend(kept)
    if space.planes:
        with replacing(path) as file:
            file.write(space.SerializeToString())
