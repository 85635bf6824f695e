"""Ends a worker whose run makes no progress, and tells who keeps the others waiting.

A worker that dies or is stopped is noticed by TensorFlow (`peers.py`). One that lives
but does not come to the next collective is not: the others would wait for ever.
"""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import tensorflow as tf
from tensorflow.python.eager import context  # the key-value store has no public name

from mnist_dist.cluster.membership import Cluster
from mnist_dist.errors import EXIT_STOPPED

LEAST_SECONDS = 300.0  # a default limit is never less
TIMES_SLOWEST = 20  # of the longest time without progress so far
_REPORT_SECONDS = 5  # that the chief waits for the reports of the others
_POLL_SECONDS = 0.5
_STDERR = 2
_KEY = "mnist_dist/waits_at_step/"


class ProgressWatch:
    """Ends this process with `EXIT_STOPPED` if nothing goes on for too long.

    It first writes the stacks of all threads to standard error. The chief's last line
    names the workers that did not come to the step that the others wait in.
    """

    def __init__(self, cluster: Cluster, *, seconds: float | None) -> None:
        """Watches nothing yet.

        Args:
          cluster: the workers, and which of them this is.
          seconds: without progress that are too long; 0: none are; None: none for a
            worker alone, for others `TIMES_SLOWEST` as long as ever so far, and
            `LEAST_SECONDS` at least.
        """
        self._cluster = cluster
        self._seconds = seconds
        self._step = 0
        self._is_in_call = False
        self._idle = self._slowest = 0.0
        self._ended = threading.Event()

    def begin(self) -> None:
        """Begins to watch, in a thread of its own."""
        if self._seconds or (self._seconds is None and self._cluster.num_workers > 1):
            threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """Watches no longer."""
        self._ended.set()

    @contextlib.contextmanager
    def call(self, step: int) -> Iterator[None]:
        """Is around each call of the devices; its begin and its end are progress."""
        self._note(step, is_in_call=True)
        yield
        self._note(step, is_in_call=False)

    def _note(self, step: int, *, is_in_call: bool) -> None:
        self._slowest = max(self._slowest, self._idle)
        self._step, self._is_in_call, self._idle = step, is_in_call, 0.0

    @property
    def _limit(self) -> float:
        if self._seconds is None:
            return max(LEAST_SECONDS, TIMES_SLOWEST * self._slowest)
        return self._seconds

    def _watch(self) -> None:
        # Counted, not read from a clock: a process that was stopped and goes on has not
        # been idle meanwhile.
        while not self._ended.wait(_POLL_SECONDS):
            self._idle += _POLL_SECONDS
            if self._idle > self._limit:
                self._end()

    def _end(self) -> NoReturn:
        cluster, step = self._cluster, self._step
        where = "in the call" if self._is_in_call else "between two calls, the last"
        _say(
            f"no progress for {self._idle:.0f} seconds (--step_timeout) {where} at step "
            f"{step:,}; the stacks of all threads:"
        )
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        if cluster.num_workers > 1:
            if self._is_in_call:
                with contextlib.suppress(tf.errors.OpError):
                    context.context().set_config_key_value(f"{_KEY}{cluster.rank}", "1")
            if cluster.is_chief:
                missing = [str(r) for r in range(cluster.num_workers) if not _waits(r)]
                who = f"worker {' and '.join(missing)}" if missing else "no worker"
                _say(
                    f"{who} did not come to the call at step {step:,}; start all "
                    "workers again and the run goes on from its newest checkpoint"
                )
            else:  # the chief holds the reports, and ends the others with itself
                time.sleep(2 * _REPORT_SECONDS)
        os._exit(EXIT_STOPPED)


def _waits(rank: int) -> bool:
    """Whether a worker has reported that it waits in a call."""
    try:
        context.context().get_config_key_value(
            f"{_KEY}{rank}", timeout_in_ms=1000 * _REPORT_SECONDS
        )
    except tf.errors.OpError:
        return False
    return True


def _say(text: str) -> None:
    # Not through sys.stderr, whose lock a hanging thread may hold.
    os.write(_STDERR, f"train: error: {text}\n".encode())
