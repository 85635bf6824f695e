"""Starts several workers of `train` on this host, and keeps them together.

  mnist-dist launch --num_workers=2 -- --model_dir=runs/two
  mnist-dist launch --num_workers=2 --max_restarts=3 -- --model_dir=runs/two

Several hosts by hand, the same command on each but for --node_rank:
  mnist-dist launch --num_workers=4 --nnodes=2 --node_rank=0 --master_addr=HOST0 -- ...
  mnist-dist launch --num_workers=4 --nnodes=2 --node_rank=1 --master_addr=HOST0 -- ...

Every line of output begins with the worker's rank, and is kept in MODEL_DIR/logs/.
When one worker fails all are stopped, and started again as often as --max_restarts
allows; they go on from the newest checkpoint. Exit code 2 (wrong input) is never
tried again. At the end stands the traceback of the worker that failed first, and its
code is returned. Whatever ends the launcher ends its workers.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import itertools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import IO, Any

from absl import flags

from mnist_dist import program
from mnist_dist.cluster import split_address
from mnist_dist.errors import InputError, PeerError

NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 2, "Workers on this host.", lower_bound=1, upper_bound=256
)
MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 0, "Times to start all workers again.", lower_bound=0
)
NNODES = flags.DEFINE_integer("nnodes", 1, "Hosts of the run.", lower_bound=1)
NODE_RANK = flags.DEFINE_integer(
    "node_rank", 0, "Place of this host, from 0.", lower_bound=0
)
MASTER_ADDR = flags.DEFINE_string("master_addr", "", "Host of --node_rank=0.")
MASTER_PORT = flags.DEFINE_integer(
    "master_port", 29400, "Where it listens.", lower_bound=1, upper_bound=65535
)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOP_SECONDS = 60.0  # that a worker may take to save after a signal
LOST_SECONDS = 2.0  # that a worker may take to end after another has failed
ORPHAN_SECONDS = 10.0  # that a worker may take to save after the launcher has died
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds before a restart
_LAST_WORDS = 200  # lines
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def main(argv: Sequence[str], *, train_args: Sequence[str]) -> int:
    """Checks both parts of the command line and runs the workers."""
    del argv
    # Only now, so that a flag of train before the `--` is an unknown flag.
    from mnist_dist import train_flags

    train_flags.parse(train_args)
    if train_flags.FLAGS.worker_hosts or train_flags.FLAGS.task_index is not None:
        raise InputError(
            "--worker_hosts, --task_index: found one after the --, expected neither: "
            "launch sets them"
        )
    if NNODES.value > 1 and not MASTER_ADDR.value:
        raise InputError("--master_addr: found nothing, expected the first host's name")
    if NODE_RANK.value >= NNODES.value:
        raise InputError(
            f"--node_rank: found {NODE_RANK.value}, expected 0 to {NNODES.value - 1}"
        )
    return launch(
        [sys.executable, "-m", "mnist_dist.train", *train_args],
        num_workers=NUM_WORKERS.value,
        max_restarts=MAX_RESTARTS.value,
        model_dir=train_flags.FLAGS.model_dir,
        nnodes=NNODES.value,
        node_rank=NODE_RANK.value,
        master=(MASTER_ADDR.value, MASTER_PORT.value),
        timeout=train_flags.FLAGS.cluster_timeout,
    )


def launch(
    command: Sequence[str],
    *,
    num_workers: int,
    max_restarts: int,
    model_dir: str,
    nnodes: int = 1,
    node_rank: int = 0,
    master: tuple[str, int] = ("", 0),
    timeout: float = 300.0,
) -> int:
    """Runs the workers until all have ended, starting them again when one fails.

    Args:
      command: of a worker; `--worker_hosts` and `--task_index` are added.
      num_workers: of this host.
      max_restarts: how often to start all of them again.
      model_dir: logs are kept in its `logs`.
      nnodes: number of hosts.
      node_rank: place of this host.
      master: host and port where the first host's launcher listens.
      timeout: seconds to wait for the other hosts.

    Returns:
      The exit code: that of the worker that failed first, or 0.

    Raises:
      PeerError: another host did not come.
    """
    environments = _environments(num_workers)
    stop = _Stop()
    delay = FIRST_DELAY
    for restart in itertools.count(1):
        checkpoints = _checkpoints(model_dir)
        ports = _free_ports(num_workers)
        workers, first_rank = (
            _agree_with_hosts(ports, nnodes, node_rank, master, timeout)
            if nnodes > 1
            else ([f"127.0.0.1:{port}" for port in ports], 0)
        )
        group = [
            _start(
                [*command, f"--worker_hosts={','.join(workers)}", f"--task_index={r}"],
                rank=r,
                environment=environment,
                model_dir=model_dir,
            )
            for r, environment in enumerate(environments, start=first_rank)
        ]
        failed = _watch(group, stop)
        if failed is None:
            return 0
        code = failed.exit_code()
        if stop.signal:
            return code
        if code == program.EXIT_INPUT or restart > max_restarts:
            _say(
                f"worker {failed.rank} failed first, with code {code}; its last words:"
            )
            for line in failed.last_words():
                print(line, file=sys.stderr)
            return code
        # A run that gets somewhere between two failures is not made to wait longer.
        has_moved = _checkpoints(model_dir) != checkpoints
        delay = FIRST_DELAY if has_moved else min(2 * delay, LONGEST_DELAY)
        _say(
            f"worker {failed.rank} ended with code {code}; restart {restart} of "
            f"{max_restarts} in {delay:g} s"
        )
        if stop.sleep(delay):
            return program.EXIT_STOPPED
    raise AssertionError("unreachable")


@dataclasses.dataclass
class _Worker:
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


class _Stop:
    """Notes the signals that end the launcher; the second one kills."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_urgent = False
        # A signal wakes whoever waits on this.
        self.wake_up, write_end = os.pipe()
        os.set_blocking(self.wake_up, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
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


def _start(
    command: Sequence[str], *, rank: int, environment: dict[str, str], model_dir: str
) -> _Worker:
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
        start_new_session=True,  # a terminal's Ctrl-C reaches it through us alone
        preexec_fn=die_with_launcher,
    )
    log: IO[bytes] | None = None
    try:
        directory = os.path.join(model_dir, "logs")
        os.makedirs(directory, exist_ok=True)
        log = open(os.path.join(directory, f"worker-{rank}.log"), "ab")  # noqa: SIM115
    except OSError as error:
        _say(f"worker {rank}: its output is not kept: {error}")
    return _Worker(rank, process, log, collections.deque(maxlen=_LAST_WORDS))


def _start_watchdog(group: Iterable[_Worker]) -> subprocess.Popen[bytes]:
    """Starts a process that kills the workers when this one is gone and they stay."""
    groups = " ".join(f"-{worker.process.pid}" for worker in group)
    return subprocess.Popen(
        # `read` ends when nobody holds the pipe's other end any more.
        ["sh", "-c", f"read -r _; sleep {ORPHAN_SECONDS}; kill -s KILL -- {groups}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _watch(group: list[_Worker], stop: _Stop) -> _Worker | None:
    """Passes output on until all have ended; returns the worker that failed first."""
    watchdog = _start_watchdog(group)
    running = list(group)
    failed: list[_Worker] = []
    deadline = float("inf")
    is_told = False
    try:
        with _Output(group, wake_up=stop.wake_up) as output:
            while running and time.monotonic() < deadline and not stop.is_urgent:
                output.pass_on(timeout=0.2)
                if stop.signal and not is_told:
                    is_told = True
                    deadline = time.monotonic() + STOP_SECONDS
                    for worker in running:
                        worker.kill(stop.signal)
                for worker in [w for w in running if w.process.poll() is not None]:
                    running.remove(worker)
                    if worker.process.returncode:
                        failed.append(worker)
                        deadline = min(deadline, time.monotonic() + LOST_SECONDS)
            for worker in group:
                worker.kill(signal.SIGKILL)
            while output.pass_on(timeout=0):
                pass
    finally:
        for worker in group:
            worker.kill(signal.SIGKILL)
            worker.process.wait()
            if worker.log:
                worker.log.close()
        watchdog.kill()
        watchdog.wait()
    # One that only lost another did not fail first, though it may have ended first.
    causes = [w for w in failed if w.exit_code() != program.EXIT_STOPPED]
    return next(iter([*causes, *failed, *running]), None)


class _Output:
    """The workers' pipes, passed on line by line."""

    def __init__(self, group: Iterable[_Worker], *, wake_up: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_up = wake_up
        self._selector.register(wake_up, selectors.EVENT_READ)
        self._rests: dict[int, bytes] = {}
        for worker in group:
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

    def _pass_line(self, worker: _Worker, stream: IO[str], line: bytes) -> None:
        text = line.decode(errors="replace")
        if stream is sys.stderr:
            worker.errors.append(text)
        try:
            print(f"[{worker.rank}] {text}", file=stream, flush=True)
        except BrokenPipeError:  # nobody reads any more; the run goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if worker.log:
            try:
                worker.log.write(line + b"\n")
                worker.log.flush()
            except OSError as error:
                worker.log = None
                _say(f"worker {worker.rank}: its output is no longer kept: {error}")


def _environments(num_workers: int) -> list[dict[str, str]]:
    """One environment a worker: the host's processors and GPUs shared out.

    GPUs only as far as CUDA_VISIBLE_DEVICES names them; else the workers of one host
    share out what they find there.
    """
    threads = max(len(os.sched_getaffinity(0)) // num_workers, 1)
    common = {
        "PYTHONUNBUFFERED": "1",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    } | dict(os.environ)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    if not gpus:
        return [common] * num_workers
    if len(gpus) < num_workers:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES: found {visible!r} for {num_workers} workers, "
            "expected a GPU for each, or none at all (an empty value)"
        )
    share = len(gpus) // num_workers
    return [
        common | {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share :][:share])}
        for i in range(num_workers)
    ]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _agree_with_hosts(
    ports: list[int],
    nnodes: int,
    node_rank: int,
    master: tuple[str, int],
    timeout: float,
) -> tuple[list[str], int]:
    """Tells the first host's launcher this host's ports, and learns all workers.

    Returns:
      `host:port` of all workers by rank, and the rank of this host's first.

    Raises:
      PeerError: a host did not come in time.
    """
    deadline = time.monotonic() + timeout
    hosts = (
        _gather_hosts(ports, nnodes, master, deadline)
        if node_rank == 0
        else _join_hosts(ports, node_rank, master, deadline)
    )
    return [w for host in hosts for w in host], sum(map(len, hosts[:node_rank]))


def _gather_hosts(
    ports: list[int], nnodes: int, master: tuple[str, int], deadline: float
) -> list[list[str]]:
    address, port = master
    hosts = {0: [f"{_bracketed(address)}:{p}" for p in ports]}
    connections: list[socket.socket] = []
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise PeerError(
            f"--master_port: cannot listen on {port}: {error.strerror}"
        ) from error
    with server:
        while len(hosts) < nnodes:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, (peer, *_) = server.accept()
            except TimeoutError:
                missing = sorted(set(range(nnodes)) - hosts.keys())
                raise PeerError(
                    f"--nnodes: host {', '.join(map(str, missing))} of {nnodes} did "
                    "not come within --cluster_timeout"
                ) from None
            connection.settimeout(5)
            try:
                message = json.loads(connection.makefile("rb").readline(1 << 16))
                rank = int(message["node_rank"])
                joined = [f"{_bracketed(peer)}:{int(p)}" for p in message["ports"]]
                [split_address(worker) for worker in joined]
                if not 0 < rank < nnodes:
                    raise ValueError(rank)
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()  # whoever that was
                continue
            hosts[rank] = joined
            connections.append(connection)
    ordered = [hosts[rank] for rank in range(nnodes)]
    for connection in connections:
        with connection, contextlib.suppress(OSError):
            connection.sendall(json.dumps(ordered).encode() + b"\n")
    return ordered


def _join_hosts(
    ports: list[int], node_rank: int, master: tuple[str, int], deadline: float
) -> list[list[str]]:
    trouble = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(master, timeout=left) as connection:
                message = {"node_rank": node_rank, "ports": ports}
                connection.sendall(json.dumps(message).encode() + b"\n")
                return json.loads(connection.makefile("rb").readline(1 << 20))
        except (OSError, ValueError) as error:
            trouble = str(error)
        time.sleep(0.2)
    raise PeerError(
        f"--master_addr: {master[0]}:{master[1]} was not reached within "
        f"--cluster_timeout: {trouble}"
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _checkpoints(model_dir: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(os.path.join(model_dir, "checkpoints")))
    except OSError:
        return frozenset()


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line at its first `--`."""
    where = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:where]), list(argv[where + 1 :])


if __name__ == "__main__":
    sys.argv, rest = split_command(sys.argv)
    program.run(functools.partial(main, train_args=rest))
