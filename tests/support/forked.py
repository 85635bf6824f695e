"""Starts programs in processes that need no import: forks of one that has done it.

A fork takes a second to train where a new interpreter takes five. What is forked has
imported everything and run nothing, so that it is as good as new.
"""

import ctypes
import dataclasses
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

CLONE_NEWNET = 0x40000000
LONGEST_SECONDS = 300.0  # that a test's process may take


@dataclasses.dataclass
class Process:
    """A running program; `wait` gives its exit code, negative for a signal.

    After that, `peak_bytes` is the most memory that it had, with what it inherited, and
    `cpu_seconds` what it computed, however busy the machine was.
    One that does not end is killed after `LONGEST_SECONDS`.
    """

    server: "ForkServer"
    pid: int
    files: str
    peak_bytes: int = 0
    cpu_seconds: float = 0.0
    code: int | None = None

    def kill(self, signal_number: int) -> None:
        if self.code is None:  # else the number may be another's by now
            os.kill(self.pid, signal_number)

    def wait(self) -> int:
        if self.code is None:
            answer = self.server.request({"wait": self.pid})
            self.code, self.peak_bytes, milliseconds = answer
            self.cpu_seconds = milliseconds / 1000
        return self.code

    def stdout(self) -> str:
        return Path(f"{self.files}.out").read_text()

    def stderr(self) -> str:
        return Path(f"{self.files}.err").read_text()

    def wait_for(self, path: Path, *, seconds: float = 120) -> None:
        """Returns when `path` exists."""
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < deadline, self.stderr()
            time.sleep(0.005)


class ForkServer:
    """Runs modules, or programs given as text, in forks of one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self,
        module: str,
        *arguments: str,
        limits: dict[str, int] | None = None,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
        stdin: str = os.devnull,
        stdout: str | None = None,
        network: str | None = None,
    ) -> Process:
        """Starts `python -m module arguments`, or `python -c`.

        Args:
          module: to run; `-c` runs the text that is the first argument.
          arguments: of its command line.
          limits: as `resource` names them.
          environment: more variables.
          folder: to run in, where modules are found too.
          stdin: a file.
          stdout: a file to write to, which `stdout` does not give then.
          network: a namespace, as `ip netns` names it.
        """
        self._count += 1
        files = str(self._folder / str(self._count))
        for suffix in ("out", "err"):
            Path(f"{files}.{suffix}").touch()
        request = {"module": module, "arguments": arguments, "files": files}
        request["limits"] = limits or {}
        request["environment"] = environment or {}
        request |= {"folder": str(folder or ""), "stdin": stdin, "stdout": stdout}
        request["network"] = network
        return Process(self, self.request(request)[0], files)

    def request(self, request: dict) -> list[int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def import_everything() -> None:
    """Imports all that `train` needs, and runs nothing."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import mnist_dist.artifacts.saved_model
    import mnist_dist.training.run_training  # noqa: F401


def run_module(module: str, arguments: list[str]) -> NoReturn:
    """Is `python -m module arguments`, or `python -c`, to the end of the process."""
    sys.argv = [module, *arguments]
    code: object = 1
    try:
        if module == "-c":
            text = sys.argv.pop(1)
            exec(text, {"__name__": "__main__"})
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _serve() -> None:
    import_everything()
    # What is there already is no garbage: no fork looks, and copies the pages for that.
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = _wait(request["wait"])
        elif pid := os.fork():
            answer = [pid]
        else:
            _run(request)
        print(json.dumps(answer), flush=True)


def _wait(pid: int) -> list[int]:
    deadline = time.monotonic() + LONGEST_SECONDS
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            milliseconds = int(1000 * (usage.ru_utime + usage.ru_stime))
            code = os.waitstatus_to_exitcode(status)
            return [code, usage.ru_maxrss << 10, milliseconds]
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _run(request: dict) -> None:
    for stream, path in (
        (1, request["stdout"] or f"{request['files']}.out"),
        (2, f"{request['files']}.err"),
    ):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
    os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
    if request["network"]:
        namespace = os.open(f"/run/netns/{request['network']}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)
    if request["folder"]:
        os.chdir(request["folder"])
        sys.path.insert(0, request["folder"])
    for name, limit in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    os.environ.update(request["environment"])
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    run_module(request["module"], request["arguments"])


if __name__ == "__main__":
    _serve()
