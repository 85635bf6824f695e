"""The processes of one framework, as the benchmark sees them."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from benchmarks.processes import environ_of_tools
from benchmarks.side import SideError, num_processors


class Group:
    """One process, or several workers that do each thing together.

    Attributes:
      sides: names of what it can train with.
      missing: why it has none, where its framework is not installed.
    """

    def __init__(
        self,
        framework: str,
        *,
        num_replicas: int = 1,
        num_workers: int = 1,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the processes and waits until they have imported the framework.

        Args:
          framework: `tensorflow`, `torch` or `jax`.
          num_replicas: of each process; TensorFlow alone takes more than 1.
          num_workers: processes that train together, each on its share of the
            processors.
          environ: variables of the environment, beside those of this process.

        Raises:
          RuntimeError: a process failed.
        """
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - close() does
        variables = {**environ_of_tools(), **(environ or {})}
        if num_workers > 1:
            threads = str(max(num_processors() // num_workers, 1))
            variables |= {"OMP_NUM_THREADS": threads, "TF_NUM_INTRAOP_THREADS": threads}
        addresses = _free_addresses(num_workers) if num_workers > 1 else []
        self._workers = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.worker", framework),
                    *(str(num_replicas), str(rank), *addresses),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=variables,
                text=True,
            )
            for rank in range(num_workers)
        ]
        first, *_ = self._read()
        self.sides: list[str] = first.get("sides", [])
        self.missing: str | None = first.get("missing")

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Has all workers do one thing; returns the first one's answer.

        Args:
          do: as `benchmarks.worker` knows it.
          details: of it.

        Raises:
          SideError: a worker says that it cannot.
          RuntimeError: a worker is gone.
        """
        request = json.dumps({"do": do, **details}) + "\n"
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(request)
            worker.stdin.flush()
        answers = self._read()
        for answer in answers:
            if "error" in answer:
                raise SideError(answer["error"])
        return answers[0]

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            assert worker.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
        for worker in self._workers:
            assert worker.stdout is not None
            worker.wait()
            worker.stdout.close()
        self._stderr.close()

    def _read(self) -> list[dict[str, Any]]:
        answers = []
        for worker in self._workers:
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if not line:
                self._stderr.seek(0)
                said = self._stderr.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"{worker.args!r} ended:\n{said}")
            answers.append(json.loads(line))
        return answers


def _free_addresses(count: int) -> list[str]:
    """Returns addresses of this host at which nobody listens."""
    with contextlib.ExitStack() as closing:
        sockets = [
            closing.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(count)
        ]
        return [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
