"""The numbers of workers that can share a run's batch out equally."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import TYPE_CHECKING

from mnist_dist.device.microbatches import check_batch
from mnist_dist.errors import InputError
from mnist_dist.run.config_file import load_config

if TYPE_CHECKING:
    from mnist_dist.training.options import TrainingOptions


@dataclasses.dataclass(frozen=True)
class BatchShares:
    """What the number of workers must fit.

    Attributes:
      global_batch_size: examples of a step.
      num_microbatches: parts of the batch; 0: as many as replicas.
      replicas_each: replicas of a worker.
    """

    global_batch_size: int
    num_microbatches: int
    replicas_each: int

    @classmethod
    def of_run(
        cls, options: TrainingOptions, given: Set[str], *, replicas_each: int
    ) -> BatchShares:
        """Reads them from options; what was not given is as the run began, if it has.

        Args:
          options: of the run, with defaults.
          given: names of those that were given.
          replicas_each: replicas of a worker.

        Raises:
          InputError: the run's `config.json` cannot be read.
        """
        sizes = options.pick("global_batch_size num_microbatches")
        if options.restore != "none":
            recorded = (load_config(options.model_dir) or {}).get("settings", {})
            for name in sizes.keys() - given:
                if type(recorded.get(name)) is int:
                    sizes[name] = recorded[name]
        return cls(**sizes, replicas_each=replicas_each)

    def fits(self, num_workers: int) -> bool:
        """Whether so many workers can share it out."""
        try:
            self.check(num_workers)
        except InputError:
            return False
        return True

    def check(self, num_workers: int) -> None:
        """Checks that so many workers can share it out.

        Raises:
          InputError: they cannot.
        """
        check_batch(
            global_batch_size=self.global_batch_size,
            num_microbatches=self.num_microbatches,
            num_replicas=num_workers * self.replicas_each,
        )
