"""The processors and GPUs of a host, shared out among its workers."""

import os
import uuid
from collections.abc import Callable, Mapping

from mnist_dist.cluster.membership import LAUNCH_ID
from mnist_dist.errors import InputError


class Places:
    """What each worker of this host has, as its environment.

    Attributes:
      used: one environment for each worker.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        uses_gpus: bool,
        min_workers: int | None = None,
        fits: Callable[[int], bool] = lambda num_workers: True,
    ) -> None:
        """Shares out all that this process may use.

        Args:
          num_workers: of this host.
          uses_gpus: whether the GPUs of CUDA_VISIBLE_DEVICES are shared out.
          min_workers: that must be left when some are given up; None: none is.
          fits: whether so many workers can share the batch out equally.

        Raises:
          InputError: there are fewer GPUs than workers.
        """
        self.used = _environments(num_workers, uses_gpus=uses_gpus)
        self._all = list(self.used)
        self._least = min_workers
        self._fits = fits

    def give_up(self, index: int) -> bool:
        """Uses one no longer; returns False, and changes nothing, if too few are left.

        The others stay as they were: the bits of kernels depend on a worker's number of
        threads.
        """
        if self._least is None:
            return False
        left = [*self._all[:index], *self._all[index + 1 :]]
        for count in range(len(left), self._least - 1, -1):
            if self._fits(count):
                self._all, self.used = left, left[:count]
                return True
        return False


def count_named_gpus() -> int:
    """Returns how many GPUs CUDA_VISIBLE_DEVICES names."""
    return len(_named_gpus())


def _named_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]


def _environments(num_workers: int, *, uses_gpus: bool) -> list[Mapping[str, str]]:
    """Returns an environment for each worker, with its share of processors and GPUs.

    GPUs only as far as CUDA_VISIBLE_DEVICES names them; else the workers of one host
    share out what they find there.
    """
    threads = max(len(os.sched_getaffinity(0)) // num_workers, 1)
    common = {
        "PYTHONUNBUFFERED": "1",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        # A restarted worker recognises its run by it (`run.config.is_restart`).
        LAUNCH_ID: uuid.uuid4().hex,
    } | dict(os.environ)
    gpus = _named_gpus()
    if not gpus or not uses_gpus:
        return [common] * num_workers
    if len(gpus) < num_workers:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES: found {os.environ['CUDA_VISIBLE_DEVICES']!r} for {num_workers} workers, "
            "expected a GPU for each, or --num_gpus=0"
        )
    share = len(gpus) // num_workers
    return [
        common | {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share :][:share])}
        for i in range(num_workers)
    ]
