"""What a run's `config.json` and `config.flags` say: its options, its starts, its end."""

import contextlib
import time
from collections.abc import Callable, Iterator

from mnist_dist.device.kernels import kernel_conditions
from mnist_dist.errors import InputError, RunError
from mnist_dist.run.config import save_config, save_flag_file
from mnist_dist.run.config_file import load_config, starts_in
from mnist_dist.training import description
from mnist_dist.training.job import Job
from mnist_dist.training.options import TrainingOptions, say
from mnist_dist.training.restore import Start


class RunRecord:
    """Writes `config.json` and `config.flags` of one run; only the chief has one."""

    def __init__(
        self,
        options: TrainingOptions,
        job: Job,
        start: Start,
        *,
        num_workers: int,
        trains: bool,
    ) -> None:
        """Writes how the run begins; `trains` tells whether any step is left."""
        self._options = options
        self._job = job
        self._lock = start.lock
        self._num_workers = num_workers
        self._starts: list[dict[str, float]] = []
        now = time.time()
        if start.checkpoint:
            with contextlib.suppress(InputError):  # --override_config goes on without
                recorded = load_config(options.model_dir) or {}
                self._starts = starts_in(recorded)
                say(
                    options,
                    description.describe_other_bits(
                        recorded.get("resolved", {}), kernel_conditions(job.strategy)
                    ),
                )
            # Versions before this one recorded no start: there was one.
            self._starts = self._starts or [{"step": 0, "time": now}]
        if trains or not self._starts:
            self._starts.append({"step": start.step, "time": now})
        self._save(ended=None)

    def end(self, *, step: int, reason: str) -> None:
        """Writes how the run ended, or that it was stopped.

        Raises:
          RunError: it cannot be written, or the run is no longer where it was.
        """
        self._save(ended={"step": step, "reason": reason})

    @property
    def began(self) -> float:
        """When the run first started, in seconds since 1970."""
        return self._starts[0]["time"]

    @contextlib.contextmanager
    def noting_failure(self, current_step: Callable[[], int]) -> Iterator[None]:
        """Records why a run failed, and lets the `RunError` go on."""
        try:
            yield
        except RunError as error:
            # The disk may be full: one error will do.
            with contextlib.suppress(RunError):
                self.end(step=current_step(), reason=f"failed: {error}")
            raise

    def _save(self, *, ended: dict[str, object] | None) -> None:
        self._lock.check()
        options, job = self._options, self._job
        save_config(
            options.model_dir,
            settings=options.settings() | {"data_checksum": job.dataset.checksum},
            flags=options.values(),
            resolved=description.resolved(
                job, num_workers=self._num_workers, starts=self._starts, ended=ended
            ),
        )
        save_flag_file(options.model_dir, options.repeating_values())
