"""The interface of everything that takes a run's metrics.

`JsonLinesWriter` and `EventFileWriter` implement it. A writer of your own, for another
tracker, needs these four methods and no base class.
"""

from collections.abc import Mapping
from typing import Protocol


class MetricWriter(Protocol):
    """Takes the metrics of one run as they come; only the chief has one."""

    def write_scalars(
        self,
        kind: str,
        scalars: Mapping[str, float],
        *,
        step: int,
        epoch: float,
        wall_time: float,
        details: Mapping[str, object],
    ) -> None:
        """Records the metrics of one step.

        Args:
          kind: `train` or `eval`.
          scalars: values by name, as `loss` and `accuracy`; may be NaN or infinite.
          step: number of updates done.
          epoch: how often the training set was seen, in part too.
          wall_time: now, in seconds since 1970.
          details: more that the record tells: of an evaluation, `split` and
            `num_examples`.
        """

    def write_text(self, name: str, markdown: str, *, step: int) -> None:
        """Records a text that holds from a step on, as the settings do.

        Each start of a run gives all texts again, whether they changed or not.
        """

    def flush(self) -> None:
        """Returns when everything written would outlast a power failure."""

    def close(self) -> None:
        """Flushes and releases everything; a second time it does nothing."""
