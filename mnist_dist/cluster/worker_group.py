"""Runs the launcher's workers: starts them, passes their output on, ends them together."""

import collections
import contextlib
import ctypes
import dataclasses
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from mnist_dist.cluster.stop_request import STOP_SIGNALS, stop_signals
from mnist_dist.errors import EXIT_STOPPED, InputError
from mnist_dist.files.local import open_to_write

STOP_SECONDS = 60.0  # that a worker may take to save after a signal
LOST_SECONDS = 2.0  # that a worker may take to end after another has failed
ORPHAN_SECONDS = 10.0  # that a worker may take to save after the launcher has died
STOP_SIGNAL = signal.SIGUSR1  # has the workers save and end, for a start with others
_LAST_WORDS = 200  # lines
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class StopSignals:
    """Notes the signals that end the launcher; the second one kills.

    Attributes:
      signal: the newest that came, or None.
      is_urgent: whether it was not the first.
      wake_up: a pipe's end that can be read when a signal comes or a worker ends.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_urgent = False
        self.wake_up, write_end = os.pipe()
        os.set_blocking(self.wake_up, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (*stop_signals(), signal.SIGCHLD):
            signal.signal(number, self._note)

    def sleep(self, seconds: float) -> bool:
        """Waits; returns True at once when a signal comes."""
        deadline = time.monotonic() + seconds
        while self.signal is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.signal is not None

    def _note(self, number: int, frame: Any) -> None:
        del frame
        if number in STOP_SIGNALS:
            self.is_urgent = self.signal is not None
            self.signal = number


@dataclasses.dataclass
class Worker:
    """A worker's process, the file that keeps its output, and its last errors."""

    rank: int
    process: subprocess.Popen[bytes]
    log: IO[bytes] | None
    errors: collections.deque[str]

    def exit_code(self) -> int:
        """As a shell gives it: 128 and the signal's number for a signal."""
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    def last_words(self) -> list[str]:
        """Returns the last traceback on standard error, or its last lines."""
        lines = list(self.errors)
        starts = [
            i for i, line in enumerate(lines) if line.startswith("Traceback (most")
        ]
        return lines[starts[-1] :] if starts else lines[-20:]

    def kill(self, number: int) -> None:
        """Signals the worker and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def run_workers(
    commands: Mapping[int, Sequence[str]],
    *,
    environments: Sequence[Mapping[str, str]],
    model_dir: str | None,
    stop: StopSignals,
    is_stop_wanted: Callable[[], bool] = lambda: False,
) -> Worker | None:
    """Runs the workers, passes their output on, and ends all when one fails.

    Args:
      commands: of the workers by rank.
      environments: of the workers, in the same order.
      model_dir: output is kept in its `logs`; None keeps none.
      stop: what it notes is passed on.
      is_stop_wanted: asked several times a second; when it says so the workers get
        `STOP_SIGNAL`, once, and as much time as they need.

    Returns:
      The worker that failed first, when all have ended; or None.
    """
    workers: list[Worker] = []
    failed: list[Worker] = []
    deadline = float("inf")
    is_told = is_asked_to_stop = False
    with _watchdog() as watchdog:
        try:
            for rank, environment in zip(commands, environments, strict=True):
                workers.append(
                    _start(
                        commands[rank],
                        rank=rank,
                        environment=environment,
                        model_dir=model_dir,
                    )
                )
                watchdog.write(b"%d\n" % workers[-1].process.pid)
            running = list(workers)
            with _Output(workers, wake_up=stop.wake_up) as output:
                while running and time.monotonic() < deadline and not stop.is_urgent:
                    output.pass_on(timeout=0.2)
                    if stop.signal and not is_told:
                        is_told = True
                        deadline = time.monotonic() + STOP_SECONDS
                        for worker in running:
                            worker.kill(stop.signal)
                    if not is_asked_to_stop and is_stop_wanted():
                        is_asked_to_stop = True
                        for worker in running:
                            worker.kill(STOP_SIGNAL)
                    for worker in [w for w in running if w.process.poll() is not None]:
                        running.remove(worker)
                        if worker.process.returncode:
                            failed.append(worker)
                            deadline = min(deadline, time.monotonic() + LOST_SECONDS)
                for worker in workers:
                    worker.kill(signal.SIGKILL)
                while output.pass_on(timeout=0):
                    pass
        finally:
            for worker in workers:
                worker.kill(signal.SIGKILL)
                worker.process.wait()
                if worker.log:
                    worker.log.close()
    # A worker that ended only because it lost a peer is not the cause.
    causes = [w for w in failed if w.exit_code() != EXIT_STOPPED]
    return next(iter([*causes, *failed, *running]), None)


def say(text: str) -> None:
    """Prints a line of the launcher's own."""
    print(f"launch: {text}", file=sys.stderr, flush=True)


def _start(
    command: Sequence[str],
    *,
    rank: int,
    environment: Mapping[str, str],
    model_dir: str | None,
) -> Worker:
    launcher = os.getpid()

    def die_with_launcher() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:
            os._exit(1)

    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # the launcher alone passes Ctrl-C on
        preexec_fn=die_with_launcher,
    )
    log: IO[bytes] | None = None
    try:
        log = _open_log(model_dir, rank) if model_dir else None
    except (OSError, InputError) as error:
        say(f"worker {rank}: its output is not kept: {error}")
    return Worker(rank, process, log, collections.deque(maxlen=_LAST_WORDS))


def _open_log(model_dir: str, rank: int) -> IO[bytes]:
    if "://" in model_dir:
        raise OSError(f"{model_dir} is not on this host")
    directory = os.path.join(model_dir, "logs")
    if os.path.islink(directory):
        raise OSError(f"{directory} is a link")
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, f"worker-{rank}.log")
    return open(open_to_write(path, os.O_WRONLY | os.O_APPEND), "ab")


@contextlib.contextmanager
def _watchdog() -> Iterator[IO[bytes]]:
    """A process that kills the workers if the launcher dies and they do not end.

    It is there before the workers, and reads the number of each.
    """
    script = (
        # `read` fails when nobody holds the pipe's other end any more.
        'groups=; while read -r group; do groups="$groups -$group"; done; '
        f"sleep {ORPHAN_SECONDS}; kill -s KILL -- $groups"
    )
    process = subprocess.Popen(
        ["sh", "-c", script],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield process.stdin
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


class _Output:
    """The workers' pipes, passed on line by line."""

    def __init__(self, workers: Iterable[Worker], *, wake_up: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_up = wake_up
        self._selector.register(wake_up, selectors.EVENT_READ)
        self._rests: dict[int, bytes] = {}
        for worker in workers:
            for pipe, stream in (
                (worker.process.stdout, sys.stdout),
                (worker.process.stderr, sys.stderr),
            ):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(
                    pipe, selectors.EVENT_READ, (worker, stream, pipe)
                )
                self._rests[pipe.fileno()] = b""

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *exception: object) -> None:
        self._selector.close()

    def pass_on(self, *, timeout: float) -> bool:
        """Passes on what is there; returns whether that was anything.

        Waits for it up to `timeout` seconds.
        """
        ready = self._selector.select(timeout)
        for key, _ in ready:
            if key.data is None:
                os.read(self._wake_up, 4096)
                continue
            worker, stream, pipe = key.data
            chunk = os.read(pipe.fileno(), 1 << 16)
            text = self._rests[pipe.fileno()] + chunk
            *lines, rest = text.split(b"\n")
            if rest and (not chunk or len(rest) > 1 << 16):
                lines, rest = [*lines, rest], b""
            self._rests[pipe.fileno()] = rest
            if not chunk:
                self._selector.unregister(pipe)
                pipe.close()
            for line in lines:
                self._pass_line(worker, stream, line)
        return bool(ready)

    def _pass_line(self, worker: Worker, stream: IO[str], line: bytes) -> None:
        text = line.decode(errors="replace")
        if stream is sys.stderr:
            worker.errors.append(text)
        print(f"[{worker.rank}] {text}", file=stream, flush=True)
        if worker.log:
            try:
                worker.log.write(line + b"\n")
                worker.log.flush()
            except OSError as error:
                worker.log = None
                say(f"worker {worker.rank}: its output is no longer kept: {error}")
